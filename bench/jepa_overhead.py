"""What the JEPA part costs: nanoJEPA and the same trunk as an ordinary language model, step by step in alternation.

    python -m bench.jepa_overhead --data-dir DIR        GSM8K, 45M parameters, about 4 minutes on two CPU cores

Both take an optimiser step on the same examples, one right after the other, so that slower and faster minutes of a
shared machine hit both. nanoJEPA does all that train.py does; the language model (mask causal, lambda 0, no decode
pass) predicts the same question and answer tokens.

Writes results/jepa_overhead_<device>.json.
"""

import statistics
import time
from dataclasses import dataclass, replace

import torch

from bench.train_speed import hardware, save, subset
from config import PRESETS, Config, keep_freed_memory, opt, parse, resolve_device, run_main
from data import Encoded, epoch_order, load_splits, train_tokenizer
from model import NanoJEPA
from train import make_optimizer


@dataclass
class BenchConfig(Config):
    batch_size: int = opt(16, "examples per optimiser step", low=1)
    pairs: int = opt(40, "pairs of steps", low=2)
    out: str = opt("", "file to write; by default results/jepa_overhead_<device>.json")


def main():
    config, _ = parse(BenchConfig, PRESETS, __doc__.split("\n\n")[0])
    device = resolve_device(config.device, config.precision)
    keep_freed_memory()
    train = load_splits(config)["train"]
    tokenizer = train_tokenizer(config.tokenizer, train)
    config = replace(config, vocab_size=tokenizer.n_vocab)
    views = subset(Encoded(train, tokenizer, config.block_size), config, config.pairs, 0)
    joined = Encoded(views.examples, tokenizer, config.block_size, isolated=False)
    order = epoch_order(views.length, config.batch_size, config.seed, 0)

    def stepper(config, data):
        """-> function of example indices that takes one optimiser step and returns its seconds."""
        torch.manual_seed(config.seed)
        model = NanoJEPA(config).to(device.device)
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

    jepa = stepper(config, views)
    language_model = stepper(replace(config, mask="causal", jepa_weight=0.0, decode_weight=0.0), joined)
    for step in (jepa, language_model):
        for index in order[:3]:
            step(index)
    times = []
    for i, index in enumerate(order):
        both = (jepa, language_model) if i % 2 == 0 else (language_model, jepa)
        pair = {step: step(index) for step in both}
        times.append((pair[jepa], pair[language_model]))
    extra = [a / b - 1 for a, b in times]
    low, median, high = statistics.quantiles(extra, n=4)
    result = {
        "hardware": hardware(device), "torch": torch.__version__, "batch_size": config.batch_size, "pairs": len(times),
        "seconds_a_step": {"jepa": statistics.median(a for a, _ in times),
                           "language_model": statistics.median(b for _, b in times)},
        "overhead": {"median": median, "lower_quartile": low, "upper_quartile": high,
                     "total": sum(a for a, _ in times) / sum(b for _, b in times) - 1},
    }  # fmt: skip
    print(f"{result['hardware']}: {len(times)} pairs of steps of {config.batch_size}; the JEPA part adds {median:.1%} "
          f"(quartiles {low:.1%} to {high:.1%}), {result['overhead']['total']:.1%} of the total time")  # fmt: skip
    save(result, config, device, "jepa_overhead")


if __name__ == "__main__":
    run_main(main)
