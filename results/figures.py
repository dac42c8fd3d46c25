"""Draw the figures of the studies from their JSON: `python results/figures.py` redraws all that results/ has.

Titles state the finding with its numbers, all of them from the JSON.

Colours mean what common/plots.py says: BLUE the latent model, ORANGE its control or the language model that answers
directly, GREY a constant or chance; YELLOW is the language model that writes its steps, SKY the latent model with token
losses on ẑ. Of latents GREEN is z, the answer's, and BLUE ẑ, the prediction. Read-outs of one system differ by marker.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json
from common.options import run_main
from common.plots import BLACK, BLUE, GREEN, GREY, LEGEND, ORANGE, SKY, WIDTH, YELLOW, figure, headline
from common.stats import wilson

PARTS = {"words": "word problems", "gsm8k": "GSM8K (reduced)"}
COSINE = "cosine of ẑ to …"
QUESTIONS = "fraction of test questions"
OVER_SEEDS = "error bars: standard deviation over seeds"


def columns(found: list[dict]) -> tuple[list[float], list[float]]:
    """-> (means, standard deviations) of figures over seeds."""
    return [x["mean"] for x in found], [x["std"] for x in found]


def mean(run: dict, key: str) -> float:
    """One figure of a run, over its seeds."""
    return run[key]["mean"]


@contextmanager
def in_part(fig, subject: str):
    """The subject is the title where a study was measured in part and lacks the figures of its finding."""
    try:
        yield
    except (KeyError, IndexError):
        headline(fig, subject)


def values(runs: list[dict], key: str) -> tuple[list[float], list[float]]:
    """-> (means, standard deviations) of one figure of several runs; nan where a run has none."""
    return columns([run.get(key, {"mean": float("nan"), "std": 0.0}) for run in runs])


def by_part(runs: dict) -> dict[str, dict]:
    """{part: {setting: run}} of names such as 'words, 0.5'."""
    found = {part: {} for part in PARTS}
    for name, run in runs.items():
        part, _, setting = name.partition(", ")
        found[part][setting] = run
    return {part: settings for part, settings in found.items() if settings}


def bars(axes, groups: list[str], series: list[tuple[dict, list, list]], numbers: Callable | None = None) -> None:
    """Grouped bars: series of (style with its label, means, standard deviations), one value a group each; `numbers`
    writes a value above its bar."""
    width = 0.8 / len(series)
    for j, (style, means, errors) in enumerate(series):
        x = [i + (j - (len(series) - 1) / 2) * width for i in range(len(groups))]
        drawn = axes.bar(x, means, width, yerr=errors, capsize=2, error_kw=dict(elinewidth=1), **style)
        if numbers:
            axes.bar_label(drawn, fmt=numbers, padding=2, fontsize=8.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")


LEAK = {  # {what a column shows: (key of the claim, key of its control)}
    "cosine in training:\nthe answer is in the row": ("forward_cos_own", "forward_cos_other"),
    "cosine at generation:\nno answer to read": ("cos_own", "cos_other"),
    "exact match\nat generation": ("exact_match_decoded", "constant_best_on_test"),
}


def leak(runs: dict, path: Path) -> None:
    """The mask applied and not: cosines in the training pass and at generation, and exact match."""
    found = by_part(runs)
    with figure(path, len(found), 3, (WIDTH, 2.1 * len(found) + 1.3), squeeze=False, sharey=True) as (fig, panels):
        for row, (part, settings) in zip(panels, found.items(), strict=True):
            groups = [{"jepa": "mask applied", "none": "no mask"}[name] for name in settings]
            every = list(settings.values())
            for axes, (claim, control) in zip(row, LEAK.values(), strict=True):
                constant = control.startswith("constant")
                series = [(dict(color=c), *values(every, k)) for k, c in ((claim, BLUE), (control, ORANGE))]
                series[1][0]["color"] = GREY if constant else ORANGE
                bars(axes, groups, series, "{:.1%}".format if constant else "{:.3f}".format)
                axes.set(ylim=(0, 1.2), yticks=(0, 0.5, 1))
            row[0].set_ylabel(f"{PARTS[part]}\ncosine of ẑ")
            row[2].set_ylabel(QUESTIONS)
        for axes, title in zip(panels[0], LEAK, strict=True):
            axes.set_title(title)
        handles = [panels[0, i].containers[j] for i, j in ((0, 1), (0, 3), (2, 3))]
        labels = ["matched answer, or decoded correctly", "mismatched answer (control)", "oracle constant (control)"]
        fig.legend(handles, labels, ncols=3, title=OVER_SEEDS, **LEGEND)
        jepa, none = found["words"].values()
        found = [
            f"{mean(x, 'forward_cos_own'):.3f} in training, {mean(x, 'exact_match_decoded'):.1%} of answers correct"
            for x in (none, jepa)
        ]
        headline(fig, f"No mask: cosine {found[0]}. With the mask: {found[1]}")


LAMBDA_ROWS = {  # {what a row shows: (label, key, colour, marker and line)}
    COSINE: (("the matched answer", "cos_own", BLUE, "o-"), ("a mismatched one\n(control)", "cos_other", ORANGE, "o-")),
    "fraction of\ntest questions": (
        ("AUC (chance: 0.5)", "auc", BLUE, "^:"),
        ("exact match, nearest", "exact_match_nearest", BLUE, "s--"),
        ("exact match, decoded", "exact_match_decoded", BLUE, "o-"),
        ("oracle constant", "constant_best_on_test", GREY, "--"),
    ),
    "effective rank,\ndimensions": (
        ("predictions ẑ", "effective_rank_z_hat", BLUE, "o-"),
        ("answer latents z", "effective_rank_z", GREEN, "o-"),
    ),
    "test loss,\nnats per token": (
        ("question", "forward_question_loss", BLACK, "o-"),
        ("answer decoded from z", "forward_decode_loss", GREEN, "o-"),
    ),
}


def lam(runs: dict, path: Path) -> None:
    """What λ does to cosines, answers, ranks and losses."""
    found = by_part(runs)
    with figure(path, len(LAMBDA_ROWS), len(found), (WIDTH, 6.8), squeeze=False, sharex=True) as (fig, panels):
        for column, (part, settings) in zip(panels.T, found.items(), strict=True):
            lambdas, every = [float(x) for x in settings], list(settings.values())
            for axes, series in zip(column, LAMBDA_ROWS.values(), strict=True):
                for label, key, colour, line in series:
                    style = dict(fmt=line, color=colour, markersize=4, capsize=2)
                    axes.errorbar(lambdas, *values(every, key), label=label, **style)
                axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
                axes.set_xscale("symlog", linthresh=0.1, linscale=0.5)
                axes.set_xticks(lambdas, [f"{x:g}" for x in lambdas])
                axes.set_xticks([], minor=True)
                axes.set_xlim(-0.02, 1.15 * max(lambdas))
            full = "--preset" not in every[0]["options"]
            column[0].set_title("GSM8K, 45M parameters" if full else PARTS[part])
            column[-1].set_xlabel("λ (linear to 0.1, then logarithmic)")
        for row, ylabel in zip(panels, LAMBDA_ROWS, strict=True):
            row[0].set_ylabel(ylabel)
            row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)
        fig.align_ylabels(panels[:, 0])
        fig.supxlabel(OVER_SEEDS, fontsize=8.5)
        part, settings = next(iter(found.items()))
        control, *_, claim = (mean(run, "exact_match_decoded") for run in settings.values())
        headline(fig, f"Correct {PARTS[part]}: {claim:.1%} with the JEPA loss, {control:.1%} without (λ = 0)")


def divide(panels: list, boundary: int, n: int) -> None:
    """Settings without the decoding loss lie below `boundary`: a line between, and at the right what either side is."""
    for axes in panels:
        axes.axhline(boundary - 0.5, color=BLACK, linewidth=0.8)
    right = panels[-1]
    for low, high, text in ((boundary, n, "with decoding loss"), (0, boundary, "without decoding loss")):
        middle = (low + high - 1) / 2
        right.text(1.03, middle, text, rotation=-90, va="center", transform=right.get_yaxis_transform())


def collapse(runs: dict, path: Path) -> None:
    """Settings against collapse: how often the nearest latent is correct, cosines, effective rank."""
    names = list(runs)[::-1]
    every, y = [runs[name] for name in names], range(len(names))
    with figure(path, 1, 3, (WIDTH, 0.27 * len(names) + 1.7), sharey=True) as (fig, (nearest, cosines, rank)):
        for axes, key, colour in ((nearest, "exact_match_nearest", BLUE), (rank, "effective_rank_z", GREEN)):
            means, errors = values(every, key)
            axes.barh(y, means, xerr=errors, color=colour, capsize=2)
        nearest.axvline(every[0]["retrieval_at_1_chance"]["mean"], color=GREY, linestyle="--", zorder=3, label="chance")

        (matched, _), (mismatched, _) = values(every, "cos_own"), values(every, "cos_other")
        cosines.hlines(y, mismatched, matched, color=GREY, linewidth=1)
        cosines.scatter(mismatched, y, color=ORANGE, zorder=2, label="cosine to a mismatched answer (control)")
        cosines.scatter(matched, y, color=BLUE, marker="D", s=22, zorder=3, label="to the matched answer")

        panels = [nearest, cosines, rank]
        boundary = sum(name.endswith("no decoding") for name in names)
        if 0 < boundary < len(names):
            divide(panels, boundary, len(names))
        for axes in panels:
            axes.grid(visible=False, axis="y")
            axes.set_ylim(-0.6, len(names) - 0.4)
        nearest.set(title="nearest latent correct", xlabel=QUESTIONS, xlim=(0, None))
        cosines.set(title="cosine of ẑ\n(markers meet: collapse)", xlabel="cosine", xlim=(-0.08, 1.08))
        rank.set(title="effective rank of z", xlabel="dimensions", xlim=(0, None))
        nearest.set_yticks(y, [name.replace(", no decoding", "") for name in names])
        fig.legend(ncols=3, title=OVER_SEEDS, **LEGEND)
        with in_part(fig, "Settings against collapse"):
            decoded, alone = (mean(runs[f"stop-gradient{x}"], "cos_other") for x in ("", ", no decoding"))
            finding = "Decoding each answer from its own latent prevents collapse: cosine to another answer"
            headline(fig, f"{finding} {decoded:.2f}, without decoding {alone:.2f} (stop-gradient)")


SPACE = {  # {run: (label, colour, marker)}
    "latent": ("latent: ẑ by cosine alone", BLUE, "o"),
    "latent, tokens into it": ("latent, decoding from ẑ trained too", SKY, "s"),
    "language model": ("language model, direct answer (baseline)", ORANGE, "D"),
    "language model, worked solution": ("language model, worked solution", YELLOW, "^"),
}


def space(runs: dict, path: Path) -> None:
    """Exact match over training: in latent space and in token space, by examples and by compute."""
    with figure(path, 1, 2, (WIDTH, 3.9), sharey=True) as (fig, panels):
        for name, run in runs.items():
            label, colour, marker = SPACE[name]
            examples = [point["examples"] for point in run["curve"]]
            scores = [point["exact_match"] for point in run["curve"]]
            over_seeds = [sum(x) / len(x) for x in scores]
            flops = run["flops_per_example"]["mean"]
            for axes, scale in zip(panels, (1e-3, flops / 1e12), strict=True):
                x = [n * scale for n in examples]
                for seed in zip(*scores, strict=True):
                    axes.plot(x, seed, color=colour, alpha=0.35, linewidth=0.8)
                axes.plot(x, over_seeds, color=colour, marker=marker, markersize=5, label=label)
        constant = next(iter(runs.values()))["constant_best_on_test"]["mean"]
        for axes in panels:
            axes.axhline(constant, color=GREY, linestyle="--", label="oracle constant of the test split")
        panels[0].set(title="by training examples", xlabel="examples seen, thousands")
        panels[0].set_ylabel("exact match,\nfraction of validation questions")
        panels[1].set(title="by training compute", xlabel="training compute, TFLOP")
        fig.legend(*panels[0].get_legend_handles_labels(), ncols=2, title="thin lines: single seeds", **LEGEND)
        with in_part(fig, "Latent space against token space"):
            ours, theirs = (mean(runs[x], "exact_match_decoded") for x in ("latent", "language model"))
            finding = f"The language model learns from fewer examples and ends at {theirs:.1%} on the test split"
            headline(fig, f"{finding}, the latent model at {ours:.1%}")


SIMILAR = {  # {run: (label, style)}; all but the first are controls
    "lambda": ("with the JEPA loss", dict(color=BLUE)),
    "lambda 0": ("λ = 0 (control)", dict(color=ORANGE)),
    "untrained": ("untrained (control)", dict(color=ORANGE, hatch="///", edgecolor="white")),
    "bag of words": ("bag of words (control)", dict(color=ORANGE, hatch="xxx", edgecolor="white")),
}
ALIKE = {"operations": "operations", "steps": "number of steps", "magnitude": "answer's digits"}


def similar_series(settings: dict, what: str, kinds: list[str]) -> list[tuple[dict, list, list]]:
    """-> the series of `bars`: one of each setting, and chance; `what` is measured of each of the `kinds`."""
    series = []
    for name, run in settings.items():
        label, style = SIMILAR.get(name, SIMILAR["lambda"])
        series.append((dict(label=label, **style), *columns([run[f"{what}, {kind}"] for kind in kinds])))
    first = next(iter(settings.values()))
    chance = columns([first[f"{what}, {kind}, chance"] for kind in kinds])
    return [*series, (dict(label="chance", color=GREY), *chance)]


def similar(runs: dict, path: Path) -> None:
    """Do near questions share operations, number of steps, size of the answer? Can a probe read them?"""
    found = by_part(runs)
    titles = {"neighbours": "the 5 nearest questions have the same …", "probe": "a linear probe reads …"}
    with figure(path, len(found), 2, (WIDTH, 2.0 * len(found) + 1.3), squeeze=False, sharey=True) as (fig, panels):
        for row, (part, settings) in zip(panels, found.items(), strict=True):
            kinds = [kind for kind in ALIKE if part != "words" or kind != "steps"]  # word problems have one step each
            for axes, what in zip(row, titles, strict=True):
                series = similar_series(settings, what, kinds)
                bars(axes, [ALIKE[kind] for kind in kinds], series)
                axes.set_ylim(0, 1.05)
            row[0].set_ylabel(f"{PARTS[part]}\n{QUESTIONS}")
        for axes, title in zip(panels[0], titles.values(), strict=True):
            axes.set_title(title)
        fig.legend(*panels[0, 0].get_legend_handles_labels(), ncols=5, title=OVER_SEEDS, **LEGEND)
        with in_part(fig, "Do near questions share anything?"):
            same = [mean(run, "neighbours, magnitude") for settings in found.values() for run in settings.values()]
            chance = mean(runs["gsm8k, lambda 1"], "neighbours, magnitude, chance")
            finding = (
                f"Nearest questions share the answer's size: {same[0]:.0%} of word problems, {same[1]:.0%} at λ = 0"
            )
            headline(fig, f"{finding}; on GSM8K {same[len(found['words'])]:.0%}, chance {chance:.0%}")


SCRATCH = {  # {run: (label, colour)}
    "latent, variants": ("latent, 4 augmentations", BLUE),
    "direct": ("language model, direct answer", ORANGE),
    "direct, variants": ("direct answer, 4 augmentations", ORANGE),
    "equations, variants": ("equations, 4 augmentations", YELLOW),
    "equations, variants, 3x as long": ("equations, 8 augm., 3× as long", YELLOW),
    "program, width 256": ("program, width 256", BLACK),
}
READOUTS = (  # (below the middle of the row, marker, rate, number of questions, label)
    (-0.22, "s", "val_exact_match", "val_n", "validation"),
    (0, "o", "exact_match_decoded", "n", "test"),
    (0.22, "^", "exact_match_voted", "n", "test, majority of 10 samples"),
)


def scratch(runs: dict, path: Path) -> None:
    """Every attempt at GSM8K with its 95% Wilson interval; 5.2% and 20.6% are from Cobbe et al. 2021."""
    names = list(runs)[::-1]
    rows = [SCRATCH.get(name, (name, BLACK)) for name in names]
    with figure(path, size=(WIDTH, 0.42 * len(names) + 1.6)) as (fig, axes):
        for shift, marker, key, size, label in READOUTS:
            for i, (name, (_, colour)) in enumerate(zip(names, rows, strict=True)):
                if key in runs[name]:
                    rate, n = runs[name][key]["mean"], int(runs[name][size]["mean"])
                    low, high = (100 * bound for bound in wilson(round(rate * n), n))
                    style = dict(fmt=marker, color=colour, linewidth=2)
                    axes.errorbar(100 * rate, i - shift, xerr=[[100 * rate - low], [high - 100 * rate]], **style)
            axes.plot([], [], marker, color=BLACK, fillstyle="none", label=label)
        for i, (name, (_, colour)) in enumerate(zip(names, rows, strict=True)):
            test = f"{mean(runs[name], 'exact_match_decoded'):.1%}"
            axes.text(11, i, test, color=colour, va="center", ha="right", fontweight="bold")
        constant = 100 * next(iter(runs.values()))["constant_best_on_test"]["mean"]
        axes.axvline(constant, color=GREY, linestyle="--", label=f"oracle constant: {constant:.2f}%")
        axes.axvline(5.2, color=ORANGE, linestyle=":", label="GPT-3 6B, fine-tuned, direct answer: 5.2%")
        axes.axvline(20.6, color=YELLOW, linestyle="-.", label="the same, worked solution: 20.6%")
        axes.set_xticks(range(0, 25, 5))
        axes.set_yticks(range(len(names)), [label for label, _ in rows])
        axes.set(xlim=(0, 22), ylim=(-0.6, len(names) - 0.4), xlabel="exact match, % (bars: 95% intervals)")
        axes.grid(visible=False, axis="y")
        fig.legend(ncols=2, **LEGEND)
        with in_part(fig, "GSM8K from scratch"):
            program, latent = (mean(runs[x], "exact_match_decoded") for x in ("program, width 256", "latent, variants"))
            title = f"GSM8K from scratch: programs {program:.1%}, latent model {latent:.1%}, constant {constant:.1f}%"
            headline(fig, title)


FIGURES: dict[str, Callable] = {"leak": leak, "lambda": lam, "collapse": collapse, "space": space, "similar": similar}
FIGURES |= {"scratch": scratch, "lambda-45m": lam}


def draw(folder: Path) -> None:
    """Draw the figure of every study whose JSON is in `folder`, beside it."""
    for name, draw_one in FIGURES.items():
        if (folder / f"{name}.json").is_file():
            draw_one(read_json(folder / f"{name}.json")["runs"], folder / f"{name}.png")
            print(f"drew {folder / name}.png")


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args(argv)
    draw(Path(__file__).resolve().parent)


if __name__ == "__main__":
    run_main(main)
