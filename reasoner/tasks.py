"""The tasks: what a prompt asks, and the chain of tokens that answers it.

    tree    prompt  "5 9 ; 5 2 ; 9 7 ; 9 1 ; 2 4 ; 2 8 ; root 5 goal 7 :"     edges shuffled, parent before child
            chain   "5 9 7"                                                   the route from the root to the goal
    clue    prompt  "5 9 ; 5 2 ; 9 7 ; 9 1 ; 2 4 ; 2 8 ; root 5 :"            the same, but the goal is not known yet
            chain   "5 9 goal 7 7"                                            it arrives behind the first choice
    routes  prompt  "goal 3 ; 9 3 ; 1 5 ; 4 9 1 ; 2 9 ; 7 4 2 :"              a graph, nodes with their children
            chain   "7 4 9 3"                                                 any route from the root to the goal
    cfg     prompt  "a c b b a :"                                             a string of the grammar below
            chain   "S1 A2 B1"                                                its derivation, leftmost first
    gsm8k, mwp, wordproblems
            prompt  the question            chain   the worked solution, its equations "8-2=6 #### 6", or its program
                    with α, β … for its     "α-β", which is computed afterwards
                    numbers, where programs are asked for

Splits are disjoint by construction: a tree or a string belongs to one of them, whatever the seed.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from common import sources
from common.options import UserError
from common.programs import compute, number_placeholders, program_of
from common.sources import equations, load_folder, load_gsm8k, parse_answer, same_answer, without_annotations
from common.word_problems import word_problems
from reasoner.config import QUESTIONS, ReasonerConfig

SPLIT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}  # of all possible trees and strings
# what the test split is measured by, a key in summary.json
MEASURED = {**dict.fromkeys(("tree", "clue", "routes"), "route_accuracy"), "cfg": "derivation_accuracy"}
MEASURED |= dict.fromkeys(QUESTIONS, "exact_match")
MAX_MISSES = 10_000  # draws without a new example after which there are hardly any more


@dataclass(frozen=True)
class Example:
    """`sibling` (tree only): the chain's tokens, each replaced by its sibling in the tree ("" for the root).
    `routes` (routes, clue): all correct chains.
    `answer`, `numbers` (programs only): what the chain computes, from these numbers, pairs of placeholder and value."""

    prompt: str
    chain: str
    sibling: tuple = ()
    routes: tuple = ()
    answer: str = ""
    numbers: tuple = ()


def split_of(text: str) -> str:
    """The one split that a tree, a string or a passage may appear in, whatever the seed."""
    u = random.Random(text).random()
    train = SPLIT_FRACTIONS["train"]
    return "train" if u < train else "val" if u < train + SPLIT_FRACTIONS["val"] else "test"


def distinct(draw: Callable, split: str, n: int, seed: int) -> list[Example]:
    """n different examples of a split; draw(rng) -> (name of the instance, Example). Only train depends on the seed."""
    rng, found, misses = random.Random(f"{split} {seed if split == 'train' else 'fixed'}"), {}, 0
    while len(found) < n:
        name, example = draw(rng)
        if split_of(name) == split and example.prompt not in found:
            found[example.prompt], misses = example, 0
            continue
        misses += 1
        if misses > MAX_MISSES:
            raise UserError(
                f"there are hardly more than {len(found)} different {split} examples of this difficulty; "
                "ask for fewer, or make it harder"
            )
    return list(found.values())


# ------------------------------------------------------------------------------------------------ trees


def _grow(rng: random.Random, label: list[int], max_depth: int) -> tuple[list, dict, list]:
    """A random binary tree over the labels -> edges, {child: (parent, sibling)}, leaves. label[0] is the root."""
    edges, parent, depth, leaves = [], {}, {label[0]: 0}, [label[0]]
    for left, right in zip(label[1::2], label[2::2], strict=True):
        node = rng.choice([x for x in leaves if depth[x] < max_depth])
        leaves.remove(node)
        leaves += [left, right]
        edges += [(node, left), (node, right)]
        parent |= {left: (node, right), right: (node, left)}
        depth |= {left: depth[node] + 1, right: depth[node] + 1}
    return edges, parent, leaves


def trees(split: str, n: int, config: ReasonerConfig) -> list[Example]:
    """Random labelled binary trees, every inner node with two children: from the root, which way to the goal, a leaf?

    A tree has 2 to `leaves` leaves, all numbers drawn alike often; of the small ones there are so few that a large
    training set soon has them all and goes on with larger ones. It grows by splitting a random leaf above `depth`.
    Labels are drawn without replacement. Which child is correct can only be known from the goal's end: the model has
    to search. A labelled tree, whatever the order of its edges and the goal, belongs to one split.
    """
    nodes = 2 * config.leaves - 1
    if config.leaves > 2**config.depth:
        raise UserError(f"--leaves {config.leaves} do not fit --depth {config.depth}: at most {2**config.depth}")
    if nodes > config.labels:
        raise UserError(f"--labels {config.labels}: a tree of {config.leaves} leaves has {nodes} nodes to label")

    def draw(rng):
        label = rng.sample(range(config.labels), 2 * rng.randint(2, config.leaves) - 1)
        edges, parent, leaves = _grow(rng, label, config.depth)
        goal, name = rng.choice(leaves), str(sorted(edges))
        rng.shuffle(edges)
        route, siblings = [goal], []
        while route[0] in parent:
            node, sibling = parent[route[0]]
            route, siblings = [node, *route], [str(sibling), *siblings]
        prompt = f"{' '.join(f'{a} {b} ;' for a, b in edges)} root {label[0]} goal {goal} :"
        return name, Example(prompt, " ".join(map(str, route)), ("", *siblings))

    return distinct(draw, split, n, config.seed)


def node_labels(example: Example) -> list[str]:
    """The labels of a tree's nodes."""
    return sorted({word for word in example.prompt.split() if word.isdecimal()})


