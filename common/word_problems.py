"""Generated word problems: short, seeded, no download; their splits share no pair of operands.

A problem opens with a quantity, has one or two events and asks for the result:

    level 1   one step; sums and differences of numbers to 49, products of 2 and 3 with numbers to 99
    level 2   one step; sums and differences of numbers to 999, products of 2…9 with numbers to 999
    level 3   two steps, the second on the result of the first; sizes as in level 1
    level 4   level 3 and a sentence with a number that does not matter
    level 5   all of these, and equal shares
    level 6   three steps, each on the result of the one before; sizes as in level 1

The wide world has a hundred names and as many things, invented ones too, so that a name never seen costs nothing; the
event or the question may come first. The narrow one has the first few of each list: short studies learn it sooner.
"""

import random
from dataclasses import dataclass
from functools import cache

from common.sources import Example

NAMES = (  # the first 20 are the narrow world's
    "Ana Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kara Leo Mia Noah Olga Paul Rosa Sam Tina Zoe "
    "Tom Emma Liam Lucy Omar Maria John Amy Ali Sara David Nina Peter Lena Max Julia Carlos Priya Kofi Mei Ivan Aisha "
    "Lars Yuki Pablo Fatima George Hannah Ravi Elena Marcus Chloe Diego Ingrid Samir Grace Henry Ruth Victor Wendy "
    "Alice Bob Carol Frank Helen Irene Joe Kate Laura Mike Nora Oscar Pam Quinn Rachel Steve Tara Ursula Vera Walter "
    "Xavier Yara Zack Bella Chris Dora Ed Fay Gus Heidi Ian Jane Kevin Linda Mary Nick Olivia Phil Ron Sue Ted Una"
).split()
THINGS = (  # the first 15 are the narrow world's
    "apples books coins cards shells stamps marbles pencils cookies stones pears stickers balls beads keys "
    "oranges bananas eggs flowers toys pens cakes cups plates chairs tables tickets photos buttons candles ribbons "
    "balloons candies chocolates sweets muffins sandwiches lemons plums peaches grapes carrots tomatoes potatoes "
    "onions nuts seeds leaves trees roses tulips fish birds cats dogs horses cows sheep hens rabbits frogs ducks bees "
    "cars bikes boats trains planes trucks dolls blocks bricks puzzles games songs letters pages notebooks erasers "
    "crayons markers rulers shirts hats socks shoes gloves scarves bottles cans spoons forks knives bowls lamps clocks "
    "dollars points badges medals crystals magazines newspapers"
).split()
GROUPS = "boxes bags baskets jars packs rows crates drawers shelves trays bins cartons pots piles".split()

