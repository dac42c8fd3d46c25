"""Draw mask.png: the three masks of model.py on one word problem, from `jepa_mask` itself.

python results/draw_mask.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

from model import jepa_mask

TOKENS = "Ana has 5 pears . Ben gives her 3 . How many ? [PRED] [ANS] 8 [EOS]".split()
N_QUESTION = TOKENS.index("[ANS]")


def main():
    segment = torch.tensor([[int(i >= N_QUESTION) for i in range(len(TOKENS))]])
    titles = {"jepa": "jepa: each view causal, isolated", "causal": "causal: the answer sees the question",
              "none": "none: [PRED] sees the answer"}  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained")
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        mask = jepa_mask(segment, name)[0, 0].int()
        mask[N_QUESTION - 1] *= 2  # [PRED]'s row in its own colour
        axis.imshow(mask, cmap=ListedColormap(["#f4f4f4", "#0072B2", "#D55E00"]), vmin=0, vmax=2)
        axis.set_xticks(range(len(TOKENS)), TOKENS, rotation=90, fontsize=7)
        axis.set_yticks(range(len(TOKENS)), TOKENS, fontsize=7)
        axis.set_xticks([i - 0.5 for i in range(len(TOKENS))], minor=True)
        axis.set_yticks([i - 0.5 for i in range(len(TOKENS))], minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="both", length=0)
        axis.axhline(N_QUESTION - 0.5, color="black", linewidth=1)
        axis.axvline(N_QUESTION - 0.5, color="black", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("attends to", fontsize=9)
    axes[0].set_ylabel("token", fontsize=9)
    figure.savefig(Path(__file__).with_name("mask.png"), dpi=130)


if __name__ == "__main__":
    main()
