"""Graphs with several routes: a task whose next step is uncertain, and how uncertain is known.

    prompt  "7 4 ; 7 2 ; 4 9 ; 2 9 ; 4 1 ; 9 3 ; 1 5 ; … root 7 goal 3 :"      edges shuffled
    chain   "7 4 9 3"                                                          one route, all drawn alike often

                ┌─► 4 ─┬─► 9 ──► 3 (goal)      ways to the goal    from 4: 1, from 2: 1, from 9: 1, from 1: 0
            7 ──┤      └─► 1 ──► 5              posterior          after "7": 4 and 2 half each; after "7 4": 9
                └─► 2 ───► 9

With all routes alike likely, the next node's probability is its ways to the goal over those of the node before it.
"""

from fractions import Fraction
from functools import cache

from common.options import UserError
from reasoner.config import ReasonerConfig
from reasoner.tasks import Example, distinct, tree_of


class Graph:
    """A prompt's graph: `children` of each node, `ways` from a node to the goal."""

    def __init__(self, example: Example):
        self.root, edges = tree_of(example)
        self.goal, self.children = example.prompt.split()[-2], {}
        for node, child in sorted(edges):
            self.children.setdefault(node, []).append(child)
        self.nodes = sorted({node for edge in edges for node in edge})
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


def guessing(example: Example) -> float:
    """How often a walk that takes any edge reaches the goal."""
    graph = Graph(example)

    def reaches(node: str) -> float:
        children = graph.children.get(node, ())
        return float(node == graph.goal) or sum(map(reaches, children)) / max(len(children), 1)

    return reaches(graph.root)


def routes(split: str, n: int, config: ReasonerConfig) -> list[Example]:
    """Graphs in `depth` layers of `leaves` nodes below a root: edges lead from the root to all of the first layer, from
    any other node to one or more of the next; the goal is of the last. At least two routes lead to it.

    A graph, whatever the order of its edges and the goal, belongs to one split.
    """
    width, nodes = config.leaves, 1 + config.depth * config.leaves
    if nodes > config.labels:
        raise UserError(f"--labels {config.labels}: {config.depth} layers of {width} and a root are {nodes} nodes")
    if width < 2 or config.depth < 2:
        raise UserError("--dataset routes: several routes need --leaves 2 and --depth 2 or more")

    def draw(rng):
        label = [str(x) for x in rng.sample(range(config.labels), nodes)]
        layers = [label[:1], *(label[i : i + width] for i in range(1, nodes, width))]
        edges = [(label[0], child) for child in layers[1]]
        for layer, below in zip(layers[1:], layers[2:], strict=False):
            edges += [(node, child) for node in layer for child in rng.sample(below, rng.randint(1, width))]
        name = str(sorted(edges))
        rng.shuffle(edges)
        prompt = f"{' '.join(f'{a} {b} ;' for a, b in edges)} root {label[0]} goal"
        graphs = [Graph(Example(f"{prompt} {goal} :", "")) for goal in layers[-1]]
        several = [graph for graph in graphs if graph.ways(label[0]) > 1]
        if not several:
            return draw(rng)
        graph, route = rng.choice(several), label[:1]
        while route[-1] != graph.goal:
            posterior = graph.posterior(route[-1])
            route += rng.choices(list(posterior), [float(p) for p in posterior.values()])
        return name, Example(f"{prompt} {graph.goal} :", " ".join(route))

    return distinct(draw, split, n, config.seed)
