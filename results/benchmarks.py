"""Published word-problem benchmarks: MAWPS and ASDiv-A by their five folds, SVAMP trained on both.

    python results/benchmarks.py mawps --data-dir DIR            folds 0 to 4, latent and language model
    python results/benchmarks.py all --data-dir DIR --jobs 2     two trainings side by side

DIR holds mawps/fold0 … fold4, asdiv-a/fold0 … fold4 and svamp, each with train.jsonl and test.jsonl in GSM8K's format.
Each run is a `python train.py --preset NAME` that is printed as it starts; what is finished stays, what was interrupted
resumes. A tenth of each training file is set aside for validation; the test file is read when a run has ended.

Beside the latent model: a language model of the same size and steps, a bag of words, the majority program; and the same
latent model before training, given the latent of a question with another program, the question's words in another
order, and the question without its last sentence; with lambda 0 if `--models` names it.

Writes results/benchmarks.json: over all folds, answers and equations that are correct, with Wilson's interval.
"""

import argparse
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json, write_json
from common.options import run_main
from common.programs import computable, compute, function_of, number_placeholders, program_of
from common.sources import Example, load_folder, same_answer
from common.stats import wilson
from data import mismatched
from eval_alignment import alignment, untrained
from evaluate_accuracy import accuracy, by_length
from model import NanoJEPA, load_run
from results.runs import ROOT
from results.study_runs import LANGUAGE_MODEL, folder_of, train_all

FOLDS = {  # benchmark: folders below --data-dir
    "mawps": [f"mawps/fold{i}" for i in range(5)],
    "asdiv": [f"asdiv-a/fold{i}" for i in range(5)],
    "svamp": ["svamp"],
}
MODELS = {
    "latent": "",
    "language model": f"{LANGUAGE_MODEL} --regulariser none",
    "lambda 0": "--jepa-weight 0",
    "llm-jepa": "--mask llm-jepa --decode-weight 0 --jepa-weight 1",
}
MEASURES = ("exact_match_decoded", "exact_match_nearest", "equation_decoded", "equation_nearest")


def options_of(benchmark: str, model: str, fold: str) -> str:
    """What `python train.py` is called with."""
    return f"--preset {benchmark} {MODELS[model]} --no-final-eval --data-dir {fold}"


# ------------------------------------------------------------------------------------ other questions


def shuffled(example: Example) -> Example:
    """The question's words in another order, its numbers where they were: a bag of words, and nothing more."""
    words = example.question.split()
    at = [i for i, word in enumerate(words) if not re.search(r"\d", word)]
    order = random.Random(example.question).sample(at, len(at))
    moved = dict(zip(at, order, strict=True))
    return replace(example, question=" ".join(words[moved.get(i, i)] for i in range(len(words))))


def without_last_sentence(example: Example) -> Example:
    """The question without what is asked: a model that still answers has read a shortcut (Patel et al. 2021, §3.1)."""
    sentences = re.split(r"(?<=[.!?;,])\s+(?=\S)", example.question.strip())
    return replace(example, question=" ".join(sentences[:-1]) or "?")


@torch.no_grad()
def by_mismatched_latents(model: NanoJEPA, examples: list[Example]) -> int:
    """How many questions the latent of another one answers: of the next in the file that has another program."""
    z_hat = torch.empty(len(examples), model.config.n_embd)
    for index in by_length(model, [e.question for e in examples], 64, quiet=True):
        z_hat[index] = model.predict([examples[i].question for i in index]).cpu()
    labels = np.unique([program_of(e) or "" for e in examples], return_inverse=True)[1]
    programs = model.decode(z_hat[mismatched(labels)].to(model.device))
    return sum(answers(program, e) for program, e in zip(programs, examples, strict=True))


def answers(program: str, example: Example) -> bool:
    """Does a program compute an example's answer?"""
    return same_answer(compute(program, number_placeholders(example.question)[1]), example.answer)


# ------------------------------------------------------------------------------------------- measures


