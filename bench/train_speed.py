"""Training speed: ours, its peers and the hardware's own limit, in alternation, in one run.

    python -m bench.train_speed --data-dir DIR              GSM8K, 45M parameters, about 20 minutes on two CPU cores
    python -m bench.train_speed --data-dir DIR --device cuda --batch-size 256 --scale 64 128 256 512

    ours             train.fit as train.py calls it
    language_model   the same with mask causal, lambda 0 and no decode pass: an ordinary language model, same tokens
    packed           ours, several examples in a row
    straightforward  bench/straightforward.py: random padded batches, dense masks, logits everywhere, .item() each step
    llm_jepa         bench/llm_jepa.py: transformers' GPT-2, a language-model pass plus a pass for each view

Each is timed in a process of its own, and all train on the same examples: those of real optimiser steps of ours, from
short to long questions. Beside them the rate of large matrix products, and the share of it that is useful: 6 FLOPs a
parameter and real token, the output layer's at targets only.

Writes results/train_speed_<device>.json.
"""

import itertools
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.llm_jepa import LLMJEPA
from bench.straightforward import plain_loss
from config import PRESETS, Config, UserError, opt, parse, resolve_device, run_main, write_json
from data import Encoded, epoch_order, load_splits, make_batches, train_tokenizer
from model import NanoJEPA
from train import Processes, fit

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 2  # steps before the clock starts: allocator, first kernels, compilation


@dataclass
class BenchConfig(Config):
    batch_size: int = opt(16, "examples per optimiser step", low=1)
    rounds: int = opt(3, "rounds; every system runs once in each", low=1)
    steps: int = opt(6, "timed steps of each system and round", low=1)
    scale: tuple = opt(("16", "32", "64", "128"), "batch sizes of the scaling table")
    out: str = opt("", "file to write; by default results/train_speed_<device>.json")


# --------------------------------------------------------------------------------------------- the clocks


