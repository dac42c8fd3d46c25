"""Exact match: does the answer decoded from z_hat, or the nearest answer latent, name the right number?

    python evaluate_accuracy.py --run out/quick
    python evaluate_accuracy.py --run out/nanojepa --data-dir DIR --limit 100
    python evaluate_accuracy.py --run out/language-model --votes 20

Two read-outs of the same prediction: greedy decoding from z_hat, and the nearest latent among all distinct answers of
the split; for an ordinary language model also the commonest of several sampled answers. Beside them what no model is
needed for: always giving the commonest training answer, and the best constant that hindsight could choose on the split
itself. An accuracy that does not beat these is no result.

Writes accuracy.json and predictions.jsonl into the run's folder.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from tqdm import tqdm

from config import EvalConfig, UserError, atomic, opt, parse, resolve_device, run_main, write_json
from data import load_splits, parse_answer, same_answer
from model import load_run

TEMPERATURE = 0.8  # of the samples that vote: they must differ, and stay close to what the model believes


@dataclass
class AccuracyConfig(EvalConfig):
    """What this script reads."""

    votes: int = opt(0, "language model: also the commonest answer of N samples a question (0: none)", low=0)


def wilson(hits, n):
    """95% Wilson score interval of a share: hits of n -> [low, high] (Wilson 1927)."""
    return list(binomtest(int(hits), n).proportion_ci(method="wilson")) if n else [0.0, 1.0]


def final_answer(model, text):
    """What the model wrote -> its answer: all of it, or what follows the #### of a worked solution ("" if none)."""
    return (parse_answer(text) or "") if model.config.answer_view != "answer" else text


