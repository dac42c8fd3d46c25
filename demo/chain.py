"""The tab of JEPA-Reasoner: a prompt, its chain of latents step by step, the Talker's words; and the same disturbed.

A tree is drawn, with the steps of the chain on it. Of other tasks the steps are shown in a table alone.
"""

import html
from dataclasses import dataclass, replace
from pathlib import Path

from common.checkpoint import read_json
from common.options import UserError, one_line
from common.tokenizers import Tokenizer
from demo.tree import CSS as TREE_CSS
from demo.tree import WIDE, Mark, draw, symbol, unlike_training
from reasoner import trace as chains
from reasoner.config import QUESTIONS
from reasoner.data import load_examples
from reasoner.model import ReasonerTalker
from reasoner.phases import load_run
from reasoner.tasks import MEASURED, Example, is_correct, parse_tree
from reasoner.trace import Trace, trace

NAME, SYSTEM, WEIGHTS = "Chain", "reasoner", "talker/model.safetensors"
TRAIN = "python -m reasoner.train --preset quick"
ABOUT = (
    "The Reasoner predicts a latent from the prompt, the next latent from that one, and so on: prompt → r1 → r2 → … "
    "No token is written until the chain is finished; only then the Talker, which never sees the prompt, puts it into "
    "words."
)
N_EXAMPLES = 200  # of the test split; about 1% of the quick run's routes are wrong, and some of those shall be seen
MANY = 12  # rows of a table beyond which it scrolls
TASK = {
    "tree": "The prompt lists the edges of a tree, its root and a goal. The chain should be the route between them.",
    "clue": "The prompt lists the edges of a tree and its root. The chain should name a goal and be a route to it.",
    "routes": "The prompt lists the edges of a graph, its root and a goal. The chain should be a route between them.",
    "cfg": "The prompt is a string of a small grammar. The chain should be its derivation, rule by rule.",
    **dict.fromkeys(QUESTIONS, "The prompt is a word problem. The chain should be its solution."),
    "text": "The prompt is the beginning of a text. The chain should be what follows.",
}
LATENT = (
    "In training each latent was drawn towards the embedding of the chain's next token, with true tokens as inputs; "
    "here the chain runs on its own latents."
)
TARGET = {
    "tree": "route",
    "clue": "route (one of several)",
    "routes": "route (one of several)",
    "cfg": "derivation",
    **dict.fromkeys(QUESTIONS, "solution"),
}


# ------------------------------------------------------------------------------------------- the tab's run


@dataclass(frozen=True)
class ChainTab:
    """A run of JEPA-Reasoner, examples of its test split, and those that it gets wrong."""

    run: str
    model: ReasonerTalker
    examples: tuple[Example, ...]
    wrong: frozenset  # of indices into `examples`
    about: str
    max_characters: int

    @property
    def dataset(self) -> str:
        return self.model.config.dataset


def read_examples(model: ReasonerTalker, data_dir: str) -> list[Example]:
    """Of the test split those that fit the context, of trees those with long routes first; none without the data.

    A `data_dir` that was asked for and cannot be read is a UserError: it is not quietly replaced.
    """
    if data_dir and model.config.dataset in ("tree", "clue", "routes", "cfg"):
        raise UserError(f"--data-dir does not apply: the examples of {model.config.dataset} are generated")
    config = replace(model.config, n_eval=N_EXAMPLES, data_dir=data_dir or model.config.data_dir)
    if config.dataset == "text":  # which has no prompts
        return []
    try:
        found = load_examples("test", config)[:N_EXAMPLES]
    except UserError as error:
        if data_dir:
            raise
        print(f"there are no examples to choose from, because the run's data could not be read: {error}")
        return []
    lengths = [len(ids) for ids in model.tokenizer.encode([x.prompt for x in found])]
    found = [x for x, n in zip(found, lengths, strict=True) if n < config.block_size]
    return sorted(found, key=lambda x: -len(x.chain.split())) if config.dataset in ("tree", "clue") else found


