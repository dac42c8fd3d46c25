"""The tab of the latent stack: what is generated from one text's idea alone, beside what another text's idea gives.

Shapes: N test texts, D idea, S points on the line from A's idea to B's, the two ends among them.
"""

import html
from dataclasses import dataclass, replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from common.checkpoint import read_json
from common.options import UserError
from common.tokenizers import CHARACTERS
from demo.drawing import Dot, Plane, point_map
from latent_stack.experiments.interpolate import N_POINTS, points_between
from latent_stack.model import LatentStack, load_run
from latent_stack.trace import TextIdeas, clean, ideas_at_hand, ideas_of, is_truncated, report, shorten

NAME, SYSTEM, WEIGHTS = "Ideas", "latent_stack", "model.safetensors"
TRAIN = "python -m latent_stack.train --preset quick"
ABOUT = (
    "From the idea of a text, one vector or several, a middle model predicts the idea of the text to be written; a "
    "language model that sees nothing else puts it into words. As in a JEPA the prediction is made between vectors; "
    "unlike in one it is learned from the words that it leads to."
)
N_EXAMPLES = 8  # texts of the test split on the page
ABSENT = "the run's data is not on this machine (--data-dir names it)"


# --------------------------------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class IdeasTab:
    """A run of the latent stack, and its test texts if they are here."""

    run: str
    model: LatentStack
    about: str
    test: TextIdeas | None = None
    plane: Plane | None = None

    @property
    def longest(self) -> int:
        """Characters of the longest text that is read at all."""
        return CHARACTERS * self.model.backbones.max_input

    @property
    def max_characters(self) -> int:
        return 2 * self.longest  # a request holds two texts

    def examples(self) -> list[str]:
        """The first texts of the test split that the encoder reads whole."""
        texts = [p.input for p in self.test.pairs] if self.test else []
        return [text for text in texts[: 5 * N_EXAMPLES] if not is_truncated(self.model, text)][:N_EXAMPLES]


@dataclass(frozen=True)
class Comparison:
    """Two texts, S points z (S, D) from the first one's idea to the second's, and what was generated from each, once
    it is; if there is a `message`, it explains why there is no comparison and all else is empty."""

    texts: tuple[str, str] = ("", "")
    z: Tensor | None = None
    generated: tuple[str, ...] = ()
    message: str = ""

    def cosine(self) -> float:
        return float(F.cosine_similarity(self.z[0], self.z[-1], dim=0))


def compare(tab: IdeasTab, *texts: str | None) -> Comparison:
    """Two texts -> their ideas; nothing is generated yet."""
    for name, text in zip("AB", texts, strict=True):
        if len(text or "") > tab.longest:
            size = f"{len(text):,} characters, and {tab.longest:,} are read at most"
            return Comparison(message=f"Text {name} is too long: {size}. Shorten it.")
        if not clean(text):
            return Comparison(message=f"Text {name} is empty: there is nothing to make an idea of.")
    first, last = map(clean, texts)
    return Comparison((first, last), points_between(ideas_of(tab.model, [first, last])[None])[0])


def generate(tab: IdeasTab, found: Comparison) -> Comparison:
    """The same with its S texts. One batch of S, whatever the texts: one idea always gives the same text."""
    return replace(found, generated=tuple(tab.model.generate(found.z.to(tab.model.device))))


# --------------------------------------------------------------------------------------------- the tab


def describe(model: LatentStack, run: str | Path) -> str:
    """Markdown: the way from text to text, and how much of a text this run's ideas hold."""
    config, path = model.config, Path(run) / "summary.json"
    summary = read_json(path) if path.is_file() else {}
    encoder, writer = ("frozen" + " but for LoRA" * (rank > 0) for rank in (config.lora_encoder, config.lora_decoder))
    measured = "what is generated was never measured against another text's idea"
    if "rougeL_shuffled" in summary:
        apart = summary.get("rougeL_difference_ci95", [0])[0] > 0  # paired
        measured = (
            f"ROUGE-L to the references of {summary['n']:,} test texts: {summary['rougeL']:.3f} from a text's idea, "
            f"{summary['rougeL_shuffled']:.3f} from another text's (control), so an idea holds "
            f"{'something of its text' if apart else 'nothing of its text that could be measured'}"
        )
    words = " and the language model's embeddings of its words" if model.has_queries else ""
    middle = "no middle model (identity)" if config.middle == "identity" else "middle model"
    ideas = "one idea," if config.ideas == 1 else f"{config.ideas} ideas of"
    return (
        f"text → encoder ({encoder}){words} → **{ideas} {config.latent_dim} numbers** → {middle} → "
        f"{config.prefix_len} soft tokens → language model ({writer}) → text. Nothing but the idea passes.  \n"
        f"**{run}** · {config.dataset} · {model.n_params() / 1e6:.2f}M parameters trained · {measured}."
    )


def load(run: str, data_dir: str, device) -> IdeasTab:
    model = load_run(run, device)
    test, absent = ideas_at_hand(model, data_dir)
    if absent:
        print(f"{run}: no examples and no map, because the run's data could not be read: {absent}")
    about = describe(model, run) + (f"  \nNo examples and no map: {ABSENT}." if absent else "")
    return IdeasTab(run, model, about, test, Plane.fit(test.z) if test else None)


