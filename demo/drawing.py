"""Small drawings as SVG text: they take the page's colours, dark or light, and the width of their column."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CSS = """
.drawing { width: 100%; height: auto; color: var(--body-text-color); }
.drawing text { fill: currentColor; font: 11px system-ui, sans-serif; }
.drawing .dot { fill: currentColor; opacity: .3; }
.drawing .near { fill: #0072B2; stroke: none; }
.drawing .mark { fill: #D55E00; stroke: none; }
.drawing .line { stroke: currentColor; stroke-width: 1.5; stroke-dasharray: 4 3; }
.drawing .strong { font-weight: 700; font-size: 13px; }
.drawing .cell { fill: currentColor; opacity: .08; }
.drawing .question { fill: #0072B2; }
.drawing .pred { fill: #D55E00; }
.drawing .answer { fill: #009E73; }
"""


def svg(body: str, width: float, height: float, label: str) -> str:
    """SVG elements -> one drawing; `label` is what a screen reader says of it."""
    name = html.escape(label, quote=True)
    return f'<svg class="drawing" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">{body}</svg>'


@dataclass(frozen=True)
class Plane:
    """The two principal components of N latents of D numbers."""

    mean: Tensor  # (D,)
    axes: Tensor  # (2, D)
    variance: tuple[float, float]  # the fractions that they explain

    @classmethod
    def fit(cls, z: Tensor) -> "Plane":
        """z (N, D); of a single latent all is its mean."""
        mean = z.mean(0)
        _, scale, axes = torch.linalg.svd(torch.cat((z - mean, torch.zeros_like(z[:2]))), full_matrices=False)
        first, second = (scale.square() / scale.square().sum().clamp(min=1e-9))[:2].tolist()
        return cls(mean, axes[:2], (first, second))

    def project(self, z: Tensor) -> Tensor:
        """(…, D) -> (…, 2)."""
        return (z - self.mean) @ self.axes.T


@dataclass(frozen=True)
class Dot:
    """A point of a map. `kind` is its CSS class: dot, near, mark, or a tab's own; `title` appears under the pointer."""

    x: float
    y: float
    label: str = ""
    kind: str = "dot"
    title: str = ""


def point_map(dots: Sequence[Dot], label: str, lines: Sequence[tuple[int, int]] = (), width=560, height=380) -> str:
    """Dots, the important ones last, and lines between two of them by their index -> SVG. A label that would cover
    another one's is left out, the important ones' last."""
    xy = np.array([(dot.x, dot.y) for dot in dots], dtype=float)
    low, span = xy.min(0), np.maximum(np.ptp(xy, axis=0), 1e-9)
    margin = np.array([46, 22])  # room for half a label beside a dot, and for a line of text above or below it
    at = margin + (xy - low) / span * (np.array([width, height]) - 2 * margin)
    at[:, 1] = height - at[:, 1]

    body = "".join(
        f'<line class="line" x1="{at[i, 0]:.1f}" y1="{at[i, 1]:.1f}" x2="{at[j, 0]:.1f}" y2="{at[j, 1]:.1f}"/>'
        for i, j in lines
    )
    for dot, (x, y) in zip(dots, at, strict=True):
        title = f"<title>{html.escape(dot.title or dot.label)}</title>"
        body += (
            f'<circle class="{dot.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{3 if dot.kind == "dot" else 6}">{title}</circle>'
        )
    taken: list[tuple[float, float, float]] = []  # left, right, baseline of what is written
    for dot, (x, y) in reversed(list(zip(dots, at, strict=True))):
        important = dot.kind != "dot"
        half = (4.2 if important else 3.4) * len(dot.label)  # of a label's width: 13 and 11 px letters
        below = dot.kind == "near" or y < 30
        x, y = min(max(x, half), width - half), y + 19 if below else y - 9
        if dot.label and all(x + half < left or x - half > right or abs(y - line) > 13 for left, right, line in taken):
            taken.append((x - half, x + half, y))
            strong = ' class="strong"' if important else ""
            body += f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle"{strong}>{html.escape(dot.label)}</text>'
    return svg(body, width, height, label)


def mask_drawing(pieces: Sequence[str], kinds: Sequence[str], sees: Tensor, label: str) -> str:
    """T tokens, the view of each (question, pred or answer) and who attends to whom (T, T) -> SVG, a row a token."""
    T, cell, left = len(pieces), 9, 84  # a square of 9 px, 84 px for the token's text
    body = ""
    for i, row in enumerate(sees.tolist()):
        y = i * cell
        body += f'<rect class="cell" x="{left}" y="{y}" width="{T * cell}" height="{cell - 1}"/>'
        name = html.escape(pieces[i].strip() or "␣")
        body += f'<text x="{left - 5}" y="{y + 7.5}" text-anchor="end" style="font-size:8.5px">{name}</text>'
        for j, seen in enumerate(row):
            if seen:
                body += (
                    f'<rect class="{kinds[i]}" x="{left + j * cell}" y="{y}" width="{cell - 1}" height="{cell - 1}"/>'
                )
    return svg(body, left + T * cell, T * cell, label)


def barcode(values: Sequence[float], label: str, height: int = 26) -> str:
    """Numbers -> a row of stripes: blue above zero, orange below, the stronger the larger."""
    most = max(map(abs, values)) or 1.0
    body = "".join(
        f'<rect x="{2 * i}" y="0" width="2" height="{height}" fill="{"#0072B2" if v > 0 else "#D55E00"}" '
        f'opacity="{abs(v) / most:.2f}"/>'
        for i, v in enumerate(values)
    )
    return svg(body, 2 * len(values), height, label).replace("<svg ", '<svg preserveAspectRatio="none" ', 1)
