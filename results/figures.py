"""Draw the figures of the studies from their JSON: `python results/figures.py` redraws all that results/ has.

Bars and points are means over seeds, error bars their standard deviation. Colours mean what common/plots.py says;
beyond that GREEN is the answer latent z, PINK the prediction ẑ, SKY and YELLOW are further systems or read-outs.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json
from common.options import run_main
from common.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, figure
from common.stats import wilson

WIDTH = 8.3  # inches: a README shows about 830 pixels
PARTS = {"words": "word problems", "gsm8k": "GSM8K (reduced)"}
COSINE = "cosine of ẑ to …"
LEGEND = dict(loc="outside lower center", fontsize=9)

# ---------------------------------------------------------------------------------------------- parts


def values(runs: list[dict], key: str) -> tuple[list[float], list[float]]:
    """-> (means, standard deviations) of a figure over seeds; nan where a run has none."""
    found = [run.get(key, {"mean": float("nan"), "std": 0.0}) for run in runs]
    return [x["mean"] for x in found], [x["std"] for x in found]


def by_part(runs: dict) -> dict[str, dict]:
    """{part: {setting: run}} of names such as 'words, 0.5'."""
    found = {part: {} for part in PARTS}
    for name, run in runs.items():
        part, _, setting = name.partition(", ")
        found[part][setting] = run
    return {part: settings for part, settings in found.items() if settings}


def bars(axes, groups: list[str], series: list[tuple], numbers: bool = True) -> None:
    """Grouped bars: series of (label, colour, means, standard deviations), one value a group each."""
    width = 0.8 / len(series)
    for j, (label, colour, means, errors) in enumerate(series):
        x = [i + (j - (len(series) - 1) / 2) * width for i in range(len(groups))]
        axes.bar(x, means, width, yerr=errors, color=colour, label=label, capsize=2)
        for left, height, error in zip(x, means, errors, strict=True):
            if numbers:
                above = dict(xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
                axes.annotate(f"{height:.2f}", (left, max(height, 0) + error), **above)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")


def lambda_axis(axes, lambdas: list[float]) -> None:
    """λ where it lies on an axis that is linear from 0 to 0.1 and logarithmic beyond."""
    axes.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    axes.set_xticks(lambdas, [f"{x:g}" for x in lambdas])
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.02, 1.15 * max(lambdas))


# -------------------------------------------------------------------------------------------- figures


def leak(runs: dict, path: Path) -> None:
    """The mask applied and not: cosines in the training pass and at generation, and exact match."""
    found = by_part(runs)
    columns = {
        "training pass\n(the answer is in the row)": (COSINE, "forward_cos_own", "forward_cos_other"),
        "generation\n(there is no answer to read)": (COSINE, "cos_own", "cos_other"),
        "exact match\nat generation": ("fraction of questions", "exact_match_decoded", "constant_best_on_test"),
    }
    with figure(path, len(found), 3, (WIDTH, 2.7 * len(found) + 0.9), squeeze=False, sharey=True) as (fig, panels):
        for axes, title in zip(panels[0], columns, strict=True):
            axes.set_title(title)
        for row, (part, settings) in zip(panels, found.items(), strict=True):
            groups = [{"jepa": "mask applied", "none": "no mask"}[name] for name in settings]
            for axes, (ylabel, claim, control) in zip(row, columns.values(), strict=True):
                colour = GREY if control.startswith("constant") else ORANGE
                pair = ((claim, BLUE), (control, colour))
                bars(axes, groups, [(key, c, *values(list(settings.values()), key)) for key, c in pair])
                axes.set(ylabel=ylabel, ylim=(0, 1.15))
            row[0].set_ylabel(f"{PARTS[part]}\n{COSINE}")
        handles = [panels[0, i].containers[j] for i, j in ((0, 1), (0, 3), (2, 3))]
        labels = ["matched answer, or decoded correctly", "mismatched answer (control)", "oracle constant"]
        fig.legend(handles, labels, ncols=3, **LEGEND)
        fig.suptitle("Without the mask, a high cosine in the training pass and nothing behind it")


LAMBDA_ROWS = {  # {what a row shows: (label, key, colour, line style)}
    COSINE: (("the matched answer", "cos_own", BLUE, "-"), ("a mismatched one\n(control)", "cos_other", ORANGE, "-")),
    "fraction of\nquestions": (
        ("AUC", "auc", YELLOW, "-"),
        ("exact match, nearest", "exact_match_nearest", SKY, "-"),
        ("exact match, decoded", "exact_match_decoded", BLUE, "-"),
        ("oracle constant", "constant_best_on_test", GREY, "--"),
    ),
    "effective rank": (
        ("predictions ẑ", "effective_rank_z_hat", PINK, "-"),
        ("answer latents z", "effective_rank_z", GREEN, "-"),
    ),
    "test loss,\nnats per token": (
        ("question", "forward_question_loss", BLACK, "-"),
        ("answer decoded from z", "forward_decode_loss", GREEN, "-"),
    ),
}


def lam(runs: dict, path: Path) -> None:
    """What λ does to cosines, answers, ranks and losses."""
    found = by_part(runs)
    size = (WIDTH, 1.75 * len(LAMBDA_ROWS) + 0.8)
    with figure(path, len(LAMBDA_ROWS), len(found), size, squeeze=False, sharex=True) as (fig, panels):
        for column, (part, settings) in zip(panels.T, found.items(), strict=True):
            lambdas, every = [float(x) for x in settings], list(settings.values())
            for axes, series in zip(column, LAMBDA_ROWS.values(), strict=True):
                for label, key, colour, style in series:
                    marker = "" if style == "--" else "o"
                    style = dict(fmt=style, marker=marker, markersize=4, color=colour, capsize=2)
                    axes.errorbar(lambdas, *values(every, key), label=label, **style)
                axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
                lambda_axis(axes, lambdas)
            full = "--preset" not in every[0]["options"]
            column[0].set_title("GSM8K, 45M parameters" if full else PARTS[part])
            column[-1].set_xlabel("λ (symlog scale)")
        for axes, ylabel in zip(panels[:, 0], LAMBDA_ROWS, strict=True):
            axes.set_ylabel(ylabel)
        fig.align_ylabels(panels[:, 0])
        for axes in panels[:, -1]:
            axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
        fig.suptitle("The JEPA loss aligns predictions with their answers; λ = 0 is the control")


def collapse(runs: dict, path: Path) -> None:
    """Settings against collapse: how often the nearest latent is correct, cosines, effective rank."""
    names = list(runs)[::-1]
    every, y = [runs[name] for name in names], range(len(runs))
    labels = [name.replace(", no decoding", "") for name in names]
    with figure(path, 1, 3, (WIDTH, 0.31 * len(names) + 2.0), sharey=True) as (fig, (nearest, cosines, rank)):
        for axes, key, colour in ((nearest, "exact_match_nearest", BLUE), (rank, "effective_rank_z", GREEN)):
            means, errors = values(every, key)
            axes.barh(y, means, xerr=errors, color=colour, capsize=2)
        nearest.axvline(every[0]["retrieval_at_1_chance"]["mean"], color=GREY, linestyle="--", zorder=3, label="chance")
        own, other = (values(every, key)[0] for key in ("cos_own", "cos_other"))
        cosines.hlines(y, other, own, color=GREY, linewidth=1)
        cosines.scatter(other, y, color=ORANGE, zorder=2, label="cosine to a mismatched answer (control)")
        cosines.scatter(own, y, color=BLUE, marker="D", s=22, zorder=3, label="to the matched answer")

        boundary = sum(name.endswith("no decoding") for name in names)
        for axes in (nearest, cosines, rank):
            axes.grid(visible=False, axis="y")
            if 0 < boundary < len(names):
                axes.axhline(boundary - 0.5, color=BLACK, linewidth=0.8)
        if 0 < boundary < len(names):
            for low, high, text in ((boundary, len(names), "with decoding loss"), (0, boundary, "without")):
                beside = dict(rotation=-90, va="center", transform=rank.get_yaxis_transform())
                rank.text(1.03, (low + high - 1) / 2, text, **beside)
        nearest.set(title="nearest latent correct", xlabel="fraction of questions", xlim=(0, None))
        cosines.set(title="cosine of ẑ\n(dots meet: collapse)", xlabel="cosine", xlim=(-0.08, 1.08))
        rank.set(title="effective rank of z", xlabel="dimensions", xlim=(0, None))
        nearest.set_yticks(y, labels, fontsize=9)
        handles = [h for axes in (nearest, cosines) for h in axes.get_legend_handles_labels()[0]]
        fig.legend(handles, [h.get_label() for h in handles], ncols=3, **LEGEND)
        fig.suptitle("What keeps latents apart is that answers are decoded from them")


SPACE = {  # {run: (label, colour)}
    "latent": ("latent: ẑ by cosine alone", BLUE),
    "latent, tokens into it": ("latent, decoding from ẑ trained too", SKY),
    "language model": ("language model, direct answer (baseline)", ORANGE),
    "language model, worked solution": ("language model, worked solution", YELLOW),
}


def space(runs: dict, path: Path) -> None:
    """Exact match over training: in latent space and in token space, by examples and by compute."""
    with figure(path, 1, 2, (WIDTH, 4.2), sharey=True) as (fig, panels):
        for name, run in runs.items():
            label, colour = SPACE[name]
            examples = [point["examples"] for point in run["curve"]]
            scores = [point["exact_match"] for point in run["curve"]]
            mean = [sum(x) / len(x) for x in scores]
            flops = run["flops_per_example"]["mean"]
            for axes, scale in zip(panels, (1e-3, flops / 1e12), strict=True):
                x = [n * scale for n in examples]
                for seed in zip(*scores, strict=True):
                    axes.plot(x, seed, color=colour, alpha=0.35, linewidth=0.8)
                axes.plot(x, mean, color=colour, marker="o", markersize=4, label=label)
        constant = next(iter(runs.values()))["constant_best_on_test"]["mean"]
        for axes in panels:
            axes.axhline(constant, color=GREY, linestyle="--", label="oracle constant of the test split")
        panels[0].set(title="by training examples", xlabel="examples seen, thousands")
        panels[0].set_ylabel("exact match, validation")
        panels[1].set(title="by training compute", xlabel="TFLOP")
        fig.legend(*panels[0].get_legend_handles_labels(), ncols=2, **LEGEND)
        fig.suptitle("Word problems: the language model learns from fewer examples (thin lines: seeds)")


SIMILAR = {"untrained": YELLOW, "bag of words": SKY}  # the trained one BLUE, λ = 0, its control, ORANGE


def similar(runs: dict, path: Path) -> None:
    """Do near questions share operations, number of steps, size of the answer? Can a probe read them?"""
    found = by_part(runs)
    titles = {"neighbours": "5 nearest questions share …", "probe": "a linear probe reads …"}
    with figure(path, len(found), 2, (WIDTH, 2.5 * len(found) + 1), squeeze=False, sharey=True) as (fig, panels):
        for axes, title in zip(panels[0], titles.values(), strict=True):
            axes.set_title(title)
        for row, (part, settings) in zip(panels, found.items(), strict=True):
            first, every = next(iter(settings.values())), list(settings.items())
            for axes, what in zip(row, titles, strict=True):
                kinds = [k for k in ("operations", "steps", "magnitude") if f"{what}, {k}" in first]
                if part == "words":
                    kinds = [k for k in kinds if k != "steps"]  # one step each
                series = []
                for i, (name, run) in enumerate(every):
                    numbers = zip(*(values([run], f"{what}, {k}") for k in kinds), strict=True)
                    means, errors = ([x for (x,) in column] for column in numbers)
                    colour = SIMILAR.get(name, (BLUE, ORANGE)[min(i, 1)])
                    label = "λ = 0 (control)" if name == "lambda 0" else "with the JEPA loss" if i == 0 else name
                    series.append((label, colour, means, errors))
                chance = [first[f"{what}, {k}, chance"] for k in kinds]
                series.append(("chance", GREY, [x["mean"] for x in chance], [x["std"] for x in chance]))
                shown = [{"magnitude": "answer's digits", "steps": "number of steps"}.get(k, k) for k in kinds]
                bars(axes, shown, series, numbers=False)
                axes.set_ylim(0, 1.05)
            row[0].set_ylabel(f"{PARTS[part]}\nfraction of questions")
        fig.legend(*panels[0, 0].get_legend_handles_labels(), ncols=5, **LEGEND)
        fig.suptitle("Question latents are arranged by the size of the answer, on word problems only")


SCRATCH = {  # {run: what it is}
    "latent, variants": "latent, 4 augmentations",
    "direct": "language model, direct answer",
    "direct, variants": "direct answer, 4 augmentations",
    "equations, variants": "equations, 4 augmentations",
    "equations, variants, 3x as long": "equations, 8 augm., 3× as long",
    "program, width 256": "program, width 256",
}


def scratch(runs: dict, path: Path) -> None:
    """Every attempt at GSM8K with its 95% Wilson interval; 5.2% and 20.6% are from Cobbe et al. 2021."""
    names = list(runs)[::-1]
    readouts = (
        (-0.22, SKY, "val_exact_match", "val_n", "validation"),
        (0, BLUE, "exact_match_decoded", "n", "test"),
        (0.22, YELLOW, "exact_match_voted", "n", "test, majority of 10 samples"),
    )
    with figure(path, size=(WIDTH, 0.5 * len(names) + 2.0)) as (fig, axes):
        for shift, colour, key, size, label in readouts:
            for i, name in enumerate(names):
                if key in runs[name]:
                    rate, n = runs[name][key]["mean"], int(runs[name][size]["mean"])
                    low, high = wilson(round(rate * n), n)
                    error = [[100 * (rate - low)], [100 * (high - rate)]]
                    axes.errorbar(100 * rate, i - shift, xerr=error, fmt="o", color=colour, linewidth=2, label=label)
                    label = None
        constant = 100 * next(iter(runs.values()))["constant_best_on_test"]["mean"]
        axes.axvline(constant, color=GREY, linestyle="--", label=f"oracle constant: {constant:.2f}%")
        axes.axvline(5.2, color=ORANGE, linestyle=":", label="GPT-3 6B, fine-tuned, direct answer: 5.2%")
        axes.axvline(20.6, color=ORANGE, linestyle="-.", label="the same, worked solution: 20.6%")
        axes.set_yticks(range(len(names)), [SCRATCH.get(name, name) for name in names])
        axes.set_xticks(range(0, 25, 5))
        axes.set(xlim=(0, 22), ylim=(-0.6, len(names) - 0.4), xlabel="exact match, % (bars: 95% intervals)")
        axes.grid(visible=False, axis="y")
        fig.legend(ncols=2, **LEGEND)
        fig.suptitle("GSM8K from scratch: only long-trained equations and programs beat the constant")


FIGURES: dict[str, Callable] = {
    "leak": leak,
    "lambda": lam,
    "collapse": collapse,
    "space": space,
    "similar": similar,
    "scratch": scratch,
    "lambda-45m": lam,
}


def draw(folder: Path) -> None:
    """Draw the figure of every study whose JSON is in `folder`, beside it."""
    for name, draw_one in FIGURES.items():
        if (folder / f"{name}.json").is_file():
            draw_one(read_json(folder / f"{name}.json")["runs"], folder / f"{name}.png")
            print(f"drew {folder / name}.png")


def main() -> None:
    draw(Path(__file__).resolve().parent)


if __name__ == "__main__":
    run_main(main)
