"""Where is the limit: can the language model be told a text at all, and does the encoder know it?

For each test text what the language model reads is optimised directly, with every weight fixed: free soft tokens; fewer
numbers behind a fixed random expansion; the idea behind the trained one, from the encoder's own idea on. Progressive:
the first tokens of the text until greedy decoding says them, then some more of it, so that what counts as said is
generated, not teacher-forced. After Kuratov et al. (2025, arXiv 2502.13063), who cram a text into one input vector,
and progressive cramming (fusionbrainlab.github.io/progressive_cramming), where the stages come from.

    said       fraction of the text's tokens, EOS among them, that greedy decoding gets right before its first error
    at_first   the same at step 0: random soft tokens (control); the encoder's own idea behind the trained expansion

Shapes: B texts, T tokens of a target without BOS, P soft tokens, E language-model width, D numbers of an idea.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.batching import pad
from common.plots import COLOURS, MARKERS, figure
from common.stats import bootstrap_mean
from latent_stack.config import EvalConfig
from latent_stack.data import TokenizedDataset
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair

MOST_TEXTS, MOST_TOKENS = 4, 20  # texts, unless --limit: 10 to 20 min on a CPU core
LR = 0.05  # of the standard deviation of what is optimised
GROW = 4  # tokens that a stage adds
SOFT_TOKENS, NUMBERS = (1, 4, 16), (64, 256, 512)


def said_exactly(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, T, V), tokens (B, T) with -1 behind the end -> tokens before the first error (B,).

    Up to there greedy decoding reads what teacher forcing does, and so says the same.
    """
    right = (logits.argmax(-1) == tokens) & (tokens >= 0)
    return right.long().cumprod(1).sum(1)


def conditions(model: LatentStack, pairs: list[Pair], seed: int) -> dict[str, tuple[Tensor, Callable]]:
    """{name: (what is optimised, a row a text; the function that makes soft tokens (B, P, E) of it)}."""
    B, E, scale = len(pairs), model.config.decoder_dim, model.prefix_scale
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(model.device)

    found = {f"{P} soft token{'s' * (P > 1)}": (normal(B, P, E), lambda x: x * scale) for P in SOFT_TOKENS}
    P = SOFT_TOKENS[-1]
    for D in NUMBERS:
        expansion = normal(D, P * E) * D**-0.5
        name = f"{D} numbers, random expansion"
        found[name] = normal(B, D), lambda x, W=expansion: (x @ W).view(len(x), P, E) * scale
    z = model.think(model.encode([p.input for p in pairs]))
    found[f"an idea of {z[0].numel()}, trained expansion"] = z, model.prefix
    if model.config.sharpen:
        found["the same, not sharpened"] = z, lambda x: model.with_kv(model.soft_tokens(x), x)
    return found


def optimise(
    x: Tensor, prefix_of: Callable, tokens: Tensor, model: LatentStack, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows x (B, …) -> tokens said exactly after each step (steps + 1, B), the most so far; steps until all are (B,).

    `tokens` (B, T), -1 behind the end. Texts that are said whole take no further part.
    """
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([x], lr=LR * float(x.detach().std()), weight_decay=0.0)
    length = (tokens >= 0).sum(1)
    stage, best = length.clamp(max=GROW), torch.zeros_like(length)
    curve, needed = [], torch.full_like(length, steps)
    given = torch.cat((torch.full_like(tokens[:, :1], model.backbones.bos), tokens[:, :-1].clamp(min=0)), 1)
    for step in range(steps + 1):
        index = (best < length).nonzero()[:, 0]
        if len(index):
            T = int(stage[index].max())
            logits = model.logits(prefix_of(x[index]), given[index, :T]).float()
            target = tokens[index, :T].masked_fill(torch.arange(T, device=x.device) >= stage[index, None], -1)
            said = said_exactly(logits, target)
            best[index] = torch.maximum(best[index], said)
            needed[index[best[index] == length[index]]] = step
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            grown = torch.minimum(stage[index] + GROW, length[index])
            stage[index] = torch.where(said == stage[index], grown, stage[index])
        curve.append(best.tolist())
    return np.array(curve), needed.cpu().numpy()


def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    pairs = pairs[: config.limit or MOST_TEXTS]
    ids = TokenizedDataset(pairs, model.backbones, model.config, "texts").targets
    tokens = pad([row[1 : 1 + MOST_TOKENS] for row in ids], -1).to(model.device)
    length = (tokens >= 0).sum(1).cpu().numpy()
    rows, curves = {}, {}
    model.requires_grad_(False)
    for name, (x, prefix_of) in conditions(model, pairs, config.seed).items():
        curve, needed = optimise(x, prefix_of, tokens, model, config.steps)
        said = curve / length
        curves[name] = said.mean(1)
        rows[name] = row = {
            "numbers": x[0].numel(),
            "at_first": bootstrap_mean(said[0], config.seed),
            "said": bootstrap_mean(said[-1], config.seed),
            "whole": float((said[-1] == 1).mean()),
            "steps_needed": needed.tolist(),
        }
        print(
            f"{name:<34}{row['numbers']:>6,} numbers; of the tokens {row['at_first']['mean']:>4.0%} said at first, "
            f"{row['said']['mean']:>4.0%} at last; {row['whole']:>4.0%} of the texts whole",
            flush=True,
        )
    draw(Path(f"{config.output}.png"), curves)
    return {"n": len(pairs), "tokens": length.tolist(), "steps": config.steps, "capacity": rows}


def draw(path: Path, curves: dict[str, np.ndarray]) -> None:
    """Fraction of the tokens said exactly over the steps, a line a condition."""
    with figure(path) as (_, axes):
        for (name, curve), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
            axes.plot(curve, label=name, color=colour, marker=marker, markevery=max(1, len(curve) // 10), markersize=4)
        axes.set(
            title="What a fixed language model can be told, and what the encoder tells it (step 0)",
            xlabel="steps of optimising what it reads",
            ylabel="tokens said exactly, greedily (fraction)",
            ylim=(-0.02, 1.05),
        )
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    print(f"drew {path}")
