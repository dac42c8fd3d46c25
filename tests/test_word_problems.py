"""common/word_problems.py: answers that follow from the text, splits that share no operands, no easy way round."""

import hashlib
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from helpers import ROOT, script

from common.batching import epoch_order
from common.programs import program_of
from common.sources import Example, parse_answer
from common.word_problems import GROUPS, NAMES, THINGS, split_of_pair, word_problems

LEVELS = (1, 2, 3, 4)
SPLITS = ("train", "val", "test")


@cache
def problems(split: str, level: int, n: int = 3000) -> list[Example]:
    return word_problems(split, n, level)


def fold(numbers: tuple, ops: str) -> tuple[int | None, list[tuple]]:
    """(first, …), operations -> (result, unordered operand pairs of the steps); None if a difference is negative."""
    result, pairs = numbers[0], []
    for op, b in zip(ops, numbers[1:], strict=True):
        pairs.append((min(result, b), max(result, b)))
        result = {"+": result + b, "-": result - b, "*": result * b, "/": result / b}[op]
        if result < 0:
            return None, pairs
    return result, pairs


def numbers_of(example: Example) -> tuple[int, ...]:
    return tuple(int(x) for x in re.findall(r"\d+", example.question))


def readings(example: Example) -> list[list[tuple]]:
    """The ways to read a problem from its text alone, all numbers or all but one, in a single step in either order ->
    list of operand pairs per way."""
    numbers = numbers_of(example)
    spare = len(numbers) - len(example.ops) - 1
    assert spare in (0, 1), example
    ways = {numbers} if not spare else {numbers[:i] + numbers[i + 1 :] for i in range(len(numbers))}
    ways |= {way[::-1] for way in ways if len(way) == 2}
    found = [fold(way, example.ops) for way in sorted(ways)]
    return [pairs for result, pairs in found if result is not None and f"{result:g}" == example.answer]


# -------------------------------------------------------------------------------------- reproducibility


@pytest.mark.parametrize("level", LEVELS)
def test_problems_are_reproducible_and_only_training_depends_on_the_seed(level):
    def make(split, seed):
        return word_problems(split, 50, level, seed)

    assert make("train", 1) == make("train", 1) != make("train", 2)
    for split in ("val", "test"):
        assert make(split, 1) == make(split, 2)
    assert make("val", 1) != make("test", 1)


def test_more_problems_begin_with_the_same_ones():
    assert word_problems("train", 50, 3)[:20] == word_problems("train", 20, 3)


def digest() -> str:
    """A hash of what a resumed run must find unchanged."""
    made = [word_problems(split, 99, level, 7) for split in SPLITS for level in LEVELS]
    order = [step.tolist() for step in epoch_order(np.arange(500) % 7, 16, 3, 2)]
    return hashlib.sha256(repr((made, order)).encode()).hexdigest()


def test_problems_and_epochs_are_the_same_in_another_process():
    """A seed that goes through hash() differs between processes, and --resume would continue on other data."""
    code = f"import sys; sys.path[:0] = ['tests', {str(ROOT)!r}]; import test_word_problems as t; print(t.digest())"
    assert script("-c", code, PYTHONHASHSEED="1").stdout.strip() == digest()


# ---------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_follows_from_the_numbers_in_the_text(split, level):
    for example in problems(split, level):
        n_steps, n_spare = (1 if level < 3 else 2), (1 if level == 4 else 0)
        assert len(example.ops) == n_steps
        assert len(numbers_of(example)) == n_steps + 1 + n_spare, example
        assert readings(example), f"no reading gives the answer: {example}"
        assert int(example.answer) >= 0


@pytest.mark.parametrize("level", LEVELS)
def test_the_worked_solution_computes_the_answer(level):
    for example in problems("test", level)[:200]:
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = <<[^>]*>>(\d+)\.", example.solution)
        assert "".join(op for _, op, _, _ in steps) == example.ops
        assert all(str(fold((int(a), int(b)), op)[0]) == c for a, op, b, c in steps)
        assert parse_answer(example.solution) == example.answer == steps[-1][-1]
        assert program_of(example) is not None


