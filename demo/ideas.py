"""The tab of the latent stack: what is generated from one text's idea alone, beside what another text's idea gives.

Shapes: N test texts, D idea, S points on the line from A's idea to B's, the two ends among them.
"""

import html
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checkpoint import read_json
from common.options import UserError
from common.plots import BLUE, ORANGE
from latent_stack.experiments.interpolate import N_POINTS, points_between
from latent_stack.model import LatentStack, load_run
from latent_stack.trace import TextIdeas, clean, ideas_at_hand, ideas_of, is_truncated, report, shorten

NAME, SYSTEM, WEIGHTS = "Ideas", "latent_stack", "model.safetensors"
TRAIN = "python -m latent_stack.train --preset quick"
ABOUT = (
    "A text becomes one *idea*, a single vector. A middle model predicts from it the idea of the text to be written, "
    "and a language model writes that text from the idea alone."
)
N_EXAMPLES = 8  # texts of the test split on the page
CHARACTERS = 64  # a token at most on average: a longer text is refused before it is read


# --------------------------------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Plane:
    """The two principal components of the test texts' ideas."""

    mean: Tensor  # (D,)
    axes: Tensor  # (2, D)
    variance: tuple[float, float]  # the fractions that they explain

    @classmethod
    def fit(cls, z: Tensor) -> "Plane":
        mean = z.mean(0)
        _, scale, axes = torch.linalg.svd(z - mean, full_matrices=False)
        first, second = (scale.square() / scale.square().sum())[:2].tolist()
        return cls(mean, axes[:2], (first, second))

    def project(self, z: Tensor) -> Tensor:
        """(…, D) -> (…, 2)."""
        return (z - self.mean) @ self.axes.T


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
            return Comparison(message=f"Text {name} is empty. Type one, or choose an example.")
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
    lines = [
        f"text → encoder ({encoder}) → **an idea of {config.latent_dim} numbers** → middle model → "
        f"{config.prefix_len} soft tokens → language model ({writer}) → text. Nothing but the idea passes: "
        "the language model never sees the text.",
        f"**{run}** · {config.dataset} · {model.n_params() / 1e6:.2f}M parameters trained",
    ]
    if "rougeL" in summary and "rougeL_shuffled" in summary:
        own, other = summary["rougeL"], summary["rougeL_shuffled"]
        apart = summary["rougeL_ci95"][0] > summary["rougeL_shuffled_ci95"][1]
        verdict = "an idea holds something of its text" if apart else "no significant difference: it holds nothing"
        lines.append(
            f"ROUGE-L to the references of {summary['n']:,} test texts: {own:.3f} from a text's idea, {other:.3f} from "
            f"another text's idea (control). So {verdict}."
        )
    else:
        lines.append("This run's texts were never measured against those of another text's idea.")
    return "  \n".join(lines)


def load(run: str, data_dir: str, device) -> IdeasTab:
    model = load_run(run, device)
    test, absent = ideas_at_hand(model, data_dir)
    if absent:
        print(f"no examples and no map, because the run's data could not be read: {absent}")
    return IdeasTab(run, model, describe(model, run), test, Plane.fit(test.z) if test else None)


def ask(tab: IdeasTab, text: str) -> str:
    """The nearest test texts, and what is generated from the text's idea alone on a last line."""
    if len(text) > tab.longest:
        raise UserError(f"the text has {len(text):,} characters, and {tab.longest:,} are read at most")
    return report(tab.model, text, tab.test, "the run's data is not on this machine (--data-dir names it)")


# ---------------------------------------------------------------------------------------------- the page

CSS = """
#ideas-result p { margin: 0; }
#ideas-result .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
#ideas-result .card { border-left: 4px solid #0072B2; padding-left: .8rem; min-width: 0; overflow-wrap: anywhere; }
#ideas-result .card.control { border-color: #D55E00; }
#ideas .said { font-size: 1.2rem; line-height: 1.4; margin: .2rem 0 .4rem; min-height: 2.8em; overflow-wrap: anywhere; }
#ideas-result table { width: 100%; margin: .8rem 0 0; border: 0; font-variant-numeric: tabular-nums; }
#ideas-result :is(tr, th, td) { border: 0; font-weight: 400; padding: .1rem .8rem .1rem 0; text-align: left; }
#ideas-result td:last-child { width: 50%; padding-right: 0; }
#ideas-result i { display: block; height: .7rem; background: #0072B2; }
#ideas-result .control i { background: #999999; }
#ideas-path svg { display: block; width: 100%; height: auto; }
#ideas:has(.message) #ideas-path, #ideas-path .at { display: none; }
@media (max-width: 640px) { #ideas-result .pair { grid-template-columns: 1fr; } }
"""
SHOWN = ("#ideas-path:not([data-at]) .at-2", *(f'#ideas-path[data-at="{k}"] .at-{k}' for k in range(N_POINTS)))
CSS += f"{', '.join(SHOWN)} {{ display: block; }}\n"
TO_RESULT = "() => document.getElementById('ideas-result').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
TO_POINT = f"(t) => {{ document.getElementById('ideas-path').dataset.at = Math.round(t * {N_POINTS - 1}); }}"
WIDTH, HEIGHT, MARGIN = 480, 360, 16  # of the map