def tree_of(example: Example) -> tuple[str, set[tuple[str, str]]]:
    """The tree that a prompt describes -> (root, edges)."""
    words = example.prompt.split()  # parent child ; … root R goal G :
    return words[-4], {(words[i], words[i + 1]) for i in range(0, len(words) - 5, 3)}


@dataclass(frozen=True)
class Tree:
    """`children` has every node: {label: its children's, in the order of the prompt}."""

    root: str
    goal: str
    children: dict

    def route(self, goal: str = "") -> list[str]:
        """From the root to the goal, or to another node."""
        parent = {child: node for node, children in self.children.items() for child in children}
        route = [goal or self.goal]
        while route[0] != self.root:
            route = [parent[route[0]], *route]
        return route

    def leaves(self, node: str = "") -> list[str]:
        """Below the root, or below another node, from left to right."""
        node = node or self.root
        return [leaf for child in self.children[node] for leaf in self.leaves(child)] or [node]


def parse_tree(prompt: str) -> Tree:
    """A prompt that somebody typed -> Tree; a UserError reports why it describes none."""
    words = prompt.split()
    if not re.fullmatch("([0-9]+ [0-9]+ ; )*root [0-9]+ goal [0-9]+ :", " ".join(words)):
        raise UserError('this is no tree: write "parent child ;" for every edge, then "root R goal G :"')
    edges, root, goal = words[:-5], words[-4], words[-2]
    children = {label: [] for label in (*edges[0::3], *edges[1::3], root, goal)}
    for node, child in zip(edges[0::3], edges[1::3], strict=True):
        if child == root or any(child in found for found in children.values()):
            which = f"an edge leads to the root {child}" if child == root else f"two edges lead to node {child}"
            raise UserError(f"this is no tree: {which}")
        children[node].append(child)
    reached = [root]
    for node in reached:  # which grows
        reached += children[node]
    if lost := [label for label in children if label not in reached]:
        raise UserError(f"this is no tree: no edges lead from the root {root} to node {lost[0]}")
    return Tree(root, goal, children)


BEFORE = 2  # nodes of a chain before the goal that arrives in it: the root and the first choice


def clues(split: str, n: int, config: ReasonerConfig) -> list[Example]:
    """The trees of `trees`, their goal in the chain and not in the prompt: any leaf may be it, all alike likely."""
    return [with_late_goal(example) for example in trees(split, n, config)]


def with_late_goal(example: Example) -> Example:
    tree = parse_tree(example.prompt)

    def chain(goal: str) -> str:
        route = tree.route(goal)
        return " ".join([*route[:BEFORE], "goal", goal, *route[BEFORE:]])

    prompt = f"{example.prompt.partition(' goal')[0]} :"
    return Example(prompt, chain(tree.goal), routes=tuple(map(chain, tree.leaves())))


# -------------------------------------------------------------------------------------------- a grammar

# Two rules a symbol, none the beginning of the other; a level uses the one below it, the lowest the terminals.
TERMINALS = "abc"
RULES = {
    "S": ("A B", "B C A"),
    "A": ("D E", "E F D"),
    "B": ("E D F", "F E"),
    "C": ("F D", "D F E"),
    "D": ("G I", "H G I"),
    "E": ("I H G", "G H"),
    "F": ("H I", "I G H"),
    "G": ("a b", "b c a"),
    "H": ("b a c", "c b"),
    "I": ("c a", "a c b"),
}
LEVELS = ("S", "ABC", "DEF", "GHI")


def grammar(levels: int) -> dict[str, tuple]:
    """Levels above the terminals, 3 or 4 -> the rules in use: {symbol: two right-hand sides, tuples of symbols}.

    With three levels D, E, F have the right-hand sides of G, H, I.
    """
    used = LEVELS[:levels]
    lowest = dict(zip(used[-1], LEVELS[-1], strict=True))
    return {x: tuple(tuple(RULES[lowest.get(x, x)][i].split()) for i in (0, 1)) for level in used for x in level}


