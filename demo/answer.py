"""The tab of nanoJEPA: a question, the latent predicted from it, the answer decoded from that latent, and what it saw.

    question ──► ẑ ──► decoder ──► answer          a strip with this question's own numbers
                 └──► the map of answer latents, the nearest of them, the mask

Shapes: A candidate answers, C width, T tokens.
"""

import html
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from common.options import UserError
from common.programs import number_placeholders
from common.sources import same_answer
from demo.drawing import Dot, Plane, barcode, mask_drawing, point_map
from demo.thought import Knowledge, Thought, describe, load_knowledge, max_characters, summary_of, think
from model import NanoJEPA, jepa_mask, load_run

NAME, SYSTEM, WEIGHTS, TRAIN = "Answer", "nanojepa", "model.safetensors", "python train.py --preset quick"
ABOUT = (
    "A question becomes one latent, **ẑ**, a guess at the latent of an answer that the model cannot see; a decoder "
    "that sees nothing but ẑ then puts it into words."
)
MAP_LABELS, MASK_TOKENS = 40, 90  # dots of the map with their text; the longest sequence whose mask is drawn

CSS = """
#answer-page { display: grid; gap: 1rem;
               grid-template: "ask result" auto "shelf result" 1fr / minmax(280px, 3fr) 7fr; }
#answer-ask { grid-area: ask; } #answer-result { grid-area: result; } #answer-shelf { grid-area: shelf; }
@media (max-width: 800px) { #answer-page { grid-template: "ask" "result" "shelf" / minmax(0, 1fr); } }
#answer-result p, #answer-result h3 { margin: 0; }
#answer-result h3 { font-size: .95rem; margin-top: 1.1rem; }
#answer-result .strip { display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; margin: 0 0 .4rem; padding: 0;
                        list-style: none; }
#answer-result .strip li { flex: 1 1 120px; margin: 0; padding: .5rem .7rem; min-width: 0; position: relative;
                           border: 1px solid var(--border-color-primary); border-radius: 8px; overflow-wrap: anywhere; }
#answer-result .strip li + li::before { content: "→"; position: absolute; left: -1.25rem; top: 35%; }
#answer-result .strip .label { font-size: .8rem; }
#answer-result .strip .drawing { height: 22px; display: block; margin: .2rem 0; }
#answer-result .runs { display: grid; gap: 1rem 2.5rem;
                       grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
#answer-result .runs .strip li { flex-basis: 38%; }
#answer-result .runs .strip li:nth-child(odd)::before { content: ""; }
@media (max-width: 800px) { #answer-result .strip li { flex-basis: 38%; }
                            #answer-result .strip li:nth-child(odd)::before { content: ""; } }
#answer-result .strip li.final { border-color: #0072B2; border-width: 2px; }
#answer-result .answer { font-size: 1.6rem; line-height: 1.3; }
#answer-result table { width: 100%; margin: .3rem 0 0; border: 0; font-variant-numeric: tabular-nums; }
#answer-result :is(tr, th, td) { border: 0; font-weight: 400; padding: .1rem .8rem .1rem 0; white-space: nowrap;
                                 text-align: left; }
#answer-result td:last-child { width: 99%; padding-right: 0; }
#answer-result i { display: block; height: .7rem; background: #0072B2; }
#answer-result .control i { background: #999999; }
#answer-result .token { background: var(--background-fill-secondary); border-radius: 3px; padding: 0 .15em; }
#answer-result .strange { border-bottom: 3px solid #D55E00; }
#answer-result .two { display: grid; gap: 0 1.5rem;
                      grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); }
#answer-shelf button { justify-content: flex-start; text-align: left; font-weight: 400; font-size: .9rem;
                       background: none; border: 1px solid var(--border-color-primary); }
#answer-shelf button:hover { border-color: var(--color-accent); }
"""
# On a phone the result is below the question: scroll so far that both are seen.
TO_RESULT = "() => document.getElementById('answer-ask').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


@dataclass(frozen=True)
class AnswerTab:
    """A run of nanoJEPA, what its answers are held against, and perhaps a second run that gets the same questions."""

    run: str
    model: NanoJEPA
    knowledge: Knowledge
    about: str
    plane: Plane  # of the candidates' unit latents
    max_characters: int
    other: "AnswerTab | None" = None


def tab_of(run: str, model: NanoJEPA, knowledge: Knowledge, about: str = "") -> AnswerTab:
    return AnswerTab(run, model, knowledge, about, Plane.fit(knowledge.candidates.z.cpu()), max_characters(model))


def load(run: str, data_dir: str, device) -> AnswerTab:
    model = load_run(run, device)
    knowledge = load_knowledge(model, data_dir, summary_of(run))
    return tab_of(run, model, knowledge, describe(model, run, knowledge.world))


