"""The log of a run: log.jsonl, a line a logging step, strict JSON; and the monitor that writes it while a bar moves.

A log never blocks a run: what a full disk or a kill left of a line is dropped, a log that is gone begins anew. Nor does
an evaluation: what cannot be measured is reported with its reason.
"""

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from common.checkpoint import atomic, strict_json
from common.device import Distributed
from common.options import LoopConfig, UserError, one_line
from common.tracking import Tracker

# ---------------------------------------------------------------------------------------------- the file


def append_log(run: str | Path, **values) -> None:
    """One more line of log.jsonl."""
    path = Path(run) / "log.jsonl"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(strict_json(values) + "\n")
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror}; the last checkpoint is intact") from None


def _whole_lines(path: Path) -> tuple[list[dict], int]:
    """A log -> its lines, null as NaN, and how many are none."""
    lines, damaged = [], 0
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
            values["step"] += 0  # every line has one
            lines.append({key: math.nan if value is None else value for key, value in values.items()})
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            damaged += 1
    return lines, damaged


def read_lines(run: str | Path) -> list[dict]:
    """The lines of log.jsonl; what is no line is passed over."""
    path = Path(run) / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: missing; only the folder of a whole run has a log of its training")
    return _whole_lines(path)[0]


def read_log(run: str | Path) -> tuple[list[dict], list[dict]]:
    """log.jsonl -> (training lines, validation lines)."""
    lines = read_lines(run)
    return [x for x in lines if "loss" in x], [x for x in lines if "val_loss" in x]


def truncate_log(run: Path, step: int) -> str:
    """Forget what was logged after the checkpoint at `step`, and damaged lines -> a sentence on what was wrong."""
    path = run / "log.jsonl"
    lines, damaged = _whole_lines(path) if path.is_file() else ([], 0)
    kept = "".join(f"{strict_json(line)}\n" for line in lines if line["step"] <= step)
    found = "" if path.is_file() else f"{path} was gone: it begins anew at step {step}"
    with atomic(path) as temporary:
        temporary.write_text(kept, encoding="utf-8")
    return f"{path}: {damaged} damaged line{'s' * (damaged > 1)} dropped" if damaged else found


def last_metrics(run: str | Path, names: Iterable[str] = ()) -> dict[str, float]:
    """The named metrics of the last training line of log.jsonl, and all `val_…` of the last validation line."""
    training, validation = read_log(run)
    last, validated = (lines[-1] if lines else {} for lines in (training, validation))
    return {k: last[k] for k in names if k in last} | {k: v for k, v in validated.items() if k.startswith("val_")}


@contextmanager
def measuring(what: str, missing: dict[str, str]):
    """`with measuring("alignment", missing):` whatever goes wrong inside costs no training: it is printed and noted."""
    try:
        yield
    except Exception as error:
        missing[what] = one_line(error) or type(error).__name__
        print(f"{what} could not be measured: {missing[what]}", file=sys.stderr)


# ------------------------------------------------------------------------------------------- the monitor

SECONDS_A_LINE = 10  # where progress is printed in lines, because no terminal shows a bar
DRAW_SECONDS, DRAW_EVERY = 10, 50  # of training at least between two drawings of the curves; and as many drawings' time


