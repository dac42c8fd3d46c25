"""Evaluation speed: every test question answered in batches, against one at a time, in alternation, in one run.

    python -m bench.eval_speed --run out/nanojepa --data-dir DIR

    ours            evaluate_accuracy.accuracy as evaluate_accuracy.py calls it, both read-outs: questions of like
                    length in a batch, logits at the last position, keys and values cached
    one_by_one      bench/straightforward.py: a whole forward pass for every token, nothing kept, logits everywhere
    latent_kept     the same, but the question is read once and only the decode pass repeats

The two slow ones answer `--sample` questions a round, spread evenly over the split. All must give the same answers.

Writes results/eval_speed_<device>.json.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.measure import hardware, save, spread
from bench.straightforward import plain_answer
from common.device import Device, resolve_device
from common.options import UserError, opt, parse, run_main
from config import EvalConfig
from evaluate_accuracy import accuracy, load_examples
from model import NanoJEPA, load_run

SLOW = {"one_by_one": False, "latent_kept": True}  # is the question's latent kept?


@dataclass
class BenchConfig(EvalConfig):
    rounds: int = opt(3, "rounds; each system runs once in each", low=1)
    sample: int = opt(60, "questions a round for the slow ones", low=1)
    out: str = opt("", "file to write; by default results/eval_speed_<device>.json")


def timed(function: Callable, device: Device) -> tuple:
    """-> (what the function returns, seconds)."""
    device.synchronize()
    began = time.perf_counter()
    result = function()
    device.synchronize()
    return result, time.perf_counter() - began


def measure(model: NanoJEPA, config: BenchConfig, device: Device) -> dict:
    """Rounds of all systems -> seconds, rates, and how often they agree."""
    examples, train_examples, answers = load_examples(model, config)
    rate, total, same, compared = {name: [] for name in ("ours", *SLOW)}, [], 0, 0
    order = sorted(range(len(examples)), key=lambda j: len(examples[j].question))
    for i in range(config.rounds):
        (_, rows), seconds = timed(
            lambda: accuracy(model, examples, train_examples, answers, config.batch_size), device
        )
        total.append(seconds)
        rate["ours"].append(len(examples) / seconds)
        picked = [order[(k * len(order) // config.sample + i) % len(order)] for k in range(config.sample)]
        for name, keep in SLOW.items():
            given, seconds = timed(
                lambda keep=keep, picked=picked: [plain_answer(model, examples[j].question, keep) for j in picked],
                device,
            )
            rate[name].append(len(picked) / seconds)
            same += sum(text == rows[j]["prediction"] for text, j in zip(given, picked, strict=True))
            compared += len(picked)
        print(f"round {i + 1}  " + "   ".join(f"{name} {v[-1]:.2f}/s" for name, v in rate.items()), flush=True)

    length = [len(ids) + 1 for ids in model.tokenizer.encode([row["prediction"] for row in rows])]  # with [EOS]
    return {
        "questions": len(examples),
        "rounds": config.rounds,
        "tokens_decoded_per_question": sum(length) / len(length),
        "seconds": spread(total),
        "questions_per_second": {name: spread(values) for name, values in rate.items()},
        "ours_over": {name: spread([a / b for a, b in zip(rate["ours"], rate[name], strict=True)]) for name in SLOW},
        "same_answers": same / compared,
        "compared": compared,
        "distinct_answers": len({row["prediction"] for row in rows}),
    }


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(BenchConfig, {}, __doc__.split("\n\n")[0], argv)
    device = resolve_device(config.device)
    model = load_run(config.run, device.device)
    if model.config.mask != "jepa":
        raise UserError(f"{config.run} was trained under mask {model.config.mask}; this measures decoding from latents")
    found = measure(model, config, device)
    about = {"hardware": hardware(device), "torch": torch.__version__, "n_params": model.n_params()}
    result = about | {"trained_on": model.config.dataset} | found

    print(
        f"\n{result['hardware']}: {model.n_params() / 1e6:.1f}M parameters, {found['questions']:,} questions, "
        f"{found['tokens_decoded_per_question']:.1f} tokens decoded a question\n"
    )
    print(f"ours          {found['seconds']['median']:.1f} s for all questions")
    for name, over in found["ours_over"].items():
        print(f"{name:<14}ours is faster by {over['median']:.1f}x ({over['min']:.1f} to {over['max']:.1f})")
    print(
        f"same answers  {found['same_answers']:.1%} of {found['compared']}; {found['distinct_answers']} distinct ones"
    )
    save(result, config, device, "eval_speed")


if __name__ == "__main__":
    run_main(main)