def card(tab: IdeasTab, found: Comparison, k: int) -> str:
    """HTML: what was generated from one of the two ideas, its text's reference, and the nearest test text."""
    text, z, name = found.texts[k], found.z[-k], "AB"[k]
    said = found.generated[-k] or "(nothing)" if found.generated else "…"
    lines = []
    if tab.test:
        lines += [f"Reference: {p.target}" for p in tab.test.pairs if p.input == text]
        ((nearest, cosine),) = tab.test.nearest(text, z, 1)
        lines.append(f"Nearest test text, cosine {cosine:.2f}: {shorten(nearest.input)}")
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
    rows = [("cosine of the two ideas", found.cosine(), "")]
    if tab.test:
        rows.append((f"mean of all pairs of {len(tab.test.z):,} test texts", tab.test.mean_cosine(), "control"))
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{label}</th><td>{cosine:.3f}</td>'
        f'<td><i style="width: {max(0.0, cosine):.1%}"></i></td></tr>'
        for label, cosine, kind in rows
    )
    return f'<div class="pair">{card(tab, found, 0)}{card(tab, found, 1)}</div><table>{body}</table>'


def show_path(found: Comparison) -> str:
    """HTML: the S texts, of which the page shows the one that the slider stands at."""
    generated = found.generated or ("…",) * len(found.z) if not found.message else ()
    return "".join(f'<p class="said at at-{k}">{html.escape(t or "(nothing)")}</p>' for k, t in enumerate(generated))


def draw(tab: IdeasTab, found: Comparison) -> str:
    """SVG: the test texts' ideas in the plane, those of A and B, and the S points, of which the page shows one."""
    if found.message:
        return ""
    if not tab.test:
        return '<p class="label">No map: the run\'s data is not on this machine (--data-dir names it).</p>'
    dots, line = tab.plane.project(tab.test.z), tab.plane.project(found.z)  # (N, 2), (S, 2)
    every = torch.cat((dots, line))
    low, size = every.amin(0), (every.amax(0) - every.amin(0)).clamp(min=1e-6)
    room = torch.tensor([WIDTH, HEIGHT]) - 2 * MARGIN

    def place(points):
        """(K, 2) -> K places on the paper, second component upwards."""
        x = (points - low) / size * room + MARGIN
        return [(round(x, 1), round(HEIGHT - y, 1)) for x, y in x.tolist()]

    circles = "".join(
        f'<circle cx="{x}" cy="{y}" r="3.5"><title>{html.escape(shorten(p.input))}</title></circle>'
        for (x, y), p in zip(place(dots), tab.test.pairs, strict=True)
    )
    path = place(line)
    (ax, ay), (bx, by) = path[0], path[-1]
    ends = "".join(
        f'<circle cx="{x}" cy="{y}" r="8" fill="{colour}"><title>{name}: {html.escape(shorten(text))}</title></circle>'
        f'<text x="{x}" y="{y - 12}">{name}</text>'
        for (x, y), name, colour, text in zip((path[0], path[-1]), "AB", (BLUE, ORANGE), found.texts, strict=True)
    )
    points = "".join(
        f'<circle class="at at-{k}" cx="{x}" cy="{y}" r="11" fill="none" stroke="currentColor" stroke-width="2.5"/>'
        for k, (x, y) in enumerate(path)
    )
    first, second = tab.plane.variance
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Map of ideas: A, B and {len(dots)} test texts">'
        f'<g fill="currentColor" fill-opacity=".3">{circles}</g>'
        f'<path d="M{ax} {ay} L{bx} {by}" stroke="currentColor" stroke-dasharray="4 4"/>'
        f'<g fill="currentColor" text-anchor="middle" font-weight="700">{ends}</g>{points}</svg>'
        f'<p class="label">Ideas of {len(dots):,} test texts in their two principal components, which hold '
        f"{first + second:.0%} of the variance ({first:.0%} and {second:.0%}); the ring is the slider's point. "
        "Point at a dot to read its text.</p>"
    )


def build(tab: IdeasTab) -> None:
    """The elements of the tab, inside an open gr.Blocks. It opens on its first two examples, already compared."""
    import gradio as gr

    examples = tab.examples()
    texts = examples[:2] if len(examples) > 1 else ["", ""]
    first = generate(tab, compare(tab, *texts)) if all(texts) else None

    def answer(a, b):
        found = compare(tab, a, b)
        yield show(tab, found), show_path(found), draw(tab, found)  # ideas take a moment, the texts seconds
        if not found.message:
            found = generate(tab, found)
            yield show(tab, found), show_path(found), gr.skip()

    gr.Markdown(tab.about, elem_classes="about")
    with gr.Column(elem_id="ideas"):
        boxes, shelves = [], []
        with gr.Row():
            for name, text in zip("AB", texts, strict=True):
                with gr.Column(min_width=320):
                    boxes.append(gr.Textbox(text, label=f"Text {name}", lines=4, max_lines=6, max_length=tab.longest))
                    choices = [(shorten(t, 70), k) for k, t in enumerate(examples)]
                    label = f"Text {name} from the test split, which training never saw"
                    shelves.append(gr.Dropdown(choices, value=None, label=label, visible=bool(examples)))
        button = gr.Button("Compare their ideas", variant="primary")
        result = gr.HTML(show(tab, first) if first else "", elem_id="ideas-result", elem_classes="live", container=True)
        with gr.Row(elem_id="ideas-path"):
            with gr.Column(min_width=320):
                slider = gr.Slider(0, 1, 0.5, step=1 / (N_POINTS - 1), label="From A's idea (0) to B's (1)")
                path = gr.HTML(show_path(first) if first else "", elem_classes="live")
            with gr.Column(min_width=320):
                drawn = gr.HTML(draw(tab, first) if first else "")
    private = dict(api_visibility="private", show_progress="minimal")
    chosen = [
        shelf.input(lambda k: examples[k], shelf, box, **private) for shelf, box in zip(shelves, boxes, strict=True)
    ]
    for trigger in (button.click, *(box.submit for box in boxes), *(choice.then for choice in chosen)):
        trigger(answer, boxes, [result, path, drawn], **private).then(None, js=TO_RESULT, **private)
    slider.change(None, slider, js=TO_POINT, **private)