# {n} is the owner, {N} and {s} a pronoun for the owner, {m} another person, {x} the things, {g} a kind of group; {a},
# {b} and {d} are numbers.
START = (
    "{n} has {a} {x}.",
    "There are {a} {x} on {n}'s desk.",
    "{n} starts the day with {a} {x}.",
    "{n} owns {a} {x}.",
    "At home {n} keeps {a} {x}.",
    "{n} had {a} {x}.",
    "{n} collected {a} {x}.",
    "There were {a} {x} in {n}'s room.",
    "In the morning {n} counted {a} {x}.",
    "Yesterday {n} bought {a} {x}.",
)
START_TIMES = (
    "{n} has {a} {g} with {b} {x} in each.",
    "{n} has {a} {g} and each holds {b} {x}.",
    "{n} fills {a} {g} with {b} {x} each.",
    "{n} buys {a} {g} of {b} {x}.",
    "There are {a} {g} with {b} {x} in each of them.",
    "{n} packs {b} {x} into each of {a} {g}.",
    "Each of {n}'s {a} {g} contains {b} {x}.",
)
EVENT = {
    "+": (
        "{m} gives {n} {b} more {x}.",
        "Then {n} finds {b} {x}.",
        "{n} buys {b} more {x}.",
        "Later {m} brings {b} {x}.",
        "{b} more {x} arrive.",
        "{N} buys {b} more.",
        "{N} gets {b} {x} from {m}.",
        "{m} gave {n} {b} {x}.",
        "Then {s} found {b} more {x}.",
        "{N} picked {b} {x}.",
    ),
    "-": (
        "{n} gives {b} {x} to {m}.",
        "Then {b} {x} are lost.",
        "{n} sells {b} {x}.",
        "{m} takes {b} of the {x}.",
        "{b} of the {x} break.",
        "{N} gives {b} to {m}.",
        "{N} lost {b} of them.",
        "{m} sells {b} of the {x}.",
        "{N} gave away {b} {x}.",
        "Then {s} used {b} of the {x}.",
    ),
    "*": (
        "{m} has {b} times as many {x}.",
        "{m} collects {b} times that number of {x}.",
        "{m} owns {b} times as many {x}.",
        "{m} has {b} times as many.",
        "{m} bought {b} times as many {x}.",
    ),
}
ASK = {
    "+": (
        "How many {x} are there now?",
        "How many {x} does {n} have in total?",
        "What is the total number of {x}?",
        "How many {x} does {n} have?",
        "How many are there?",
        "How many {x} does {s} have now?",
        "How many {x} are there altogether?",
    ),
    "-": (
        "How many {x} are left?",
        "How many {x} remain?",
        "How many {x} does {n} still have?",
        "How many {x} does {n} have left?",
        "How many are left?",
        "How many {x} does {s} have now?",
    ),
    "*": ("How many {x} does {m} have?", "How many {x} are {m}'s?", "How many does {m} have?"),
    "groups": (
        "How many {x} are there in all?",
        "How many {x} is that?",
        "How many {x} does {n} have altogether?",
        "How many {x} are there?",
        "How many are there in total?",
    ),
}
SHARE = (
    ("{n} puts {a} {x} into {b} {g}, equally many into each.", "How many {x} are in each of the {g}?"),
    ("{n} shares {a} {x} equally among {b} friends.", "How many {x} does each friend get?"),
    ("{a} {x} are divided equally between {b} children.", "How many {x} does each child get?"),
    ("{n} has {a} {x} and {b} {g}.", "How many {x} go into each if all hold the same number?"),
)
# the other order of the facts, or the question first
REORDERED = {
    "+": (
        "{m} gives {n} {b} {x}. Before that {n} had {a} {x}. How many {x} does {n} have now?",
        "{n} buys {b} {x}. {N} already had {a}. How many {x} does {n} have in total?",
        "How many {x} does {n} have if {s} has {a} {x} and finds {b} more?",
        "If {n} has {a} {x} and {m} brings {b} more, how many {x} are there?",
    ),
    "-": (
        "{n} gives {b} {x} to {m}. Before that {n} had {a} {x}. How many {x} are left?",
        "{m} takes {b} of {n}'s {a} {x}. How many {x} does {n} have left?",
        "How many {x} are left if {n} has {a} {x} and sells {b}?",
        "If {n} has {a} {x} and loses {b} of them, how many remain?",
    ),
    "*": (
        "{m} has {b} times as many {x} as {n}. {n} has {a} {x}. How many {x} does {m} have?",
        "How many {x} are there in {a} {g} if each holds {b} {x}?",
    ),
}
DISTRACTOR = (
    "{n} is {d} years old.",
    "{m} has {d} cousins.",
    "The walk to school takes {d} minutes.",
    "{n} woke up {d} minutes late.",
    "The shop is open for {d} hours.",
    "{n}'s house has {d} windows.",
    "It is {d} degrees outside.",
)


@dataclass(frozen=True)
class World:
    """What problems speak of; `varied` is the rate of invented words, and of facts in another order."""

    names: list[str]
    things: list[str]
    groups: list[str]
    start: tuple
    start_times: tuple
    event: dict[str, tuple]
    ask: dict[str, tuple]
    distractor: tuple
    varied: float = 0.0


def first(templates: dict[str, tuple], **counts: int) -> dict[str, tuple]:
    """The first few sentences of each kind."""
    return {kind: templates[kind][:n] for kind, n in zip(templates, counts.values(), strict=True)}


NARROW = World(
    NAMES[:20],
    THINGS[:15],
    GROUPS[:8],
    START[:5],
    START_TIMES[:4],
    first(EVENT, plus=5, minus=5, times=3),
    first(ASK, plus=3, minus=3, times=2, groups=3),
    DISTRACTOR[:5],
)
WIDE = World(NAMES, THINGS, GROUPS, START, START_TIMES, EVENT, ASK, DISTRACTOR, varied=0.2)
WORLDS = {"wide": WIDE, "narrow": NARROW}


@cache
def split_of_pair(a: int, b: int) -> str:
    """The one split in which the operands a and b may meet, in either order and under any operation."""
    u = random.Random(f"{min(a, b)} {max(a, b)}").random()
    return "test" if u < 0.15 else "val" if u < 0.2 else "train"  # most pairs train; both others stay varied


