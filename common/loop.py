"""The training loop of all three systems. It knows one thing of a model: model(batch) -> (loss, metrics).

    fit             seeds, schedule, and what is due after a step: log, validate, checkpoint, stop
    training_step   the mathematics: gradients of all micro-batches, clipped, applied

Batches come from `batches(epoch, k)`, a pure function that yields the micro-batches of step k of an epoch, so that a
step number is all there is to the position in the data. Their losses and metrics add up to those of the whole step,
over processes too. Dropout and noise are seeded by (seed, step): a resumed run needs no generator state to be exact.

A run's folder holds config.json, model.safetensors (the last weights), best/ (those of the lowest validation loss),
state.pt (what --resume needs) and log.jsonl (a line a logging step).
"""

import math
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.checkpoint import PREVIOUS, STATE, atomic, read_state, save_model
from common.device import (
    Device,
    Distributed,
    keep_freed_memory,
    lost_process_reported,
    resolve_device,
    shard_like,
    whole,
)
from common.log import Monitor, truncate_log
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
    saved: int | None = None  # step of the checkpoint on disk
    training: Stopwatch = field(default_factory=Stopwatch)  # without validation and checkpoints
    total: Stopwatch = field(default_factory=Stopwatch)


def save_state(state: TrainState, config: LoopConfig, distributed: Distributed) -> None:
    """Write the last weights and state.pt into the run's folder; all processes enter, the main one writes."""
    run, weights = Path(config.run), distributed.gather(state.model.state_dict())
    optimizer = distributed.gather(state.optimizer.state_dict())
    state.saved = state.step
    if not distributed.main:
        return
    save_model(state.model, config, run, weights)
    values = {
        "model": weights,
        "optimizer": optimizer,
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "best": state.best,
        "clock": {"train": state.training.read(), "total": state.total.read()},
        "epoch_steps": state.steps_per_epoch,
    }
    with atomic(run / STATE, previous=run / PREVIOUS) as path:
        torch.save(values, path)


def restore(state: TrainState, saved: dict) -> None:
    """What `save_state` wrote -> the state; a UserError if the data has changed."""
    if saved["epoch_steps"] != state.steps_per_epoch:
        raise UserError(
            f"--resume: the data has changed: {state.steps_per_epoch} steps an epoch, not {saved['epoch_steps']}"
        )
    like, parameters = state.model.state_dict(), [p for group in state.optimizer.param_groups for p in group["params"]]
    state.model.load_state_dict({name: shard_like(x, like.get(name)) for name, x in saved["model"].items()})
    moments = {
        i: {name: shard_like(x, parameters[i]) for name, x in values.items()}
        for i, values in saved["optimizer"]["state"].items()
    }
    state.optimizer.load_state_dict(saved["optimizer"] | {"state": moments})
    if saved["scaler"] and state.scaler.is_enabled():  # empty when the run was not in fp16
        state.scaler.load_state_dict(saved["scaler"])
    state.step, state.best, state.saved = int(saved["step"]), float(saved["best"]), int(saved["step"])
    state.training, state.total = Stopwatch(saved["clock"]["train"]), Stopwatch(saved["clock"]["total"])


def load_state(state: TrainState, run: Path) -> str:
    """Restore the last checkpoint, or the one before it -> a sentence on what was damaged, "" if nothing."""
    damage = []
    for path in (run / STATE, run / PREVIOUS):
        try:
            restore(state, read_state(path, torch.device("cpu")))  # a GPU need not hold all of it
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except FileNotFoundError:
            damage.append(f"{path} is missing")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); it may be whole") from None
        except Exception as error:  # of another object, of flipped bytes: torch and pickle raise a dozen types
            damage.append(f"{path} is damaged ({type(error).__name__})")
        else:
            return "; ".join(damage) + f"; going on from {path}, step {state.step}" if damage else ""
    raise UserError(f"{' and '.join(damage)}; start the run anew with --overwrite")


def resume(state: TrainState, config: LoopConfig, distributed: Distributed) -> None:
    """Go on from the checkpoint; what was found damaged is printed."""
    run = Path(config.run)
    found = [load_state(state, run)]
    if distributed.sum([float(state.step)])[0] != state.step * distributed.world:
        raise UserError(f"the processes read checkpoints of different steps in {run}; is it the same disk for all?")
    if distributed.main:
        if found[0]:  # else the next checkpoint would keep the damaged one as the one before it
            (run / STATE).unlink(missing_ok=True)
        found.append(truncate_log(run, state.step))
        print("".join(f"{sentence}\n" for sentence in found if sentence), end="", file=sys.stderr)


# ---------------------------------------------------------------------------------------------- the loop


