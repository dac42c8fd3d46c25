"""Draw the three systems: nanojepa.png, reasoner.png, latent_stack.png.

python results/draw_architectures.py

BLUE is what predicts, and what trains it; GREEN the target, or what is trained beside it; GREY what is frozen or given;
ORANGE what is cut off. Coordinates are inches.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.options import run_main
from common.plots import BLACK, BLUE, GREEN, GREY, ORANGE, WIDTH, figure, headline

SOLID, DASHED = dict(linestyle="-"), dict(linestyle=(0, (3, 2)))


@contextmanager
def canvas(path: str | Path, height: float, title: str) -> Iterator:
    """-> axes of WIDTH x height inches without a frame, under a title."""
    with figure(path, size=(WIDTH, height + 0.45)) as (fig, axes):
        axes.set(xlim=(0, WIDTH), ylim=(0, height), aspect="equal")
        axes.axis("off")
        headline(fig, title)
        yield axes


def box(axes, x: float, y: float, width: float, height: float, text: str, colour: str, frozen: bool = False) -> None:
    """A module; (x, y) is its lower left corner."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    style = dict(facecolor=to_rgba(colour, 0.14), edgecolor=colour, linewidth=1.5, **(DASHED if frozen else SOLID))
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", **style))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.35)


def label(axes, x: float, y: float, text: str, colour: str = BLACK, **style) -> None:
    axes.text(x, y, text, color=colour, **{"ha": "center", "va": "center", "fontsize": 8.5, "linespacing": 1.3} | style)


def tokens(axes, x: float, y: float, words: list[str], colour: str = GREY, last: str = "") -> list[float]:
    """A row of tokens from x on, the last one in a colour of its own -> the middles of their cells."""
    from matplotlib.patches import Rectangle

    middles = []
    for i, word in enumerate(words, 1):
        marked, width = last if last and i == len(words) else "", 0.16 + 0.078 * len(word)
        axes.add_patch(Rectangle((x, y), width, 0.28, facecolor="white", edgecolor=marked or colour, linewidth=1.2))
        label(axes, x + width / 2, y + 0.13, word, marked or BLACK)
        middles.append(x + width / 2)
        x += width + 0.05
    return middles


def latent(axes, x: float, y: float, name: str, colour: str, radius: float = 0.2) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle((x, y), radius, facecolor=colour, edgecolor="none", zorder=3))
    axes.text(x, y - 0.01, name, color="white", ha="center", va="center", fontsize=10, fontweight="bold", zorder=4)


def arrow(axes, start: tuple, end: tuple, colour: str = BLACK, dashed: bool = False) -> None:
    style = dict(arrowstyle="-|>", color=colour, linewidth=1.5, shrinkA=0, shrinkB=0, mutation_scale=11)
    axes.annotate("", end, start, arrowprops=style | (DASHED if dashed else SOLID))


def cross(axes, x: float, y: float) -> None:
    """Nothing passes here."""
    axes.plot(x, y, "X", color=ORANGE, markersize=11, markeredgecolor="white", zorder=5)


def steps(axes, top: float, *texts: str) -> None:
    """What happens, in order, in the upper left corner."""
    for number, text in enumerate(texts, 1):
        label(axes, 0.05, top, str(number), ha="left", va="top", fontweight="bold", fontsize=9)
        label(axes, 0.25, top, text, ha="left", va="top", fontsize=9)
        top -= 0.19 * (1 + text.count("\n")) + 0.05


