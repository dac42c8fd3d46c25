"""Alignment: is the predicted latent the right one, or merely close to everything?

    python eval_alignment.py --run out/quick
    python eval_alignment.py --run out/quick --compare out/quick-lambda0

A cosine means nothing without its control: when all latents point one way, every pair has cosine 1. So each figure
stands beside another answer's latent, and beside the same model before training.

    cos_own, cos_other, margin   cosine of z_hat to the own answer's latent, to those of the questions with another
                                 answer, and the difference; means over questions
    auc                          fraction of the other distinct answers that are further from z_hat; 0.5 is chance
    retrieval_at_k, mrr          rank of the own answer among all distinct answers of the split; ties count against
    effective_rank               exp(entropy of the normalised singular values) of centred latents (Roy & Vetterli 2007)
    deviation                    mean standard deviation of a dimension of unit latents, times sqrt(C); 1 is isotropic
    mean_pairwise_cos            mean cosine of two different questions' latents; 1 is collapse
    neighbours_share_answer      do a question's 5 nearest questions (by z_hat) have its answer, its operations?
    neighbours_share_ops         …_chance is the same for any other question
    decoded_correctly            how many questions; of how many answers are the others?
    collapse                     the training step at which all latents were most alike, and both cosines there

Writes alignment.json, alignment_cosines.png and latents.png, a map of the answers' latents with the predictions, into
the run's folder; for other data or another split, alignment-NAME.json and so on.

Shapes: N questions, A distinct answers, C width.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checkpoint import write_json
from common.device import resolve_device
from common.log import read_log
from common.options import UserError, opt, parse, run_main
from common.plots import (
    BLACK,
    BLUE,
    COLOURS,
    DOTTED,
    LEGEND,
    ORANGE,
    THIN,
    WIDTH,
    figure,
    headline,
    label_points,
    plot_curves,
    whole_windows,
)
from common.sources import Example
from common.stats import mean_ci95, wilson
from config import EvalConfig
from data import answer_view_text, is_correct
from evaluate_accuracy import answer_views, by_length, distinct_views, final_answer, load_examples, output_name
from model import NanoJEPA, load_run

NEIGHBOURS = 5


@dataclass
class AlignmentConfig(EvalConfig):
    compare: tuple = opt((), "other runs, for a table of all and a figure of alignment over training")


# -------------------------------------------------------------------------------------------- measures


def effective_rank(z: Tensor) -> float:
    """Latents (N, C) -> exp(entropy of the normalised singular values), 1 … min(N, C) (Roy & Vetterli 2007, eq. 3)."""
    s = torch.linalg.svdvals(z.double() - z.double().mean(0))
    p = s / s.sum().clamp(min=1e-30)
    return float(torch.exp(-(p * p.clamp(min=1e-30).log()).sum()))


def geometry(z: Tensor, name: str) -> dict:
    """Latents (N, C) -> effective rank, deviation and mean pairwise cosine, the three signs of collapse."""
    unit = F.normalize(z.double(), dim=-1)
    N, C = unit.shape
    pairwise = (unit.sum(0).square().sum() - N) / max(1, N * (N - 1))
    return {
        f"effective_rank_{name}": effective_rank(z),
        f"deviation_{name}": float(unit.std(0).mean() * C**0.5),
        f"mean_pairwise_cos_{name}": float(pairwise),
    }


def neighbours(z_hat: Tensor, labels: list[str], name: str) -> dict:
    """Latents (N, C), labels (N,) -> how often the nearest questions have the same label, beside any other question."""
    unit = F.normalize(z_hat, dim=-1)
    N, k = len(unit), min(NEIGHBOURS, len(unit) - 1)
    near = []
    for i in range(0, N, 512):
        similarity = unit[i : i + 512] @ unit.T  # (n, N)
        itself = torch.arange(i, i + len(similarity))[:, None]
        near.append(similarity.scatter_(1, itself, -2).topk(k).indices)
    near = torch.cat(near)  # (N, k), never the question itself

    ids = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    rate, interval = mean_ci95((ids[near] == ids[:, None]).double().mean(1))
    counts = torch.bincount(ids).double()
    chance = float((counts * (counts - 1)).sum() / (N * (N - 1)))
    return {
        f"neighbours_share_{name}": rate,
        f"neighbours_share_{name}_ci95": interval,
        f"neighbours_share_{name}_chance": chance,
    }


@dataclass
class Latents:
    """What is measured: z_hat (N, C), z of the distinct answer views (A, C), `own` (N,) rows of z, and their texts."""

    z_hat: Tensor
    z: Tensor
    own: Tensor
    examples: list[Example]
    answers: list[str]

    def cosines(self) -> Tensor:
        """(N, A) in fp64."""
        return (F.normalize(self.z_hat, dim=-1) @ F.normalize(self.z, dim=-1).T).double()

    def own_and_other(self) -> tuple[Tensor, Tensor]:
        """Cosine to the own answer's latent (N,), and the mean over all questions with another answer (N,)."""
        similarity = self.cosines()
        N, A = similarity.shape
        own = similarity.gather(1, self.own[:, None])[:, 0]
        count = torch.bincount(self.own, minlength=A).double()  # how often each answer occurs
        others = count.repeat(N, 1).scatter_(1, self.own[:, None], 0.0)
        return own, (similarity * others).sum(1) / others.sum(1)


