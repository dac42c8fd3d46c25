"""Batches as a pure function of (seed, epoch): length-bucketed, so that little of a batch is padding.

A dataset has `length` (N,), the tokens of each example; `batch(index, denominators)`; and `loss_denominators(index)`,
what summed losses over those examples are divided by to be means. The denominators of a whole optimiser step are handed
to each of its micro-batches, whose losses then add up to the mean over the step, whatever their number.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from common.options import LoopConfig, UserError


class BatchMixin:
    """A dataclass of tensors, others of its kind and plain values that moves to a device."""

    def to(self, device: torch.device):
        """Copy to a device without waiting for the copy."""
        kind = torch.device(device).type
        if kind == "cpu":
            return self
        moved = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if torch.is_tensor(value):
                value = value.pin_memory() if kind == "cuda" and value.device.type == "cpu" else value
                moved[f.name] = value.to(device, non_blocking=True)
            elif isinstance(value, BatchMixin):
                moved[f.name] = value.to(device)
        return replace(self, **moved)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts (N,), lengths (N,) -> the ranges start … start+length-1, one after the other (sum of lengths,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths - starts, lengths)


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Lists of ids -> (B, longest) int64, padded on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)


def epoch_order(length: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Lengths (N,) -> the epoch's optimiser steps, index arrays: a pure function of its arguments.

    Shuffled, then sorted by length within chunks of 50 batches, cut into batches, batches shuffled: a batch holds
    like lengths, so that little of it is padding, and no two epochs hold the same batches. The remainder
    of the division is left out, other examples in each epoch, so that every step has the same weight.
    """
    rng = np.random.default_rng([seed, epoch])
    batch_size = min(batch_size, len(length))
    order = rng.permutation(len(length))[: len(length) // batch_size * batch_size]
    chunk = 50 * batch_size
    chunks = np.split(order, range(chunk, len(order), chunk))
    order = np.concatenate([c[np.argsort(length[c], kind="stable")] for c in chunks])
    steps = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [steps[i] for i in rng.permutation(len(steps))]


def make_batches(
    data, config: LoopConfig, rank: int = 0, world: int = 1, transform: Callable | None = None
) -> tuple[int, Callable[[int, int], Iterator]]:
    """-> (steps per epoch, batches): `batches(epoch, k)` yields the micro-batches of this process in step k.

    All processes together see exactly the examples of one process alone. `transform` is applied to each batch.
    """
    parts, batch_size = world * config.grad_accum, min(config.batch_size, len(data.length))
    if batch_size < parts:
        raise UserError(f"a batch of {batch_size} is less than one example for each of the {parts} micro-batches")
    order = lru_cache(maxsize=1)(lambda epoch: epoch_order(data.length, config.batch_size, config.seed, epoch))

    def batches(epoch, k):
        index = order(epoch)[k]
        denominators = data.loss_denominators(index)
        for i in range(config.grad_accum):
            batch = data.batch(index[rank * config.grad_accum + i :: parts], denominators)
            yield transform(batch) if transform else batch

    return len(order(0)), batches


def length_bucketed(data, batch_size: int) -> Iterator:
    """Every example once, like lengths together -> batches whose summed losses are the means over the whole split."""
    order, denominators = np.argsort(data.length, kind="stable"), data.loss_denominators(slice(None))
    for i in range(0, len(order), batch_size):
        yield data.batch(order[i : i + batch_size], denominators)
