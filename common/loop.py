"""The training loop of all three systems. It knows one thing of a model: model(batch) -> (loss, metrics).

    fit             seeds, schedule, and what is due after a step: log, validate, checkpoint, stop
    training_step   the mathematics: gradients of all micro-batches, clipped, applied

Batches come from `batches(epoch, k)`, a pure function that yields the micro-batches of step k of an epoch, so that a
step number is all there is to the position in the data. Their losses and metrics add up to those of the whole step,
over processes too. Dropout and noise are seeded by (seed, step): a resumed run needs no generator state to be exact.

A run's folder holds config.json, model.safetensors (the last weights), best/ (those of the lowest validation loss),
state.pt (what --resume needs) and log.jsonl (a line a logging step).
"""

import json
import math
import pickle
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.checkpoint import atomic, save_model
from common.device import Device, Distributed, keep_freed_memory, resolve_device
from common.optimizers import make_optimizer
from common.options import LoopConfig, UserError, program

# -------------------------------------------------------------------------------------------- schedule


def learning_rate(step: int, total: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine from `lr` to `min_lr * lr` at the last of `total` steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def set_learning_rate(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


# ------------------------------------------------------------------------------------ checkpoint, resume


class Stopwatch:
    """Seconds, without those spent inside `with paused()`."""

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.began = seconds, time.perf_counter()

    def read(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    @contextmanager
    def paused(self):
        self.seconds = self.read()
        yield
        self.began = time.perf_counter()


@dataclass
class TrainState:
    """All that changes in training: what a checkpoint holds and resume restores."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps_per_epoch: int
    step: int = 0
    best: float = math.inf  # lowest validation loss
    training: Stopwatch = field(default_factory=Stopwatch)  # without validation and checkpoints
    total: Stopwatch = field(default_factory=Stopwatch)


def save_state(state: TrainState, config: LoopConfig) -> None:
    """Write the last weights and state.pt into the run's folder."""
    run = Path(config.run)
    save_model(state.model, config, run)
    values = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "best": state.best,
        "clock": {"train": state.training.read(), "total": state.total.read()},
        "epoch_steps": state.steps_per_epoch,
    }
    with atomic(run / "state.pt") as path:
        torch.save(values, path)


def load_state(state: TrainState, run: Path, device: torch.device) -> None:
    """Restore what `save_state` wrote; a UserError if it is damaged or the data has changed."""
    try:
        saved = torch.load(run / "state.pt", map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{run}/state.pt is damaged ({type(error).__name__}); start the run anew with --overwrite"
        ) from None
    if saved["epoch_steps"] != state.steps_per_epoch:
        raise UserError(
            f"--resume: the data has changed: {state.steps_per_epoch} steps an epoch, not {saved['epoch_steps']}"
        )
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    if saved["scaler"] and state.scaler.is_enabled():  # empty when the run was not in fp16
        state.scaler.load_state_dict(saved["scaler"])
    state.step, state.best = saved["step"], saved["best"]
    state.training, state.total = Stopwatch(saved["clock"]["train"]), Stopwatch(saved["clock"]["total"])


# ----------------------------------------------------------------------------------------------- log


def append_log(run: str | Path, **values) -> None:
    """One more line of log.jsonl."""
    path = Path(run) / "log.jsonl"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror}; the last checkpoint is intact") from None


def read_log(run: str | Path) -> tuple[list[dict], list[dict]]:
    """log.jsonl -> (training lines, validation lines)."""
    path = Path(run) / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: missing; only the folder of a whole run has a log of its training")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [x for x in lines if "loss" in x], [x for x in lines if "val_loss" in x]


def truncate_log(run: Path, step: int) -> None:
    """Forget what was logged after the checkpoint at `step`."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and json.loads(line)["step"] <= step]
    with atomic(run / "log.jsonl") as path:
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def last_metrics(run: str | Path, names: Iterable[str] = ()) -> dict[str, float]:
    """The named metrics of the last training line of log.jsonl, and all `val_…` of the last validation line."""
    training, validation = read_log(run)
    last, validated = (lines[-1] if lines else {} for lines in (training, validation))
    return {k: last[k] for k in names if k in last} | {k: v for k, v in validated.items() if k.startswith("val_")}


class Monitor:
    """Metrics averaged over the steps since the last log line: summed on the device, read at logging steps only."""

    def __init__(self, state: TrainState, config: LoopConfig, distributed: Distributed, progress: dict, total: int):
        self.state, self.run, self.distributed, self.progress = state, config.run, distributed, progress
        quiet = not distributed.main
        self.bar = tqdm(total=total, initial=state.step, disable=quiet, dynamic_ncols=True, unit="step", smoothing=0.05)
        self.sums, self.steps, self.since = defaultdict(float), 0, state.training.read()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """The metrics of one step."""
        for name, value in metrics.items():
            self.sums[name] += value
        self.steps += 1
        self.bar.update()

    def labelled(self, metrics: dict[str, float], digits: int, prefix: str = "") -> list[str]:
        """The metrics that a person watches, under their short names."""
        shown = ((label, metrics.get(prefix + name)) for name, label in self.progress.items())
        return [f"{label} {value:.{digits}f}" for label, value in shown if value is not None]

    def log(self, **values) -> None:
        """One line of log.jsonl."""
        if self.distributed.main:
            step = self.state.step
            append_log(self.run, step=step, epoch=round(step / self.state.steps_per_epoch, 3), **values)

    def write(self, lr: float, interrupted: bool) -> bool:
        """Log the means since the last line -> was this process or another interrupted?"""
        seconds = self.state.training.read()
        sums = self.distributed.sum([float(v) for v in self.sums.values()] + [float(interrupted)])
        means = {name: v / self.steps for name, v in zip(self.sums, sums, strict=False)}
        means["tokens_per_second"] = means.pop("tokens") * self.steps / (seconds - self.since)
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} at step {self.state.step}; lower --lr or raise --warmup-steps. "
                "The last checkpoint is intact"
            )
        self.log(lr=lr, seconds=round(seconds, 3), window=self.steps, **means)
        speed = f"{means['tokens_per_second']:,.0f} tok/s"
        self.bar.set_postfix_str(", ".join([*self.labelled(means, 3), f"lr {lr:.1e}", speed]))
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


# ---------------------------------------------------------------------------------------------- the loop


@contextmanager
def interruptible():
    """Collect SIGINT and SIGTERM in the list it yields: the step in progress ends, and a checkpoint follows."""
    received = []
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {s: signal.signal(s, lambda number, frame: received.append(number)) for s in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def training_step(
    model, batches: Iterable, state: TrainState, device: Device, distributed: Distributed, config
) -> dict:
    """One optimiser step over its micro-batches -> their summed metrics, tensors that nobody has waited for."""
    sums, batches = defaultdict(float), list(batches)
    for i, batch in enumerate(batches, 1):
        with distributed.sync_context(model, last=i == len(batches)):
            with device.autocast():
                loss, metrics = model(batch.to(device.device))
            loss = loss * distributed.world  # gradients are averaged over processes; ours add up
            state.scaler.scale(loss).backward()
        for name, value in metrics.items():
            sums[name] += value
        sums["tokens"] += batch.n_tokens

    if config.grad_clip:
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
        sums["grad_norm"] = norm / distributed.world  # all processes hold the same gradient
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return sums


@torch.no_grad()
def mean_metrics(model, batches: Iterable, device: Device) -> dict[str, float]:
    """Metrics in eval mode, added over batches whose loss denominators are those of the whole split: its means."""
    model.eval()
    sums = defaultdict(float)
    for batch in batches:
        with device.autocast():
            _, metrics = model(batch.to(device.device))
        for name, value in metrics.items():
            sums[name] += value
    model.train()
    return {name: float(value) for name, value in sums.items()}


def run_validation(validate, state: TrainState, config: LoopConfig, monitor: Monitor) -> None:
    """Validate, log it, and keep the weights in best/ if they are the best so far."""
    metrics = validate(state.model)
    monitor.write_validation(metrics)
    if metrics["loss"] < state.best:
        state.best = metrics["loss"]
        if monitor.distributed.main:
            save_model(state.model, config, Path(config.run) / "best")


def stop_interrupted(monitor: Monitor, total: int, signals: list[int], resume_options: str) -> None:
    """After the checkpoint: print how to continue, as the last line, and leave as the signal would have it."""
    monitor.bar.close()
    if monitor.distributed.main:
        message = f"interrupted at step {monitor.state.step} of {total}; continue with: {program()} {resume_options}"
        print(message, file=sys.stderr)
    sys.exit(128 + (signals or [signal.SIGTERM])[0])


def summary_of(state: TrainState, config: LoopConfig, device: Device) -> dict:
    """Steps, epochs, seconds and speed of a training, on a GPU its peak memory."""
    summary = {
        "steps": state.step,
        "epochs": state.step / state.steps_per_epoch,
        "train_seconds": round(state.total.read(), 2),
        "examples_per_second": round(state.step * config.batch_size / max(state.training.read(), 1e-9), 2),
    }
    if device.device.type == "cuda":
        summary["peak_memory_gib"] = torch.cuda.max_memory_allocated(device.device) / 2**30
    return summary


def fit(
    model: torch.nn.Module,
    steps_per_epoch: int,
    batches: Callable[[int, int], Iterable],
    config: LoopConfig,
    *,
    validate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    after_step: Callable[[], None] | None = None,
    distributed: Distributed | None = None,
    device: Device | None = None,
    progress: dict[str, str] | None = None,
    resume_options: str = "",
) -> dict:
    """Train `model` -> what summary.json has of every training.

    A batch has `.to(device)` and `.n_tokens`. `validate(model)` returns floats, "loss" among them; `after_step()` runs
    after each optimiser step. `progress` maps the metrics that a person watches to short names. `resume_options`
    continue the run, and are printed when it is interrupted.
    """
    device = device or resolve_device(config.device, config.precision)
    distributed = distributed or Distributed(device.device)
    if device.device.type == "cpu":
        keep_freed_memory()
    model.to(device.device)
    scaler = torch.amp.GradScaler(device.device.type, enabled=device.dtype is torch.float16)
    state = TrainState(model, make_optimizer(model, config), scaler, steps_per_epoch)
    if config.resume:
        load_state(state, Path(config.run), device.device)
        if distributed.main:
            truncate_log(Path(config.run), state.step)
    ddp_model = distributed.wrap(model)

    schedule = config.epochs * steps_per_epoch
    total = min(schedule, config.max_steps or schedule)
    monitor = Monitor(state, config, distributed, progress or {"loss": "loss"}, total)
    with interruptible() as signals, monitor.bar:
        while state.step < total:
            epoch, k = divmod(state.step, steps_per_epoch)
            torch.manual_seed((config.seed * 1_000_003 + state.step) * 1009 + distributed.rank)
            lr = learning_rate(state.step, schedule, config)
            set_learning_rate(state.optimizer, lr)
            monitor.add(training_step(ddp_model, batches(epoch, k), state, device, distributed, config))
            if after_step:
                after_step()
            state.step += 1

            ends_epoch = state.step % steps_per_epoch == 0 or state.step == total
            interrupted = False
            # several processes must agree on the step to stop at: the next logging step
            if state.step % config.log_every == 0 or ends_epoch or (signals and distributed.world == 1):
                device.synchronize()
                interrupted = monitor.write(lr, bool(signals))
            if validate and (ends_epoch or (config.eval_every and state.step % config.eval_every == 0)):
                device.synchronize()
                with state.training.paused():
                    run_validation(validate, state, config, monitor)
            if ends_epoch or interrupted or state.step % config.save_every == 0:
                device.synchronize()
                with state.training.paused():
                    if distributed.main:
                        save_state(state, config)
            if interrupted:
                stop_interrupted(monitor, total, signals, resume_options or f"--run {config.run} --resume")
    return summary_of(state, config, device)