@torch.no_grad()
def compute_latents(model: NanoJEPA, examples: list[Example], answers=(), batch_size: int = 64) -> Latents:
    """Questions that fit the context and have an answer view, and the latents of their answer views and of the further
    candidates `answers`."""
    examples = [e for e, view in zip(examples, answer_views(model, examples), strict=True) if view is not None]
    batches = by_length(model, [e.question for e in examples], batch_size)
    kept = [examples[i] for batch in batches for i in batch]
    answers = sorted({*distinct_views(model, kept), *answers})
    if not kept:
        raise UserError(
            f"none of these {len(examples)} questions has an answer view and fits the context of "
            f"{model.config.block_size} tokens"
        )
    if len(answers) < 2:
        raise UserError(
            f"alignment needs two different answers or more; these {len(kept)} questions have {len(answers)}"
        )
    z_hat = torch.cat([model.predict([examples[i].question for i in batch]) for batch in batches]).cpu()
    z = torch.cat([model.encode(answers[i : i + 256]) for i in range(0, len(answers), 256)]).cpu()
    column = {answer: i for i, answer in enumerate(answers)}
    own = torch.tensor([column[answer_view_text(e, model.config.answer_view)] for e in kept])
    return Latents(z_hat, z, own, kept, answers)


def decoded_correctly(model: NanoJEPA, latents: Latents, batch_size: int = 64) -> list[bool]:
    """Does the answer decoded for each question name its number?"""
    correct = []
    for i in range(0, len(latents.examples), batch_size):
        examples = latents.examples[i : i + batch_size]
        texts = model.answer([e.question for e in examples])
        correct += [is_correct(final_answer(model, x), e, model.config) for x, e in zip(texts, examples, strict=True)]
    return correct


def measure(latents: Latents) -> dict:
    """-> alignment.json's figures."""
    similarity, (own, other) = latents.cosines(), latents.own_and_other()
    N, A = similarity.shape
    above = (similarity > own[:, None]).sum(1)
    tied = (similarity == own[:, None]).sum(1) - 1
    rank = 1 + above + tied  # ties count against: a collapsed model must not be first everywhere

    result = {"n": N, "n_answers": A}
    per_question = {
        "cos_own": own,
        "cos_other": other,
        "margin": own - other,
        "auc": (A - 1 - above - tied / 2) / (A - 1),
        "mrr": 1 / rank,
    }
    for name, values in per_question.items():
        result[name], result[f"{name}_ci95"] = mean_ci95(values)
    for k in (1, 5, 10):
        hits = int((rank <= k).sum())
        result[f"retrieval_at_{k}"] = hits / N
        result[f"retrieval_at_{k}_ci95"] = wilson(hits, N)
        result[f"retrieval_at_{k}_chance"] = min(1.0, k / A)
    result |= geometry(latents.z[latents.own], "z") | geometry(latents.z_hat, "z_hat")
    result |= neighbours(latents.z_hat, [latents.answers[i] for i in latents.own], "answer")
    if any(e.ops for e in latents.examples):
        result |= neighbours(latents.z_hat, ["".join(sorted(e.ops)) for e in latents.examples], "ops")
    return result