def compared(tab: AnswerTab, run: str, data_dir: str, device) -> AnswerTab:
    """A tab, and a second run beside it."""
    other = load(run, data_dir, device)
    return replace(tab, other=other, about=f"{tab.about}\n\n{other.about}")


def ask(tab: AnswerTab, question: str) -> str:
    """What led to the answer, and the answer on a last line."""
    thought = think(tab.model, tab.knowledge, question)
    if thought.message:
        raise UserError(thought.message)
    world = tab.knowledge.world
    rows = {
        "question": question,
        "never seen in training": ", ".join(world.strange_words(question)) if world else "",
        "program": thought.program,
        "nearest": ", ".join(f"{text} ({cos:.3f})" for text, cos in thought.nearest[:3]),
        "guess": thought.doubt and thought.answer,
        "why not": thought.doubt,
    }
    last = "I do not know" if thought.doubt else thought.answer
    return "\n".join([*(f"{label:<24}{value}" for label, value in rows.items() if value), last])


# --------------------------------------------------------------------------------------- what is shown


def strip(tab: AnswerTab, thought: Thought, question: str, gold: str) -> str:
    """question → ẑ → decoder → answer, each with this question's numbers; a language model has no ẑ between."""
    config = tab.model.config
    read = "".join(
        f'<span class="token{" strange" * strange}">{html.escape(piece.strip() or "␣")}</span> '
        for piece, strange in thought.tokens
    )
    n = len(thought.tokens)
    written = "".join(step[0][0] for step in thought.steps if step[0][0] != "[EOS]")
    certainty = min((step[0][1] for step in thought.steps), default=0.0)
    letters = ", its numbers as α, β …" * (config.answer_view == "program")
    boxes = [("question", read, f"{n} tokens{letters}; [PRED] reads them all")]
    if not config.writes_tokens:
        stripes = barcode(thought.z_hat, f"the {len(thought.z_hat)} numbers of z_hat")
        boxes.append(
            ("ẑ: the answer's latent, predicted", stripes, f"{len(thought.z_hat)} numbers, the hidden state at [PRED]")
        )
    what = "decoder, sees only ẑ" if boxes[1:] else "language model, token by token"
    boxes.append((what, html.escape(written), f"every token at least {certainty:.1%} likely"))
    shown = "I do not know" if thought.doubt else (thought.answer.strip() or "(none)")
    note = ""
    if thought.program:
        names = ", ".join(f"{name} = {value:g}" for name, value in number_placeholders(question)[1].items())
        note = html.escape(f"{thought.program} with {names}")
    if gold:
        mark = "–" if thought.doubt else "✓" if same_answer(thought.answer, gold) else "✗"
        note += f"{'<br>' * bool(note)}{mark} the true answer is {html.escape(gold)}"
    body = "".join(
        f'<li><div class="label">{name}</div><div>{text}</div><div class="label">{note}</div></li>'
        for name, text, note in boxes
    )
    return (
        f'<ol class="strip">{body}<li class="final"><div class="label">answer</div>'
        f'<div class="answer">{html.escape(shown)}</div><div class="label">{note}</div></li></ol>'
    )


def nearest_table(thought: Thought, n_candidates: int) -> str:
    """The nearest candidates and, below them, the control; bars have length max(0, cosine)."""
    rows = [(answer, cos, "") for answer, cos in thought.nearest]
    rows.append((f"mean of all {n_candidates:,}", thought.control, "control"))
    return "".join(
        f'<tr class="{kind}"><th scope="row">{html.escape(label)}</th><td>{cos:.3f}</td>'
        f'<td><i style="width: {max(0.0, cos):.1%}"></i></td></tr>'
        for label, cos, kind in rows
    )


def map_of(tab: AnswerTab, thought: Thought) -> str:
    """The candidates' latents in the plane of their two principal components, ẑ among them, a line to the nearest."""
    z_hat = F.normalize(torch.tensor(thought.z_hat), dim=-1)
    z, texts = tab.knowledge.candidates.z.cpu(), tab.knowledge.candidates.texts
    order = (z @ z_hat).argsort().tolist()  # the nearest last
    first = thought.nearest[0][0] if thought.nearest else None  # a program is followed by " = " and what it computes
    nearest = next((i for i in reversed(order) if first and f"{first} = ".startswith(f"{texts[i]} = ")), None)
    if nearest is not None:
        order.append(order.pop(order.index(nearest)))
    points, here = tab.plane.project(z).tolist(), tab.plane.project(z_hat).tolist()
    dots = [
        Dot(*points[i], texts[i] if len(order) - k <= MAP_LABELS else "", title=texts[i]) for k, i in enumerate(order)
    ]
    dots[-1] = replace(dots[-1], kind="near")
    dots.append(Dot(*here, "ẑ", "mark", "the predicted latent"))
    drawing = point_map(dots, f"z_hat lies nearest to {dots[-2].title}", [(len(dots) - 2, len(dots) - 1)], 400, 300)
    return (
        f"<h3>The map of answer latents</h3>{drawing}"
        f'<p class="label">Two principal components, {sum(tab.plane.variance):.0%} of the variance: near here need not '
        f"be near in all {len(thought.z_hat)} dimensions; the cosines are.</p>"
    )


