"""One style for all figures: colour-blind safe, legible at README width, the control drawn beside the claim.

A colour means one thing everywhere: BLUE the claim (a matched pair, the system itself), ORANGE its control (a
mismatched pair, the baseline), GREY a constant or chance. Further systems take the others, in the order of COLOURS.
"""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from common.checkpoint import atomic
from common.log import read_log

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"  # Okabe-Ito
GREY, BLACK = "#999999", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, GREY, BLACK)
MARKERS = "osD^vPX*"  # legible without colour, too
STYLE = {"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "legend.fontsize": 8, "axes.titlesize": 11}
THIN, DOTTED = dict(alpha=0.6, linewidth=1), dict(marker="o", markersize=3)


@contextmanager
def figure(path: str | Path, rows: int = 1, columns: int = 1, size: tuple = (7, 4), **options):
    """`with figure(path) as (fig, axes):` draw; the PNG is written atomically. `axes` is an array where it is many."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
        try:
            yield fig, axes
            with atomic(path) as temporary:
                fig.savefig(temporary, dpi=150, format="png")
        finally:
            plt.close(fig)


def plot_curves(path: str | Path, lines: list, title: str, ylabel: str, yscale: str = "linear") -> None:
    """Curves over optimiser steps -> PNG. A line is (label, log lines, key or function of a log line, style)."""
    with figure(path) as (_, axes):
        for label, rows, value, style in lines:
            value = value if isinstance(value, Callable) else lambda row, key=value: row.get(key)
            points = [(row["step"], value(row)) for row in rows if value(row) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        axes.set(title=title, xlabel="optimiser step", ylabel=ylabel, yscale=yscale)
        axes.legend()


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
    plot_curves(Path(run) / "loss_curve.png", lines, title, "loss (nats per predicted token)", yscale)