class Monitor:
    """Metrics averaged over the steps since the last log line: summed on the device, read at logging steps only."""

    def __init__(self, state, config: LoopConfig, distributed: Distributed, progress: dict, total: int):
        self.state, self.run, self.distributed, self.progress = state, Path(config.run), distributed, progress
        quiet = not (distributed.main and sys.stderr.isatty())  # a file gets lines, not a bar
        self.bar = tqdm(total=total, initial=state.step, disable=quiet, dynamic_ncols=True, unit="step", smoothing=0.05)
        self.total, self.printed = total, 0.0
        self.sums, self.steps, self.since = defaultdict(float), 0, state.training.read()
        self.unchecked = []  # (step, its loss and gradient norm): on the device, not read yet
        self.draw_at = self.since + DRAW_SECONDS if config.live and distributed.main else math.inf
        self.tracker = Tracker(config, state.step, distributed.main)
        if not config.resume and (self.run / "log.jsonl").is_file():  # what was logged before the loop
            for line in read_lines(self.run):
                self.tracker.log(**line)

    def add(self, metrics: dict[str, Tensor]) -> None:
        """The metrics of one step."""
        for name, value in metrics.items():
            self.sums[name] += value
        watched = [metrics[name] for name in ("loss", "grad_norm") if name in metrics]
        self.unchecked.append((self.state.step, watched))
        self.steps += 1
        self.bar.update()

    def first_not_finite(self, scaled: bool) -> tuple[int, float] | None:
        """(step, loss or gradient norm) of the first since the last call that is not finite; reads the device.

        Under loss scaling a gradient may be infinite: that step is left out, and the scale is lowered.
        """
        watched = [(step, float(v)) for step, values in self.unchecked for v in (values[:1] if scaled else values)]
        self.unchecked = []
        sums = self.distributed.sum([value for _, value in watched])  # so that all processes see it, or none
        return next(((step, v) for (step, _), v in zip(watched, sums, strict=True) if not math.isfinite(v)), None)

    def labelled(self, metrics: dict[str, float], digits: int, prefix: str = "") -> list[str]:
        """The metrics that a person watches, under their short names."""
        shown = ((label, metrics.get(prefix + name)) for name, label in self.progress.items())
        return [f"{label} {value:.{digits}f}" for label, value in shown if value is not None]

    def log(self, **values) -> None:
        """One line of log.jsonl, and of the tracker."""
        if self.distributed.main:
            step = self.state.step
            values = {"epoch": round(step / self.state.steps_per_epoch, 3), **values}
            append_log(self.run, step=step, **values)
            self.tracker.log(step, **values)

    def write(self, lr: float, interrupted: bool) -> bool:
        """Log the means since the last line -> was this process or another interrupted?"""
        seconds = self.state.training.read()
        sums = self.distributed.sum([float(v) for v in self.sums.values()] + [float(interrupted)])
        means = {name: v / self.steps for name, v in zip(self.sums, sums, strict=False)}
        means["tokens_per_second"] = means.pop("tokens") * self.steps / (seconds - self.since)
        self.log(lr=lr, seconds=round(seconds, 3), window=self.steps, **means)
        speed = f"{means['tokens_per_second']:,.0f} tok/s"
        shown = ", ".join([*self.labelled(means, 3), f"lr {lr:.1e}", speed])
        self.bar.set_postfix_str(shown)
        if self.bar.disable and self.distributed.main and seconds - self.printed > SECONDS_A_LINE:
            print(f"step {self.state.step:,} of {self.total:,}: {shown}", file=sys.stderr, flush=True)
            self.printed = seconds
        self.sums.clear()
        self.steps, self.since = 0, seconds
        return bool(sums[-1])

    def write_validation(self, metrics: dict[str, float]) -> None:
        """Log `val_…` and print it above the bar."""
        metrics = {f"val_{name}": value for name, value in metrics.items()}
        self.log(**metrics)
        if self.distributed.main:
            epoch = self.state.step / self.state.steps_per_epoch
            shown = ", ".join(self.labelled(metrics, 4, "val_"))
            self.bar.write(f"epoch {epoch:g}, validation: {shown}", file=sys.stderr)

    def redraw(self, draw: Callable[[], None]) -> None:
        """Draw the curves anew if it is time; what fails is not tried again."""
        if self.since < self.draw_at or self.state.step == self.total:
            return
        began, missing = time.perf_counter(), {}
        with measuring("the curves", missing):
            draw()
        wait = max(DRAW_SECONDS, DRAW_EVERY * (time.perf_counter() - began))
        self.draw_at = math.inf if missing else self.since + wait
