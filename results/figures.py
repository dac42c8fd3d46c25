"""Draw the figures of the studies from their JSON: `python results/figures.py` redraws all that results/ has."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import MultipleLocator, PercentFormatter  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#999999"  # Okabe-Ito
PARTS = {"words": "word problems", "gsm8k": "GSM8K (reduced)"}


def value(run, key):
    return run[key]["mean"] if key in run else float("nan")


def spread(run, key):
    return run[key]["std"] if key in run else 0.0


def parts(runs):
    """-> {part: {setting: run}} of names like 'words, 0.5'."""
    return {part: {n.split(", ")[1]: r for n, r in runs.items() if n.startswith(part)} for part in PARTS
            if any(n.startswith(part) for n in runs)}  # fmt: skip


def bars(axis, runs, series, labels=None):
    """Grouped bars with the standard deviation over seeds: series = [(label, key, colour)]."""
    width = 0.8 / len(series)
    for j, (label, key, colour) in enumerate(series):
        x = [i + (j - (len(series) - 1) / 2) * width for i in range(len(runs))]
        y = [value(r, key) for r in runs.values()]
        errors = [spread(r, key) for r in runs.values()]
        axis.bar(x, y, width, yerr=errors, color=colour, label=label, capsize=2)
        for left, height, error in zip(x, y, errors, strict=True):
            above = dict(xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7)
            axis.annotate(f"{height:.2f}", (left, max(height, 0) + error), **above)
    axis.set_xticks(range(len(runs)), labels or list(runs))
    axis.grid(alpha=0.3, axis="y")


def cosines(prefix=""):
    return [("own answer", f"{prefix}cos_own", BLUE), ("another answer", f"{prefix}cos_other", ORANGE)]


def leak(runs):
    found = parts(runs)
    figure, axes = plt.subplots(len(found), 3, figsize=(9.5, 2.9 * len(found)), layout="constrained", squeeze=False)
    for row, (part, settings) in zip(axes, found.items(), strict=True):
        labels = [{"jepa": "mask applied", "none": "no mask"}[k] for k in settings]
        bars(row[0], settings, cosines("forward_"), labels)
        bars(row[1], settings, cosines(""), labels)
        bars(
            row[2],
            settings,
            [("decoded", "exact_match_decoded", BLUE), ("best constant", "constant_best_on_test", GREY)],
            labels,
        )
        row[0].set(
            title=f"{PARTS[part]}: the training pass\n(the answer is in the row)",
            ylabel="cosine of the prediction to …",
        )
        row[1].set(title="generation\n(there is no answer to read)", ylabel="cosine of the prediction to …")
        row[2].set(title="exact match at generation", ylabel="share of test questions")
        for axis in row:
            axis.set_ylim(0, 1.12)
    axes[0][1].legend(fontsize=8)
    axes[0][2].legend(fontsize=8)
    return figure


def lam(runs):
    found = parts(runs)
    figure, axes = plt.subplots(len(found), 4, figsize=(12, 3 * len(found)), layout="constrained", squeeze=False)
    columns = {
        "cosine of the prediction to …": cosines(),
        "is the right answer found?": [
            ("exact match, decoded", "exact_match_decoded", BLUE),
            ("exact match, nearest", "exact_match_nearest", SKY),
            ("AUC", "auc", GREEN),
            ("best constant", "constant_best_on_test", GREY),
        ],
        "effective rank of latents": [
            ("answers z", "effective_rank_z", BLUE),
            ("predictions ẑ", "effective_rank_z_hat", ORANGE),
        ],
        "test loss, nats per token": [
            ("question", "forward_question_loss", BLUE),
            ("answer from its latent", "forward_decode_loss", GREEN),
        ],
    }
    for row, (part, settings) in zip(axes, found.items(), strict=True):
        for axis, (title, series) in zip(row, columns.items(), strict=True):
            for label, key, colour in series:
                y, error = ([f(r, key) for r in settings.values()] for f in (value, spread))
                style = "--" if key == "constant_best_on_test" else "-"
                axis.errorbar(
                    range(len(settings)),
                    y,
                    error,
                    fmt=style,
                    marker="o",
                    markersize=3,
                    color=colour,
                    label=label,
                    capsize=2,
                )
            axis.set_xticks(range(len(settings)), list(settings))
            axis.set(title=title, xlabel="λ")
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
            axis.grid(alpha=0.3)
        full = "--preset" not in next(iter(settings.values()))["options"]
        row[0].set_ylabel("GSM8K, 45M parameters" if full else PARTS[part], fontsize=11)
    for axis in axes[0]:
        axis.legend(fontsize=7)
    return figure


def collapse(runs):
    names = list(runs)[::-1]
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.36 * len(names) + 1.6), sharey=True, layout="constrained")
    colours = [GREY if "no decoding" in n else BLUE for n in names]
    for axis, key in ((axes[0], "exact_match_nearest"), (axes[2], "effective_rank_z")):
        x, error = ([f(runs[n], key) for n in names] for f in (value, spread))
        axis.barh(range(len(names)), x, xerr=error, color=colours)
    axes[0].xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes[0].set_title("nearest latent is the right one", fontsize=10)
    axes[2].set_title("effective rank of answer latents", fontsize=10)
    for y, name in enumerate(names):
        own, other = (value(runs[name], key) for key in ("cos_own", "cos_other"))
        axes[1].plot([other, own], [y, y], color=GREY, linewidth=1, zorder=1)
        axes[1].scatter(other, y, color=ORANGE, zorder=2, label="another answer (control)" if y == 0 else None)
        axes[1].scatter(own, y, color=BLUE, marker="D", s=24, zorder=3, label="own answer" if y == 0 else None)
    axes[1].set_title("cosine; where dots meet: collapse", fontsize=10)
    axes[1].set_xlim(-0.05, 1.05)
    axes[1].legend(fontsize=8, loc="center left")
    for axis in axes:
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(names)), names)
    return figure


def space(runs):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    labels = {"latent": "latent: ẑ by cosine alone", "latent, tokens into it": "latent, decoded ẑ trained too",
              "language model": "language model, direct answer",
              "language model, worked solution": "language model, worked solution"}  # fmt: skip
    for colour, (name, run) in zip((BLUE, SKY, ORANGE, PINK), runs.items(), strict=False):
        x = [p["examples"] for p in run["curve"]]
        flops = value(run, "flops_per_example")
        for axis, scale in zip(axes, (1e-3, flops / 1e12), strict=True):
            seeds = list(zip(*(p["exact_match"] for p in run["curve"]), strict=True))
            for y in seeds:
                axis.plot([v * scale for v in x], y, color=colour, alpha=0.35, linewidth=0.8)
            mean = [sum(p["exact_match"]) / len(p["exact_match"]) for p in run["curve"]]
            axis.plot(
                [v * scale for v in x], mean, color=colour, marker="o", markersize=3, label=labels.get(name, name)
            )
    axes[0].set(
        xlabel="training examples seen, thousands", ylabel="exact match, validation", title="word problems: by examples"
    )
    axes[1].set(xlabel="training compute, TFLOP", title="by compute")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return figure


def similar(runs):
    kinds = ("operations", "steps", "magnitude")
    found = {part: {n.split(", ")[1]: r for n, r in runs.items() if n.startswith(part)} for part in PARTS}
    found = {part: settings for part, settings in found.items() if settings}
    figure, axes = plt.subplots(len(found), 2, figsize=(9.5, 3 * len(found)), layout="constrained", squeeze=False)
    for row, (part, settings) in zip(axes, found.items(), strict=True):
        for axis, what in zip(row, ("neighbours", "probe"), strict=True):
            first = next(iter(settings.values()))
            shown = [k for k in kinds if f"{what}, {k}" in first and not (part == "words" and k == "steps")]
            width = 0.8 / (len(settings) + 1)
            for j, (name, run) in enumerate([*settings.items(), ("chance", None)]):
                keys = [f"{what}, {k}" + ("" if run else ", chance") for k in shown]
                x = [i + (j - len(settings) / 2) * width for i in range(len(shown))]
                y, error = ([f(run or first, key) for key in keys] for f in (value, spread))
                label = name.replace("lambda", "λ =")
                axis.bar(x, y, width, yerr=error, color=(BLUE, ORANGE, PINK, GREEN, GREY)[j], label=label, capsize=2)
            axis.set_xticks(range(len(shown)), shown)
            axis.set_ylim(0, 1.05)
            axis.grid(alpha=0.3, axis="y")
            axis.set_title(
                {"neighbours": "5 nearest questions: share alike in …", "probe": "linear probe: share right in …"}[what]
            )
        row[0].set_ylabel(PARTS[part])
    figure.legend(*axes[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def scratch(runs):
    """Every attempt at GSM8K with its 95% Wilson interval; 5.2% and 20.6% are from Cobbe et al. 2021."""
    names = list(runs)[::-1]
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(names) + 1.4), layout="constrained")
    for shift, colour, key, size, label in (
        (-0.25, SKY, "val_exact_match", "val_n", "validation"),
        (0, BLUE, "exact_match_decoded", "n", "test"),
        (0.25, PINK, "exact_match_voted", "n", "test, majority of samples"),
    ):
        drawn = [(i, name) for i, name in enumerate(names) if key in runs[name]]
        for i, name in drawn:
            share, n = value(runs[name], key), int(value(runs[name], size))
            low, high = binomtest(round(share * n), n).proportion_ci(method="wilson")
            axis.plot([low, high], [i - shift] * 2, color=colour, linewidth=2)
            axis.plot(share, i - shift, "o", color=colour, label=f"{label}, 95% interval" if i == drawn[0][0] else None)
    axis.axvline(0.0303, color=GREY, linestyle="--", label='always "5": 3.03%')
    axis.axvline(0.052, color=ORANGE, linestyle=":", label="GPT-3 6B, fine-tuned to answer directly: 5.2%")
    axis.axvline(0.206, color=ORANGE, linestyle="-.", label="the same, to write worked solutions: 20.6%")
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axis.xaxis.set_major_locator(MultipleLocator(0.05))
    axis.set_yticks(range(len(names)), names)
    axis.set(title="GSM8K from scratch: exact match", xlim=(0, None), ylim=(-0.6, len(names) - 0.4))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8, loc="lower right")
    return figure


FIGURES = {
    "leak": leak,
    "lambda": lam,
    "collapse": collapse,
    "space": space,
    "similar": similar,
    "scratch": scratch,
    "lambda-45m": lam,
}


def draw(folder):
    """Draw the figure of every study whose JSON is in `folder`, beside it."""
    for name, figure_of in FIGURES.items():
        if (folder / f"{name}.json").is_file():
            figure = figure_of(json.loads((folder / f"{name}.json").read_text())["runs"])
            figure.savefig(folder / f"{name}.png", dpi=150)
            plt.close(figure)
            print(f"drew {folder / name}.png")


if __name__ == "__main__":
    draw(Path(__file__).resolve().parent)
