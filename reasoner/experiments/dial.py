"""A dial between latent and token: what is fed back is sharpened towards the vocabulary, at evaluation alone.

    latent             r as it is, one end
    τ = 1 … 0.01       Σ softmax(cos(r, E) / τ) E on the sphere, from the mean of the embeddings to the nearest
    tokens fed back    the nearest embedding: the other end, and the control

At each: accuracy of chain tokens in their places, free-running, read by the nearest embedding; correct answers, read so
and by the Talker; on GSM8K the equations that hold. All of it again with Gaussian noise on what is fed back, added
after the sharpening, so that it reaches the Reasoner whole.
"""

from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from common.plots import BLUE, GREEN, ORANGE, figure
from common.stats import bootstrap_mean, clustered_mean, paired_difference, wilson
from reasoner.config import QUESTIONS, EvalConfig
from reasoner.experiments.measures import correct, rollouts
from reasoner.experiments.trajectory import parse_equations, score
from reasoner.model import Reasoner, ReasonerTalker
from reasoner.tasks import Example

LATENT, TOKENS = "latent", "tokens"
TEMPERATURES = (0.01, 0.03, 0.06, 0.1, 0.15, 0.25, 1.0)
NOISE = (0.0, 0.6)
SETTINGS = {
    LATENT: dict(sharpen=0.0),
    **{str(t): dict(sharpen=t) for t in TEMPERATURES},
    TOKENS: dict(feed_tokens=True),
}


def token_hits(reasoner: Reasoner, examples: list[Example], latents: list[torch.Tensor]) -> list[float]:
    """Fraction of each chain's tokens, [EOS] included, that the nearest embedding has in their places."""
    t, hits = reasoner.tokenizer, []
    for ids, chain in zip(t.encode([x.chain for x in examples]), latents, strict=True):
        reference, found = [*ids, t.eos], reasoner.nearest(chain.to(reasoner.device)).tolist()
        hits.append(sum(a == b for a, b in zip(reference, found, strict=False)) / len(reference))
    return hits


def equations_that_hold(examples: list[Example], texts: list[str], seed: int) -> dict:
    """Rate over the equations of all chains, its interval over problems; `n` equations."""
    gold, chains = ([parse_equations(text) for text in found] for found in ([x.chain for x in examples], texts))
    steps = score(gold, chains, texts)[1]["arithmetic"]
    return (clustered_mean(*zip(*steps, strict=True), seed) if steps else {"mean": 0.0, "ci95": wilson(0, 0)}) | {
        "n": len(steps)
    }


@torch.no_grad()
def measure_setting(
    reasoner: Reasoner, readers: dict, examples: list[Example], config: EvalConfig, noise: float, how: dict
) -> tuple[dict, list[float]]:
    """One way to feed back, one norm of noise -> (what the module's docstring lists, token accuracy of each).

    readers: {name: latents (B, R, C) -> B texts}
    """
    generator, seed, n = torch.Generator().manual_seed(config.seed), config.seed, config.batch_size
    latents = rollouts(reasoner, examples, n, noise=noise, generator=generator, **how)
    hits = token_hits(reasoner, examples, latents)
    row = {"noise": noise, "token_accuracy": bootstrap_mean(hits, seed)}
    for reader, read in readers.items():
        texts = []
        for i in range(0, len(latents), n):
            texts += read(pad_sequence(latents[i : i + n], batch_first=True).to(reasoner.device))
        right = sum(correct(reasoner, examples, texts))
        row[reader] = {"share": right / len(examples), "ci95": wilson(right, len(examples))}
        if reasoner.config.dataset in QUESTIONS and not reasoner.config.computes:
            row[f"equations_{reader}"] = equations_that_hold(examples, texts, seed)
    return row, hits


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """-> {run: {setting: a row for each noise}}; `less_the_latent`: the paired difference in token accuracy."""
    result = {}
    for name, model in models.items():
        if not isinstance(model, ReasonerTalker):
            continue
        readers = {"nearest": model.reasoner.nearest_text, "talker": model.talker.speak}
        result[name], latent = {}, {}
        for setting, how in SETTINGS.items():
            result[name][setting] = []
            for noise in NOISE:
                row, hits = measure_setting(model.reasoner, readers, examples, config, noise, how)
                row["less_the_latent"] = paired_difference(hits, latent.setdefault(noise, hits), config.seed)
                result[name][setting].append(row)
            print(f"{name}, fed back: {setting:<7}{'; '.join(map(in_words, result[name][setting]))}", flush=True)
        draw(result[name], Path(name).name, config.path(f"dial_{Path(name).name}.png"))
    return result


def in_words(row: dict) -> str:
    equations = f", equations {row['equations_nearest']['mean']:.1%}" if "equations_nearest" in row else ""
    talker = f" (Talker {row['talker']['share']:.1%})" if "talker" in row else ""
    return (
        f"noise {row['noise']:g}: tokens {row['token_accuracy']['mean']:.1%}, answers {row['nearest']['share']:.1%}"
        f"{talker}{equations}"
    )


def draw(rows: dict, name: str, path: str | Path) -> None:
    """What is fed back, from token to latent, against each measure; both ends drawn beside it -> PNG."""
    second = "equations_nearest" if "equations_nearest" in rows[LATENT][0] else "nearest"
    measures = {"token_accuracy": "chain tokens in their places"}
    measures[second] = "correct answers" if second == "nearest" else "equations that hold"
    noises = [row["noise"] for row in rows[LATENT]]
    at = [TOKENS, *(str(t) for t in TEMPERATURES), LATENT]
    with figure(path, 1, len(measures), size=(4.2 * len(measures), 4.2), squeeze=False) as (fig, panels):
        for axes, (key, title) in zip(panels[0], measures.items(), strict=True):
            for i, (noise, colour) in enumerate(zip(noises, (BLUE, GREEN), strict=False)):
                found = [rows[setting][i][key] for setting in at]
                y = [row.get("mean", row.get("share")) for row in found]
                low, high = zip(*(row["ci95"] for row in found), strict=True)
                inside = range(1, len(at) - 1)
                axes.plot(inside, y[1:-1], color=colour, marker="os"[i], label=f"sharpened, noise {noise:g}")
                axes.vlines(range(len(at)), low, high, color=colour, linewidth=1)
                axes.scatter([len(at) - 1], y[-1:], color=colour, marker="os"[i], facecolor="none", s=60)
                axes.scatter([0], y[:1], color=ORANGE, marker="os"[i], s=60, zorder=3)
            axes.set_xticks(range(len(at)), ["token", *map(str, TEMPERATURES), "latent"], fontsize=8)
            axes.set(title=title, xlabel="temperature of what is fed back", ylim=(0, 1.03 if max(high) > 0.6 else None))
        panels[0, 0].set_ylabel("fraction (bars: 95%)")
        fig.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        fig.suptitle(f"{name}: between a token fed back (control, orange) and the latent itself (hollow)")
