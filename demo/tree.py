"""A tree of the search task as inline SVG, with the steps of a chain on it.

    a wide yellow band       the true route, from the root down to the goal (two rings)
    circle, solid line       a step that is the true route's node at its place
    square, dashed line      one that is not; a curve: no edge leads there
    diamond                  a step that was put there by hand

Numbers give the order of the steps. Nothing rests on colour alone.
"""

import html
from dataclasses import dataclass

from reasoner.config import ReasonerConfig
from reasoner.tasks import Tree

DOWN, RADIUS = 66, 17  # from level to level; of a node
WIDE = 8  # leaves above which a tree is drawn narrower, and takes the whole width
CORNERS = ((16, -16), (-16, -16), (-16, 16), (16, 16))  # of a node, where its steps' numbers stand

CSS = """
#chain svg { --good: #0072B2; --good-text: white; --bad: #D55E00; }
.dark #chain svg { --good: #56B4E9; --good-text: black; }
#chain svg text { font-size: 15px; text-anchor: middle; dominant-baseline: central; fill: var(--body-text-color);
                  stroke: none; }
#chain svg .edge { stroke: currentColor; stroke-opacity: .45; stroke-width: 1.5; }
#chain svg .node { fill: var(--background-fill-primary); stroke: currentColor; stroke-opacity: .7; stroke-width: 1.5; }
#chain svg .route { stroke: #E69F00; stroke-opacity: .45; stroke-width: 18; fill: none; stroke-linecap: round;
                    stroke-linejoin: round; }
#chain svg .step { fill: none; stroke-width: 3.5; }
#chain svg .goal { font-size: 13px; font-weight: 600; }
#chain svg .good { stroke: var(--good); }
#chain svg :is(.bad, .new) { stroke: var(--bad); stroke-dasharray: 6 5; }
#chain svg .mark text { font-size: 12px; font-weight: 600; fill: black; }
#chain svg .mark.good text { fill: var(--good-text); }
#chain svg .mark > :first-child { stroke: var(--background-fill-primary); stroke-dasharray: none; }
#chain svg .mark.good > :first-child { fill: var(--good); }
#chain svg .mark.bad > :first-child { fill: var(--bad); }
#chain svg .mark.new > :first-child { fill: #E69F00; }
"""


@dataclass(frozen=True)
class Mark:
    """A step: its number, the node's label, and whether it is good, bad or new (put there by hand)."""

    number: int
    label: str
    kind: str


def positions(tree: Tree) -> dict[str, tuple[float, float]]:
    """{label: (x, y)}: leaves side by side, a parent above the middle of its children."""
    at, leaves = {}, tree.leaves()
    across = 66 if len(leaves) <= WIDE else 44

    def place(node, y):
        for child in tree.children[node]:
            place(child, y + DOWN)
        below = [at[child][0] for child in tree.children[node]]
        at[node] = (sum(below) / len(below) if below else across * leaves.index(node) + 2 * RADIUS, y)

    place(tree.root, 2 * RADIUS)
    return at


def unlike_training(tree: Tree, config: ReasonerConfig) -> str:
    """How a tree differs from those of training, "" if it does not."""
    children = tree.children
    depth = max(len(tree.route(node)) - 1 for node in children)
    leaves = len(tree.leaves())
    if odd := [node for node, found in children.items() if len(found) not in (0, 2)]:
        return f"every inner node had two children, node {odd[0]} has {len(children[odd[0]])}"
    if leaves < 2:
        return "every tree had two leaves or more"
    if depth > config.depth or leaves > config.leaves:
        return f"no tree had more than {config.leaves} leaves or a route of more than {config.depth} edges"
    return f"the goal was a leaf, node {tree.goal} is none" if children[tree.goal] else ""


# --------------------------------------------------------------------------------------------- drawing


def shape(mark: Mark, x: float, y: float) -> str:
    """The number of a step: in a circle, a square or a diamond."""
    outline = {
        "good": f'<circle cx="{x:g}" cy="{y:g}" r="10"/>',
        "bad": f'<rect x="{x - 9:g}" y="{y - 9:g}" width="18" height="18"/>',
        "new": f'<path d="M{x:g} {y - 13:g}l13 13l-13 13l-13 -13z"/>',
    }[mark.kind]
    return f'<g class="mark {mark.kind}">{outline}<text x="{x:g}" y="{y:g}">{mark.number or ""}</text></g>'


def symbol(kind: str) -> str:
    """The shape alone, for a line of text."""
    return f'<svg class="symbol" viewBox="-14 -14 28 28" aria-hidden="true">{shape(Mark(0, "", kind), 0, 0)}</svg>'


def way(tree: Tree, at: dict, a: str, b: str, kind: str) -> str:
    """The line from step to step: along the edge, a curve where there is none, nothing if the node stays the same."""
    if a == b:
        return ""
    (x1, y1), (x2, y2) = at[a], at[b]
    if b in tree.children[a] or a in tree.children[b]:
        line = f"L{x2:g} {y2:g}"
    else:  # bent sideways by a quarter of its length
        line = f"Q{(x1 + x2) / 2 + (y2 - y1) / 2:g} {(y1 + y2) / 2 - (x2 - x1) / 2:g} {x2:g} {y2:g}"
    return f'<path class="step {kind}" d="M{x1:g} {y1:g}{line}"/>'


def draw(tree: Tree, marks: list[Mark] = ()) -> str:
    """The tree with the steps of a chain on it -> SVG. Steps to labels that are no nodes are left out."""
    at, marks = positions(tree), [mark for mark in marks if mark.label in tree.children]
    width = max(x for x, _ in at.values()) + 2 * RADIUS
    height = max(y for _, y in at.values()) + 3 * RADIUS
    edges = [(at[node], at[child]) for node, children in tree.children.items() for child in children]
    parts = [
        f'<path class="route" d="M{"L".join(f"{at[x][0]:g} {at[x][1]:g}" for x in tree.route())}"/>',
        *(f'<path class="edge" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>' for (x1, y1), (x2, y2) in edges),
        *(way(tree, at, a.label, b.label, b.kind) for a, b in zip(marks, marks[1:], strict=False)),
    ]
    for label, (x, y) in at.items():
        parts.append(f'<circle class="node" cx="{x:g}" cy="{y:g}" r="{RADIUS}"/>')
        if label == tree.goal:
            parts.append(f'<circle class="node" cx="{x:g}" cy="{y:g}" r="{RADIUS - 4}"/>')
            parts.append(f'<text class="goal" x="{x:g}" y="{y + RADIUS + 12:g}">goal</text>')
        parts.append(f'<text x="{x:g}" y="{y:g}">{html.escape(label)}</text>')
    seen = {}
    for mark in marks:
        (x, y), n = at[mark.label], seen.get(mark.label, 0)
        dx, dy = CORNERS[n % 4]
        parts.append(shape(mark, x + dx * (1 + n // 4), y + dy * (1 + n // 4)))
        seen[mark.label] = n + 1
    spoken = ", ".join(f"{mark.number}: {mark.label} {mark.kind}" for mark in marks).replace(" new", " put by hand")
    spoken = spoken.replace(" good", " correct").replace(" bad", " wrong")
    about = html.escape(f"Tree with root {tree.root} and goal {tree.goal}. Steps: {spoken or 'none'}.")
    return (
        f'<svg class="tree" role="img" aria-label="{about}" viewBox="0 0 {width:g} {height:g}" '
        f'style="min-width: {0.6 * width:.0f}px; max-width: {1.25 * width:.0f}px">{"".join(parts)}</svg>'
    )