def describe(model: ReasonerTalker, run: str) -> str:
    """Markdown: the task, which run answers, how well it did on the test split."""
    config, path = model.config, Path(run) / "summary.json"
    summary = read_json(path) if path.is_file() else {}
    size = sum(part.n_params() for part in (model.reasoner, model.talker)) / 1e6
    figure = summary.get(MEASURED.get(config.dataset))
    measured = f" · {figure:.1%} of {summary['n']:,} unseen test examples correct" if figure is not None else ""
    return f"{TASK[config.dataset]} {LATENT}  \n**{run}** · {size:.2f}M parameters{measured}"


def load(run: str, data_dir: str, device) -> ChainTab:
    model = load_run(run, device)
    if not isinstance(model, ReasonerTalker):
        raise UserError(
            f"{run} is a baseline, which has no chain of latents to show; "
            f'python -m reasoner.evaluate --run {run} --ask "…" asks it'
        )
    if model.config.of_steps:
        raise UserError(
            f"{run} has a latent for each step, not for a token, and the page shows tokens; "
            f'python -m reasoner.evaluate --run {run} --ask "…" asks it'
        )
    examples = read_examples(model, data_dir)
    words = model.answer([x.prompt for x in examples]) if examples else []
    pairs = zip(examples, words, strict=True)
    wrong = frozenset(i for i, (x, text) in enumerate(pairs) if not is_correct(model.config.dataset, x, text))
    return ChainTab(run, model, tuple(examples), wrong, describe(model, run), chains.max_characters(model))


def ask(tab: ChainTab, text: str) -> str:
    """The chain in lines, the Talker's words on a last line."""
    return chains.ask(tab.model, text)


# ---------------------------------------------------------------------------------------------- the page

CSS = (
    TREE_CSS
    + """
#chain { display: grid; gap: 1.5rem; align-items: start; grid-template: "ask" "result" "disturb" / minmax(0, 1fr); }
#chain-ask { grid-area: ask; }
#chain-result { grid-area: result; }
#chain-disturb { grid-area: disturb; }
@media (min-width: 900px) {
  #chain { grid-template: "ask result" auto "disturb result" 1fr / 320px minmax(0, 1fr); }
}
#chain .sr, #chain-said { position: absolute; width: 1px; height: 1px; min-width: 0; overflow: hidden;
                          clip-path: inset(50%); }
#chain .panels { display: grid; gap: 1.5rem 2rem;
                 grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
#chain-ask button { padding-inline: .5rem; white-space: nowrap; }
#chain-ask input { text-overflow: ellipsis; padding-right: 2rem; }
#chain-result .html-container { padding: 0; }
#chain .panels > .message { align-self: start; margin: 0; }
#chain .panel p { margin: 0; }
#chain .panel h3 { margin: 0 0 .3rem; font-size: 1rem; }
#chain .answer { font-size: 2rem; line-height: 1.3; overflow-wrap: anywhere; }
#chain .answer.long { font-size: 1.1rem; }
#chain .body { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: start; margin-top: .8rem; }
#chain .drawn { flex: 1 1 280px; overflow-x: auto; }
#chain .wide { grid-template-columns: minmax(0, 1fr); }
#chain .wide .drawn, #chain .drawn:not(:has(.tree)) { flex-basis: 100%; }
#chain svg.tree { display: block; width: 100%; }
#chain svg.symbol { display: inline-block; width: 1.1em; height: 1.1em; vertical-align: -.2em; }
#chain .legend { font-size: .85rem; line-height: 1.7; }
#chain .legend span { white-space: nowrap; margin-right: .9em; }
#chain .band { display: inline-block; width: 1.6em; height: .7em; border-radius: .35em; background: #E69F0073; }
#chain .steps { flex: 1 1 330px; overflow-x: auto; }
#chain .many { max-height: 32rem; overflow-y: auto; }
#chain table { width: 100%; border: 0; margin: 0; border-collapse: collapse; font-size: .9rem;
               font-variant-numeric: tabular-nums; }
#chain caption { text-align: left; padding-bottom: .3rem; }
#chain :is(tr, th, td) { border: 0; text-align: left; vertical-align: top; font-weight: 400; }
#chain :is(th, td) { padding: .3rem .8rem .3rem 0; border-top: 1px solid var(--border-color-primary); }
#chain thead th { border-top: 0; opacity: .75; }
#chain td small { display: block; opacity: .75; }
#chain :is(.step-number, td:nth-child(2)) { white-space: nowrap; }
#chain-result, #chain .panel { scroll-margin-top: 1rem; }
"""
)
# On a narrow screen the result is below what was typed; its tree shows the question again.
TO_RESULT = """() => {
    const element = document.querySelector('#chain SELECTOR') || document.querySelector('#chain-result')
    if (innerWidth < 900) element.scrollIntoView({behavior: 'smooth', block: 'start'})
}"""
LOUDEST = 1.5  # noise; a cosine to the latent of about 0.55 is left
# The number beside the slider may be empty, or too large, while it is being typed.
WITHIN = f"(first, noise, ...others) => [first, Math.min(Math.max(noise ?? 0, 0), {LOUDEST}), ...others]"
NOISE = (
    "Noise: the length of a random vector that is added to each latent before it is fed back; the latent's own length "
    "is 1. The same number always gives the same noise."
)


