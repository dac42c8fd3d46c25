"""What the benchmarks share: clocks, processes of their own, the machine's name, and the file that is written."""

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.batching import epoch_order
from common.checkpoint import write_json
from common.device import Device
from common.optimizers import make_optimizer
from common.tokenizers import train_tokenizer
from config import Config
from data import TokenizedDataset, load_splits, view_texts
from model import NanoJEPA

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 2  # steps before the clock starts: allocator, first kernels, compilation


# ------------------------------------------------------------------------------------------- statistics


def spread(values: list[float]) -> dict:
    """Values -> median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def quartiles(values: list[float]) -> dict:
    """Values -> median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


# ------------------------------------------------------------------------------- the machine, the file


def hardware(device: Device) -> str:
    """What the figures were measured on."""
    if device.device.type == "cuda":
        return torch.cuda.get_device_name(device.device)
    return f"{torch.get_num_threads()} threads, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def path_of(config, device: Device, name: str) -> Path:
    """The file of a benchmark: --out, or results/<name>_<device>.json."""
    return Path(config.out or ROOT / "results" / f"{name}_{device.device.type}.json")


def save(result: dict, config, device: Device, name: str) -> None:
    """Write a benchmark's JSON."""
    path = path_of(config, device, name)
    write_json(path, result)
    print(f"wrote {os.path.relpath(path)}")


def peak_gib() -> float:
    """GiB at most in use by this process so far: what PyTorch allocated on a GPU, else what was resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _with_memory(function, args):
    return function(*args), peak_gib()


def alone(function: Callable, *args):
    """Run in a fresh process -> (its result, GiB at most in use): no system inherits another's heap or settings.

    The memory is what PyTorch allocated on a GPU, and what was resident on a CPU, libraries included.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_memory, function, args).result()


# ---------------------------------------------------------------------------------------- examples, steps


def subset(data: TokenizedDataset, config: Config, n: int, epoch: int) -> TokenizedDataset:
    """The examples of `n` real optimiser steps of an epoch, evenly spread from short to long questions."""
    steps = sorted(epoch_order(data.length, config.batch_size, config.seed, epoch), key=lambda i: data.length[i].sum())
    picked = np.concatenate([steps[(2 * k + 1) * len(steps) // (2 * n)] for k in range(n)])
    return TokenizedDataset([data.examples[i] for i in picked], data.tokenizer, config)


def real_steps(config: Config, n: int) -> tuple[Config, TokenizedDataset]:
    """-> (the configuration with its vocabulary, the training examples of `n` real optimiser steps)."""
    train = load_splits(config)["train"]
    tokenizer = train_tokenizer(config.tokenizer, view_texts(train, config.answer_view))
    config = replace(config, vocab_size=tokenizer.n_vocab)
    return config, subset(TokenizedDataset(train, tokenizer, config), config, n, 0)


def stepper(model: NanoJEPA, data: TokenizedDataset, device: Device) -> Callable[[np.ndarray], float]:
    """-> a function of example indices that takes one optimiser step, as training does, and returns its seconds."""
    config = model.config
    model.to(device.device).train()
    optimizer = make_optimizer(model, config)

    def step(index):
        device.synchronize()
        began = time.perf_counter()
        with device.autocast():
            loss, _ = model(data.batch(index).to(device.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        device.synchronize()
        return time.perf_counter() - began

    return step


def alternate(steps: dict[str, Callable], order: Iterable[np.ndarray]) -> dict[str, list[float]]:
    """Each system takes each step, one right after the other -> seconds: slow minutes of a shared machine hit all.

    There and back: who goes first at one step goes last at the next.
    """
    order = list(order)
    for step in steps.values():
        for index in order[:WARM_UP]:
            step(index)
    seconds = {name: [] for name in steps}
    for i, index in enumerate(order):
        for name in list(steps)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(steps[name](index))
    return seconds
