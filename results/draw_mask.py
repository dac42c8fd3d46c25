"""Draw mask.png: the three masks of model.py on one word problem, from `jepa_mask` itself.

python results/draw_mask.py
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.options import run_main
from common.plots import BLUE, LEGEND, ORANGE, WIDTH, figure, headline
from model import jepa_mask

TOKENS = "Ana has 5 pears . Ben gives her 3 . How many ? [PRED] [ANS] 8 [EOS]".split()
N_QUESTION = TOKENS.index("[ANS]")
PRED = TOKENS.index("[PRED]")
TITLES = {
    "jepa": "jepa\ntwo isolated views",
    "causal": "causal\nthe answer sees the question",
    "none": "none\n[PRED] sees the answer",
}
CELLS = {  # {what a cell is: colour}, numbered in this order
    "hidden": "#f4f4f4",
    "visible": "#c4c4c4",
    "visible to [PRED]": BLUE,
    "leak: the answer is visible to [PRED]": ORANGE,
}


def cells_of(name: str) -> Tensor:
    """(T, T) int, indices into CELLS: what the token of a row sees of the token of a column."""
    segment = torch.tensor([[int(i >= N_QUESTION) for i in range(len(TOKENS))]])
    cells = jepa_mask(segment, name)[0, 0].int()
    cells[PRED, :N_QUESTION] *= 2
    cells[PRED, N_QUESTION:] *= 3
    return cells


def draw_one(axes, name: str) -> None:
    from matplotlib.colors import ListedColormap

    ticks = range(len(TOKENS))
    axes.imshow(cells_of(name).numpy(), cmap=ListedColormap(list(CELLS.values())), vmin=0, vmax=len(CELLS) - 1)
    axes.set_xticks(ticks, TOKENS, rotation=90, fontsize=8)
    axes.set_yticks(ticks, TOKENS, fontsize=8)
    axes.set_xticks([i - 0.5 for i in ticks], minor=True)
    axes.set_yticks([i - 0.5 for i in ticks], minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color="white", linewidth=1, alpha=1)
    axes.tick_params(which="both", length=0)

    axes.axhline(N_QUESTION - 0.5, color="black", linewidth=1)
    axes.axvline(N_QUESTION - 0.5, color="black", linewidth=1)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set(title=TITLES[name], xlabel="… may attend to this token")


def draw(path: str | Path) -> None:
    from matplotlib.patches import Patch

    with figure(path, 1, 3, (WIDTH, 3.8), sharey=True) as (fig, panels):
        for axes, name in zip(panels, TITLES, strict=True):
            draw_one(axes, name)
        panels[0].set_ylabel("this token …")
        patches = [Patch(facecolor=colour, edgecolor="#999999", label=label) for label, colour in CELLS.items()]
        fig.legend(handles=patches, ncols=len(CELLS), **LEGEND)
        seen = [int((cells_of(name) == len(CELLS) - 1).sum()) for name in ("jepa", "none")]
        headline(fig, f"Under the JEPA mask [PRED] sees {seen[0]} tokens of the answer, without it {seen[1]}")


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args(argv)
    draw(Path(__file__).with_name("mask.png"))


if __name__ == "__main__":
    run_main(main)
