"""What several experiments measure: generated answers, chain accuracy, the gap between training and use.

Shapes: B prompts, R latents a chain, C width.
"""

from collections import Counter

import torch
import torch.nn.functional as F

from common.batching import length_bucketed
from common.stats import wilson
from reasoner.data import TokenizedDataset
from reasoner.model import Reasoner, is_real
from reasoner.tasks import Example, is_correct

ENDED = -2  # the id of what a chain that has ended predicts: no token has it


def by_length(examples: list[Example], batch_size: int) -> list[list[int]]:
    """Examples -> batches of their positions, prompts of like lengths together."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@torch.no_grad()
def generate(model, examples: list[Example], batch_size: int = 256, noise: float = 0.0, generator=None) -> list[str]:
    """The model's answer to every example, in their order; `noise` as in `Reasoner.rollout`."""
    generated = [""] * len(examples)
    for index in by_length(examples, batch_size):
        answers = model.answer([examples[i].prompt for i in index], noise=noise, generator=generator)
        for i, text in zip(index, answers, strict=True):
            generated[i] = text
    return generated


def correct(model, examples: list[Example], generated: list[str]) -> list[bool]:
    """Is each generated answer the example's?"""
    return [is_correct(model.config.dataset, x, text) for x, text in zip(examples, generated, strict=True)]


def chain_accuracy(model, examples: list[Example], batch_size: int = 256) -> tuple[float, list[float], list[str]]:
    """-> (rate of correct answers, chains free-running; its 95% interval; what was generated)."""
    generated = generate(model, examples, batch_size)
    hits = sum(correct(model, examples, generated))
    return hits / len(examples), wilson(hits, len(examples)), generated


@torch.no_grad()
def rollouts(reasoner: Reasoner, examples: list[Example], batch_size: int = 256, **how) -> list[torch.Tensor]:
    """Free-running latents of every example: (R, C) each, on the CPU, zeros behind the end cut off; `how` as in
    `Reasoner.rollout`."""
    found = [None] * len(examples)
    for index in by_length(examples, batch_size):
        latents = reasoner.rollout([examples[i].prompt for i in index], **how).cpu()
        for i, chain in zip(index, latents, strict=True):
            found[i] = chain[is_real(chain)]
    return found


def in_order(generated: list[int], reference: list[int]) -> int:
    """How many of the reference's tokens are generated in its order, wherever they stand: the longest common
    subsequence."""
    row = [0] * (len(reference) + 1)
    for token in generated:
        above, row = row, [0]
        for j, other in enumerate(reference):
            row.append(above[j] + 1 if token == other else max(above[j + 1], row[j]))
    return row[-1]


@torch.no_grad()
def exposure_gap(reasoner: Reasoner, examples: list[Example], batch_size: int = 256, **how) -> dict[str, float]:
    """The gap between training and use: accuracy of chain tokens with the true ones as inputs, free-running, and
    free-running with tokens fed back, which is the control of the latents.

    Each in its place and, as `…_in_order`, wherever it stands: one token more early in a chain moves all behind it.
    `another_in_order`, the control of that: the free-running chain beside another example's. `how` as in
    `Reasoner.rollout`.
    """
    data = TokenizedDataset(examples, reasoner.tokenizer, reasoner.config.block_size, "test")
    hits = Counter()
    for batch in length_bucketed(data, batch_size):
        (B, R), tokens, start = batch.chain.shape, batch.tokens.tolist(), batch.start.tolist()
        prompts = [row[:n] for row, n in zip(tokens, start, strict=True)]
        found = {"teacher_forced": reasoner.teacher_forced(batch.to(reasoner.device))}
        for name, fed_back in (("free_running", how), ("tokens_fed_back", {"feed_tokens": True})):
            latents = reasoner.rollout(prompts, R, **fed_back)
            found[name] = F.pad(latents, (0, 0, 0, R - latents.size(1)))  # (B, R, C)
        chains = [ids[: ids.index(-1)] if -1 in ids else ids for ids in batch.chain.tolist()]
        for name, latents in found.items():
            ids = reasoner.nearest(latents).masked_fill(~is_real(latents), ENDED).cpu()
            hits[name] += int((ids == batch.chain).sum())
            hits[f"{name}_in_order"] += sum(map(in_order, ids.tolist(), chains))
            if name == "free_running":
                hits["another_in_order"] += sum(map(in_order, ids.roll(B // 2, 0).tolist(), chains))
    return {name: n / int(data.chain_length.sum()) for name, n in hits.items()}


# ---------------------------------------------------------------------------------------------- printing


def percent(rate: float, ci95: list[float]) -> str:
    """'99.40% (98.70% to 99.72%)'"""
    return f"{rate:.2%} ({ci95[0]:.2%} to {ci95[1]:.2%})"


def points(difference: dict) -> str:
    """{"mean", "ci95"} of a paired difference of rates -> '-0.30 (-1.06 to +0.46) points'"""
    mean, low, high = (100 * x for x in (difference["mean"], *difference["ci95"]))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f}) points"
