"""Train nanoJEPA: `python train.py` is the founding configuration, `--preset quick` five minutes on a laptop.

    python train.py --preset quick                                   word problems, no download, no GPU
    python train.py --data-dir DIR --preset gsm8k-small              real GSM8K from DIR/train.jsonl and DIR/test.jsonl
    python train.py --run out/nanojepa --resume                      continue after Ctrl-C, a crash or a full disk
    torchrun --nproc_per_node=2 -- train.py                          data-parallel, the same result on the same batch

A run is a folder: config.json, model.safetensors (the last weights), best/ (those of the lowest validation loss),
state.pt (what --resume needs), log.jsonl, the two curves, and summary.json when it has ended.

`fit` is the loop of all three systems. It knows one thing of a model: model(batch) -> (loss, metrics).
"""

import json
import math
import os
import pickle
import shutil
import signal
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from config import (
    PRESETS,
    Config,
    UserError,
    atomic,
    from_dict,
    keep_freed_memory,
    parse,
    resolve_device,
    run_main,
    write_json,
)
from data import Encoded, load_splits, load_tokenizer, make_batches, ordered_batches, same_answer, train_tokenizer
from model import NanoJEPA, Transformer, jepa_mask

# ------------------------------------------------------------------------------------------ small pieces


def learning_rate(step, total, config):
    """Linear warm-up, then a cosine from `lr` to `min_lr * lr` at the last of `total` steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def make_optimizer(model, config):
    """AdamW, one fused kernel a step; matrices decay, gains do not; every trained parameter is in one group."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip
    assert sum(len(g["params"]) for g in groups) == len(trained)
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def save_model(model, config, folder):
    """Write what `from_pretrained` reads: config.json, model.safetensors, the tokenizer if it was trained."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", asdict(config))
    if getattr(model, "tokenizer", None) is not None:
        model.tokenizer.save(folder)
    with atomic(folder / "model.safetensors") as path:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def read_log(run):
    """log.jsonl -> (training lines, validation lines), lists of dicts."""
    path = Path(run) / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: missing; only the folder of a whole run has a log of its training")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [x for x in lines if "loss" in x], [x for x in lines if "val_loss" in x]


def draw_curve(path, lines, title, ylabel, scale="linear"):
    """A figure of curves over optimiser steps: `lines` are (label, log lines, key, transform, style) -> PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, rows, key, transform, style in lines:
        points = [(x["step"], transform(x[key])) for x in rows if key in x]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(title=title, xlabel="optimiser step", ylabel=ylabel, yscale=scale)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe-Ito, distinct for colour-blind readers
THIN, DOTS = dict(alpha=0.6, linewidth=1), dict(marker="o", markersize=3)


def plot_curves(run):
    """log.jsonl -> token_loss_curve.png and jepa_loss_curve.png, training and validation, controls beside the claim."""
    train, val = read_log(run)
    same, one_minus = (lambda v: v), (lambda v: 1 - v)
    draw_curve(Path(run) / "token_loss_curve.png",
               [("train", train, "token_loss", same, dict(color=BLUE, **THIN)),
                ("validation", val, "val_token_loss", same, dict(color=ORANGE, **DOTS))],
               "Token loss: question, and answer decoded from its latent",
               "cross-entropy (nats per token, terms added)", "log")  # fmt: skip
    draw_curve(Path(run) / "jepa_loss_curve.png",
               [("train, own answer", train, "jepa_loss", same, dict(color=BLUE, **THIN)),
                ("train, another answer (control)", train, "cos_other", one_minus,
                 dict(color=BLUE, linestyle=":", **THIN)),
                ("validation, own answer", val, "val_jepa_loss", same, dict(color=ORANGE, **DOTS)),
                ("validation, another answer (control)", val, "val_cos_other", one_minus,
                 dict(color=ORANGE, linestyle=":", **DOTS))],
               "JEPA loss beside its control: the latent of another answer",
               "1 − cosine of the predicted latent")  # fmt: skip


def plot_loss(run, title, scale="log", controls=()):
    """log.jsonl -> loss_curve.png, for systems with a single loss; `controls`: (label, key) of more lines."""
    train, val = read_log(run)
    draw_curve(Path(run) / "loss_curve.png",
               [("train", train, "loss", float, dict(color=BLUE, **THIN)),
                ("validation", val, "val_loss", float, dict(color=ORANGE, **DOTS)),
                *((label, val, key, float, dict(color=GREEN, **DOTS)) for label, key in controls)],
               title, "loss (per predicted token)", scale)  # fmt: skip


