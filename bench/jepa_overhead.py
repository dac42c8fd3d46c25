"""What the JEPA part costs: nanoJEPA and the same trunk as an ordinary language model, step by step in alternation.

    python -m bench.jepa_overhead --data-dir DIR        GSM8K, 45M parameters, about 4 minutes on two CPU cores

Both take an optimiser step on the same examples, one right after the other, so that slower and faster minutes of a
shared machine hit both. nanoJEPA does all that train.py does; the language model (mask causal, lambda 0, no decode
pass) predicts the same question and answer tokens.

Writes results/jepa_overhead_<device>.json.
"""

import statistics
from dataclasses import dataclass, replace

import torch

from bench.measure import alternate, hardware, quartiles, real_steps, save, stepper
from common.batching import epoch_order
from common.device import keep_freed_memory, resolve_device
from common.options import opt, parse, run_main
from config import PRESETS, Config
from data import TokenizedDataset
from model import NanoJEPA


@dataclass
class BenchConfig(Config):
    batch_size: int = opt(16, "examples per optimiser step", low=1)
    pairs: int = opt(40, "pairs of steps", low=2)
    out: str = opt("", "file to write; by default results/jepa_overhead_<device>.json")


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(BenchConfig, PRESETS, __doc__.split("\n\n")[0], argv)
    device = resolve_device(config.device, config.precision)
    keep_freed_memory()
    config, views = real_steps(config, config.pairs)
    causal = replace(config, mask="causal", jepa_weight=0.0, decode_weight=0.0)
    joined = TokenizedDataset(views.examples, views.tokenizer, causal)

    steps = {}
    for name, setting, data in (("jepa", config, views), ("language_model", causal, joined)):
        torch.manual_seed(config.seed)
        steps[name] = stepper(NanoJEPA(setting), data, device)
    seconds = alternate(steps, epoch_order(views.length, config.batch_size, config.seed, 0))
    extra = [a / b - 1 for a, b in zip(seconds["jepa"], seconds["language_model"], strict=True)]
    overhead = quartiles(extra) | {"total": sum(seconds["jepa"]) / sum(seconds["language_model"]) - 1}
    result = {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "batch_size": config.batch_size,
        "pairs": len(extra),
        "seconds_a_step": {name: statistics.median(values) for name, values in seconds.items()},
        "overhead": overhead,
    }
    print(
        f"{result['hardware']}: {len(extra)} pairs of steps of {config.batch_size}; the JEPA part adds "
        f"{overhead['median']:.1%} (quartiles {overhead['lower_quartile']:.1%} to {overhead['upper_quartile']:.1%}), "
        f"{overhead['total']:.1%} of the total time"
    )
    save(result, config, device, "jepa_overhead")


if __name__ == "__main__":
    run_main(main)