def expected(tab: ChainTab, prompt: str) -> Example | None:
    """The prompt with its true chain: of a tree always, else if it is one of the examples."""
    if tab.dataset == "tree":
        return Example(prompt, " ".join(parse_tree(prompt).route()))
    return next((x for x in tab.examples if x.prompt.split() == prompt.split()), None)


def kinds(tab: ChainTab, found: Trace, example: Example | None) -> list[str]:
    """Of every step: good, bad, new (put there by hand), or "" where several chains may be correct."""
    if example is None or tab.dataset not in ("tree", "cfg"):
        return ["new" if step.replaced else "" for step in found.steps]
    true = [*example.chain.split(), "[EOS]"]
    good = [step.thought == word for step, word in zip(found.steps, true, strict=False)]
    good += [False] * (len(found.steps) - len(good))
    return ["new" if step.replaced else "good" if g else "bad" for step, g in zip(found.steps, good, strict=True)]


def table(found: Trace, of: list[str]) -> str:
    """HTML: a row a latent."""
    spoken, rows = {"good": "correct", "bad": "wrong", "new": "replaced", "": ""}, []
    for k, (step, kind) in enumerate(zip(found.steps, of, strict=True), 1):
        (token, cos), *further = step.nearest
        others = " · ".join(f"{html.escape(token)} {cos:.3f}" for token, cos in further)
        sign = f'{symbol(kind)}<span class="sr">{spoken[kind]}</span> ' if kind else ""
        rows.append(
            f'<tr><th scope="row" class="step-number">{sign}r{k}</th><td><b>{html.escape(token)}</b> {cos:.3f}'
            f"<small>{others}</small></td><td>{html.escape(step.fed_back() or f'– {found.end()}')}</td></tr>"
        )
    head = '<th scope="col">latent</th><th scope="col">nearest (cosine)</th><th scope="col">fed back</th>'
    scrolled = ' tabindex="0" role="region" aria-label="The chain, latent by latent"' * (len(rows) > MANY)
    return (
        f'<div class="steps{" many" * (len(rows) > MANY)}"{scrolled}><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def legend(drawn: str, of: list[str]) -> str:
    """HTML: what the signs mean that are there."""
    names = {"good": "correct step", "bad": "wrong step", "new": "replaced by hand"}
    signs = [f"<span>{symbol(kind)} {name}</span>" for kind, name in names.items() if kind in of]
    signs += ['<span><i class="band"></i> true route</span>'] if drawn else []
    signs += ["<span>curved: no edge leads there</span>"] if "Q" in drawn else []
    return f'<p class="legend label">{"".join(signs)}</p>' if signs else ""


def verdict(tab: ChainTab, found: Trace, example: Example | None) -> str:
    """✓ or ✗ with the true chain, "" where that is not known."""
    if example is None:
        return ""
    if is_correct(tab.dataset, example, found.words):
        return f"✓ the true {TARGET[tab.dataset]}" if tab.dataset not in QUESTIONS else "✓ the true answer"
    return f"✗ the true {TARGET[tab.dataset]} is {example.chain}"


def panel(tab: ChainTab, title: str, found: Trace, example: Example | None) -> str:
    """HTML of one chain: the words, the tree with its steps, the table."""
    of, words = kinds(tab, found, example), found.words.strip() or "(none)"
    tree = parse_tree(found.prompt) if tab.dataset == "tree" else None
    drawn = ""
    if tree:
        marks = [Mark(k, step.thought, kind) for k, (step, kind) in enumerate(zip(found.steps, of, strict=True), 1)]
        off = [f"r{m.number} ({m.label})" for m in marks if m.label not in (*tree.children, "[EOS]")]
        drawn = draw(tree, marks)
        drawn += f'<p class="label">Not in this tree: {html.escape(", ".join(off))}</p>' * bool(off)
    if signs := drawn + legend(drawn, of):
        signs = f'<div class="drawn">{signs}</div>'
    return (
        f'<section class="panel"><h3>{html.escape(title)}</h3><p class="label">The Talker\'s words</p>'
        f'<p class="answer{" long" if len(words) > 40 else ""}">{html.escape(words)}</p>'
        f'<p class="verdict">{html.escape(verdict(tab, found, example))}</p>'
        f'<div class="body">{signs}{table(found, of)}</div></section>'
    )


def message(error: UserError) -> str:
    """HTML of an error."""
    text = one_line(error, 300)
    return f'<p class="message" role="alert">{html.escape(text[:1].upper() + text[1:])}</p>'


def show(tab: ChainTab, prompt: str | None, noise: float = 0.0, k: int = 0, word: str = "") -> tuple:
    """A prompt, the norm of the noise, the latent r_k (0: none) that gives way to a word -> a sentence that is spoken,
    HTML, and the undisturbed Trace (None if there is none)."""
    try:
        plain = trace(tab.model, prompt)
    except UserError as error:
        return "", message(error), None
    example, noise = expected(tab, plain.prompt), noise or 0.0
    said = f"The Talker says: {plain.words} {verdict(tab, plain, example)}."
    changes = [f"r{k} replaced by {word}"] * bool(k) + [f"noise {noise:g}"] * bool(noise)
    panels = [panel(tab, "Undisturbed" if changes else "The chain", plain, example)]
    if changes:
        try:
            found = trace(tab.model, prompt, noise, {k: word or ""} if k else None)
            panels.append(panel(tab, f"Disturbed: {', '.join(changes)}", found, example))
            said += f" Disturbed: {found.words} {verdict(tab, found, example)}."
        except UserError as error:
            panels.append(message(error))
    tree = parse_tree(plain.prompt) if tab.dataset == "tree" else None
    odd, wide = (unlike_training(tree, tab.model.config), len(tree.leaves()) > WIDE) if tree else ("", False)
    note = f'<p class="message">Unlike the trees of training: {html.escape(odd)}.</p>' if odd else ""
    return html.escape(said), f'{note}<div class="panels{" wide" * wide}">{"".join(panels)}</div>', plain


def thoughts(tab: ChainTab, plain: Trace) -> list[str]:
    """The words that may take a latent's place, first a child of the root that the route passes by."""
    if tab.dataset == "tree":
        tree = parse_tree(plain.prompt)
        passed = [child for child in tree.children[tree.root] if child not in tree.route()]
        return [*passed[:1], *sorted(set(tree.children) - set(passed[:1]), key=int)]
    near = dict.fromkeys(token for step in plain.steps for token, _ in step.nearest)
    return [token for token in near if is_token(tab.model.tokenizer, token)] or [""]


def is_token(tokenizer: Tokenizer, word: str) -> bool:
    """May it take a latent's place?"""
    try:
        return chains.token_id(tokenizer, word) < tokenizer.n_text
    except UserError:
        return False


def label_of(tab: ChainTab, i: int) -> str:
    """An example as a line to choose."""
    text = tab.examples[i].prompt
    if tab.dataset == "tree":
        tree = parse_tree(text)
        text = f"from {tree.root} to {tree.goal}, {len(tree.children)} nodes"
    return f"{i + 1}{'. ✗' if i in tab.wrong else '.'} {text if len(text) <= 80 else f'{text[:80]}…'}"


def replaceable(tab: ChainTab, plain: Trace) -> tuple[list, list]:
    """The latents that may be replaced, each with its number, and the words that may take their place."""
    fed_back = enumerate(plain.steps[:-1], 1)
    return [("none", 0), *((f"r{k}, now {step.thought}", k) for k, step in fed_back)], thoughts(tab, plain)


def build(tab: ChainTab) -> None:
    """The elements of the tab, inside an open gr.Blocks."""
    import gradio as gr

    n, what = len(tab.examples), "tree" if tab.dataset == "tree" else "example"

    def disturb(prompt, noise, k, word):
        said, shown, plain = show(tab, prompt, noise, k, word)
        if plain is None:
            return said, shown, gr.skip(), gr.skip()
        latents, words = replaceable(tab, plain)
        return said, shown, gr.Dropdown(latents, value=k), gr.Dropdown(words, value=word or words[0])

    def follow(prompt, noise):
        i = next((i for i, x in enumerate(tab.examples) if x.prompt == (prompt or "").strip()), None)
        return i, *disturb(prompt, noise, 0, "")

    def choose(i, noise):
        return tab.examples[i].prompt, *follow(tab.examples[i].prompt, noise)

    def next_one(i, noise):
        return choose(0 if i is None else (i + 1) % n, noise)

    first = tab.examples[0].prompt if n else ""
    said_first, shown, plain = show(tab, first)
    latents, words = replaceable(tab, plain) if plain else ([("none", 0)], [""])
    with gr.Column(elem_id="chain"):
        with gr.Column(elem_id="chain-ask"):
            labels = [(label_of(tab, i), i) for i in range(n)]
            title = f"Unseen {what} (✗: answered wrongly)"
            pick = gr.Dropdown(labels, value=0 if n else None, label=title, visible=n > 0)
            info = TASK[tab.dataset]
            prompt = gr.Textbox(first, label="Prompt", info=info, max_lines=8, max_length=tab.max_characters)
            with gr.Row():
                button = gr.Button("Follow the chain", variant="primary", scale=3, min_width=120)
                following = gr.Button("Next one", scale=2, min_width=100, visible=n > 0)
        with gr.Column(elem_id="chain-result"):
            said = gr.HTML(said_first, elem_id="chain-said", elem_classes="live")
            result = gr.HTML(shown if n else '<p class="label">The chain will appear here.</p>')
        with gr.Column(elem_id="chain-disturb"):
            gr.Markdown("**Disturb the chain**: does an error spread?")
            with gr.Row():
                k = gr.Dropdown(latents, value=0, label="Replace latent", min_width=120)
                word = gr.Dropdown(
                    words, value=words[0], label="by embedding of", allow_custom_value=True, min_width=120
                )
            noise = gr.Slider(0, LOUDEST, 0, step=0.05, label="Noise")
            gr.Markdown(NOISE, elem_classes="label")
    shown = [said, result, k, word]
    options = dict(api_visibility="private", show_progress="minimal", trigger_mode="always_last", js=WITHIN)
    to_result, to_disturbed = (TO_RESULT.replace("SELECTOR", x) for x in ("#chain-result", "section + *"))
    for trigger, answer, inputs, outputs, scroll in (
        (button.click, follow, [prompt, noise], [pick, *shown], to_result),
        (prompt.submit, follow, [prompt, noise], [pick, *shown], to_result),
        (pick.input, choose, [pick, noise], [prompt, pick, *shown], to_result),
        (following.click, next_one, [pick, noise], [prompt, pick, *shown], to_result),
        *((x, disturb, [prompt, noise, k, word], shown, to_disturbed) for x in (k.input, word.input, noise.change)),
    ):
        trigger(answer, inputs, outputs, **options).then(None, js=scroll, api_visibility="private")
