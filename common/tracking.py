"""What log.jsonl gets goes to a tracker, too: --track trackio, wandb or tensorboard.

    trackio        on this machine, no account:  trackio show
    wandb          an account, or WANDB_MODE=offline; its files are in RUN/wandb
    tensorboard    its files are in RUN:  tensorboard --logdir out

A tracker never ends a training: what goes wrong with it is printed once, and the training goes on without it.
"""

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from common.checkpoint import read_json, write_json
from common.options import LoopConfig, one_line


def _trackio(config: LoopConfig, about: dict, names: dict, step: int):
    import trackio

    run = trackio.init(**names, config=about, resume="allow" if config.resume else "never", embed=False)
    return lambda step, values: run.log(values, step), trackio.finish


def _wandb(config: LoopConfig, about: dict, names: dict, step: int):
    import wandb

    path = Path(config.run) / "wandb.json"  # which of its runs --resume continues
    id = read_json(path)["id"] if config.resume and path.is_file() else None
    quiet = wandb.Settings(console="off", x_disable_meta=True)  # no output, no paths of this machine
    run = wandb.init(**names, id=id, resume="allow", config=about, dir=config.run, settings=quiet)
    write_json(path, {"id": run.id})
    run.define_metric("*", step_metric="step")  # its own step may never go back, as a resumed one does
    return lambda step, values: run.log({"step": step, **values}), run.finish


def _tensorboard(config: LoopConfig, about: dict, names: dict, step: int):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(
        config.run, purge_step=step + config.resume
    )  # what was logged after the checkpoint is hidden
    writer.add_text("config", f"```\n{json.dumps(about, indent=2)}\n```", step)

    def log(step, values):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


OPEN = {"trackio": _trackio, "wandb": _wandb, "tensorboard": _tensorboard}


def public_config(config: LoopConfig) -> dict:
    """The configuration with the last part of a path alone, if it is one of this machine."""

    def public(value):
        return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value

    return {name: public(value) for name, value in asdict(config).items()}


def run_name(config: LoopConfig) -> str:
    """`quick` of out/quick; of a part of a run in a folder inside it `quick/part`."""
    run = Path(os.path.abspath(config.run))
    return f"{run.parent.name}/{run.name}" if (run.parent / "config.json").is_file() else run.name


class Tracker:
    """`with Tracker(config, step, main) as tracker: tracker.log(step, loss=1.0)`; of several processes one has it."""

    def __init__(self, config: LoopConfig, step: int, main: bool = True):
        self.name, self._log, self._finish = config.track, None, None
        if config.track != "none" and main:
            names = {"project": getattr(config, "system", "runs"), "name": run_name(config)}
            with self._harmless():
                self._log, self._finish = OPEN[config.track](config, public_config(config), names, step)

    @contextmanager
    def _harmless(self):
        try:
            yield
        except Exception as error:
            self._log = self._finish = None
            reason = one_line(error) or type(error).__name__
            tqdm.write(f"--track {self.name} failed ({reason}); the training goes on without it", file=sys.stderr)

    def log(self, step: int, **values) -> None:
        """A line of log.jsonl: its numbers."""
        if self._log:
            with self._harmless():
                self._log(step, {name: x for name, x in values.items() if isinstance(x, int | float)})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._finish:
            with self._harmless():
                self._finish()
