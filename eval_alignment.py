"""Alignment: is the predicted latent the right one, or merely close to everything?

    python eval_alignment.py --run out/quick
    python eval_alignment.py --run out/quick --compare out/quick-lambda0

A cosine means nothing without its control: when all latents point one way, every pair has cosine 1. So each figure
stands beside another answer's latent, and beside the same model before training.

    cos_own, cos_other, margin   cosine of z_hat to the own answer's latent, to those of the questions with another
                                 answer, and the difference; means over questions
    auc                          share of the other distinct answers that are further from z_hat; 0.5 is chance
    retrieval_at_k, mrr          rank of the own answer among all distinct answers of the split; ties count against
    effective_rank               exp(entropy of the normalised singular values) of centred latents (Roy & Vetterli 2007)
    deviation                    mean standard deviation of a dimension of unit latents, times sqrt(C); 1 is isotropic
    mean_pairwise_cos            mean cosine of two different questions' latents; 1 is collapse
    neighbours_share_answer      do a question's 5 nearest questions (by z_hat) share its answer, its operations?
    neighbours_share_ops         …_chance is the same for any other question

Writes alignment.json and figures into the run's folder.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from config import EvalConfig, UserError, atomic, opt, parse, resolve_device, run_main, write_json
from evaluate_accuracy import by_length, load_examples, wilson
from model import NanoJEPA, load_run
from train import read_log

NEIGHBOURS = 5
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe-Ito, distinct for colour-blind readers


# -------------------------------------------------------------------------------------------- measures


def mean_ci95(x):
    """values (N,) -> (mean, [low, high]), the normal approximation of the mean's 95% interval."""
    x = np.asarray(x, dtype=np.float64)
    half = 1.96 * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else 0.0
    return float(x.mean()), [float(x.mean() - half), float(x.mean() + half)]


def effective_rank(z):
    """Latents (N, C) -> exp(entropy of the normalised singular values), 1 … min(N, C) (Roy & Vetterli 2007, eq. 3)."""
    s = torch.linalg.svdvals(z.double() - z.double().mean(0))
    p = s / s.sum().clamp(min=1e-30)
    return float(torch.exp(-(p * p.clamp(min=1e-30).log()).sum()))


def geometry(z, name):
    """Latents (N, C) -> effective rank, deviation and mean pairwise cosine, the three signs of collapse."""
    unit = F.normalize(z.double(), dim=-1)
    N, C = unit.shape
    pairwise = (unit.sum(0).square().sum() - N) / max(1, N * (N - 1))
    return {f"effective_rank_{name}": effective_rank(z), f"deviation_{name}": float(unit.std(0).mean() * C**0.5),
            f"mean_pairwise_cos_{name}": float(pairwise)}  # fmt: skip


def neighbours(z_hat, labels, name):
    """Latents (N, C), labels (N,) -> how often the nearest questions share a label, beside any other question."""
    unit = F.normalize(z_hat, dim=-1)
    N, k = len(unit), min(NEIGHBOURS, len(unit) - 1)
    near = torch.cat([(unit[i : i + 512] @ unit.T)
                      .scatter_(1, torch.arange(i, min(i + 512, N))[:, None], -2).topk(k).indices
                      for i in range(0, N, 512)])  # (N, k), never the question itself  # fmt: skip
    ids = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    share, interval = mean_ci95((ids[near] == ids[:, None]).double().mean(1))
    counts = torch.bincount(ids).double()
    chance = float((counts * (counts - 1)).sum() / (N * (N - 1)))
    return {
        f"neighbours_share_{name}": share,
        f"neighbours_share_{name}_ci95": interval,
        f"neighbours_share_{name}_chance": chance,
    }


@torch.no_grad()
def latents(model, examples, answers=None, batch_size=64):
    """-> (z_hat (N, C), z of the distinct answers (A, C), own (N,) rows in z, examples, answers).

    `answers` are the candidates beyond those of the examples. Questions that do not fit the context are left out."""
    batches = list(by_length(model, [e.question for e in examples], batch_size))
    kept = [examples[i] for batch in batches for i in batch]
    answers = sorted({e.answer for e in kept} | set(answers or ()))
    if len(answers) < 2:
        raise UserError(
            f"alignment needs at least two different answers; these {len(kept)} questions have {len(answers)}"
        )
    z_hat = torch.cat([model.predict([examples[i].question for i in batch]) for batch in batches]).cpu()
    z = torch.cat([model.encode(answers[i : i + 256]) for i in range(0, len(answers), 256)]).cpu()
    column = {answer: i for i, answer in enumerate(answers)}
    return z_hat, z, torch.tensor([column[e.answer] for e in kept]), kept, answers