def mask_of(tab: AnswerTab, thought: Thought) -> str:
    """Who may attend to whom: this question, [PRED], and behind them the answer as it is read in training."""
    model, t = tab.model, tab.model.tokenizer
    answer = [t.ans, *t.encode([thought.program or thought.answer])[0], t.eos]
    pieces = [piece for piece, _ in thought.tokens]
    segment = torch.tensor([[0] * len(pieces) + [1] * len(answer)])
    kinds = ["pred" if piece == "[PRED]" else "question" for piece in pieces] + ["answer"] * len(answer)
    pieces += t.pieces(answer)
    if len(pieces) > MASK_TOKENS:
        return ""
    words = {
        "jepa": "[PRED] sees the question, never the answer: ẑ can only be a prediction.",
        "llm-jepa": "Two views that do not see each other.",
        "causal": "An ordinary language model: the answer sees the question.",
        "none": "No mask: [PRED] sees the answer that it should predict. In training its cosine is a leak.",
    }[model.config.mask]
    sees = jepa_mask(segment, model.config.mask)[0, 0]
    return (
        f"<h3>The mask of this input</h3>{mask_drawing(pieces, kinds, sees, words)}"
        f'<p class="label">A row a token, ■ what it attends to: the question (blue), [PRED] (orange), the answer '
        f"as it is read in training (green). {words}</p>"
    )


def show(tab: AnswerTab, thought: Thought, question: str = "", gold: str = "") -> str:
    """HTML: all that led to the answer; ✓ or ✗ where the true one is known."""
    if thought.message:
        return f'<p class="message" role="alert">{html.escape(thought.message)}</p>'
    why = ""
    if thought.doubt:
        why = f"Because {thought.doubt}." + f" The guess would be {thought.answer}." * bool(thought.answer)
    if any(strange for _, strange in thought.tokens):
        why += " Underlined: never seen in training."
    steps = "".join(
        f"<tr>{''.join(f'<td>{html.escape(piece)} {p:.1%}</td>' for piece, p in step[:3])}</tr>"
        for step in thought.steps
    )
    parts = [
        f"<h3>The decoder, token by token</h3><table>{steps}</table>"
        '<p class="label">the likeliest token, which is written, and the two after it</p>'
    ]
    if thought.nearest and not tab.model.config.writes_tokens:
        candidates = tab.knowledge.candidates
        parts.insert(
            0,
            f"<h3>Cosine of ẑ to the nearest of {html.escape(candidates.source)}</h3>"
            f"<table>{nearest_table(thought, len(candidates.texts))}</table>"
            '<p class="label">grey, the control: the mean over all of them</p>',
        )
        parts.append(map_of(tab, thought))
    parts.append(mask_of(tab, thought))
    return (
        strip(tab, thought, question, gold)
        + f'<p class="label">{html.escape(why.strip())}</p>'
        + f'<div class="two">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
    )


def build(tab: AnswerTab) -> None:
    """The elements of the tab, inside an open gr.Blocks."""
    import gradio as gr

    gold = {e.question: e.answer for e in tab.knowledge.examples}
    tabs = [tab, tab.other] if tab.other else [tab]

    def ask(question):
        found = []
        for one in tabs:
            name = f"<h3>{html.escape(one.run)}</h3>" if tab.other else ""
            thought = think(one.model, one.knowledge, question)
            found.append(name + show(one, thought, (question or "").strip(), gold.get((question or "").strip(), "")))
        return f'<div class="runs"><div>{"</div><div>".join(found)}</div></div>' if tab.other else found[0]

    with gr.Column(elem_id="answer-page"):
        with gr.Column(elem_id="answer-ask"):
            size = dict(max_lines=8, max_length=tab.max_characters)
            question = gr.Textbox(label="Question", placeholder="Ask one question", autofocus=True, **size)
            button = gr.Button("Ask", variant="primary")
        result = gr.HTML(
            '<p class="label">The answer will appear here.</p>', elem_id="answer-result", elem_classes="live"
        )
        with gr.Column(elem_id="answer-shelf"):
            if gold:
                gr.Markdown("Or choose a question of the test split, which training never saw:")
            shelf = [gr.Button(text, size="sm") for text in gold]  # gr.Examples cuts after 60 characters
    private = dict(api_visibility="private", show_progress="minimal")
    chosen = [example.click(lambda text: text, example, question, **private) for example in shelf]
    for trigger in (button.click, question.submit, *(choice.then for choice in chosen)):
        trigger(ask, question, result, **private).then(None, js=TO_RESULT, **private)