def ask(tab: IdeasTab, text: str) -> str:
    """The nearest test texts, and what is generated from the text's idea alone on a last line."""
    if len(text) > tab.longest:
        raise UserError(f"the text has {len(text):,} characters, and {tab.longest:,} are read at most")
    return report(tab.model, text, tab.test, ABSENT)


# ---------------------------------------------------------------------------------------------- the page

CSS = """
#ideas input[role="combobox"] { text-overflow: ellipsis; margin-right: 1.5rem; }
#ideas-result p { margin: 0; }
#ideas-result .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin-bottom: .6rem; }
#ideas-result .card { border-left: 4px solid #0072B2; padding-left: .8rem; min-width: 0; overflow-wrap: anywhere; }
#ideas-result .card.control { border-color: #D55E00; }
#ideas-result .said { font-size: 1.2rem; line-height: 1.4; margin: .2rem 0 .4rem; }
#ideas-result table { width: 100%; margin: .6rem 0 0; border: 0; font-variant-numeric: tabular-nums; }
#ideas-result caption { text-align: left; }
#ideas-result :is(tr, th, td) { border: 0; font-weight: 400; padding: .1rem .8rem .1rem 0; text-align: left; }
#ideas-result td:last-child { width: 50%; padding-right: 0; }
#ideas-result i { display: block; height: .7rem; background: #0072B2; }
#ideas-result .control i { background: #999999; }
#ideas-path ol { list-style: none; margin: 0; padding: 0; }
#ideas-path li { display: grid; grid-template-columns: 3rem 1fr; margin: 0; padding: .4rem .6rem; line-height: 1.4;
                 border-left: 4px solid transparent; overflow-wrap: anywhere; }
#ideas-path circle.at { fill: none; stroke: currentColor; stroke-width: 2.5; r: 11px; }
#ideas:not(:has(.card)) #ideas-path, #ideas-path circle.at { display: none; }
@media (max-width: 640px) {
  #ideas-result .pair { grid-template-columns: 1fr; }
  #ideas-result td:last-child { width: 25%; }
}
"""
AT = ["#ideas-path:not([data-at]) .at-2", *(f'#ideas-path[data-at="{k}"] .at-{k}' for k in range(N_POINTS))]
CSS += f"""
:is({", ".join(AT)}):is(circle) {{ display: inline; }}
:is({", ".join(AT)}):is(li) {{ border-color: currentColor; background: var(--background-fill-secondary); }}
"""
TO_RESULT = "() => document.getElementById('ideas-result').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
TO_POINT = """(t) => {
    const path = document.getElementById('ideas-path'), at = Math.round(t * LAST)
    path.dataset.at = at
    const text = path.querySelector(`li.at-${at}`)?.textContent ?? ''
    path.querySelector('input[type=range]')?.setAttribute('aria-valuetext', text)
}""".replace("LAST", str(N_POINTS - 1))
WAITING = '<p class="label">What is generated from the two ideas will appear here.</p>'
OWN = -1  # among the examples to choose from: a text of one's own
WRITING, NOTHING = "generating…", "(nothing)"  # instead of a text that is not there yet, or has no words


def card(tab: IdeasTab, found: Comparison, k: int) -> str:
    """HTML: what was generated from one of the two ideas, its text's reference, and the nearest test text."""
    text, z, name = found.texts[k], found.z[-k], "AB"[k]  # A is the first of the S points, B the last
    said = found.generated[-k] or NOTHING if found.generated else WRITING
    lines = []
    if tab.test:
        lines += [f"Reference: {p.target}" for p in tab.test.pairs if p.input == text]
        ((nearest, cosine),) = tab.test.nearest(text, z, 1)
        lines.append(f"Nearest test text, cosine {cosine:.2f}: {shorten(nearest.input, 80)}")
    if is_truncated(tab.model, text):
        lines.append(f"The encoder reads {tab.model.backbones.max_input} tokens: the end of text {name} is not read.")
    return (
        f'<section class="card{" control" * k}"><p class="label">Generated from {name}\'s idea alone'
        f'{" (control)" * k}</p><p class="said">{html.escape(said)}</p>'
        + "".join(f'<p class="label">{html.escape(line)}</p>' for line in lines)
        + "</section>"
    )


def show(tab: IdeasTab, found: Comparison) -> str:
    """HTML: the two texts side by side, and below them the cosine of their ideas; bars have length max(0, cosine)."""
    if found.message:
        return f'<p class="message" role="alert">{html.escape(found.message)}</p>'
    rows = [("A and B", found.cosine(), "")]
    if tab.test:
        rows.append((f"any two of {len(tab.test.z):,} test texts, mean", tab.test.mean_cosine(), "control"))
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{label}</th><td>{cosine:.3f}</td>'
        f'<td><i style="width: {max(0.0, cosine):.1%}"></i></td></tr>'
        for label, cosine, kind in rows
    )
    return (
        f'<div class="pair">{card(tab, found, 0)}{card(tab, found, 1)}</div>'
        '<p class="label">B is the control: if both read alike, the idea carries nothing of its text.</p>'
        f'<table><caption class="label">Cosine of the ideas of</caption>{body}</table>'
    )


