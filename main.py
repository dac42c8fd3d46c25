"""Ask a trained nanoJEPA one question in a web page: its answer, the answers nearest to its prediction, what it read.

    python main.py --run out/quick                        this machine only, http://127.0.0.1:7860 or the next free port
    python main.py --run out/nanojepa --data-dir DIR      candidates are the answers of DIR/test.jsonl
    python main.py --run out/quick --host 0.0.0.0         other machines may ask, too

One question in, one greedy answer out, at most `max_new_tokens` tokens long. The same question always gets the same
answer: nothing is sampled, nothing is remembered, no other model is asked. Neither the server nor the page sends
anything to another machine.

Shapes: A candidate answers, C width.
"""

import html
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from common.checkpoint import read_json
from common.device import resolve_device
from common.losses import cosine
from common.options import UserError, opt, parse, run_main
from common.word_problems import word_problems
from data import load_splits
from evaluate_accuracy import encode_answers
from model import NanoJEPA, load_run

TOP = 5  # candidates shown
MARGIN = 0.05  # cos_own - cos_other on the test split below which a cosine distinguishes no answer from another

GSM8K_STYLE = (  # written for this page; in no split of GSM8K
    "Nora bakes 6 trays of 8 rolls. She keeps 10 rolls for her family and sells the rest for $2 each. "
    "How many dollars does she earn?",
    "A train has 9 cars with 42 seats each. If a third of the seats are empty, how many passengers are on the train?",
    "Omar reads 15 pages every day for two weeks. His book has 300 pages. How many pages are left?",
    "A shirt costs $24 and a pair of trousers costs twice as much. How much do 3 shirts and 2 pairs of trousers cost?",
    "Lena walks 4 kilometres to work and back on each of 5 days a week. How many kilometres is that in 6 weeks?",
)


@dataclass
class DemoConfig:
    """What the demo reads."""

    run: str = opt("out/nanojepa", "folder of the trained run; RUN/best is one too")
    data_dir: str = opt("", "take the candidate answers from DIR/test.jsonl instead of the run's own data set")
    host: str = opt("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines ask, too")
    port: int = opt(0, "port to listen on (0: the first free one from 7860)")
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")


# ------------------------------------------------------------------------------------------- the thought


@dataclass(frozen=True)
class Candidates:
    """Answers to compare a prediction with, their latents z (A, C), and where they come from, in words."""

    answers: list[str]
    z: Tensor
    source: str


@dataclass(frozen=True)
class Thought:
    """What a question led to; if there is a `message`, it explains why there is no answer and all else is empty."""

    answer: str = ""
    nearest: tuple = ()  # (candidate, cosine), nearest first
    control: float = 0.0  # mean cosine over all candidates
    tokens: tuple = ()  # the pieces of text that the model read, with [PRED]
    message: str = ""


def candidates_of(model: NanoJEPA, answers: list[str], source: str) -> Candidates:
    """Distinct answers and their source in words -> the same with their latents."""
    return Candidates(answers, encode_answers(model, answers), source)


def load_candidates(model: NanoJEPA, data_dir: str = "") -> Candidates:
    """The distinct answers of the test split; whole numbers to 100 if the run's data is not on this machine.

    A `data_dir` that was asked for and cannot be read is a UserError: it is not quietly replaced.
    """
    source = replace(model.config, n_train=1)  # word problems: no need to generate the training split
    if data_dir:
        source = replace(source, dataset="gsm8k", data_dir=data_dir)
    try:
        answers = sorted({e.answer for e in load_splits(source)["test"]})
        return candidates_of(model, answers, f"the {len(answers):,} different answers of the test split")
    except UserError as error:
        if data_dir:
            raise
        print(f"the candidates are the whole numbers from 0 to 100, because the run's data could not be read: {error}")
    words = "the whole numbers from 0 to 100 (the run's own answers are not on this machine; --data-dir names them)"
    return candidates_of(model, [str(i) for i in range(101)], words)