def describe(batch, tokenizer, mask):
    """The first example of a batch as text: each token, what it must predict, and which tokens it sees."""
    segment, tokens = batch.segment[0], batch.tokens[0].tolist()
    shown = [i for i, s in enumerate(segment.tolist()) if s in (0, 1)]
    target = dict(zip(batch.question_at.tolist(), batch.question_ids.tolist(), strict=True))
    if mask == "causal":
        target |= dict(zip(batch.answer_at.tolist(), batch.answer_ids.tolist(), strict=True))
    sees = jepa_mask(batch.segment[:1], mask)[0, 0]
    piece = lambda i: repr(tokenizer.pieces([i])[0])  # noqa: E731
    lines = [f"{'':>4}{'token':<16}{'predicts':<16}attends to (■) the tokens 0 … {len(shown) - 1}"]
    for i in shown:
        row = "".join("■" if sees[i, j] else "·" for j in shown)
        lines.append(f"{i:>3} {piece(tokens[i])[1:-1]:<16}{piece(target[i])[1:-1] if i in target else '-':<16}{row}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------- the processes


class Processes:
    """This process among those that torchrun started; alone without torchrun."""

    def __init__(self, device):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.main, self.device = self.rank == 0, device
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def wait(self):
        """Until all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, values):
        """list of floats -> their sums over all processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()


# ---------------------------------------------------------------------------------------------- the loop


BAR = {
    "loss": "loss",
    "token_loss": "token",
    "jepa_loss": "jepa",
    "cos_own": "cos",
    "cos_other": "other",
    "chain_accuracy": "right",
}  # shown


def fit(
    model, steps_per_epoch, batches, config, *, validate=None, after_step=None, processes=None, device=None, again=None
):
    """Train `model`; model(batch) -> (loss, metrics) is all that is asked of it. Returns the summary, a dict.

    `batches(epoch, k)` yields the micro-batches of step k of an epoch, a pure function, so that a step number is all
    there is to the position in the data; their losses and metrics add up to those of the whole step, over processes
    too; a batch has `.to(device)` and `.n_tokens`. `validate(model)` returns a dict of floats with "loss".
    `after_step()` runs after each optimiser step. `again` are the options that continue the run, told when it stops.

    Dropout and noise are seeded by (seed, step), so a resumed run needs no generator state to be exact.
    """
    device = device or resolve_device(config.device, config.precision)
    processes = processes or Processes(device.device)
    run = Path(config.run)
    if device.device.type == "cpu":
        keep_freed_memory()
    model.to(device.device)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.device.type, enabled=device.dtype is torch.float16)
    schedule = config.epochs * steps_per_epoch
    total = min(schedule, config.max_steps) if config.max_steps else schedule
    step, best, clock, last, validation = 0, math.inf, {"train": 0.0, "total": 0.0}, {}, {}

    if config.resume:
        try:
            state = torch.load(run / "state.pt", map_location=device.device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{run}/state.pt is damaged ({type(error).__name__}); start the run anew with --overwrite"
            ) from None
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and scaler.is_enabled():  # empty when the run was not in fp16
            scaler.load_state_dict(state["scaler"])
        step, best, clock = state["step"], state["best"], state["clock"]
        if state["epoch_steps"] != steps_per_epoch:
            raise UserError(
                f"--resume: the data has changed: {steps_per_epoch} steps an epoch, not {state['epoch_steps']}"
            )
        if processes.main:  # forget what was logged after the checkpoint
            kept = [x for x in (run / "log.jsonl").read_text().splitlines() if x and json.loads(x)["step"] <= step]
            with atomic(run / "log.jsonl") as path:
                path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            past = [json.loads(x) for x in kept]  # a run that had ended has nothing left to log
            last = next((x for x in reversed(past) if "loss" in x), {})
            validation = next(
                ({k: v for k, v in x.items() if k.startswith("val_")} for x in reversed(past) if "val_loss" in x), {}
            )

    if config.compile:  # the trunks, where the time goes; what surrounds them has another shape in every batch
        for module in model.modules():
            if isinstance(module, Transformer):
                module.compile(dynamic=True)
    worker = model
    if processes.world > 1:
        worker = DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)

    def save():
        if processes.main:
            save_model(model, config, run)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                     "step": step, "best": best, "clock": clock, "epoch_steps": steps_per_epoch}  # fmt: skip
            with atomic(run / "state.pt") as path:
                torch.save(state, path)

    def log(**values):
        if processes.main:
            try:
                with open(run / "log.jsonl", "a") as file:
                    file.write(json.dumps(values) + "\n")
            except OSError as error:
                raise UserError(
                    f"could not write {run}/log.jsonl: {error.strerror}; the last checkpoint is intact"
                ) from None

    stop, stopping = [], False
    handlers = {s: signal.signal(s, lambda number, frame: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    bar = tqdm(total=total, initial=step, disable=not processes.main, dynamic_ncols=True, unit="step", smoothing=0.05)
    window, window_steps = defaultdict(float), 0
    began = mark = time.perf_counter()
    pause = 0.0  # seconds of this window spent on validation and checkpoints, not on training
    try:
        while step < total:
            epoch, k = divmod(step, steps_per_epoch)
            torch.manual_seed((config.seed * 1_000_003 + step) * 1009 + processes.rank)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, schedule, config)
            micro = list(batches(epoch, k))
            for i, batch in enumerate(micro):
                hold = worker.no_sync() if processes.world > 1 and i + 1 < len(micro) else nullcontext()
                with hold:
                    with device.autocast():
                        loss, metrics = worker(batch.to(device.device))
                    loss = loss * processes.world  # gradients are averaged over processes; ours add up
                    scaler.scale(loss).backward()
                for name, value in metrics.items():
                    window[name] += value
                window["tokens"] += batch.n_tokens
            if config.grad_clip:
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
                window["grad_norm"] += norm / processes.world  # all processes hold the same gradient
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if after_step:
                after_step()
            step += 1
            window_steps += 1
            bar.update()

            ends_epoch = step % steps_per_epoch == 0 or step == total
            alone_and_stopped = stop and processes.world == 1  # several processes must agree on the step to stop at
            if (
                step % config.log_every == 0 or ends_epoch or alone_and_stopped
            ):  # the only steps that wait for the device
                device.synchronize()
                seconds = time.perf_counter() - mark - pause
                clock["train"] += seconds
                values = processes.sum([float(v) for v in window.values()] + [float(len(stop))])
                last = {name: v / window_steps for name, v in zip(window, values, strict=False)}
                last["tokens_per_second"] = last.pop("tokens") * window_steps / seconds
                stopping = bool(values[-1])  # this process or another was interrupted
                if not math.isfinite(last["loss"]):
                    raise UserError(
                        f"the loss is {last['loss']} at step {step}; lower --lr or raise --warmup-steps. "
                        "The last checkpoint is intact"
                    )
                rate = optimizer.param_groups[0]["lr"]
                log(
                    step=step, epoch=round(step / steps_per_epoch, 3), lr=rate, seconds=round(clock["train"], 3), **last
                )
                shown = [f"{short} {last[name]:.3f}" for name, short in BAR.items() if name in last]
                bar.set_postfix_str(", ".join([*shown, f"lr {rate:.1e}", f"{last['tokens_per_second']:,.0f} tok/s"]))
                window.clear()
                mark, window_steps, pause = time.perf_counter(), 0, 0.0
            if validate and (ends_epoch or (config.eval_every and step % config.eval_every == 0)):
                device.synchronize()
                pausing = time.perf_counter()
                validation = {f"val_{name}": v for name, v in validate(model).items()}
                log(step=step, epoch=round(step / steps_per_epoch, 3), **validation)
                if validation["val_loss"] < best:
                    best = validation["val_loss"]
                    if processes.main:
                        save_model(model, config, run / "best")
                told = ", ".join(f"{short} {validation[f'val_{name}']:.4f}" for name, short in BAR.items()
                                 if f"val_{name}" in validation)  # fmt: skip
                if processes.main:
                    bar.write(f"epoch {step / steps_per_epoch:g}, validation: {told}", file=sys.stderr)
                pause += time.perf_counter() - pausing
            if step % config.save_every == 0 or ends_epoch or stopping:
                device.synchronize()
                pausing = time.perf_counter()
                clock["total"] += pausing - began
                began = pausing
                save()
                pause += time.perf_counter() - pausing
            if stopping:
                bar.close()
                if processes.main:
                    print(
                        f"interrupted at step {step} of {total}; continue with: {again or f'--run {run} --resume'}",
                        file=sys.stderr,
                    )
                sys.exit(128 + (stop or [signal.SIGTERM])[0])
    finally:
        bar.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    cuda = device.device.type == "cuda"
    memory = {"peak_memory_gib": torch.cuda.max_memory_allocated(device.device) / 2**30} if cuda else {}
    return {"steps": step, "epochs": step / steps_per_epoch, "train_seconds": round(clock["total"], 2),
            "examples_per_second": round(step * config.batch_size / max(clock["train"], 1e-9), 2),
            **{name: last[name] for name in ("token_loss", "jepa_loss") if name in last}, **validation,
            **memory}  # fmt: skip


STALE = (
    *("state.pt", "summary.json", "model.safetensors", "best", "predictions.jsonl"),
    *("alignment.json", "accuracy.json", "summaries.json", "interpolate.json", "neighbours.json", "cluster.json"),
    *("map.json", "map.png", "middle.json", "loss_curve.png", "token_loss_curve.png", "jepa_loss_curve.png"),
)


def clear_run(run):
    """Remove what an earlier run left, when all else is ready: nothing of it may be taken for the new one's."""
    for path in (Path(run) / name for name in STALE):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (Path(run) / "log.jsonl").write_text("")


def open_run(config, given, cls, free=()):
    """Prepare the folder of a run and, under --resume, take the configuration that it was started with.

    Options in `free` or about device and logging may be changed on resume; any other given one that differs is refused.
    """
    run = Path(config.run)
    started = (run / "state.pt").is_file()
    if not config.resume:
        if started and not config.overwrite:
            raise UserError(
                f"{run} already holds a run; --resume continues it, --overwrite starts afresh, --run NAME is another"
            )
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / "log.jsonl").touch()
        except OSError as error:
            raise UserError(f"--run {run}: cannot write there ({error.strerror})") from None
        return config
    if not started:
        raise UserError(f"--resume: there is no checkpoint in {run} (no state.pt); leave --resume out to start the run")
    free = {"run", "resume", "overwrite", "device", "precision", "compile", "epochs", "max_steps", "grad_accum",
            "log_every", "save_every", "eval_every", "data_dir", *free}  # fmt: skip
    try:
        saved = from_dict(cls, json.loads((run / "config.json").read_text()), run / "config.json")
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"--resume: {run}/config.json cannot be read ({error})") from None
    for name in sorted(given - free):
        if getattr(config, name) != getattr(saved, name):
            raise UserError(f"--resume: the run in {run} has {name} = {getattr(saved, name)}, not "
                            f"{getattr(config, name)}; leave the option out, or start another run")  # fmt: skip
    return replace(saved, **{name: getattr(config, name) for name in given & free} | {"resume": True})