def derivations(split: str, n: int, config: ReasonerConfig) -> list[Example]:
    """Strings of the grammar above; the chain is the derivation: the rule of every symbol, leftmost first."""
    rules = grammar(config.levels)

    def draw(rng):
        string, chain, stack = [], [], ["S"]
        while stack:
            symbol = stack.pop()
            if symbol not in rules:
                string.append(symbol)
                continue
            i = rng.randrange(2)
            chain.append(f"{symbol}{i + 1}")
            stack += reversed(rules[symbol][i])
        text = " ".join(string)
        return text, Example(f"{text} :", " ".join(chain))

    return distinct(draw, split, n, config.seed)


def derived_string(chain: str, levels: int) -> str | None:
    """A derivation as text -> the string it derives, or None if it is none."""
    rules, stack, string = grammar(levels), ["S"], []
    for word in chain.split():
        while stack and stack[-1] not in rules:
            string.append(stack.pop())
        if not stack or word not in (f"{stack[-1]}1", f"{stack[-1]}2"):
            return None
        stack += reversed(rules[stack.pop()][int(word[-1]) - 1])
    return None if any(x in rules for x in stack) else " ".join([*string, *reversed(stack)])


def noisy_prompt(prompt: str, kind: str, rate: float, rng: random.Random, words: list[str]) -> str:
    """A prompt with token noise: each token before the final ":" is dropped, replaced by another, or followed by one.

    kind: drop, replace or insert; rate: probability per token; words: what random tokens are drawn from.
    """
    kept = []
    for token in prompt.split()[:-1]:
        hit = rng.random() < rate
        if hit and kind == "replace":
            kept.append(rng.choice([w for w in words if w != token]))
        elif not (hit and kind == "drop"):
            kept.append(token)
        if hit and kind == "insert":
            kept.append(rng.choice(words))
    return " ".join([*kept, ":"])


# -------------------------------------------------------------------------------------------- questions


def questions(split: str, config: ReasonerConfig) -> list[sources.Example]:
    """The questions of a data set; validation is the same training questions under every seed."""
    if config.dataset == "wordproblems":
        n = config.n_train if split == "train" else config.n_eval
        return word_problems(split, n, config.difficulty, config.seed)
    if config.dataset == "gsm8k":
        return load_gsm8k(config.data_dir)[split]
    if not config.data_dir:
        raise UserError("--dataset mwp needs --data-dir DIR, a folder with mawps/fold0 … and asdiv-a/fold0 …")
    folders = (f"{config.data_dir}/{name}/fold{config.fold}" for name in ("mawps", "asdiv-a"))
    return [x for folder in folders for x in load_folder(folder)[split]]


def with_program(x: sources.Example) -> Example:
    """A question whose numbers are placeholders, and the program over them, "" where there is none."""
    prompt, numbers = number_placeholders(x.question)
    return Example(prompt, program_of(x) or "", answer=x.answer, numbers=tuple(numbers.items()))


def solutions(split: str, config: ReasonerConfig) -> list[Example]:
    """Questions with their solutions, equations or programs as the chain. A question without a program is not trained
    on, and is tested."""
    found = questions(split, config)
    if config.reasoning == "program":
        return [x for x in map(with_program, found) if x.chain or split != "train"]
    if config.reasoning == "equations":
        return [Example(x.question, equations(x)) for x in found]
    if config.reasoning == "steps":  # each ends with a comma, the answer is the last
        return [Example(x.question, equations(x).replace(" #### ", ", #### ")) for x in found]
    return [Example(x.question, without_annotations(x.solution)) for x in found]


# ------------------------------------------------------------------------------------------ correctness


def is_correct(dataset: str, example: Example, text: str) -> bool:
    """Is `text` the answer? Programs: what it computes; other questions: the number behind ####; any of several routes;
    trees and strings: the whole chain, word by word."""
    if example.answer:
        return same_answer(compute(text, dict(example.numbers)), example.answer)
    if example.routes:
        return " ".join(text.split()) in example.routes
    if dataset not in QUESTIONS:
        return text.split() == example.chain.split()
    answer = parse_answer(text)
    return answer is not None and same_answer(answer, parse_answer(example.chain) or "")


def is_valid(config: ReasonerConfig, example: Example, text: str) -> bool:
    """Could `text` be an answer at all? A walk down the tree from its root; a derivation; a program that computes
    something; a solution with a number."""
    if config.computes:
        return bool(compute(text, dict(example.numbers)))
    if example.routes:
        return is_correct(config.dataset, example, text)
    if config.dataset == "tree":
        (root, edges), route = tree_of(example), text.split()
        return route[:1] == [root] and all(step in edges for step in zip(route, route[1:], strict=False))
    if config.dataset == "cfg":
        return derived_string(text, config.levels) is not None
    return parse_answer(text) is not None
