"""Draw mask.png: the three masks of model.py on one word problem, from `jepa_mask` itself.

python results/draw_mask.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.options import run_main
from common.plots import BLUE, ORANGE, figure
from model import jepa_mask

TOKENS = "Ana has 5 pears . Ben gives her 3 . How many ? [PRED] [ANS] 8 [EOS]".split()
N_QUESTION = TOKENS.index("[ANS]")
TITLES = {
    "jepa": "jepa\ntwo isolated views",
    "causal": "causal\nthe answer sees the question",
    "none": "none\n[PRED] sees the answer",
}
COLOURS = ("#f4f4f4", "#cccccc", BLUE, ORANGE)  # hidden, seen, seen by [PRED], seen by [PRED] and a leak


def draw(path: str | Path) -> None:
    from matplotlib.colors import ListedColormap

    ticks = range(len(TOKENS))
    segment = torch.tensor([[int(i >= N_QUESTION) for i in ticks]])
    with figure(path, 1, 3, (8.3, 3.7), sharey=True) as (fig, panels):
        for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
            mask = jepa_mask(segment, name)[0, 0].int()  # (T, T)
            mask[N_QUESTION - 1] *= 2
            mask[N_QUESTION - 1, N_QUESTION:] *= 3
            axes.imshow(mask.clamp(max=3), cmap=ListedColormap(COLOURS), vmin=0, vmax=3)
            axes.grid(visible=False)
            axes.set_xticks(ticks, TOKENS, rotation=90, fontsize=8)
            axes.set_yticks(ticks, TOKENS, fontsize=8)
            axes.set_xticks([i - 0.5 for i in ticks], minor=True)
            axes.set_yticks([i - 0.5 for i in ticks], minor=True)
            axes.grid(which="minor", color="white", linewidth=1, alpha=1)
            axes.tick_params(which="both", length=0)
            axes.axhline(N_QUESTION - 0.5, color="black", linewidth=1)
            axes.axvline(N_QUESTION - 0.5, color="black", linewidth=1)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("may attend to")
        panels[0].set_ylabel("token")


def main() -> None:
    draw(Path(__file__).with_name("mask.png"))


if __name__ == "__main__":
    run_main(main)