def show_path(found: Comparison) -> str:
    """HTML: the S texts, of which the page marks the one that the slider stands at."""
    if found.message:
        return ""
    generated, S = found.generated or (WRITING,) * len(found.z), len(found.z)
    names = ["A", *(f"{k / (S - 1):g}" for k in range(1, S - 1)), "B"]
    rows = "".join(
        f'<li class="at-{k}"><span class="label">{name}</span> <span>{html.escape(text or NOTHING)}</span></li>'
        for k, (name, text) in enumerate(zip(names, generated, strict=True))
    )
    return f"<ol>{rows}</ol>"


def draw(tab: IdeasTab, found: Comparison) -> str:
    """SVG: the test texts' ideas in the plane, A's and B's, and S rings between them, of which the page shows one."""
    if found.message or not tab.test:
        return ""
    dots, path = tab.plane.project(tab.test.z).tolist(), tab.plane.project(found.z).tolist()  # N, S of (x, y)
    N, S = len(dots), len(path)
    shown = [Dot(*xy, title=shorten(p.input)) for xy, p in zip(dots, tab.test.pairs, strict=True)]
    shown += [Dot(*xy, kind=f"at at-{k}", title=f"{k / (S - 1):g} of the way") for k, xy in enumerate(path)]
    for xy, name, kind, text in zip((path[0], path[-1]), "AB", ("near", "mark"), found.texts, strict=True):
        shown.append(Dot(*xy, name, kind, f"{name}: {shorten(text)}"))
    return point_map(shown, f"Map of ideas: A, B and {N} test texts", lines=[(N, N + S - 1)])


def legend(tab: IdeasTab) -> str:
    """Markdown: what the map shows."""
    if not tab.test:
        return ""
    first, second = tab.plane.variance
    return (
        f"Each grey dot is the idea of one of {len(tab.test.z):,} test texts; point at it to read the text. The ring "
        "is where the slider stands. The map's two axes are the principal components of these ideas and show "
        f"{first + second:.0%} of their variance ({first:.0%} and {second:.0%}): what lies close together here may be "
        "far apart in the other directions."
    ) + " A shorter text leaves more of its ideas zero, and the map shows that, too." * tab.model.has_queries


def build(tab: IdeasTab) -> None:
    """The elements of the tab, inside an open gr.Blocks. It opens on its first two examples, already compared."""
    import gradio as gr

    examples = tab.examples()
    texts = examples[:2] if len(examples) > 1 else ["", ""]
    first = generate(tab, compare(tab, *texts)) if all(texts) else None
    choices = [("your own text", OWN), *((f"{k}. {shorten(text, 60)}", k) for k, text in enumerate(examples, 1))]

    def answer(a, b):
        found = compare(tab, a, b)
        yield show(tab, found), show_path(found), draw(tab, found)  # ideas take a moment, the texts seconds
        if not found.message:
            found = generate(tab, found)
            yield show(tab, found), show_path(found), gr.skip()

    typed = dict(placeholder="A chat, or a few sentences", lines=5, max_lines=5, max_length=tab.longest)
    with gr.Column(elem_id="ideas"):
        boxes, shelves = [], []
        with gr.Row():
            for k, (name, text) in enumerate(zip("AB", texts, strict=True), 1):
                with gr.Column(min_width=320):
                    picked = dict(value=k if text else OWN, visible=bool(examples))
                    shelves.append(
                        gr.Dropdown(choices, label=f"Text {name}: one of the test split, or your own", **picked)
                    )
                    boxes.append(gr.Textbox(text, label=f"Text {name}", show_label=not examples, **typed))
        button = gr.Button("Compare their ideas", variant="primary")
        result = gr.HTML(
            show(tab, first) if first else WAITING, elem_id="ideas-result", elem_classes="live", container=True
        )
        with gr.Row(elem_id="ideas-path"):
            with gr.Column(min_width=320):
                slider = gr.Slider(0, 1, 0.5, step=1 / (N_POINTS - 1), label="From A's idea (0) to B's (1)")
                path = gr.HTML(show_path(first) if first else "", elem_classes="live")
            with gr.Column(min_width=320):
                drawn = gr.HTML(draw(tab, first) if first else "")
                gr.Markdown(legend(tab), elem_classes="about")
    private = dict(api_visibility="private", show_progress="minimal")
    chosen = []
    for shelf, box in zip(shelves, boxes, strict=True):
        chosen.append(shelf.input(lambda k: "" if k == OWN else examples[k - 1], shelf, box, **private))
        box.input(None, None, shelf, js=f"() => {OWN}", **private)
    for trigger in (button.click, *(box.submit for box in boxes), *(choice.then for choice in chosen)):
        trigger(answer, boxes, [result, path, drawn], **private).then(None, js=TO_RESULT, **private)
    for trigger in (slider.change, path.change):
        trigger(None, slider, js=TO_POINT, **private)
