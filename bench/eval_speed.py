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
from dataclasses import dataclass

import torch

from bench.straightforward import plain_answer
from bench.train_speed import hardware, save, spread
from config import EvalConfig, UserError, opt, parse, resolve_device, run_main
from evaluate_accuracy import accuracy, load_examples
from model import load_run


@dataclass
class BenchConfig(EvalConfig):
    rounds: int = opt(3, "rounds; each system runs once in each", low=1)
    sample: int = opt(60, "questions a round for the slow ones", low=1)
    out: str = opt("", "file to write; by default results/eval_speed_<device>.json")


def main():
    config, _ = parse(BenchConfig, {}, __doc__.split("\n\n")[0])
    device = resolve_device(config.device)
    model = load_run(config.run, device.device)
    if model.config.mask != "jepa":
        raise UserError(f"{config.run} was trained under mask {model.config.mask}; this measures decoding from latents")
    examples, train_examples, answers = load_examples(model, config)

    def clock(function):
        device.synchronize()
        began = time.perf_counter()
        result = function()
        device.synchronize()
        return result, time.perf_counter() - began

    slow = {"one_by_one": False, "latent_kept": True}
    rate, total, same, compared = {name: [] for name in ("ours", *slow)}, [], 0, 0
    for i in range(config.rounds):
        (_, rows), seconds = clock(lambda: accuracy(model, examples, train_examples, answers, config.batch_size))
        total.append(seconds)
        rate["ours"].append(len(examples) / seconds)
        order = sorted(range(len(examples)), key=lambda j: len(examples[j].question))
        picked = [order[(k * len(order) // config.sample + i) % len(order)] for k in range(config.sample)]
        for name, keep in slow.items():
            given, seconds = clock(lambda k=keep, p=picked: [plain_answer(model, examples[j].question, k) for j in p])
            rate[name].append(len(picked) / seconds)
            same += sum(text == rows[j]["prediction"] for text, j in zip(given, picked, strict=True))
            compared += len(picked)
        print(f"round {i + 1}  " + "   ".join(f"{name} {v[-1]:.2f}/s" for name, v in rate.items()), flush=True)

    length = [len(ids) + 1 for ids in model.tokenizer.encode([row["prediction"] for row in rows])]
    result = {
        "hardware": hardware(device), "torch": torch.__version__, "n_params": model.n_params(),
        "trained_on": model.config.dataset, "questions": len(examples), "rounds": config.rounds,
        "tokens_decoded_per_question": sum(length) / len(length), "seconds": spread(total),
        "questions_per_second": {name: spread(v) for name, v in rate.items()},
        "ours_over": {name: spread([a / b for a, b in zip(rate["ours"], rate[name], strict=True)]) for name in slow},
        "same_answers": same / compared, "compared": compared,
        "distinct_answers": len({row["prediction"] for row in rows}),
    }  # fmt: skip
    print(f"\n{result['hardware']}: {model.n_params() / 1e6:.1f}M parameters, {len(examples):,} questions, "
          f"{result['tokens_decoded_per_question']:.1f} tokens decoded a question\n")  # fmt: skip
    print(f"ours          {result['seconds']['median']:.1f} s for all questions")
    for name in slow:
        over = result["ours_over"][name]
        print(f"{name:<14}ours is faster by {over['median']:.1f}x ({over['min']:.1f} to {over['max']:.1f})")
    print(f"same answers  {same} of {compared}; {result['distinct_answers']} distinct ones")
    save(result, config, device, "eval_speed")


if __name__ == "__main__":
    run_main(main)