def alignment(model: NanoJEPA, examples: list[Example], answers=(), batch_size: int = 64) -> tuple[dict, Latents]:
    """-> (alignment.json's dict without the untrained control, the latents for the figures)."""
    latents = compute_latents(model, examples, answers, batch_size)
    return measure(latents), latents


def untrained(model: NanoJEPA) -> NanoJEPA:
    """The same model before its first step: same configuration, seed and tokenizer, on the same device."""
    torch.manual_seed(model.config.seed)
    fresh = NanoJEPA(model.config).to(model.device).eval()
    fresh.tokenizer = model.tokenizer
    return fresh


# --------------------------------------------------------------------------------------------- figures


def plot_cosines(trained: Latents, fresh: Latents, path: Path) -> None:
    """Histograms of the own answer's cosine and of another answer's, before training and after."""
    found = [latents.own_and_other() for latents in (fresh, trained)]
    low = min(-0.2, *(float(x.min()) for pair in found for x in pair))
    bins = np.linspace(low, 1, 60)
    with figure(path, 1, 2, (WIDTH, 3.2), sharex=True, sharey=True) as (fig, axes):
        for axis, (own, other), when in zip(axes, found, ("before training", "after training"), strict=True):
            axis.hist(other.numpy(), bins, color=ORANGE, alpha=0.7, label="another answer's latent (control)")
            axis.hist(own.numpy(), bins, color=BLUE, alpha=0.7, label="own answer's latent")
            axis.set(title=f"{when}: {own.mean():.2f} and {other.mean():.2f}", xlabel="cosine of ẑ to …")
        axes[0].set_ylabel("questions")
        own, other = found[1]
        headline(fig, f"Mean cosine {own.mean():.3f} to the own answer, {other.mean():.3f} to another's (control)")
        fig.legend(*axes[0].get_legend_handles_labels(), ncols=2, **LEGEND)