# ---------------------------------------------------------------------------------------------- nanoJEPA


@torch.no_grad()
def validation_loss(model, data, config, device):
    """The losses and cosines of a split, in eval mode -> dict of floats, each exactly its mean over the split."""
    model.eval()
    total = defaultdict(float)
    for batch in ordered_batches(data, config.batch_size, config.batching == "packed"):
        with device.autocast():
            _, metrics = model(batch.to(device.device))
        for name, value in metrics.items():
            total[name] += value
    model.train()
    return {name: float(v) for name, v in total.items()}


def validation_accuracy(model, examples):
    """Exact match of what the model decodes, a share; without the nearest-latent read-out and its candidates."""
    from evaluate_accuracy import by_length, final_answer

    model.eval()
    hits = 0
    for index in by_length(model, [e.question for e in examples], 64, tell=False):
        given = model.answer([examples[i].question for i in index])
        hits += sum(same_answer(final_answer(model, x), examples[i].answer) for x, i in zip(given, index, strict=True))
    model.train()
    return hits / len(examples)


def final_evaluation(model, examples, train_examples):
    """The test split: exact match, retrieval and cosines beside their controls -> dict for summary.json."""
    from eval_alignment import alignment
    from evaluate_accuracy import accuracy

    model.eval()
    measured = accuracy(model, examples, train_examples)[0] | alignment(model, examples)[0]
    names = {
        "exact_match": "exact_match_decoded",
        "exact_match_ci95": "exact_match_decoded_ci95",
        "constant_from_train": "constant_from_train",
    }
    return {name: measured[names.get(name, name)] for name in (*names, "retrieval_at_1", "cos_own", "cos_other")}