def matmul_rate(device):
    """The best rate of a large square matrix product in the precision of training -> FLOP/s."""
    n, repeats = (8192, 20) if device.device.type == "cuda" else (2048, 5)
    a, b = (torch.randn(n, n, device=device.device, dtype=device.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        device.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        device.synchronize()
        best = min(best, (time.perf_counter() - began) / repeats)
    return 2 * n**3 / best


def time_fit(config, data):
    """Seconds of one epoch of `train.fit` on the Encoded `data`."""
    device = resolve_device(config.device, config.precision)
    torch.manual_seed(config.seed)
    model = NanoJEPA(config)
    model.tokenizer = data.tokenizer
    n, batches = make_batches(data, config)
    silent, stamps, done = Processes(device.device), [], itertools.count(1)
    silent.main = False  # no bar, no log, no checkpoint

    def stamp():
        if next(done) in (WARM_UP, WARM_UP + n):
            device.synchronize()
            stamps.append(time.perf_counter())

    config = replace(config, epochs=1, log_every=10**9, save_every=10**9)
    fit(model, WARM_UP + n, lambda epoch, k: batches(0, (k - WARM_UP) % n), config,
        after_step=stamp, processes=silent, device=device)  # fmt: skip
    return stamps[1] - stamps[0]


def time_plain(config, data, peer):
    """Seconds of one epoch, in random order, of a plain loop over `straightforward` or `llm_jepa`."""
    device = resolve_device(config.device, config.precision)
    torch.manual_seed(config.seed)
    if peer == "straightforward":
        model, loss = NanoJEPA(config), plain_loss
        model.tokenizer = data.tokenizer
    else:
        model, loss = LLMJEPA(config, data.tokenizer), LLMJEPA.loss
    model.to(device.device).train()
    fused = peer == "llm_jepa"  # the default of transformers' Trainer
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    rows = [row.tolist() for row in np.split(data.tokens, data.start[1:])]
    pairs = [(row[:n], row[n + 2 : -1]) for row, n in zip(rows, data.n.tolist(), strict=True)]
    order = np.random.default_rng(config.seed).permutation(len(pairs))
    chunks = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
    for step, chunk in enumerate([*chunks[-WARM_UP:], *chunks]):
        if step == min(WARM_UP, len(chunks)):
            device.synchronize()
            began = time.perf_counter()
        with device.autocast():
            value, terms = loss(model, [pairs[i] for i in chunk])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        _ = {name: term.item() for name, term in terms.items()}
    device.synchronize()
    return time.perf_counter() - began


def peak_gib():
    """GiB at most in use by this process so far: what PyTorch allocated on a GPU, else what was resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _with_memory(function, args):
    return function(*args), peak_gib()


def alone(function, *args):
    """Run in a fresh process -> (seconds, GiB at most in use): no system inherits another's heap or settings.

    The memory is what PyTorch allocated on a GPU, and what was resident on a CPU, libraries included."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_memory, function, args).result()


def useful_flops(model, data):
    """FLOPs that one epoch over `data` needs: 6 a parameter and token that takes part, nothing for padding.

    The trunk sees question, answer view and decode pass; the output layer only positions with a target."""
    trunk = sum(p.numel() for p in model.trunk.parameters() if p.dim() == 2)
    seen, targets = data.length.sum() + (data.m + 1).sum(), (data.n - 1).sum() + (data.m + 1).sum()
    return 6.0 * (trunk * seen + model.embed.weight.numel() * targets + model.latent_in.weight.numel() * len(data))


def subset(data, config, n, epoch):
    """The examples of `n` real optimiser steps of an epoch, evenly spread from short to long questions -> Encoded."""
    steps = sorted(epoch_order(data.length, config.batch_size, config.seed, epoch), key=lambda i: data.length[i].sum())
    picked = np.concatenate([steps[(2 * k + 1) * len(steps) // (2 * n)] for k in range(n)])
    return Encoded([data.examples[i] for i in picked], data.tokenizer, data.block_size, isolated=data.isolated)


def startup(config):
    """Seconds from `python train.py` to its first logged step, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        changed = {name: value for name, value in asdict(config).items()
                   if name in asdict(Config()) and value != getattr(Config(), name)}  # fmt: skip
        changed |= {"run": folder, "max_steps": 1, "final_eval": False, "log_every": 1}
        words = [f"--{k.replace('_', '-')}={v}" for k, v in changed.items()
                 if not isinstance(v, bool) and k not in ("vocab_size", "system")]  # fmt: skip
        words += [f"--{'' if v else 'no-'}{k.replace('_', '-')}" for k, v in changed.items() if isinstance(v, bool)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        log = Path(folder) / "log.jsonl"
        while not (log.is_file() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if not log.is_file() or not log.stat().st_size:
            sys.exit(f"error: train.py did not start: {process.stderr.read()}")
        process.kill()
        process.wait()
        return seconds


# ------------------------------------------------------------------------------------------------ main


def spread(values):
    """list of floats -> median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def hardware(device):
    """What the figures were measured on."""
    if device.device.type == "cuda":
        return torch.cuda.get_device_name(device.device)
    return f"{torch.get_num_threads()} threads, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def save(result, config, device, name):
    """Write a benchmark's JSON to --out, or into results/."""
    path = Path(config.out or ROOT / "results" / f"{name}_{device.device.type}.json")
    write_json(path, result)
    print(f"wrote {os.path.relpath(path)}")


def main():
    config, _ = parse(BenchConfig, PRESETS, __doc__.split("\n\n")[0])
    plain = ("target", "predictor", "vicreg_var", "vicreg_cov", "sigreg", "decode_pred_weight", "mask", "answer_view")
    for name in plain:
        if getattr(config, name) != getattr(Config(), name):
            raise UserError(f"--{name.replace('_', '-')}: the straightforward loop knows only the default objective")
    device = resolve_device(config.device, config.precision)
    splits = load_splits(config)
    tokenizer = train_tokenizer(config.tokenizer, splits["train"])
    began = time.perf_counter()
    data = Encoded(splits["train"], tokenizer, config.block_size)
    for split in ("val", "test"):
        Encoded(splits[split], tokenizer, config.block_size)
    tokenised = time.perf_counter() - began
    config = replace(config, vocab_size=tokenizer.n_vocab)
    causal = replace(config, mask="causal", jepa_weight=0.0, decode_weight=0.0)
    systems = {
        "ours": lambda part: alone(time_fit, config, part),
        "language_model": lambda part: alone(
            time_fit, causal, Encoded(part.examples, tokenizer, part.block_size, isolated=False)
        ),
        "packed": lambda part: alone(time_fit, replace(config, batching="packed"), part),
        "straightforward": lambda part: alone(time_plain, replace(config, decode_noise=0.0), part, "straightforward"),
        "llm_jepa": lambda part: alone(time_plain, config, part, "llm_jepa"),
    }
    if config.compile:
        systems["eager"] = lambda part: alone(time_fit, replace(config, compile=False), part)
    model = NanoJEPA(config)
    rates, share, product = {name: [] for name in systems}, {name: [] for name in systems}, []
    scaling = {size: [] for size in map(int, config.scale)}
    for i in range(config.rounds):
        part = subset(data, config, config.steps, i)
        product.append(matmul_rate(device))
        for name in list(systems)[:: 1 if i % 2 == 0 else -1]:  # there and back: whoever runs first, runs last next
            seconds, _ = systems[name](part)
            rates[name].append(len(part) / seconds)
            share[name].append(useful_flops(model, part) / seconds / product[-1])
            print(f"round {i + 1}  {name:<16}{rates[name][-1]:9.2f} examples/s", flush=True)
        for size in scaling:
            scaled = replace(config, batch_size=size)
            part = subset(data, scaled, 2, i)
            seconds, memory = alone(time_fit, scaled, part)
            scaling[size].append((part.length.mean() * size, len(part) / seconds, part.length.sum() / seconds, memory))
    names = ("tokens", "examples_per_second", "tokens_per_second", "peak_memory_gib")
    scaling = [{"batch_size": size} | {name: spread([float(x) for x in column])
                                       for name, column in zip(names, zip(*rows, strict=True), strict=True)}
               for size, rows in scaling.items()]  # fmt: skip

    result = {
        "hardware": hardware(device), "device": device.why, "torch": torch.__version__, "n_params": model.n_params(),
        "batch_size": config.batch_size, "rounds": config.rounds, "examples_a_round": config.steps * config.batch_size,
        "tokens_per_example": float(data.length.mean()),
        "matmul_gflops": {k: v / 1e9 for k, v in spread(product).items()},
        "examples_per_second": {name: spread(v) for name, v in rates.items()},
        "ours_over": {name: spread([a / b for a, b in zip(rates["ours"], v, strict=True)])
                      for name, v in rates.items() if name != "ours"},
        "useful_share": {name: spread(v) for name, v in share.items()},
        "time_over_language_model": spread(
            [b / a for a, b in zip(rates["ours"], rates["language_model"], strict=True)]),
        "scaling": scaling, "startup_seconds": startup(config), "tokenise_seconds": tokenised,
    }  # fmt: skip
    print(f"\n{result['hardware']}: {model.n_params() / 1e6:.1f}M parameters, batches of {config.batch_size}, "
          f"medians of {config.rounds} rounds (least to greatest)\n")  # fmt: skip
    print(f"{'':<18}{'examples/s':>24}{'ours is faster by':>26}{'of the product rate':>22}")
    for name in systems:
        rate, used = result["examples_per_second"][name], result["useful_share"][name]
        line = f"{name:<18}{rate['median']:10.2f} ({rate['min']:.2f} to {rate['max']:.2f})"
        if name != "ours":
            over = result["ours_over"][name]
            line += f"{over['median']:10.2f}x ({over['min']:.2f} to {over['max']:.2f})"
        print(f"{line:<68}{used['median']:>10.0%}")
    rate = result["matmul_gflops"]
    print(f"matrix products   {rate['median']:,.0f} GFLOP/s ({rate['min']:,.0f} to {rate['max']:,.0f})\n")
    print(f"{'batch':>8}{'tokens':>10}{'tokens/s':>26}{'peak memory, GiB':>20}")
    for row in scaling:
        rate = row["tokens_per_second"]
        told = f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})"
        memory = row["peak_memory_gib"]["max"]
        print(f"{row['batch_size']:>8}{row['tokens']['median']:>10,.0f}{told:>26}{memory:>20.2f}")
    print(f"\nfirst step after {result['startup_seconds']:.1f} s; the data set tokenised in {tokenised:.2f} s")
    save(result, config, device, "train_speed")


if __name__ == "__main__":
    run_main(main)