def plot_map(latents: Latents, correct: list[bool], path: Path, n_lines: int = 100) -> None:
    """Answer latents along their two first principal components, each with its text where there is room; predictions
    in the same plane, those decoded incorrectly with a line to the answer they should have met."""
    from sklearn.decomposition import PCA

    unit_z, unit_z_hat = (F.normalize(x, dim=-1).numpy() for x in (latents.z, latents.z_hat))
    pca = PCA(2).fit(unit_z)
    z, z_hat = pca.transform(unit_z), pca.transform(unit_z_hat)
    own, correct = latents.own.numpy(), np.array(correct)
    variance, (wrong,) = pca.explained_variance_ratio_, np.nonzero(~correct)
    distance, chance = (np.linalg.norm(z_hat - z[x], axis=1).mean() for x in (own, np.roll(own, len(own) // 2)))

    with figure(path, 1, 1, (WIDTH, 5.6)) as (fig, axes):
        for i in wrong[:n_lines]:
            axes.plot(*np.stack((z_hat[i], z[own[i]])).T, color=ORANGE, alpha=0.5, linewidth=0.7)
        n, marks = len(correct), dict(linewidths=0)
        label = f"ẑ, decoded correctly ({correct.sum():,})"
        axes.scatter(*z_hat[correct].T, s=16, color=BLUE, alpha=0.3, label=label, **marks)
        label = f"ẑ, decoded incorrectly ({len(wrong):,}), a line to its z"
        axes.scatter(*z_hat[wrong].T, s=32, color=ORANGE, marker="X", label=label, zorder=3, **marks)
        axes.scatter(*z.T, s=9, color=BLACK, label=f"answer latents z ({len(z)})", zorder=4, **marks)
        axes.set(
            xlabel=f"first principal component of z ({variance[0]:.0%} of variance)",
            ylabel=f"second ({variance[1]:.0%})",
        )
        axes.set_title(
            f"mean distance in this plane: {distance:.2f} to the own answer, {chance:.2f} to another's (control)"
        )
        finding = f"{correct.sum():,} of {n:,} predicted latents decode to the correct answer"
        others = f"; the other {len(wrong)} belong to {len(set(own[wrong]))} of {len(z)} answers" if len(wrong) else ""
        headline(fig, finding + others)
        fig.legend(ncols=3, **LEGEND)
        often = np.argsort(-np.bincount(own, minlength=len(z)), kind="stable")
        label_points(axes, z[often], [latents.answers[i] for i in often], z_hat[wrong], fontsize=8, zorder=5)


def collapse(train: list[dict]) -> dict | None:
    """Training lines of log.jsonl -> the one where every answer's latent looks alike, the highest cosine to another's;
    None if there was no such phase or if the latents never parted again."""
    train = [row for row in train if "cos_own" in row]  # older logs have none
    highest = max(train, key=lambda row: row["cos_other"], default=None)
    if not highest or highest["cos_other"] < 0.5:
        return None
    parted = train[-1]["cos_own"] - train[-1]["cos_other"] > 2 * (highest["cos_own"] - highest["cos_other"])
    return highest if parted else None


def plot_jepa_loss(run: str | Path) -> None:
    """log.jsonl -> jepa_loss_curve.png: the control beside the claim, and the early collapse from which they part."""
    train, val = read_log(run)
    train = whole_windows(train)
    lines = [
        ("own answer, training", train, "jepa_loss", dict(color=BLUE, **THIN)),
        ("own answer, validation", val, "val_jepa_loss", dict(color=BLUE, **DOTTED)),
        ("another's (control), training", train, lambda x: 1 - x["cos_other"], dict(color=ORANGE, **THIN)),
        ("another's (control), validation", val, lambda x: 1 - x["val_cos_other"], dict(color=ORANGE, **DOTTED)),
    ]
    notes = []
    if row := collapse(train):
        text = f"step {row['step']}: all latents alike,\ncosine {row['cos_own']:.3f} to the own answer,"
        point = row["step"], 1 - row["cos_other"]
        notes.append((f"{text}\n{row['cos_other']:.3f} to another's", point, (0.45, 0.97)))
    last, prefix = (val[-1], "val_") if val else (train[-1], "")
    own, other = last[f"{prefix}jepa_loss"], 1 - last[f"{prefix}cos_other"]
    title = f"JEPA loss {own:.3f} to the own answer, {other:.3f} to another's (control)"
    plot_curves(Path(run) / "jepa_loss_curve.png", lines, title, "1 − cosine of ẑ", "linear", "log", notes)


def plot_training(runs: list[tuple[str, str]], path: Path) -> None:
    """(label, folder) pairs -> validation cosines over training, own (solid) and other (dotted), one colour a run."""
    with figure(path) as (fig, axis):
        margins = []
        for (label, run), colour in zip(runs, cycle(COLOURS), strict=False):
            _, val = read_log(run)
            margins.append(f"{label} {val[-1]['val_cos_own'] - val[-1]['val_cos_other']:.2f}")
            for key, style, what in (("val_cos_own", "-", "own answer"), ("val_cos_other", ":", "another's (control)")):
                points = [x["step"] for x in val], [x[key] for x in val]
                axis.plot(*points, style, marker="o", markersize=3, color=colour, label=f"{label}, {what}")
        axis.set(xlabel="optimiser step", ylabel="cosine of ẑ, validation split")
        headline(fig, f"Own answer's cosine above another's at the end: {', '.join(margins)}")
        fig.legend(ncols=2, **LEGEND)


# ------------------------------------------------------------------------------------------------ main

TABLE = """
    cos_own cos_other margin auc retrieval_at_1 retrieval_at_5 retrieval_at_10 mrr
    effective_rank_z effective_rank_z_hat deviation_z deviation_z_hat mean_pairwise_cos_z mean_pairwise_cos_z_hat
    neighbours_share_answer neighbours_share_ops
""".split()


def print_table(columns: dict[str, dict]) -> None:
    """{heading: result} -> a table, a measure a line, with the chance level where there is one."""
    width = 2 + max(12, *(len(name) for name in columns))
    first = next(iter(columns.values()))
    headings = "".join(f"{name:>{width}}" for name in columns)
    print(f"{'':<26}{headings}{'chance':>10}   95% interval of the first")
    for name in (name for name in TABLE if name in first):
        values = "".join(f"{found[name]:>{width}.4f}" for found in columns.values())
        chance = 0.5 if name == "auc" else first.get(f"{name}_chance")
        interval = first.get(f"{name}_ci95")
        line = f"{name:<26}{values}" + (f"{chance:>10.4f}" if chance is not None else f"{'':>10}")
        print(line + (f"   {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""))


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(AlignmentConfig, {}, __doc__.split("\n\n")[0], argv)
    device = resolve_device(config.device).device
    model = load_run(config.run, device)
    for folder in (config.run, *config.compare) if config.compare else ():
        read_log(folder)  # the figure over training needs it: better missed now than after all was measured
    examples, _, answers = load_examples(model, config)
    if model.config.mask != "jepa":
        print(f"mask {model.config.mask}: in training an answer's latent saw its question; here each answer is alone")
    result, latents = alignment(model, examples, answers, config.batch_size)
    result["untrained"], fresh = alignment(untrained(model), examples, answers, config.batch_size)
    columns, runs = {"trained": result, "untrained": result["untrained"]}, {config.run: model}
    for other in config.compare:
        runs[other] = load_run(other, device)
        their_examples, _, their_answers = load_examples(runs[other], config)
        columns[other] = alignment(runs[other], their_examples, their_answers, config.batch_size)[0]
    questions = f"{result['n']:,} questions of the {config.split} split, {result['n_answers']:,} distinct answers"
    print(f"\n{config.run}: {questions}\n")
    print_table(columns)

    run, name = Path(config.run), output_name("alignment", model, config)
    train = whole_windows(read_log(run)[0]) if (run / "log.jsonl").is_file() else []
    if row := collapse(train):
        result["collapse"] = {key: row[key] for key in ("step", "cos_own", "cos_other")}
    correct = decoded_correctly(model, latents, config.batch_size)
    wrong = {answer for answer, right in zip(latents.own.tolist(), correct, strict=True) if not right}
    result |= {"decoded_correctly": sum(correct), "answers_decoded_incorrectly": len(wrong)}
    compared = {other: columns[other] for other in config.compare}
    write_json(run / f"{name}.json", {"split": config.split, **result, "compared": compared})
    plot_cosines(latents, fresh, run / f"{name}_cosines.png")
    map_name = f"{output_name('latents', model, config)}.png"
    plot_map(latents, correct, run / map_name)
    written = [f"{name}.json", f"{name}_cosines.png", map_name]
    if config.compare:
        labelled = [(f"λ = {m.config.jepa_weight:g} ({Path(folder).name})", folder) for folder, m in runs.items()]
        plot_training(labelled, run / f"{name}_over_training.png")
        written.append(f"{name}_over_training.png")
    print("\nwrote " + ", ".join(f"{run}/{file}" for file in written))


if __name__ == "__main__":
    run_main(main)
