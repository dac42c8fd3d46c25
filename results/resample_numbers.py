"""GSM8K with other numbers: questions whose worked solution can be calculated anew, written as data for --data-dir.

    python results/resample_numbers.py --data-dir DIR --out DIR2 --times 4
    python results/resample_numbers.py --data-dir DIR --out DIR2 --times 8 --equations
    python train.py --data-dir DIR2

The <<48/2=24>> annotations of a solution are its computation graph. Every whole number of the question that the graph
uses is drawn anew, from the numbers of all questions, within a factor of two; the graph is evaluated; and the numbers
in question and solution are replaced.

Writes DIR2/train.jsonl (the training questions, then their augmentations), val.jsonl (the questions that are always set
aside) and test.jsonl. Under --equations the answers hold nothing but equations, "48/2=24, 48+24=72 #### 72": then
`--answer-view solution` reads those.
"""

import ast
import json
import operator
import random
import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from simpleeval import SimpleEval

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import atomic
from common.options import UserError, opt, parse, run_main
from common.programs import NUMBER, OPERAND, OPERATORS, PLACEHOLDERS, values_of
from common.sources import Example, equations, load_gsm8k, parse_answer

QUANTITY = rf"(?<![\w.,/:-]){NUMBER}(?![\w%/:-]|[.,]\d)"  # not the numbers of 2nd, 5k, 20%, 1/2, 7:30
ARITHMETIC = OPERATORS | {ast.UAdd: operator.pos, ast.USub: operator.neg}  # annotations have signs, programs none
TRIES = 30  # draws for one augmentation


@dataclass
class ResampleConfig:
    data_dir: str = opt("", "GSM8K as DIR/train.jsonl and DIR/test.jsonl; without: from the Hugging Face Hub")
    out: str = opt("out/resampled", "folder to write")
    times: int = opt(4, "augmentations of each training question that allows them", low=1)
    equations: bool = opt(False, "answers hold nothing but their equations")
    seed: int = opt(1337, "seed of the numbers", low=0)


# ------------------------------------------------------------------------------------------ the graph


@dataclass(frozen=True)
class Step:
    """One annotation: its operands as written, their combination over the placeholders α, β …, its result."""

    operands: list[float]
    expression: str
    result: float

    def value(self, numbers: dict[float, float]) -> float:
        """The combination with other operands: {as written: instead}."""
        named = zip(PLACEHOLDERS, self.operands, strict=False)
        names = {placeholder: numbers.get(x, x) for placeholder, x in named}
        return SimpleEval(operators=ARITHMETIC, functions={}, names=names).eval(self.expression)


def computation_graph(solution: str) -> list[Step]:
    """The steps of an annotated solution, in order; [] if one is not plain arithmetic, or is calculated wrongly."""
    steps = []
    for left, right in re.findall(r"<<([^=<>]+)=([^<>]+)>>", solution):
        operands, place = values_of(OPERAND, left), count()
        if not re.fullmatch(r"[\d\s+\-*/().]+", left) or "**" in left or "//" in left:
            return []
        try:
            expression = re.sub(OPERAND, lambda _, place=place: PLACEHOLDERS[next(place)], left).strip()
            step = Step(operands, expression, float(right))
            if abs(step.value({}) - step.result) > 1e-9:
                return []
        except Exception:  # what is no number, no arithmetic or divides by zero, in the library's many types
            return []
        steps.append(step)
    return steps


# --------------------------------------------------------------------------------------- augmentation


def as_text(x: float, commas: bool = False) -> str:
    """12, 1,200 or 2.50."""
    return (f"{int(x):,}" if commas else str(int(x))) if x == int(x) else f"{x:.2f}"


def quantities(question: str, steps: list[Step]) -> list[float]:
    """The question's numbers that its graph uses; [] if it stays open where an operand comes from."""
    given, written = values_of(QUANTITY, question), values_of(NUMBER, question)
    results, operands = [step.result for step in steps], [x for step in steps for x in step.operands]
    used = sorted(set(operands) & set(given))
    # "the 3rd" would keep its 3; the second 2 of "2 apples, twice as many pears" is no quantity that is written
    doubtful = any(given.count(x) < max(written.count(x), operands.count(x)) for x in used)
    two_sources = set(given) & set(results) or len(set(results)) < len(results)
    return [] if doubtful or two_sources else used