def majority(model, questions, n, temperature, seed=0):
    """The commonest answer of n samples a question, "" if none has one (self-consistency, Wang et al. 2022)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        samples = [model.answer(questions, temperature=temperature) for _ in range(n)]
    given = ([x for text in row if (x := final_answer(model, text))] for row in zip(*samples, strict=True))
    return [max(row, key=lambda x: sum(same_answer(x, y) for y in row), default="") for row in given]  # noqa: B023


def by_length(model, questions, batch_size, progress=None, tell=True):
    """Batches of like length over the questions that fit the context -> lists of positions in `questions`.

    Under right-padding a batch costs what its longest question costs. Questions that do not fit are told, not cut.
    """
    length = [len(ids) + 1 for ids in model.read(questions)]
    order = sorted((i for i, n in enumerate(length) if n <= model.config.block_size), key=length.__getitem__)
    if tell and len(order) < len(questions):
        print(f"{len(questions) - len(order)} of {len(questions)} questions are longer than the context of "
              f"{model.config.block_size} tokens; they are not answered")  # fmt: skip
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return tqdm(batches, desc=progress, unit="batch") if progress else batches


@torch.no_grad()
def accuracy(model, examples, train_examples, answers=None, batch_size=64, progress=None, votes=0):
    """model, examples, training examples -> (accuracy.json's dict, one dict a question for predictions.jsonl).

    `answers` are the candidates of the nearest-latent read-out, by default those of the examples. A question that does
    not fit the context counts as wrong. `votes` samples a question add the read-out by majority.
    """
    if votes and model.config.mask != "causal":
        raise UserError("--votes samples token by token: it wants a run with --mask causal, the language model")
    began = time.perf_counter()
    candidates = sorted({e.answer for e in examples} | set(answers or ()))
    z = torch.cat([model.encode(candidates[i : i + 256]) for i in range(0, len(candidates), 256)])  # (A, C)
    column = {answer: i for i, answer in enumerate(candidates)}
    rows = [
        {"question": e.question, "gold": e.answer, "prediction": "", "nearest": "", "cosine": None}
        | ({"voted": ""} if votes else {})
        for e in examples
    ]
    for index in by_length(model, [e.question for e in examples], batch_size, progress):
        questions = [examples[i].question for i in index]
        z_hat = model.predict(questions)  # (B, C)
        decoded = model.answer(questions) if model.config.mask == "causal" else model.decode(z_hat)
        if votes:
            paused = time.perf_counter()
            voted = majority(model, questions, votes, TEMPERATURE, seed=index[0])
            began += time.perf_counter() - paused  # `seconds` are those of the other two
        similarity = F.normalize(z_hat, dim=-1) @ F.normalize(z, dim=-1).T  # (B, A)
        nearest, own = similarity.argmax(-1).tolist(), similarity.tolist()
        for b, i in enumerate(index):
            cosine = own[b][column[examples[i].answer]]
            rows[i] |= {
                "prediction": final_answer(model, decoded[b]),
                "nearest": candidates[nearest[b]],
                "cosine": round(cosine, 4),
            } | ({"voted": voted[b]} if votes else {})

    n, gold = len(examples), [e.answer for e in examples]
    readouts = {"exact_match_decoded": "prediction", "exact_match_nearest": "nearest"}
    readouts |= {"exact_match_voted": "voted"} if votes else {}
    hits = {name: sum(same_answer(row[key], row["gold"]) for row in rows) for name, key in readouts.items()}
    favourite = Counter(e.answer for e in train_examples).most_common(1)[0][0]
    best, best_hits = Counter(gold).most_common(1)[0]
    result = {"n": n} | ({"votes": votes, "temperature": TEMPERATURE} if votes else {})
    for name, k in hits.items():
        result |= {name: k / n, f"{name}_ci95": wilson(k, n)}
    result |= {"constant_from_train": gold.count(favourite) / n, "constant_from_train_answer": favourite,
               "constant_best_on_test": best_hits / n, "constant_best_on_test_answer": best,
               "seconds": round(time.perf_counter() - began, 3)}  # fmt: skip
    return result, rows


def load_examples(model, config):
    """The data of the run -> (examples of `config.split`, at most `limit`; training examples; the split's answers)."""
    source = replace(model.config, **({"data_dir": config.data_dir, "dataset": "gsm8k"} if config.data_dir else {}))
    splits = load_splits(source)
    answers = sorted({e.answer for e in splits[config.split]})  # all of them: a --limit must not make retrieval easier
    return splits[config.split][: config.limit or None], splits["train"], answers


def main():
    config, _ = parse(AccuracyConfig, {}, __doc__.split("\n\n")[0])
    model = load_run(config.run, resolve_device(config.device).device)
    examples, train_examples, answers = load_examples(model, config)
    result, rows = accuracy(model, examples, train_examples, answers, config.batch_size, "answering", config.votes)

    readout = "token by token" if model.config.mask == "causal" else "from z_hat"
    print(f"\n{config.run}: exact match over {result['n']:,} questions of the {config.split} split")
    for label, name in (
        (f"decoded greedily {readout}", "exact_match_decoded"),
        *([(f"commonest of {config.votes} sampled answers", "exact_match_voted")] if config.votes else []),
        ("nearest answer latent", "exact_match_nearest"),
        (f"always {result['constant_from_train_answer']!r}, the commonest in training", "constant_from_train"),
        (f"always {result['constant_best_on_test_answer']!r}, the best in hindsight", "constant_best_on_test"),
    ):
        interval = result.get(f"{name}_ci95")
        shown = f"   95% interval {interval[0]:.2%} to {interval[1]:.2%}" if interval else ""
        print(f"  {label:<44}{result[name]:8.2%}{shown}")
    print(f"  {result['seconds']:.1f} s, {result['n'] / result['seconds']:,.0f} questions/s")

    run = Path(config.run)
    write_json(run / "accuracy.json", {"split": config.split, **result})
    with atomic(run / "predictions.jsonl") as path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"\nwrote {run}/accuracy.json and {run}/predictions.jsonl")


if __name__ == "__main__":
    run_main(main)
