"""Graphs with several routes: a task whose next step is uncertain, and how uncertain is known.

    prompt  "goal 3 ; 9 3 ; 1 5 ; 4 9 1 ; 2 9 ; 7 4 2 :"      nodes with their children, from the goal's end to the root
    chain   "7 4 9 3"                                         one route, all drawn alike often

                ┌─► 4 ─┬─► 9 ──► 3 (goal)      ways to the goal    from 4: 1, from 2: 1, from 9: 1, from 1: 0
            7 ──┤      └─► 1 ──► 5              posterior          after "7": 4 and 2 half each; after "7 4": 9
                └─► 2 ───► 9

With all routes alike likely, the next node's probability is its ways to the goal over those of the node before it. What
a node's children lead to stands before it, so that a causal model can count as it reads.
"""

from fractions import Fraction
from functools import cache
from itertools import pairwise

from common.options import UserError
from reasoner.config import ReasonerConfig
from reasoner.tasks import Example, distinct


class Graph:
    """A prompt's graph: `children` of each node, `ways` from a node to the goal."""

    def __init__(self, prompt: str):
        (_, self.goal), *nodes = (part.split() for part in prompt.removesuffix(" :").split(" ; "))
        self.children, self.root = {node: children for node, *children in nodes}, nodes[-1][0]
        self.nodes = sorted({*self.children, *(child for children in self.children.values() for child in children)})
        self.ways = cache(self._ways)

    def _ways(self, node: str) -> int:
        return int(node == self.goal) or sum(map(self.ways, self.children.get(node, ())))

    def posterior(self, node: str) -> dict[str, Fraction]:
        """The true posterior over what follows a node, once a route has reached it; {} where none leads to the goal."""
        if not (ways := self.ways(node)):
            return {}
        return {child: Fraction(self.ways(child), ways) for child in self.children.get(node, ()) if self.ways(child)}

    def marginal(self, step: int) -> dict[str, Fraction]:
        """The posterior over the node that stands `step` edges behind the root, whatever stands before it."""
        found = {self.root: Fraction(1)}
        for _ in range(step):
            before, found = found, {}
            for node, p in before.items():
                for child, q in self.posterior(node).items():
                    found[child] = found.get(child, 0) + p * q
        return found

    def routes(self, node: str) -> list[list[str]]:
        """All that lead from a node to the goal."""
        if node == self.goal:
            return [[node]]
        return [[node, *route] for child in self.posterior(node) for route in self.routes(child)]


def guessing(example: Example) -> float:
    """How often a walk that takes any edge reaches the goal."""
    graph = Graph(example.prompt)

    def reaches(node: str) -> float:
        children = graph.children.get(node, ())
        return float(node == graph.goal) or sum(map(reaches, children)) / max(len(children), 1)

    return reaches(graph.root)


def routes(split: str, n: int, config: ReasonerConfig) -> list[Example]:
    """Graphs in 2 to `depth` layers of 2 to `leaves` nodes below a root: edges lead from the root to all of the first
    layer, from any other node to one or more of the next; the goal is of the last. At least two routes lead to it.

    A graph, whatever the order of a layer and the goal, belongs to one split.
    """
    most = 1 + config.depth * config.leaves
    if most > config.labels:
        raise UserError(f"--labels {config.labels}: {config.depth} layers of {config.leaves}, a root: {most} nodes")
    if config.leaves < 2 or config.depth < 2:
        raise UserError("--dataset routes: several routes need --leaves 2 and --depth 2 or more")

    def draw(rng):
        labels = iter(rng.sample(range(config.labels), most))
        root, widths = str(next(labels)), [rng.randint(2, config.leaves) for _ in range(rng.randint(2, config.depth))]
        layers = [[str(next(labels)) for _ in range(width)] for width in widths]
        below = [(root, layers[0])]
        for layer, after in pairwise(layers):
            below = [*((node, rng.sample(after, rng.randint(1, len(after)))) for node in layer), *below]
        clauses = " ; ".join(" ".join((node, *children)) for node, children in below)
        graphs = [Graph(f"goal {goal} ; {clauses} :") for goal in layers[-1]]
        several = [graph for graph in graphs if graph.ways(root) > 1]
        if not several:
            return draw(rng)
        graph = rng.choice(several)
        found = [" ".join(route) for route in graph.routes(root)]
        name = str(sorted((node, sorted(children)) for node, children in below))
        return name, Example(f"goal {graph.goal} ; {clauses} :", rng.choice(found), routes=tuple(found))

    return distinct(draw, split, n, config.seed)