def nearby(used: list[float], pool: Sequence[int]) -> dict[float, tuple[int, int]]:
    """{whole number: its range of positions in the sorted pool, within a factor of two}, where there is a choice."""
    near = {x: (bisect_left(pool, x / 2), bisect_right(pool, 2 * x)) for x in used if x > 1 and x == int(x)}
    return {x: (low, high) for x, (low, high) in near.items() if pool[low:high] and {*pool[low:high]} != {x}}


def evaluated(steps: list[Step], numbers: dict[float, float]) -> dict[float, float] | None:
    """The graph with other numbers -> those and its results, {as written: instead}.

    None if a result is not positive or stops being whole, or if two quantities became one.
    """
    numbers = dict(numbers)
    for step in steps:
        try:
            value = step.value(numbers)
        except ZeroDivisionError:
            return None
        numbers[step.result] = round(value, 0 if step.result == int(step.result) else 2)
        if value <= 0 or abs(value - numbers[step.result]) > 1e-9:
            return None
    fixed = {x for step in steps for x in step.operands} - set(numbers)
    ambiguous = len(set(numbers.values())) < len(numbers) or fixed & set(numbers.values())
    return None if ambiguous else numbers


def rewritten(example: Example, numbers: dict[float, float]) -> Example | None:
    """The example with its numbers replaced, {as written: instead}; None if its solution can no longer be read."""

    def replaced(match):
        x = float(match[0].replace(",", ""))
        return as_text(numbers[x], "," in match[0]) if x in numbers else match[0]

    question, solution = re.sub(QUANTITY, replaced, example.question), re.sub(NUMBER, replaced, example.solution)
    if not computation_graph(solution):  # ".5" reads as a 5, for one
        return None
    return Example(question, parse_answer(solution), example.ops, solution)


def resample(example: Example, rng: random.Random, pool: Sequence[int]) -> Example | None:
    """An example with other numbers of the sorted pool, or None where its graph does not allow it."""
    steps = computation_graph(example.solution)
    if not steps or example.answer != as_text(steps[-1].result):
        return None
    used = quantities(example.question, steps)
    near = nearby(used, pool)
    if not near:
        return None
    for _ in range(TRIES):
        drawn = {x: float(pool[rng.randrange(*near[x])]) if x in near else x for x in used}  # $2.50 stays $2.50
        numbers = evaluated(steps, drawn)
        if numbers is None or all(drawn[x] == x for x in used):
            continue
        found = rewritten(example, numbers)
        if found:
            return found
    return None


def augmentations(examples: list[Example], times: int, seed: int) -> list[Example]:
    """`times` passes over the examples, each with other numbers; what cannot be augmented is counted and printed."""
    rng = random.Random(f"variants {seed}")
    numbers = (x for e in examples for x in values_of(QUANTITY, e.question))
    pool = sorted(int(x) for x in numbers if x > 1 and x == int(x))  # with repeats: round numbers stay common
    found = [[resample(e, rng, pool) for e in examples] for _ in range(times)]
    new = [e for row in found for e in row if e]
    able = sum(any(row[i] for row in found) for i in range(len(examples)))
    print(f"{len(new):,} augmentations with other numbers, of {able:,} of {len(examples):,} training questions")
    return new


# ----------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(ResampleConfig, {}, __doc__.split("\n\n")[0], argv)
    folder = Path(config.out)
    if config.data_dir and folder.resolve() == Path(config.data_dir).resolve():
        raise UserError(f"--out {folder} is the folder that is read; give another one")
    splits = load_gsm8k(config.data_dir)
    splits["train"] = splits["train"] + augmentations(splits["train"], config.times, config.seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write there ({error.strerror})") from None
    for split, examples in splits.items():
        answers = (equations(e) if config.equations else e.solution for e in examples)
        rows = ({"question": e.question, "answer": a} for e, a in zip(examples, answers, strict=True))
        with atomic(folder / f"{split}.jsonl") as path:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    counts = ", ".join(f"{len(examples):,} {split}" for split, examples in splits.items())
    print(f"wrote {folder}: {counts} questions")


if __name__ == "__main__":
    run_main(main)