def think(model: NanoJEPA, candidates: Candidates, question: str | None) -> Thought:
    """One question -> Thought. Deterministic; the answer has at most `config.max_new_tokens` tokens."""
    question = (question or "").encode("utf-8", "replace").decode().strip()  # half an emoji is no text for a tokenizer
    if not question:
        return Thought(message="There is no question yet. Type one, or choose an example.")
    if not any(c.isalpha() for c in question):
        return Thought(message="There are no words in this. Ask in a sentence, as the examples do.")
    ids = [*model.tokenize([question])[0], model.tokenizer.pred]
    if len(ids) > model.config.block_size:
        size = f"{len(ids):,} tokens with [PRED], and the model reads {model.config.block_size:,} at most"
        return Thought(message=f"This question is too long: {size}. Shorten it.")

    similarity = cosine(model.predict([question]), candidates.z).clamp(-1, 1)  # (A,)
    order = similarity.argsort(descending=True, stable=True)[:TOP].tolist()
    return Thought(
        answer=model.answer([question])[0],
        nearest=tuple((candidates.answers[i], float(similarity[i])) for i in order),
        control=float(similarity.mean()),
        tokens=tuple(model.tokenizer.pieces(ids)),
    )


def worth_of_cosines(model: NanoJEPA, summary: dict) -> str:
    """A sentence on whether this run's cosines mean something; `summary` is its summary.json, or empty."""
    config = model.config
    if config.jepa_weight == 0:
        return "Trained with λ = 0: nothing drew a prediction towards its answer, so the cosines mean nothing."
    if config.mask == "causal":
        return (
            "In training an answer's latent saw its question, here the candidates' latents do not: the cosines mean "
            "little."
        )
    if config.mask == "none":
        return (
            "In training [PRED] saw the answer it predicts; here there is none to see, so neither the answer nor the "
            "cosines mean much."
        )
    if "cos_own" not in summary:
        return (
            "This run's cosines were never measured against another answer's; they mean as much as they stand above "
            "the control in the table."
        )
    own, other = summary["cos_own"], summary["cos_other"]
    verdict = "a cosine means as much as it stands above that"
    if own - other < MARGIN:
        verdict = "too near to each other for a cosine to mean anything"
    return f"The cosine is {own:.3f} to a question's own answer, {other:.3f} to another answer: {verdict}."


def describe(model: NanoJEPA, run: str | Path) -> str:
    """Markdown: which run answers, how well it did on the test split, and whether its cosines mean something."""
    config, path = model.config, Path(run) / "summary.json"
    summary = read_json(path) if path.is_file() else {}  # RUN/best and unfinished runs have none
    data = config.data_dir or "GSM8K"
    if config.dataset == "wordproblems":
        data = f"word problems, level {config.difficulty}"
    how = "From a question the model predicts the latent of an answer it cannot see, then puts it into words."
    if config.writes_tokens:
        how = "An ordinary language model, the baseline: it writes the answer token by token after the question."

    lines = [how, "", f"**{run}** · {data} · {model.n_params() / 1e6:.2f}M parameters · mask {config.mask}"]
    if "exact_match" in summary:
        lines.append(
            f"On its test split {summary['exact_match']:.1%} of the answers are correct; "
            f"always giving the majority training answer: {summary['constant_from_train']:.1%}."
        )
    if config.answer_view == "program":
        lines.append(
            "α, β … are the question's numbers in order, a, b … the results of the steps; behind #### stands what the "
            "program computes."
        )
    return "  \n".join([*lines, worth_of_cosines(model, summary)])


# ---------------------------------------------------------------------------------------------- the page

CSS = """
.gradio-container { width: 100%; max-width: 1120px !important; margin: 0 auto !important; }
#about, #result .label { opacity: .75; }
#result p { margin: 0; }
#result .answer { font-size: 2rem; line-height: 1.4; overflow-wrap: anywhere; }
#result .message { padding: .6rem .8rem; border-left: 4px solid #D55E00; background: var(--background-fill-primary); }
#result table { width: 100%; margin: .8rem 0 0; border: 0; font-variant-numeric: tabular-nums; }
#result caption { text-align: left; padding-bottom: .3rem; }
#result :is(tr, th, td) { border: 0; font-weight: 400; padding: .15rem .8rem .15rem 0; white-space: nowrap; }
#result td:last-child { width: 99%; padding-right: 0; }
#result i { display: block; height: .7rem; background: #0072B2; }
#result .control i { background: #999999; }
#examples { gap: .5rem; }
#examples button { justify-content: flex-start; text-align: left; font-weight: 400; font-size: .9rem; background: none;
                   border: 1px solid var(--border-color-primary); }
.dark #read .text { color: white; }
#examples button:hover { border-color: var(--color-accent); }
"""
# On a phone the result is below the examples. gradio's own scroll_to_output has no effect in 6.31.
TO_RESULT = "() => document.getElementById('result').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


