"""Generated word problems: short, seeded, no download; their splits share no pair of operands.

A problem opens with a quantity, has one or two events and asks for the result:

    level 1   one step; sums and differences of numbers to 49, products of 2 and 3 with numbers to 99
    level 2   one step; sums and differences of numbers to 999, products of 2…9 with numbers to 999
    level 3   two steps, the second on the result of the first; sizes as in level 1
    level 4   level 3 and a sentence with a number that does not matter
"""

import random
from functools import cache

from common.sources import Example

NAMES = "Ana Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kara Leo Mia Noah Olga Paul Rosa Sam Tina Zoe".split()
THINGS = "apples books coins cards shells stamps marbles pencils cookies stones pears stickers balls beads keys".split()
GROUPS = "boxes bags baskets jars packs rows crates drawers".split()

# {n} is the owner, {m} another person, {x} the things, {g} a kind of group; {a}, {b} and {d} are numbers.
START = (
    "{n} has {a} {x}.",
    "There are {a} {x} on {n}'s desk.",
    "{n} starts the day with {a} {x}.",
    "{n} owns {a} {x}.",
    "At home {n} keeps {a} {x}.",
)
START_TIMES = (
    "{n} has {a} {g} with {b} {x} in each.",
    "{n} has {a} {g} and each holds {b} {x}.",
    "{n} fills {a} {g} with {b} {x} each.",
    "{n} buys {a} {g} of {b} {x}.",
)
EVENT = {
    "+": (
        "{m} gives {n} {b} more {x}.",
        "Then {n} finds {b} {x}.",
        "{n} buys {b} more {x}.",
        "Later {m} brings {b} {x}.",
        "{b} more {x} arrive.",
    ),
    "-": (
        "{n} gives {b} {x} to {m}.",
        "Then {b} {x} are lost.",
        "{n} sells {b} {x}.",
        "{m} takes {b} of the {x}.",
        "{b} of the {x} break.",
    ),
    "*": (
        "{m} has {b} times as many {x}.",
        "{m} collects {b} times that number of {x}.",
        "{m} owns {b} times as many {x}.",
    ),
}
ASK = {
    "+": ("How many {x} are there now?", "How many {x} does {n} have in total?", "What is the total number of {x}?"),
    "-": ("How many {x} are left?", "How many {x} remain?", "How many {x} does {n} still have?"),
    "*": ("How many {x} does {m} have?", "How many {x} are {m}'s?"),
    "groups": ("How many {x} are there in all?", "How many {x} is that?", "How many {x} does {n} have altogether?"),
}
DISTRACTOR = (
    "{n} is {d} years old.",
    "{m} has {d} cousins.",
    "The walk to school takes {d} minutes.",
    "{n} woke up {d} minutes late.",
    "The shop is open for {d} hours.",
)


@cache
def split_of_pair(a: int, b: int) -> str:
    """The one split in which the operands a and b may meet, in either order and under any operation."""
    u = random.Random(f"{min(a, b)} {max(a, b)}").random()
    return "test" if u < 0.15 else "val" if u < 0.2 else "train"  # most pairs train; both others stay varied


def word_problems(split: str, n: int, difficulty: int = 1, seed: int = 0) -> list[Example]:
    """n problems of a split. Answers are integers >= 0.

    Splits are disjoint by construction: an unordered pair of operands belongs to train, val or test
    (`split_of_pair`), and *every* step of a problem uses a pair of its own split.
    `val` and `test` ignore the seed: all runs are measured on the same problems.
    """
    rng = random.Random(f"{split} {difficulty} {seed if split == 'train' else 'fixed'}")
    return [_problem(rng, split, difficulty) for _ in range(n)]


def _step(rng, split: str, difficulty: int, first: int | None = None) -> tuple | None:
    """One operation on `first`, or on a fresh number, that this split may see -> (op, a, b, result), or None."""
    top, product_top, factor_top = (999, 999, 9) if difficulty == 2 else (49, 99, 3)
    for _ in range(500):  # a large first number may have no partner in a small split
        op = rng.choice("+-*" if first is None or first <= product_top else "+-")
        a = rng.randint(2, product_top if op == "*" else top) if first is None else first
        b = rng.randint(2, factor_top if op == "*" else top)
        if op == "-" and b > a:
            if first is not None:
                continue
            a, b = b, a
        if split_of_pair(a, b) == split:
            return op, a, b, {"+": a + b, "-": a - b, "*": a * b}[op]
    return None


def _steps(rng, split: str, difficulty: int) -> list[tuple]:
    """The one or two operations of a problem."""
    steps = [_step(rng, split, difficulty)]
    while difficulty >= 3 and len(steps) < 2:
        second = _step(rng, split, difficulty, steps[0][3])
        steps = [*steps, second] if second else [_step(rng, split, difficulty)]
    return steps


def _naming(sentences: tuple, named: bool) -> list[str]:
    """The sentences, only those that name a person if two people own things."""
    return [s for s in sentences if not named or "{n}" in s or "{m}" in s]


def _problem(rng, split: str, difficulty: int) -> Example:
    steps = _steps(rng, split, difficulty)
    (op, a, b, _), words = steps[0], dict(zip("nmo", rng.sample(NAMES, 3), strict=True))
    words |= {"x": rng.choice(THINGS), "g": rng.choice(GROUPS)}

    if op == "*" and rng.random() < 0.6:  # groups of things: the factor comes first
        sentences, ask = [rng.choice(START_TIMES).format(a=b, b=a, **words)], "groups"
    else:
        sentences, ask = [rng.choice(START).format(a=a, **words), rng.choice(EVENT[op]).format(b=b, **words)], op

    named = False
    for op, _, b, _ in steps[1:]:
        if ask == "*":  # the quantity is now the other person's, and the rest must say whose it speaks of
            words["n"], words["m"], named = words["m"], words["o"], True
        sentences, ask = [*sentences, rng.choice(_naming(EVENT[op], named)).format(b=b, **words)], op
    if difficulty >= 4:
        where = rng.randrange(len(sentences) + 1)
        sentences.insert(where, rng.choice(DISTRACTOR).format(d=rng.randint(2, 60), **words))

    question = " ".join([*sentences, rng.choice(_naming(ASK[ask], named)).format(**words)])
    worked = " ".join(f"{a} {op} {b} = {c}." for op, a, b, c in steps)
    return Example(question, str(steps[-1][3]), "".join(op for op, *_ in steps), f"{worked} #### {steps[-1][3]}")