def word_problems(split: str, n: int, difficulty: int = 1, seed: int = 0, world: str = "wide") -> list[Example]:
    """n problems of a split. Answers are integers >= 0.

    Splits are disjoint by construction: an unordered pair of operands belongs to train, val or test
    (`split_of_pair`), and *every* step of a problem uses a pair of its own split.
    `val` and `test` ignore the seed: all runs are measured on the same problems.
    """
    salt = "" if world == "narrow" else f" {world}"
    rng = random.Random(f"{split} {difficulty} {seed if split == 'train' else 'fixed'}{salt}")
    return [_problem(rng, split, difficulty, WORLDS[world]) for _ in range(n)]


# ------------------------------------------------------------------------------------------- operations


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
    """The one to three operations of a problem."""
    steps = [_step(rng, split, difficulty)]
    while len(steps) < {3: 2, 4: 2, 6: 3}.get(difficulty, 1):
        further = _step(rng, split, difficulty, steps[-1][3])
        steps = [*steps, further] if further else [_step(rng, split, difficulty)]
    return steps


def _division(rng, split: str) -> tuple:
    """Equal shares that come out even."""
    while True:
        b, each = rng.randint(2, 12), rng.randint(2, 99)
        if split_of_pair(b * each, b) == split:
            return "/", b * each, b, each


# ------------------------------------------------------------------------------------------------ words


def _words(rng, world: World) -> dict[str, str]:
    """Who and what a problem speaks of, by the letters of the templates."""
    words = dict(zip("nmo", rng.sample(world.names, 3), strict=True))
    words |= {"x": rng.choice(world.things), "g": rng.choice(world.groups)}
    if world.varied:
        for letter in "nmo":
            if rng.random() < world.varied:
                words[letter] = _invented(rng).capitalize()
        if rng.random() < world.varied:
            words["x"] = _invented(rng) + "s"
        words["s"] = rng.choice(("he", "she"))
        words["N"] = words["s"].capitalize()
    return words


def _invented(rng) -> str:
    """Two or three syllables: a word that no list has."""
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))]
    return "".join(syllables) + rng.choice("lnrk")


def _naming(sentences: tuple, named: bool) -> list[str]:
    """The sentences, only those that name a person, not by a pronoun, if two people own things."""
    names = [s for s in sentences if ("{n}" in s or "{m}" in s) and "{N}" not in s and "{s}" not in s]
    return names if named else list(sentences)


def _told(rng, steps: list[tuple], difficulty: int, world: World) -> str:
    """Operations -> the problem in words."""
    (op, a, b, _), words = steps[0], _words(rng, world)
    if op == "/":
        return " ".join(rng.choice(SHARE)).format(a=a, b=b, **words)
    if len(steps) == 1 and world.varied and rng.random() < world.varied:
        return rng.choice(REORDERED[op]).format(a=a, b=b, **words)

    if op == "*" and rng.random() < 0.6:  # groups of things: the factor comes first
        sentences, ask = [rng.choice(world.start_times).format(a=b, b=a, **words)], "groups"
    else:
        start, event = rng.choice(world.start), rng.choice(world.event[op])
        sentences, ask = [start.format(a=a, **words), event.format(b=b, **words)], op

    named = False
    for op, _, b, _ in steps[1:]:
        if ask == "*":  # the quantity is now the other person's, and the rest must say whose it speaks of
            words["n"], words["m"], words["o"], named = words["m"], words["o"], words["n"], True
        sentences, ask = [*sentences, rng.choice(_naming(world.event[op], named)).format(b=b, **words)], op
    if difficulty == 4:
        where = rng.randrange(len(sentences) + 1)
        sentences.insert(where, rng.choice(world.distractor).format(d=rng.randint(2, 60), **words))
    return " ".join([*sentences, rng.choice(_naming(world.ask[ask], named)).format(**words)])


def _problem(rng, split: str, difficulty: int, world: World) -> Example:
    if difficulty == 5 and rng.random() < 0.2:
        steps = [_division(rng, split)]
    else:
        difficulty = rng.randint(1, 4) if difficulty == 5 else difficulty
        steps = _steps(rng, split, difficulty)
    question = _told(rng, steps, difficulty, world)
    if world.varied and rng.random() < world.varied / 2:  # as people type
        question = question.lower().replace(".", "").replace("?", "")
    worked = " ".join(f"{a} {op} {b} = <<{a}{op}{b}={c}>>{c}." for op, a, b, c in steps)
    return Example(question, str(steps[-1][3]), "".join(op for op, *_ in steps), f"{worked} #### {steps[-1][3]}")
