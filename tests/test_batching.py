"""common/batching.py: an epoch is a pure function of (seed, epoch), and micro-batches add up to their step."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from common.batching import BatchMixin, epoch_order, length_bucketed, make_batches, pad, ranges
from common.options import LoopConfig, UserError


class Toy:
    """A dataset whose batches are the indices in them."""

    def __init__(self, n: int):
        self.length = np.random.default_rng(0).integers(5, 50, n)

    def loss_denominators(self, index) -> dict[str, float]:
        return {"tokens": float(self.length[index].sum())}

    def batch(self, index, denominators) -> tuple[list[int], dict]:
        return np.asarray(index).tolist(), denominators


def as_lists(steps) -> list[list[int]]:
    return [step.tolist() for step in steps]


# ----------------------------------------------------------------------------------------- small pieces


def test_ranges_stand_one_after_the_other():
    assert ranges(np.array([5, 0, 9]), np.array([3, 0, 2])).tolist() == [5, 6, 7, 9, 10]
    assert ranges(np.array([], int), np.array([], int)).tolist() == []


def test_rows_are_padded_on_the_right():
    assert pad([[1, 2, 3], [4]], -1).tolist() == [[1, 2, 3], [4, -1, -1]]


@dataclass
class TwoTensors(BatchMixin):
    a: Tensor
    b: Tensor
    name: str


def test_a_batch_moves_all_its_tensors_and_keeps_the_rest():
    batch = TwoTensors(torch.ones(2), torch.ones(3), "x")
    moved = batch.to(torch.device("meta"))
    assert (moved.a.device.type, moved.b.device.type, moved.name) == ("meta", "meta", "x")
    assert batch.to(torch.device("cpu")) is batch, "a copy to where it already is"


# ---------------------------------------------------------------------------------------------- epochs


def test_an_epoch_is_a_function_of_seed_and_epoch_alone():
    length = Toy(1000).length
    one = as_lists(epoch_order(length, 16, seed=1, epoch=2))
    np.random.seed(9)
    assert as_lists(epoch_order(length, 16, seed=1, epoch=2)) == one
    for other in (as_lists(epoch_order(length, 16, 1, 3)), as_lists(epoch_order(length, 16, 2, 2))):
        assert {tuple(sorted(s)) for s in other}.isdisjoint({tuple(sorted(s)) for s in one}), "the same batch again"


@pytest.mark.parametrize("n, size", ((1000, 16), (100, 32), (7, 16), (64, 64), (1, 1)))
def test_an_epoch_holds_no_example_twice_and_drops_less_than_a_batch(n, size):
    steps = epoch_order(np.arange(n) % 13, size, 0, 0)
    seen = [i for step in steps for i in step]
    size = min(n, size)
    assert {len(step) for step in steps} == {size} and len(set(seen)) == len(seen) == n // size * size


@pytest.mark.parametrize("n", (100, 1700))
def test_every_example_is_trained_on_sooner_or_later(n):
    """The remainder of the division was once cut after sorting by length: the longest examples were never seen."""
    seen = {i for epoch in range(40) for step in epoch_order(np.arange(n), 32, 0, epoch) for i in step}
    assert seen == set(range(n))


def test_a_batch_holds_like_lengths_and_no_epoch_goes_from_short_to_long():
    length = Toy(3200).length
    steps = epoch_order(length, 32, 0, 0)
    assert np.mean([np.ptp(length[step]) for step in steps]) < 5
    longest = [length[step].max() for step in steps]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3


# --------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("world, grad_accum", ((1, 1), (1, 3), (2, 1), (2, 3)))
def test_micro_batches_of_all_processes_are_exactly_the_step(world, grad_accum):
    """And each divides its sums by the whole step's targets: a mean of means would weigh short examples more."""
    data, config = Toy(250), LoopConfig(batch_size=32, grad_accum=grad_accum, seed=3)
    made = [make_batches(data, config, rank, world) for rank in range(world)]
    order = epoch_order(data.length, 32, 3, 1)
    assert {steps for steps, _ in made} == {len(order)}
    for k in (0, len(order) - 1):
        micro = [list(batches(1, k)) for _, batches in made]
        assert [len(m) for m in micro] == [grad_accum] * world
        parts = [part for m in micro for part in m]
        assert sorted(i for index, _ in parts for i in index) == sorted(order[k].tolist())
        assert all(denominators == data.loss_denominators(order[k]) for _, denominators in parts)
        sizes = {len(index) for index, _ in parts}
        assert max(sizes) - min(sizes) <= 1


def test_batches_can_be_asked_for_in_any_order():
    """Resume begins in the middle of an epoch, with no state but the step's number."""
    _, batches = make_batches(Toy(250), LoopConfig(batch_size=32))
    forwards = [list(batches(epoch, k)) for epoch in (0, 1) for k in range(7)]
    backwards = [list(batches(epoch, k)) for epoch in (1, 0) for k in reversed(range(7))]
    assert forwards == backwards[::-1]


def test_a_transform_is_applied_to_each_micro_batch():
    _, batches = make_batches(Toy(64), LoopConfig(batch_size=8, grad_accum=2), transform=lambda batch: len(batch[0]))
    assert list(batches(0, 0)) == [4, 4]


@pytest.mark.parametrize("n, batch_size, grad_accum, world", ((64, 4, 8, 1), (64, 4, 2, 4), (3, 32, 4, 1)))
def test_a_batch_that_leaves_a_micro_batch_empty_is_refused(n, batch_size, grad_accum, world):
    with pytest.raises(UserError, match="less than one example for each"):
        make_batches(Toy(n), LoopConfig(batch_size=batch_size, grad_accum=grad_accum), 0, world)


def test_a_split_is_measured_on_every_example_once_and_like_lengths_together():
    data = Toy(130)
    batches = list(length_bucketed(data, 50))
    seen = [i for index, _ in batches for i in index]
    assert sorted(seen) == list(range(130)) and [len(index) for index, _ in batches] == [50, 50, 30]
    assert data.length[seen].tolist() == sorted(data.length)
    whole = {"tokens": float(data.length.sum())}
    assert all(denominators == whole for _, denominators in batches), "summed losses are not the split's means"