@contextmanager
def interruptible(processes: int = 1):
    """Collect SIGINT and SIGTERM in the list it yields: the step in progress ends, and a checkpoint follows.

    A second one does not wait for that: it is a KeyboardInterrupt at once. A Ctrl-C may reach each of several processes
    twice, from the terminal and from what started them.
    """
    received = []

    def receive(number, frame):
        received.append(number)
        if len(received) > min(processes, 2):
            raise KeyboardInterrupt

    previous = {s: signal.signal(s, receive) for s in (signal.SIGINT, signal.SIGTERM)}
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

    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip or math.inf)
    sums["grad_norm"] = whole(norm) / distributed.world  # all processes hold the same gradient
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
    metrics, distributed = validate(state.model), monitor.distributed
    monitor.write_validation(metrics)
    if not math.isfinite(metrics["loss"]):
        raise UserError(f"the validation loss is {metrics['loss']} at step {state.step}; {what_helps(state, config)}")
    loss = distributed.sum([metrics["loss"]])[0] / distributed.world  # all find it lower, or none
    if loss < state.best:
        state.best, weights = loss, distributed.gather(state.model.state_dict())
        if distributed.main:
            save_model(state.model, config, Path(config.run) / "best", weights)


def what_helps(state: TrainState, config: LoopConfig) -> str:
    """The end of a message on a training that diverged: what to turn, and what is on disk."""
    kept = f"{config.run}/{STATE} is of step {state.saved}" if state.saved else "no checkpoint was written yet"
    return f"lower --lr or raise --warmup-steps; {kept}"


def stop_unless_finite(monitor: Monitor, batches: Callable, state: TrainState, config: LoopConfig) -> None:
    """Before anything is logged or saved: a UserError if a loss or gradient since the last time was not finite.

    What is needed to look at it is kept in RUN/not_finite.pt: the batch, and the weights as they are now.
    """
    found = monitor.first_not_finite(scaled=state.scaler.is_enabled())
    if found is None:
        return
    step, value = found
    epoch, k = divmod(step, state.steps_per_epoch)
    path, weights = Path(config.run) / "not_finite.pt", monitor.distributed.gather(state.model.state_dict())
    if monitor.distributed.main:
        kept = {"step": step, "batches": [vars(b) for b in batches(epoch, k)], "model": weights}
        with atomic(path) as temporary:
            torch.save(kept, temporary)
    raise UserError(
        f"the loss or its gradient is {value} at step {step + 1}, batch {k + 1} of epoch {epoch + 1}, kept in {path}; "
        + what_helps(state, config)
    )


def due(state: TrainState, config: LoopConfig, total: int) -> list[bool]:
    """Is it time to log, to validate, to save? All three at the end of an epoch and of the training."""
    ends = state.step % state.steps_per_epoch == 0 or state.step == total
    return [ends or (n > 0 and state.step % n == 0) for n in (config.log_every, config.eval_every, config.save_every)]


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


@lost_process_reported()
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
    draw: Callable[[], None] = lambda: None,
    resume_options: str = "",
) -> dict:
    """Train `model` -> what summary.json has of every training.

    A batch has `.to(device)` and `.n_tokens`. `validate(model)` returns floats, "loss" among them; `after_step()` runs
    after each optimiser step. `progress` maps the metrics that a person watches to short names. `draw()` draws the
    curves of log.jsonl. `resume_options` continue the run, and are printed when it is interrupted.
    """
    device = device or resolve_device(config.device, config.precision)
    distributed = distributed or Distributed(device.device)
    if device.device.type == "cpu" and not config.shard:
        keep_freed_memory()
    ddp_model = distributed.wrap(model, config.shard)
    scaler = torch.amp.GradScaler(device.device.type, enabled=device.dtype is torch.float16)
    state = TrainState(model, make_optimizer(model, config), scaler, steps_per_epoch)
    if config.resume:
        resume(state, config, distributed)

    schedule = config.epochs * steps_per_epoch
    total = min(schedule, config.max_steps or schedule)
    monitor = Monitor(state, config, distributed, progress or {"loss": "loss"}, total)
    interrupted = False
    with interruptible(distributed.world) as signals, monitor.bar, monitor.tracker:
        while state.step < total:
            epoch, k = divmod(state.step, steps_per_epoch)
            torch.manual_seed((config.seed * 1_000_003 + state.step) * 1009 + distributed.rank)
            lr = learning_rate(state.step, schedule, config)
            set_learning_rate(state.optimizer, lr)
            monitor.add(training_step(ddp_model, batches(epoch, k), state, device, distributed, config))
            if after_step:
                after_step()
            state.step += 1

            logs, validates, saves = due(state, config, total)
            alone = distributed.world == 1  # several processes must agree on where to stop: at a logging step
            interrupted = alone and bool(signals)
            if not (logs or validates or saves or interrupted):
                continue

            device.synchronize()
            stop_unless_finite(monitor, batches, state, config)
            if logs or interrupted:
                interrupted = monitor.write(lr, bool(signals))
            with state.training.paused():
                if validates and validate:
                    run_validation(validate, state, config, monitor)
                interrupted = interrupted or (alone and bool(signals))
                if saves or interrupted:
                    save_state(state, config, distributed)
                monitor.redraw(draw)
            if interrupted:
                break
    if interrupted or distributed.sum([float(bool(signals))])[0]:
        stop_interrupted(monitor, total, signals, resume_options or f"--run {config.run} --resume")
    return summary_of(state, config, device)