def test_the_distractor_may_be_any_of_the_numbers():
    """A distractor that always comes last is no distractor: a model learns to ignore the last number."""
    where = Counter()
    for example in problems("train", 4):
        numbers = numbers_of(example)
        fit = [i for i in range(4) if str(fold(numbers[:i] + numbers[i + 1 :], example.ops)[0]) == example.answer]
        if len(fit) == 1:
            where[fit[0]] += 1
    assert len(where) == 4 and min(where.values()) > 200, where


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ("train", "test"))
def test_no_answer_is_a_favourite(split, level):
    """A constant guess must not look like skill."""
    answer, count = Counter(example.answer for example in problems(split, level)).most_common(1)[0]
    assert count < 0.05 * 3000, f"{answer} is the answer of {count} of 3000"


# ----------------------------------------------------------------------------------------------- splits


def test_a_pair_of_operands_has_one_split_in_either_order_and_all_splits_have_many():
    counts = Counter(split_of_pair(a, b) for a in range(2, 50) for b in range(a, 50))
    assert all(split_of_pair(a, b) == split_of_pair(b, a) for a in range(2, 50) for b in range(2, 9))
    assert counts["train"] > counts["test"] > counts["val"] > 40


def test_no_operand_pair_of_a_held_out_problem_occurs_in_training():
    """Whatever the operation, the order, the step and the level: otherwise a look-up table would pass for reasoning."""
    seen = {split: set() for split in SPLITS}
    for level in LEVELS:
        for split in SPLITS:
            for example in problems(split, level):
                ways = readings(example)
                if len({*map(tuple, ways)}) == 1:  # with a distractor now and then two readings give the answer
                    seen[split].update(ways[0])
    assert min(map(len, seen.values())) > 500
    for a, b in (("train", "test"), ("train", "val"), ("val", "test")):
        shared = seen[a] & seen[b]
        assert not shared, f"{len(shared)} pairs are both in {a} and in {b}, such as {sorted(shared)[:3]}"


# ---------------------------------------------------------------------------------------------- variety


@pytest.mark.parametrize("level", LEVELS)
def test_problems_are_varied(level):
    strip = re.compile(rf"\b({'|'.join((*NAMES, *THINGS, *GROUPS))})\b")
    wordings, ops = {}, Counter(example.ops for example in problems("train", level))
    for example in problems("train", level):
        wordings.setdefault(example.ops, set()).add(re.sub(r"\d+", "#", strip.sub("_", example.question)))
    assert set(ops) == ({"+", "-", "*"} if level < 3 else {a + b for a in "+-*" for b in "+-*"})
    assert min(ops.values()) > 0.02 * 3000
    few = {name: len(found) for name, found in wordings.items() if len(found) < 40}
    assert not few, f"fewer than 40 wordings: {few}"
    assert len(set(problems("train", level))) > 0.97 * 3000, "problems repeat"


def test_the_wide_world_invents_words_asks_first_and_shares_equally():
    texts = [example.question for example in word_problems("test", 2000, 5)]
    known = {word.lower() for word in (*NAMES, *THINGS, *GROUPS)}
    words = Counter(word for text in texts for word in {*re.findall("[a-z]+", text.lower())})
    assert sum(count == 1 and word not in known for word, count in words.items()) > 300, "invented"
    assert sum(text.startswith("How many") for text in texts) > 20 and sum(text.islower() for text in texts) > 100
    assert {*Counter(example.ops for example in word_problems("test", 500, 5))} > {"+", "-", "*", "/", "+*", "--"}


def test_the_narrow_world_is_that_of_the_short_studies():
    made = [word_problems(split, 50, level, 7, "narrow") for split in SPLITS for level in LEVELS]
    assert hashlib.sha256(repr(made).encode()).hexdigest().startswith("ae89697219ebeead")


@pytest.mark.parametrize("level", LEVELS)
def test_the_sizes_of_numbers_are_those_of_the_level(level):
    largest = max(max(numbers_of(example)) for example in problems("train", level))
    assert (500 < largest <= 999) if level == 2 else (49 < largest <= 99), largest
