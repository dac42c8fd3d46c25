"""Do similar texts get similar ideas? Rank correlation of the ideas' cosines with the overlap of words.

Beside the encoder itself, an untrained compression, and the ideas dealt out to other texts (control); 95% bootstrap
intervals over texts.

Shapes: N texts, H encoder width, D idea.
"""

import copy
import re

import numpy as np
import scipy
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from latent_stack.config import EvalConfig
from latent_stack.experiments.measures import derangement
from latent_stack.layers import Pooling
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair

MOST_TEXTS = 400
RESAMPLES = 200


def word_overlap(texts: list[str]) -> np.ndarray:
    """N texts -> (N, N) Jaccard similarity |A ∩ B| / |A ∪ B| of their words of four letters or more."""
    sets = [set(re.findall(r"\w{4,}", text.lower())) for text in texts]
    return np.array([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets])


def untrained(module: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of a module with fresh random weights."""
    fresh = copy.deepcopy(module)
    torch.manual_seed(seed)
    for part in fresh.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return fresh


@torch.no_grad()
def vectors_of(model: LatentStack, texts: list[str], seed: int = 0, batch_size: int = 32) -> dict[str, Tensor]:
    """N texts -> {name: (N, H) or (N, D)}, what stands for a text from the encoder on to z_out, on the CPU.

    z_in untrained: by a fresh random pooling and compression, behind the same encoder, `origin` and `unit`.
    """
    rows, n_truncated = model.backbones.tokenize(texts)
    if n_truncated:
        limit = model.backbones.max_input
        print(f"{n_truncated} of {len(texts)} texts are longer than {limit} tokens; their rest is not read")
    mean = Pooling("mean", model.config.encoder_dim)
    fresh = untrained(model.pooling, seed), untrained(model.compress, seed)
    pooling = mean if model.has_queries else model.pooling

    found = {name: [] for name in ("encoder, mean of states", "encoder, standardised", "z_in, untrained", "z_in")}
    for i in range(0, len(rows), batch_size):
        inputs = model.backbones.pad(rows[i : i + batch_size]).to(model.device)
        hidden_states, mask = model.backbones.hidden_states(inputs), inputs.attention_mask
        found["encoder, mean of states"].append(mean(hidden_states, mask))
        found["encoder, standardised"].append(model.standardised(pooling(hidden_states, mask)))
        found["z_in, untrained"].append(model.idea(inputs, fresh))
        found["z_in"].append(model.idea(inputs))
    found = {name: torch.cat(parts) for name, parts in found.items()}
    found["z_out"] = model.think(found["z_in"])
    if model.config.ideas > 1:  # whatever their order
        found["z_in, mean of the ideas"] = model.one_by_one(found["z_in"]).mean(1)
    return {name: x.float().cpu() for name, x in found.items()}


def rank_correlations(
    cosines: dict[str, np.ndarray], overlaps: dict[str, np.ndarray], same: np.ndarray, seed: int = 0, n: int = RESAMPLES
) -> dict[tuple[str, str], tuple[float, list[float]]]:
    """{name: (N, N)} twice -> {(name of the first, name of the second): (Spearman's rho, its 95% interval)}.

    `same` (N, N) bool: pairs that do not count, since they are one text twice. The interval is over n resamples of the
    texts. K and M matrices of either kind.
    """
    rows, columns = np.triu_indices(len(same), 1)

    def spearman(texts):
        """A resample of the texts (N,) -> (K, M)."""
        i, j = texts[rows], texts[columns]
        counts = ~same[i, j]
        i, j = i[counts], j[counts]
        ranks = scipy.stats.rankdata([x[i, j] for x in (*cosines.values(), *overlaps.values())], axis=1)
        return np.corrcoef(ranks)[: len(cosines), len(cosines) :]

    rho = spearman(np.arange(len(same)))
    resamples = np.random.default_rng(seed).integers(0, len(same), (n, len(same)))
    interval = np.nanpercentile([spearman(texts) for texts in resamples], [2.5, 97.5], axis=0)  # (2, K, M)
    return {
        (name, words): (float(rho[k, m]), interval[:, k, m].tolist())
        for k, name in enumerate(cosines)
        for m, words in enumerate(overlaps)
    }


def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    pairs = pairs[:MOST_TEXTS]
    texts, N = [p.input for p in pairs], len(pairs)
    overlaps = {"input": word_overlap(texts), "target": word_overlap([p.target for p in pairs])}
    number = np.unique(texts, return_inverse=True)[1]
    same = number[:, None] == number  # a text and itself, or a text that is there twice

    cosines = {}
    for name, z in vectors_of(model, texts, config.seed).items():
        z = F.normalize(z - z.mean(0), dim=-1).numpy()
        cosines[name] = z @ z.T
    others = derangement(N, config.seed)
    shuffled = {name: x[others][:, others] for name, x in cosines.items()}
    matched = rank_correlations(cosines, overlaps, same, config.seed)
    control = rank_correlations(shuffled, overlaps, same, config.seed)

    result = {"n": N}
    for key, (rho, ci95) in matched.items():
        rho_control, ci95_control = control[key]
        result[", ".join(key)] = {
            "spearman": rho,
            "ci95": ci95,
            "shuffled": rho_control,
            "shuffled_ci95": ci95_control,
        }
    nearest = np.where(same, -2, cosines["z_out"]).argmax(1)
    result["examples"] = [{"target": pairs[i].target, "nearest": pairs[nearest[i]].target} for i in range(8)]
    _print(N, matched, control, result["examples"])
    return result


def _print(N: int, matched: dict, control: dict, examples: list[dict]) -> None:
    print(
        f"\nrank correlation of cosines with the overlap of words, {N} texts, with 95% intervals\n\n"
        f"{'':<26}{'words of':<10}{'matched ideas':<28}shuffled (control)"
    )
    for (name, words), found in matched.items():
        shown = [f"{rho:+.3f} ({low:+.3f} to {high:+.3f})" for rho, (low, high) in (found, control[name, words])]
        print(f"{name:<26}{words + 's':<10}{shown[0]:<28}{shown[1]}")
    for row in examples[:3]:
        print(f"\n  {row['target']}\n  nearest: {row['nearest']}")