def show(thought: Thought, candidates: Candidates) -> str:
    """HTML: the answer, the nearest candidates and, below them, the control; bars have length max(0, cosine)."""
    if thought.message:
        return f'<p class="message" role="alert">{html.escape(thought.message)}</p>'
    rows = [(answer, cos, "") for answer, cos in thought.nearest]
    rows.append((f"mean of all {len(candidates.answers):,}", thought.control, "control"))
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{html.escape(label)}</th><td>{cos:.3f}</td>'
        f'<td><i style="width: {max(0.0, cos):.1%}"></i></td></tr>'
        for label, cos, kind in rows
    )
    return (
        f'<p class="label">Answer</p><p class="answer">{html.escape(thought.answer.strip() or "(none)")}</p>'
        f'<table><caption class="label">Cosine to the nearest of {html.escape(candidates.source)}; '
        f"grey, the control: the mean over all of them</caption>{body}</table>"
    )


def build(model: NanoJEPA, candidates: Candidates, about: str, examples: Sequence[str]) -> Any:
    """model, Candidates, Markdown, questions -> gr.Blocks, one page that asks `think`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
    import gradio as gr

    def ask(question):
        thought = think(model, candidates, question)
        pieces = [(piece, "question") for piece in thought.tokens[:-1]] + [(p, "[PRED]") for p in thought.tokens[-1:]]
        label = f"What the model read: {len(pieces)} tokens"
        return show(thought, candidates), gr.HighlightedText(pieces, label=label, visible=bool(pieces))

    with gr.Blocks(title="nanoJEPA") as page:
        gr.Markdown("# nanoJEPA")
        gr.Markdown(about, elem_id="about")
        with gr.Row():
            with gr.Column(min_width=320):
                question = gr.Textbox(label="Question", placeholder="Ask one question", max_lines=8, autofocus=True)
                button = gr.Button("Ask", variant="primary")
                with gr.Column(elem_id="examples"):
                    gr.Markdown("Or choose an example:")
                    shelf = [gr.Button(text, size="sm") for text in examples]  # gr.Examples cuts after 60 characters
            with gr.Column(min_width=320):
                result = gr.HTML('<p class="label">The answer will appear here.</p>', elem_id="result", container=True)
                read = gr.HighlightedText(
                    visible=False,
                    show_inline_category=False,
                    elem_id="read",
                    color_map={"question": "#56B4E9", "[PRED]": "#E69F00"},
                )
        private = dict(api_visibility="private", show_progress="minimal")
        chosen = [example.click(lambda text: text, example, question, **private) for example in shelf]
        for trigger in (button.click, question.submit, *(choice.then for choice in chosen)):
            trigger(ask, question, [result, read], **private).then(None, js=TO_RESULT, **private)
    return page


def launch(page: Any, host: str, port: int) -> str:
    """Serve a gr.Blocks, to this machine and without any outside help, in threads of its own -> its address."""
    import gradio as gr  # after `build`, which switches its analytics off

    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    theme.set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # gradio calls its own server when it starts
    try:
        with socket.socket() as probe:  # gradio's own message on a wrong address or a taken port is less clear
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            theme=theme,
            css=CSS,
        )
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on --host {host} --port {port}: {error}") from None
    return url


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(DemoConfig, {}, __doc__.split("\n\n")[0], argv)
    os.environ["HF_DATASETS_OFFLINE"] = "1"  # GSM8K from the local cache or --data-dir; the demo downloads no data
    model = load_run(config.run, resolve_device(config.device).device)
    candidates = load_candidates(model, config.data_dir)
    examples = GSM8K_STYLE
    if model.config.dataset == "wordproblems":
        examples = [e.question for e in word_problems("test", len(GSM8K_STYLE), model.config.difficulty)]
    page = build(model, candidates, describe(model, config.run), examples)
    url = launch(page, config.host, config.port)
    print(f"{config.run} answers at {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    run_main(main)
