"""Derivations of strings under noise: on the prompt's tokens, or on the latents and tokens that are fed back."""

import random
from dataclasses import replace
from pathlib import Path

import torch

from common.plots import COLOURS, LEGEND, MARKERS, SKY, WIDTH, figure, headline
from common.stats import bootstrap_mean, bootstrap_ratio, paired_difference, wilson
from reasoner.config import EvalConfig
from reasoner.experiments.measures import generate
from reasoner.tasks import Example, noisy_prompt

TOKEN_NOISE = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # probability per token
LATENT_NOISE = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # norm, that of what it is added to being 1
SHOWN = 4  # of them, in the figure's title
KINDS = {"drop": TOKEN_NOISE, "replace": TOKEN_NOISE, "insert": TOKEN_NOISE, "latent": LATENT_NOISE}


def token_accuracy(chain: str, text: str) -> float:
    """Fraction of the chain's tokens that stand in their places in `text`."""
    reference, generated = chain.split(), text.split()
    return sum(a == b for a, b in zip(reference, generated, strict=False)) / len(reference)


def under_noise(model, examples: list[Example], kind: str, rate: float, words: list, config: EvalConfig) -> list[str]:
    """Answers under one kind and rate of noise; all models read the same noisy prompts."""
    generator = torch.Generator().manual_seed(config.seed)
    if kind == "latent":
        return generate(model, examples, config.batch_size, rate, generator)
    rng = random.Random(f"{config.seed} {kind} {rate}")
    noisy = [replace(x, prompt=noisy_prompt(x.prompt, kind, rate, rng, words)) for x in examples]
    return generate(model, noisy, config.batch_size, 0.0, generator)


def scores(examples: list[Example], generated: list[str], rate: float, seed: int) -> tuple[dict, list[float]]:
    """-> (accuracy of tokens and of whole chains, with intervals; token accuracy of each example)."""
    pairs = list(zip(examples, generated, strict=True))
    accuracy = [token_accuracy(x.chain, text) for x, text in pairs]
    exact = sum(x.chain.split() == text.split() for x, text in pairs)
    row = {
        "rate": rate,
        "token_accuracy": bootstrap_mean(accuracy, seed),
        "exact": exact / len(examples),
        "exact_ci95": wilson(exact, len(examples)),
    }
    return row, accuracy


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """Accuracy, of chain tokens and of whole chains, against noise on the prompt's tokens and on what is fed back.

    `normalised`: token accuracy over that without noise; `less_the_first_run`: the paired difference of it.
    """
    words = sorted({word for x in examples[:200] for word in x.prompt.split()[:-1]})
    result, first = {}, {}
    for name, model in models.items():
        result[name] = {}
        for kind, rates in KINDS.items():
            rows, accuracy = [], []
            for rate in rates:
                row, per_example = scores(
                    examples, under_noise(model, examples, kind, rate, words, config), rate, config.seed
                )
                rows.append(row)
                accuracy.append(per_example)
            for row, own, baseline in zip(rows, accuracy, first.setdefault(kind, accuracy), strict=True):
                row["normalised"] = bootstrap_ratio(own, accuracy[0], config.seed)
                row["less_the_first_run"] = paired_difference(own, baseline, config.seed)
            result[name][kind] = rows
            shown = ", ".join(f"{row['rate']:g}: {row['token_accuracy']['mean']:.1%}" for row in rows)
            print(f"{name}: {kind:<8} {shown}")
    draw_noise(result, config.path("noise.png"))
    return result


def curves(result: dict) -> list[tuple]:
    """Runs -> [(label, rows of each kind, colour)]. A colour has one meaning: blue the first run, sky its control.

    The reading by the nearest embedding is left out: it coincides with the Talker's, and the JSON has it.
    """
    shown = {name: rows for name, rows in result.items() if not name.endswith("by the nearest embedding")}
    others = iter(COLOURS)
    colours = [SKY if name.endswith("tokens fed back") else next(others) for name in shown]
    return [(Path(name).name, rows, colour) for (name, rows), colour in zip(shown.items(), colours, strict=True)]


def draw_noise(result: dict, path: str | Path) -> None:
    """Token accuracy against each kind of noise, a line a run, the first on top -> PNG."""
    with figure(path, 2, 2, size=(WIDTH, 5.8), sharey=True) as (fig, panels):
        for axes, kind in zip(panels.flat, KINDS, strict=True):
            for i, (name, rows, colour) in reversed(list(enumerate(curves(result)))):
                x = [row["rate"] for row in rows[kind]]
                y = [row["token_accuracy"]["mean"] for row in rows[kind]]
                low, high = zip(*(row["token_accuracy"]["ci95"] for row in rows[kind]), strict=True)
                # later runs are wider, hollow and below, so that curves that coincide are all seen
                style = dict(color=colour, marker=MARKERS[i], markersize=4 + 3 * i, linewidth=1.2 + 1.2 * i)
                filled = dict() if i == 0 else dict(markerfacecolor="none", markeredgewidth=1.2)
                axes.plot(x, y, label=name, zorder=3 - 0.1 * i, **style, **filled)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            title = "Gaussian noise on what is fed back" if kind == "latent" else f"prompt tokens: {kind}"
            xlabel = "norm of the noise" if kind == "latent" else "fraction of prompt tokens"
            axes.set(title=title, xlabel=xlabel, ylim=(0, 1.05))
        for axes in panels[:, 0]:
            axes.set(ylabel="token accuracy (band: 95%)")
        handles, labels = axes.get_legend_handles_labels()
        fig.legend(handles[::-1], labels[::-1], ncols=len(labels), **LEGEND)
        reached = [f"{name} {rows['latent'][SHOWN]['token_accuracy']['mean']:.1%}" for name, rows, _ in curves(result)]
        finding = f"Chain token accuracy at noise of norm {LATENT_NOISE[SHOWN]:g} on what is fed back"
        headline(fig, f"{finding}: {', '.join(reached[:2])}")