def main():
    config, given = parse(Config, PRESETS, __doc__.split("\n\n")[0])
    config = open_run(config, given, Config)
    if config.answer_view != "answer" and config.mask != "causal":
        raise UserError(f"--answer-view {config.answer_view} shows how: it wants --mask causal, the language model")
    device = resolve_device(config.device, config.precision)
    processes = Processes(device.device)
    say = print if processes.main else (lambda *a, **k: None)
    run = Path(config.run)

    began = time.perf_counter()
    splits = load_splits(config)
    tokenizer = (
        load_tokenizer(config.tokenizer, run)
        if config.resume
        else train_tokenizer(config.tokenizer, splits["train"], config.answer_view)
    )
    config = replace(config, vocab_size=tokenizer.n_vocab)
    isolated = config.mask != "causal"
    train, val = (
        Encoded(splits[s], tokenizer, config.block_size, s, isolated, config.answer_view) for s in ("train", "val")
    )
    if min(config.batch_size, len(train)) < processes.world * config.grad_accum:
        raise UserError(
            f"a batch of {min(config.batch_size, len(train))} is less than an example for each of the "
            f"{processes.world * config.grad_accum} micro-batches"
        )
    if config.answer_view != "answer" and train.m.max() >= config.max_new_tokens:
        raise UserError(
            f"the longest {config.answer_view} has {train.m.max()} tokens: --max-new-tokens {config.max_new_tokens} "
            f"cuts it before its answer; give {train.m.max() + 1} or more"
        )
    steps_per_epoch, batches = make_batches(train, config, processes.rank, processes.world)
    read = time.perf_counter() - began

    torch.manual_seed(config.seed)
    model = NanoJEPA(config)
    model.tokenizer = tokenizer
    if (config.n_layer, config.n_embd, config.tokenizer) == (6, 512, "gpt2"):
        assert 44e6 < model.n_params() < 47e6, "the founding configuration has about 45M parameters"
    say(f"device     {device.why}" + (f", {processes.world} processes" if processes.world > 1 else ""))
    sizes = f"{len(train):,} training, {len(val):,} validation, {len(splits['test']):,} test examples"
    say(f"data       {config.dataset}: {sizes}; {train.length.mean():.1f} tokens each; read in {read:.1f} s")
    shape = f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, vocabulary {tokenizer.n_vocab:,}"
    say(f"model      {model.n_params() / 1e6:.2f}M parameters: {shape}; mask {config.mask}")
    plan = f"{config.epochs} epochs of {steps_per_epoch} steps of {config.batch_size} examples"
    say(f"schedule   {plan}; lambda {config.jepa_weight:g}\n")
    say(describe(train.batch([0]), tokenizer, config.mask) + "\n")

    if processes.main and not config.resume:
        clear_run(run)

    def validate(model):
        found = validation_loss(model, val, config, device)
        if config.val_accuracy:
            found["exact_match"] = validation_accuracy(model, splits["val"])
        return found

    summary = fit(model, steps_per_epoch, batches, config, validate=validate, after_step=model.update_target,
                  processes=processes, device=device)  # fmt: skip
    if processes.main:
        plot_curves(run)
        summary = {"n_params": model.n_params(), **summary, "device": device.why, "torch": torch.__version__}
        if config.final_eval:
            summary |= final_evaluation(model, splits["test"], splits["train"])
            low, high = summary["exact_match_ci95"]
            readout = "token by token" if config.mask == "causal" else "decoded from z_hat"
            say(
                f"\ntest split: {len(splits['test']):,} questions"
                + (", operand pairs never seen in training" if config.dataset == "wordproblems" else "")
            )
            say(f"  exact match, {readout:<24}{summary['exact_match']:7.2%}   95% interval {low:.2%} to {high:.2%}")
            say(f"  always the commonest training answer {summary['constant_from_train']:7.2%}")
            say(f"  retrieval@1 among all test answers   {summary['retrieval_at_1']:7.2%}")
            say(f"  cosine to the own answer's latent    {summary['cos_own']:7.3f}")
            say(f"  cosine to another answer's latent    {summary['cos_other']:7.3f}   (the control)")
        write_json(run / "summary.json", summary)
        say(
            f"\ntrained {summary['steps']:,} steps in {summary['train_seconds']:.0f} s, "
            f"{summary['examples_per_second']:,.0f} examples/s"
        )
        say(f"the run is in {run}/, its curves in {run}/token_loss_curve.png and {run}/jepa_loss_curve.png")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
