"""One style for all figures: colour-blind safe, legible at README width, the control drawn beside the claim.

A colour means one thing everywhere: BLUE the claim (a matched pair, the system itself), ORANGE its control (a
mismatched pair, the baseline), GREY a constant or chance. Further systems take the others, in the order of COLOURS.

A README shows a figure of WIDTH inches at about 830 pixels: 9 points are 15 of them, and nothing is written smaller
than 8 points. The title, by `headline`, is the finding with its number.
"""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill

from common.checkpoint import atomic
from common.log import read_log

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"  # Okabe-Ito
GREY, BLACK = "#999999", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, GREY, BLACK)
MARKERS = "osD^vPX*"  # legible without colour, too
WIDTH = 7  # inches
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.6,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "figure.dpi": 180,
    "savefig.dpi": "figure",
}
THIN, DOTTED = dict(alpha=0.7, linewidth=1.2), dict(marker="o", markersize=4)
LEGEND = dict(loc="outside lower center")  # below the axes: no curve is hidden


@contextmanager
def figure(path: str | Path, rows: int = 1, columns: int = 1, size: tuple = (WIDTH, 3.8), **options):
    """`with figure(path) as (fig, axes):` draw; the PNG is written atomically. `axes` is an array where it is many."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
        try:
            yield fig, axes
            with atomic(path) as temporary:
                fig.savefig(temporary, format="png")
        finally:
            plt.close(fig)


def headline(fig, finding: str) -> None:
    """The figure's title: its finding, over its whole width."""
    fig.suptitle(fill(finding, round(10.3 * fig.get_figwidth()), break_on_hyphens=False), x=0.01, ha="left")


def note(axes, text: str, at: tuple, corner: tuple) -> None:
    """What happens at a point of the data: a ring around it, an arrow to it from a text whose upper left corner lies
    at `corner`, in fractions of the axes."""
    axes.plot(*at, "o", color=BLACK, fillstyle="none", markersize=9, markeredgewidth=1.2)
    arrow = dict(arrowstyle="-|>", color=BLACK, shrinkB=6, connectionstyle="arc3,rad=0.15")
    axes.annotate(text, at, corner, textcoords="axes fraction", va="top", arrowprops=arrow)


def label_points(axes, points: list, texts: list[str], others: list = (), gap: float = 4, **style) -> int:
    """Write each text beside its point, `gap` points away, where it covers no other text and no mark of `points` and
    `others`; the earlier ones first -> how many were written."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # lays out: where a point lies in pixels
    renderer, inside = axes.figure.canvas.get_renderer(), axes.get_window_extent()
    marks = axes.transData.transform([*points, *others])
    size = 0.7 * gap * axes.figure.dpi / 72  # half a mark, in pixels
    taken = [Bbox.from_extents(x - size, y - size, x + size, y + size) for x, y in marks]
    sides = [(dx, dy) for dx in (gap, -gap) for dy in (0, gap / 2, -gap / 2)]
    for point, text in zip(points, texts, strict=True):
        for dx, dy in sides:
            ha, va = "left" if dx > 0 else "right", "center" if dy == 0 else "bottom" if dy > 0 else "top"
            label = axes.annotate(text, point, (dx, dy), textcoords="offset points", ha=ha, va=va, **style)
            label.set_path_effects([withStroke(linewidth=2, foreground="white")])
            box = label.get_window_extent(renderer)
            if inside.containsx(box.x0) and inside.containsx(box.x1) and not box.count_overlaps(taken):
                taken.append(box)
                break
            label.remove()
    return len(taken) - len(marks)


def plot_curves(
    path: str | Path, lines: list, title: str, ylabel: str, yscale: str = "linear", xscale: str = "linear", notes=()
) -> None:
    """Curves over optimiser steps -> PNG. A line is (label, log lines, key or function of a log line, style); `notes`
    are the arguments of `note`."""
    with figure(path) as (fig, axes):
        for label, rows, value, style in lines:
            value = value if isinstance(value, Callable) else lambda row, key=value: row.get(key)
            points = [(row["step"], value(row)) for row in rows if value(row) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        for text, at, corner in notes:
            note(axes, text, at, corner)
        scale = " (logarithmic)" if xscale == "log" else ""
        axes.set(xlabel=f"optimiser step{scale}", ylabel=ylabel, xscale=xscale, yscale=yscale)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        headline(fig, title)
        fig.legend(ncols=2, **LEGEND)


def whole_windows(rows: list[dict]) -> list[dict]:
    """Training lines of log.jsonl without those that average fewer steps than most: an epoch's end, an interruption."""
    full = max((row.get("window", 1) for row in rows), default=1)
    return [row for row in rows if row.get("window", 1) == full]


def plot_loss(run: str | Path, title: str, yscale: str = "log", controls: list = ()) -> None:
    """log.jsonl -> loss_curve.png, for systems with a single loss; `controls`: (label, key) of further lines."""
    train, val = read_log(run)
    lines = [
        ("train", whole_windows(train), "loss", dict(color=BLUE, **THIN)),
        ("validation", val, "val_loss", dict(color=BLUE, **DOTTED)),
        *((label, val, key, dict(color=ORANGE, **DOTTED)) for label, key in controls),
    ]
    last = {label: rows[-1][key] for label, rows, key, _ in lines if rows and rows[-1].get(key) is not None}
    reached = ", ".join(f"{label} {loss:.3g}" for label, loss in last.items())
    plot_curves(Path(run) / "loss_curve.png", lines, f"{title}: {reached}", "loss (nats per predicted token)", yscale)
