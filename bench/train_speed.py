"""Training speed: ours, its peers and the hardware's own limit, in alternation, in one run.

    python -m bench.train_speed --data-dir DIR              GSM8K, 45M parameters, about 20 minutes on two CPU cores
    python -m bench.train_speed --data-dir DIR --device cuda --batch-size 256 --scale 64 128 256 512

    ours             loop.fit as train.py calls it
    language_model   the same with mask causal, lambda 0 and no decode pass: an ordinary language model, same tokens
    straightforward  bench/straightforward.py: random padded batches, dense masks, logits everywhere, .item() each step
    llm_jepa         bench/llm_jepa.py: transformers' GPT-2, a language-model pass plus a pass for each view

Each is timed in a process of its own, and all train on the same examples: those of real optimiser steps of ours, from
short to long questions. Beside them the rate of large matrix products, and the model FLOPs utilisation (MFU, the key
`useful_share`): 6 FLOPs a parameter and real token, the output layer's at targets only, over that rate.

Writes results/train_speed_<device>.json.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.llm_jepa import LLMJEPA
from bench.measure import ROOT, WARM_UP, alone, hardware, save, spread, subset
from bench.straightforward import plain_loss
from common.batching import make_batches
from common.device import Device, Distributed, resolve_device
from common.loop import fit
from common.options import UserError, flag, opt, parse, run_main
from common.tokenizers import Tokenizer, train_tokenizer
from config import PRESETS, Config
from data import TokenizedDataset, load_splits, view_texts
from model import NanoJEPA


@dataclass
class BenchConfig(Config):
    batch_size: int = opt(16, "examples per optimiser step", low=1)
    rounds: int = opt(3, "rounds; every system runs once in each", low=1)
    steps: int = opt(6, "timed steps of each system and round", low=1)
    scale: tuple = opt(("16", "32", "64", "128"), "batch sizes of the scaling table")
    out: str = opt("", "file to write; by default results/train_speed_<device>.json")


# --------------------------------------------------------------------------------------------- the clocks


def matmul_rate(device: Device) -> float:
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


def time_fit(config: Config, data: TokenizedDataset) -> float:
    """Seconds of one epoch of `loop.fit`."""
    device = resolve_device(config.device, config.precision)
    torch.manual_seed(config.seed)
    model = NanoJEPA(config)
    model.tokenizer = data.tokenizer
    n, batches = make_batches(data, config)
    silent, stamps, done = Distributed(device.device), [], itertools.count(1)
    silent.main = False  # no bar, no log, no checkpoint

    def stamp():
        if next(done) in (WARM_UP, WARM_UP + n):
            device.synchronize()
            stamps.append(time.perf_counter())

    def warmed_up(epoch, k):
        return batches(0, (k - WARM_UP) % n)

    config = replace(config, epochs=1, log_every=10**9, save_every=10**9)
    fit(model, WARM_UP + n, warmed_up, config, after_step=stamp, distributed=silent, device=device)
    return stamps[1] - stamps[0]


def time_plain(config: Config, data: TokenizedDataset, peer: str) -> float:
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


def startup(config: Config) -> float:
    """Seconds from `python train.py` to its first logged step, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        defaults = asdict(Config())
        changed = {name: value for name, value in asdict(config).items() if defaults.get(name, value) != value}
        changed |= {"run": folder, "max_steps": 1, "final_eval": False, "log_every": 1}
        changed.pop("vocab_size", None)
        words = [f"{flag(name)}={value}" for name, value in changed.items() if not isinstance(value, bool)]
        words += [flag(name if value else f"no_{name}") for name, value in changed.items() if isinstance(value, bool)]
        began = time.perf_counter()
        command = [sys.executable, ROOT / "train.py", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        log = Path(folder) / "log.jsonl"
        while not (log.is_file() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if not log.is_file() or not log.stat().st_size:
            raise UserError(f"train.py did not start: {process.stderr.read()}")
        process.kill()
        process.wait()
        return seconds


# ---------------------------------------------------------------------------------------------- measures


def useful_flops(model: NanoJEPA, data: TokenizedDataset) -> float:
    """FLOPs that one epoch over `data` needs: 6 a parameter and token that takes part, nothing for padding.

    The trunk sees question, answer view and decode pass; the output layer only positions with a target.
    """
    trunk = sum(p.numel() for p in model.trunk.parameters() if p.dim() == 2)
    seen, targets = data.length.sum() + (data.m + 1).sum(), (data.n - 1).sum() + (data.m + 1).sum()
    return 6.0 * (trunk * seen + model.embed.weight.numel() * targets + model.prefix_proj.weight.numel() * len(data))


def systems_of(config: Config, tokenizer: Tokenizer) -> dict[str, Callable]:
    """{name: function of a TokenizedDataset -> seconds of an epoch over it, in a process of its own}."""
    causal = replace(config, mask="causal", jepa_weight=0.0, decode_weight=0.0)
    without_noise = replace(config, decode_noise=0.0)

    def language_model(part):
        return alone(time_fit, causal, TokenizedDataset(part.examples, tokenizer, causal))[0]

    return {
        "ours": lambda part: alone(time_fit, config, part)[0],
        "language_model": language_model,
        "straightforward": lambda part: alone(time_plain, without_noise, part, "straightforward")[0],
        "llm_jepa": lambda part: alone(time_plain, config, part, "llm_jepa")[0],
    }


def measure(config: BenchConfig, data: TokenizedDataset, device: Device) -> dict:
    """Rounds of all systems and of the scaling table -> what the file holds of them."""
    systems, model = systems_of(config, data.tokenizer), NanoJEPA(config)
    rates, utilisation, product = {name: [] for name in systems}, {name: [] for name in systems}, []
    scaling = {size: [] for size in map(int, config.scale)}
    for i in range(config.rounds):
        part = subset(data, config, config.steps, i)
        product.append(matmul_rate(device))
        for name in list(systems)[:: 1 if i % 2 == 0 else -1]:  # there and back: whoever runs first, runs last next
            seconds = systems[name](part)
            rates[name].append(len(part) / seconds)
            utilisation[name].append(useful_flops(model, part) / seconds / product[-1])
            print(f"round {i + 1}  {name:<16}{rates[name][-1]:9.2f} examples/s", flush=True)
        for size in scaling:
            scaled = replace(config, batch_size=size)
            part = subset(data, scaled, 2, i)
            seconds, memory = alone(time_fit, scaled, part)
            row = (part.length.mean() * size, len(part) / seconds, part.length.sum() / seconds, memory)
            scaling[size].append([float(x) for x in row])

    ours = rates["ours"]
    over = {name: [a / b for a, b in zip(ours, v, strict=True)] for name, v in rates.items() if name != "ours"}
    names = ("tokens", "examples_per_second", "tokens_per_second", "peak_memory_gib")
    return {
        "matmul_gflops": spread([x / 1e9 for x in product]),
        "examples_per_second": {name: spread(values) for name, values in rates.items()},
        "ours_over": {name: spread(values) for name, values in over.items()},
        "useful_share": {name: spread(values) for name, values in utilisation.items()},
        "time_over_language_model": spread([1 / x for x in over["language_model"]]),
        "scaling": [
            {"batch_size": size} | {name: spread(x) for name, x in zip(names, zip(*rows, strict=True), strict=True)}
            for size, rows in scaling.items()
        ],
    }


# ------------------------------------------------------------------------------------------------ main


def shown(values: dict, digits: int = 2) -> str:
    """'8.37 (8.17 to 8.44)'"""
    return "{:,.{d}f} ({:,.{d}f} to {:,.{d}f})".format(values["median"], values["min"], values["max"], d=digits)


def report(result: dict) -> str:
    lines = [
        f"{result['hardware']}: {result['n_params'] / 1e6:.1f}M parameters, batches of {result['batch_size']}, "
        f"medians of {result['rounds']} rounds (least to greatest)\n",
        f"{'':<18}{'examples/s':>26}{'ours is faster by':>26}{'MFU':>8}",
    ]
    for name, rate in result["examples_per_second"].items():
        over = shown(result["ours_over"][name]) if name != "ours" else ""
        lines.append(f"{name:<18}{shown(rate):>26}{over:>26}{result['useful_share'][name]['median']:>8.0%}")
    lines.append(f"{'matrix products':<18}{shown(result['matmul_gflops'], 0)} GFLOP/s\n")
    lines.append(f"{'batch':>8}{'tokens':>10}{'tokens/s':>26}{'peak memory, GiB':>20}")
    for row in result["scaling"]:
        rate, memory = shown(row["tokens_per_second"], 0), row["peak_memory_gib"]["max"]
        lines.append(f"{row['batch_size']:>8}{row['tokens']['median']:>10,.0f}{rate:>26}{memory:>20.2f}")
    seconds = result["startup_seconds"], result["tokenise_seconds"]
    lines.append("\nfirst step after {:.1f} s; the data set tokenised in {:.2f} s".format(*seconds))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(BenchConfig, PRESETS, __doc__.split("\n\n")[0], argv)
    for name in ("target", "predictor", "regulariser", "decode_pred_weight", "mask", "answer_view"):
        if getattr(config, name) != getattr(Config(), name):
            raise UserError(f"{flag(name)}: the straightforward loop knows only the default objective")
    device = resolve_device(config.device, config.precision)
    splits = load_splits(config)
    tokenizer = train_tokenizer(config.tokenizer, view_texts(splits["train"], config.answer_view))
    config = replace(config, vocab_size=tokenizer.n_vocab)
    began = time.perf_counter()
    data = {name: TokenizedDataset(examples, tokenizer, config, name) for name, examples in splits.items()}["train"]
    tokenised = time.perf_counter() - began

    result = {
        "hardware": hardware(device),
        "device": device.why,
        "torch": torch.__version__,
        "n_params": NanoJEPA(config).n_params(),
        "batch_size": config.batch_size,
        "rounds": config.rounds,
        "examples_a_round": config.steps * config.batch_size,
        "tokens_per_example": float(data.length.mean()),
        **measure(config, data, device),
        "startup_seconds": startup(config),
        "tokenise_seconds": tokenised,
    }
    print("\n" + report(result))
    save(result, config, device, "train_speed")


if __name__ == "__main__":
    run_main(main)