def measure(options: str, seed: int, args) -> dict:
    """One trained run -> how many are correct, under each condition and by each measure, and its cosines."""
    run = folder_of(options, seed)
    kept = run / "benchmark.json"
    if kept.is_file() and kept.stat().st_mtime > (run / "model.safetensors").stat().st_mtime:
        return read_json(kept)
    splits, model = load_folder(str(Path(args.data_dir) / options.split()[-1])), load_run(run)
    test, summary = splits["test"], read_json(run / "summary.json")

    def count(model, examples):
        found = accuracy(model, examples, splits["train"])[0]
        return {name: round(found[name] * len(examples)) for name in MEASURES}

    correct = {"": count(model, test)}
    if model.config.jepa_weight or model.config.writes_tokens:
        correct["shuffled"] = count(model, [shuffled(e) for e in test])
        correct["without the last sentence"] = count(model, [without_last_sentence(e) for e in test])
    result = {"n": len(test), **{name: summary[name] for name in ("n_params", "steps", "train_seconds")}}
    if not model.config.writes_tokens:
        correct["another question's latent"] = {"exact_match_decoded": by_mismatched_latents(model, test)}
        correct["untrained"] = count(untrained(model), test)
        found = alignment(model, test)[0]
        result |= {name: found[name] for name in ("cos_own", "cos_other", "auc", "retrieval_at_1")}
    write_json(kept, result | {"correct": correct})
    return result | {"correct": correct}


def baselines(fold: str, args) -> dict[str, dict]:
    """What no network is needed for, from the same training examples: the majority program, and a bag of words and
    pairs of words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    splits = load_folder(str(Path(args.data_dir) / fold))
    train = [(number_placeholders(e.question)[0].lower(), p) for e in splits["train"] if (p := program_of(e))]
    texts, programs = zip(*train, strict=True)
    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", binary=True)
    classifier = LogisticRegression(C=3.0, max_iter=300).fit(vectorizer.fit_transform(texts), programs)
    majority = Counter(programs).most_common(1)[0][0]
    chosen = {"bag of words": [], "majority program": [majority] * len(splits["test"])}
    for e in splits["test"]:
        text, numbers = number_placeholders(e.question)
        likely = classifier.predict_proba(vectorizer.transform([text.lower()]))[0]
        order = [classifier.classes_[i] for i in likely.argsort()[::-1]]
        chosen["bag of words"].append(next((p for p in order if computable(p, numbers)), majority))
    found = {}
    for name, programs in chosen.items():
        pairs = list(zip(programs, splits["test"], strict=True))
        correct = {
            "exact_match_decoded": sum(answers(p, e) for p, e in pairs),
            "equation_decoded": sum(function_of(p) == function_of(program_of(e) or "") for p, e in pairs),
        }
        found[name] = {"n": len(pairs), "correct": {"": correct}}
    return found


def over_folds(found: list[dict]) -> dict:
    """Counts of all folds and seeds -> rates with Wilson's interval over the questions of one seed's folds."""
    table, n = {"runs": len(found)}, sum(f["n"] for f in found)
    for condition in found[0]["correct"]:
        for name in found[0]["correct"][condition]:
            hits = [f["correct"][condition][name] for f in found]
            key = f"{condition}, {name}" if condition else name
            table[key] = {"mean": sum(hits) / n, "ci95": wilson(sum(hits), n)}
            table[key]["folds"] = [hit / f["n"] for hit, f in zip(hits, found, strict=True)]
    for name in set(found[0]) - {"correct"}:
        values = [f[name] for f in found]
        table[name] = sum(values) if name == "n" else sum(values) / len(values)
    return table


def run_benchmark(benchmark: str, args) -> dict[str, dict]:
    """Train and measure -> a row a model."""
    folds = FOLDS[benchmark]
    every = [baselines(fold, args) for fold in folds]
    rows = {name: over_folds([f[name] for f in every]) for name in every[0]}
    runs = {model: [options_of(benchmark, model, fold) for fold in folds] for model in args.models}
    train_all([options for of_model in runs.values() for options in of_model], args)
    for model, of_model in runs.items():
        rows[model] = over_folds([measure(options, seed, args) for seed in args.seeds for options in of_model])
        rows[model] |= {"options": f"--preset {benchmark} {MODELS[model]}".strip(), "seeds": args.seeds}
    for name, row in rows.items():
        shown = [f"{key} {row[key]['mean']:.1%}" for key in MEASURES if key in row]
        print(f"{benchmark:<8}{name:<24}{', '.join(shown)}  (n {row['n']})", flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("benchmark", choices=[*FOLDS, "all"])
    parser.add_argument("--data-dir", required=True, help="folder with mawps, asdiv-a and svamp")
    parser.add_argument(
        "--models", nargs="*", default=["latent", "language model"], choices=list(MODELS), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    args = parser.parse_args(argv)
    path = ROOT / "results" / "benchmarks.json"
    for benchmark in FOLDS if args.benchmark == "all" else [args.benchmark]:
        rows = run_benchmark(benchmark, args)
        whole = read_json(path) if path.is_file() else {}
        whole[benchmark] = whole.get(benchmark, {}) | rows
        write_json(path, whole)
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    run_main(main)