def nanojepa(path: str | Path) -> None:
    with canvas(path, 3.75, "nanoJEPA predicts the latent of an answer that it cannot see") as axes:
        question = tokens(axes, 0.05, 0.3, ["Ana", "has", "5", "pears.", "Ben", "adds", "3.", "[PRED]"], last=BLUE)
        answer = tokens(axes, 5.0, 0.3, ["[ANS]", "8", "[EOS]"], last=GREEN)
        label(axes, 1.85, 0.1, "question view")
        label(axes, 5.7, 0.1, "answer view, in training only")
        for x in (*question, *answer):
            arrow(axes, (x, 0.6), (x, 0.88), GREY)
        pred, eos = question[-1], answer[-1]
        box(axes, 0.05, 0.9, 3.75, 0.55, "Transformer", BLUE)
        box(axes, 4.85, 0.9, 1.7, 0.55, "the same\nTransformer", GREEN)
        axes.plot((4.33, 4.33), (0, 1.5), color=ORANGE, linewidth=2, **DASHED)
        cross(axes, 4.33, 0.44)
        label(axes, 4.33, 1.6, "no token sees across", ORANGE)

        for x, name, colour in ((pred, "ẑ", BLUE), (eos, "z", GREEN)):
            arrow(axes, (x, 1.45), (x, 1.9), colour)
            latent(axes, x, 2.12, name, colour)
            arrow(axes, (x, 2.34), (x, 2.83), colour)
        middle = (pred + eos) / 2
        box(axes, middle - 0.55, 1.9, 1.1, 0.44, "1 − cos(ẑ, z)", BLUE)
        arrow(axes, (pred + 0.22, 2.2), (middle - 0.57, 2.2), BLUE)
        arrow(axes, (middle - 0.57, 2.04), (pred + 0.22, 2.04), BLUE, dashed=True)
        arrow(axes, (eos - 0.22, 2.2), (middle + 0.57, 2.2), GREEN)
        arrow(axes, (middle + 0.57, 2.04), (middle + 0.85, 2.04), ORANGE, dashed=True)
        cross(axes, middle + 0.95, 2.04)
        label(axes, pred + 0.47, 1.86, "gradient", BLUE)
        label(axes, middle + 0.95, 1.83, "stopped", ORANGE)

        box(axes, pred - 0.35, 2.85, eos - pred + 0.7, 0.36, "the same Transformer decodes a latent", GREY)
        label(axes, pred - 0.1, 2.58, "in use", BLUE, ha="right")
        label(axes, eos - 0.1, 2.58, "in training: keeps latents apart", GREEN, ha="right")
        arrow(axes, (middle, 3.21), (middle, 3.43))
        tokens(axes, middle - 0.12, 3.45, ["8"])
        steps(
            axes,
            3.6,
            "read the question: ẑ",
            "encode the answer alone: z",
            "pull ẑ to z, not z to ẑ",
            "decode the answer:\nfrom z in training, from ẑ in use",
        )


def reasoner(path: str | Path) -> None:
    with canvas(path, 3.75, "JEPA-Reasoner thinks in latents; a Talker puts them into words") as axes:
        label(axes, 1.35, 0.1, "prompt: a tree, its root, a goal")
        for x in tokens(axes, 0.05, 0.3, ["5 9 ;", "9 7 ;", "root 5", "goal 7 :"]):
            arrow(axes, (x, 0.6), (x, 0.98), GREY)
        chain, y = (3.25, 4.8, 6.35), 1.25
        box(axes, 0.05, 1.0, 2.7, 0.5, "Reasoner", BLUE)
        arrow(axes, (2.75, y), (3.03, y), BLUE)
        for x in chain[:-1]:
            box(axes, x + 0.42, 1.0, 0.7, 0.5, "Reasoner", BLUE)
            arrow(axes, (x + 0.2, y), (x + 0.41, y), BLUE)
            arrow(axes, (x + 1.12, y), (x + 1.33, y), BLUE)
        for i, (x, token) in enumerate(zip(chain, "597", strict=True), 1):
            latent(axes, x, y, f"r{i}", BLUE)
            latent(axes, x, 0.44, f"e({token})", GREEN)
            arrow(axes, (x, 0.66), (x, 1.03), GREEN)
            arrow(axes, (x, 1.47), (x, 2.28), BLUE)
            arrow(axes, (x + 0.17, 2.28), (x + 0.17, 1.95), ORANGE, dashed=True)
            cross(axes, x + 0.17, 1.86)
            arrow(axes, (x, 2.66), (x, 2.93))
            tokens(axes, x - 0.12, 2.95, [token])
        label(axes, 3.33, 0.84, "1 − cos", GREEN, ha="left")
        label(axes, 4.8, 0.1, "targets: an EMA copy of the embeddings, no gradient", GREEN)
        label(axes, 4.14, 1.93, "no token, no\ngradient\ncomes back", ORANGE)
        box(axes, 2.9, 2.3, 3.8, 0.36, "Talker", GREY)
        steps(
            axes,
            3.6,
            "read the prompt: r1",
            "each latent is the next input",
            "in training r is pulled to the embed-\nding of its token (inputs: true tokens)",
            "the Talker reads the finished chain",
        )