def measure(z_hat, z, own, examples):
    """Latents as `latents` returns them -> (alignment.json's figures, own cosines (N,), mean other cosines (N,))."""
    similarity = (F.normalize(z_hat, dim=-1) @ F.normalize(z, dim=-1).T).double()  # (N, A)
    N, A = similarity.shape
    mine = similarity.gather(1, own[:, None])  # (N, 1)
    count = torch.bincount(own, minlength=A).double()  # how often each answer occurs
    others = count.repeat(N, 1).scatter_(1, own[:, None], 0.0)
    other = (similarity * others).sum(1) / others.sum(1)
    above = (similarity > mine).sum(1)
    tied = (similarity == mine).sum(1) - 1
    rank = 1 + above + tied  # ties count against: a collapsed model must not be first everywhere
    result = {"n": N, "n_answers": A}
    for name, values in (("cos_own", mine[:, 0]), ("cos_other", other), ("margin", mine[:, 0] - other),
                         ("auc", (A - 1 - above - tied / 2) / (A - 1)), ("mrr", 1 / rank)):  # fmt: skip
        result[name], result[f"{name}_ci95"] = mean_ci95(values)
    for k in (1, 5, 10):
        hits = int((rank <= k).sum())
        result |= {
            f"retrieval_at_{k}": hits / N,
            f"retrieval_at_{k}_ci95": wilson(hits, N),
            f"retrieval_at_{k}_chance": min(1.0, k / A),
        }
    result |= geometry(z[own], "z") | geometry(z_hat, "z_hat")
    result |= neighbours(z_hat, [e.answer for e in examples], "answer")
    result |= neighbours(z_hat, ["".join(sorted(e.ops)) for e in examples], "ops")
    return result, mine[:, 0], other


def alignment(model, examples, answers=None, batch_size=64):
    """model, list of Example -> (alignment.json's dict without the untrained control, the latents for the figures)."""
    z_hat, z, own, kept, answers = latents(model, examples, answers, batch_size)
    result, mine, other = measure(z_hat, z, own, kept)
    return result, {
        "z_hat": z_hat,
        "z": z,
        "own": own,
        "mine": mine,
        "other": other,
        "examples": kept,
        "answers": answers,
    }


def untrained(model):
    """The same model before its first step: same configuration, seed and tokenizer, on the same device."""
    torch.manual_seed(model.config.seed)
    fresh = NanoJEPA(model.config).to(model.device).eval()
    fresh.tokenizer = model.tokenizer
    return fresh


# --------------------------------------------------------------------------------------------- figures