def latent_stack(path: str | Path) -> None:
    with canvas(path, 2.8, "Latent stack: all that a text can pass on is one vector") as axes:
        top, bottom, x = 2.3, 0.65, 6.15
        label(axes, 4.45, top + 0.4, "trained", BLUE)
        label(axes, 0.6, top, "“Ana: Lunch at one?\nBen: Sure, see you\nat the cafe.”")
        arrow(axes, (1.3, top), (1.6, top), GREY)
        box(axes, 1.62, top - 0.3, 1.15, 0.6, "encoder,\nfrozen", GREY, frozen=True)
        arrow(axes, (2.77, top + 0.1), (3.68, top + 0.1), GREY)
        arrow(axes, (3.68, top - 0.1), (3.4, top - 0.1), ORANGE, dashed=True)
        cross(axes, 3.3, top - 0.1)
        label(axes, 3.22, top - 0.4, "gradient stops", ORANGE)
        box(axes, 3.7, top - 0.3, 1.5, 0.6, "pooling,\ncompression", BLUE)
        arrow(axes, (5.2, top), (x - 0.27, top), BLUE)
        latent(axes, x, top, r"$z_{in}$", BLUE, 0.25)
        arrow(axes, (x, top - 0.25), (x, 1.74), BLUE)
        box(axes, x - 0.6, 1.27, 1.2, 0.45, "middle model", BLUE)
        arrow(axes, (x, 1.27), (x, bottom + 0.27), BLUE)
        latent(axes, x, bottom, r"$z_{out}$", BLUE, 0.25)
        arrow(axes, (x - 0.25, bottom), (5.22, bottom), BLUE)
        box(axes, 4.3, bottom - 0.3, 0.9, 0.6, "expansion", BLUE)
        arrow(axes, (4.3, bottom), (4.0, bottom), BLUE)
        tokens(axes, 3.12, bottom - 0.14, ["", "", "", ""], BLUE)
        label(axes, 3.54, bottom + 0.3, "soft tokens", BLUE)
        arrow(axes, (3.1, bottom), (2.79, bottom), BLUE)
        box(axes, 1.52, bottom - 0.3, 1.25, 0.6, "language model,\nfrozen + LoRA", GREY, frozen=True)
        arrow(axes, (1.52, bottom), (1.28, bottom), GREY)
        label(axes, 0.6, bottom, "“Ana and Ben\nwill have lunch\nat the cafe.”")
        label(axes, 3.54, 0.18, "bag-of-words loss:\nwhich words it has", BLUE)
        label(axes, 0.6, 0.18, "cross-entropy loss", BLUE)
        axes.plot((0.05, 5.2), (1.45, 1.45), color=ORANGE, linewidth=2, **DASHED)
        cross(axes, 2.15, 1.45)
        label(axes, 3.6, 1.3, "the language model sees no token of the text", ORANGE)


DRAWINGS = {"nanojepa": nanojepa, "reasoner": reasoner, "latent_stack": latent_stack}


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args(argv)
    for name, draw in DRAWINGS.items():
        draw(Path(__file__).with_name(f"{name}.png"))


if __name__ == "__main__":
    run_main(main)