def save_figure(figure, path):
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def plot_cosines(trained, fresh, path):
    """Histograms of the own answer's cosine and of another answer's, after training and before."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharex=True, sharey=True, layout="constrained")
    for axis, found, title in zip(axes, (fresh, trained), ("before training", "after training"), strict=True):
        bins = np.linspace(min(-0.2, float(found["other"].min()), float(found["mine"].min())), 1, 60)
        axis.hist(found["other"].numpy(), bins, color=ORANGE, alpha=0.7, label="another answer's latent (control)")
        axis.hist(found["mine"].numpy(), bins, color=BLUE, alpha=0.7, label="own answer's latent")
        axis.set(title=title, xlabel="cosine of the predicted latent to …")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("questions")
    axes[0].legend(loc="upper right")
    save_figure(figure, path)
    plt.close(figure)


def plot_map(found, path):
    """The two first principal components of the answer latents, and the predictions in the same plane."""
    import matplotlib.pyplot as plt
    from sklearn.decomposition import PCA

    z, z_hat = F.normalize(found["z"], dim=-1).numpy(), F.normalize(found["z_hat"], dim=-1).numpy()
    pca = PCA(2).fit(z)
    value = lambda text: np.log10(1 + abs(float(text)))  # noqa: E731
    answers = found["answers"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
    colours = dict(cmap="viridis", vmin=0, vmax=max(map(value, answers)), s=9, linewidths=0)
    dots = axes[0].scatter(*pca.transform(z).T, c=[value(a) for a in answers], **colours)
    axes[1].scatter(*pca.transform(z_hat).T, c=[value(e.answer) for e in found["examples"]], **colours)
    share = pca.explained_variance_ratio_
    titles = (f"answer latents z ({len(answers)} answers)", f"predicted latents ẑ ({len(z_hat)} questions)")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel=f"component 1 ({share[0]:.0%} of variance)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"component 2 ({share[1]:.0%})")
    figure.colorbar(dots, ax=axes, label="log10(1 + |answer|)")
    save_figure(figure, path)
    plt.close(figure)


def plot_training(runs, path):
    """Validation cosines over training, own (solid) and other (dotted), one colour a run."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for colour, (label, run) in zip(cycle((BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")), runs):
        _, val = read_log(run)
        for key, style, what in (("val_cos_own", "-", "own answer"), ("val_cos_other", ":", "another answer")):
            points = [x["step"] for x in val], [x[key] for x in val]
            axis.plot(*points, style, marker="o", markersize=3, color=colour, label=f"{label}, {what}")
    axis.set(
        title="Alignment over training, validation split",
        xlabel="optimiser step",
        ylabel="cosine of the predicted latent",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    save_figure(figure, path)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------ main


@dataclass
class AlignmentConfig(EvalConfig):
    compare: tuple = opt((), "other runs, for a table of all and a figure of alignment over training")


TABLE = ("cos_own", "cos_other", "margin", "auc", "retrieval_at_1", "retrieval_at_5", "retrieval_at_10", "mrr",
         "effective_rank_z", "effective_rank_z_hat", "deviation_z", "deviation_z_hat", "mean_pairwise_cos_z",
         "mean_pairwise_cos_z_hat", "neighbours_share_answer", "neighbours_share_ops")  # fmt: skip


def print_table(columns):
    """{heading: result} -> a table, a measure a line, with the chance level where there is one."""
    width = max(12, *(len(name) for name in columns))
    print(
        f"{'':<26}"
        + "".join(f"{name:>{width + 2}}" for name in columns)
        + f"{'chance':>10}   95% interval of the first"
    )
    for name in TABLE:
        first = next(iter(columns.values()))
        chance = {"auc": 0.5}.get(name, first.get(f"{name}_chance"))
        interval = first.get(f"{name}_ci95")
        print(f"{name:<26}" + "".join(f"{found[name]:>{width + 2}.4f}" for found in columns.values())
              + (f"{chance:>10.4f}" if chance is not None else f"{'':>10}")
              + (f"   {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""))  # fmt: skip


def main():
    config, _ = parse(AlignmentConfig, {}, __doc__.split("\n\n")[0])
    import matplotlib

    matplotlib.use("Agg")
    device = resolve_device(config.device).device
    model = load_run(config.run, device)
    examples, _, answers = load_examples(model, config)
    if model.config.mask != "jepa":
        print(
            f"mask {model.config.mask}: in training an answer's latent saw its question; here each answer stands alone"
        )
    result, found = alignment(model, examples, answers, config.batch_size)
    result["untrained"], fresh = alignment(untrained(model), examples, answers, config.batch_size)
    columns, run = {"trained": result, "untrained": result["untrained"]}, Path(config.run)
    lam = {config.run: model.config.jepa_weight}
    for other in config.compare:
        rival = load_run(other, device)
        lam[other] = rival.config.jepa_weight
        theirs, _, their_answers = load_examples(rival, config)
        columns[other] = alignment(rival, theirs, their_answers, config.batch_size)[0]

    print(
        f"\n{config.run}: {result['n']:,} questions of the {config.split} split, "
        f"{result['n_answers']:,} distinct answers\n"
    )
    print_table(columns)
    write_json(
        run / "alignment.json",
        {"split": config.split, **result, "compared": {name: columns[name] for name in config.compare}},
    )
    plot_cosines(found, fresh, run / "alignment_cosines.png")
    plot_map(found, run / "alignment_map.png")
    written = ["alignment.json", "alignment_cosines.png", "alignment_map.png"]
    if config.compare:
        labelled = [(f"λ = {value:g} ({Path(name).name})", name) for name, value in lam.items()]
        plot_training(labelled, run / "alignment_over_training.png")
        written.append("alignment_over_training.png")
    print("\nwrote " + ", ".join(f"{run}/{name}" for name in written))


if __name__ == "__main__":
    run_main(main)
