"""Published word-problem benchmarks: MAWPS and ASDiv-A by their five folds, SVAMP trained on both.

    python results/benchmarks.py mawps --data-dir DIR            folds 0 to 4, latent and language model
    python results/benchmarks.py all --data-dir DIR --jobs 2     two trainings side by side

DIR holds mawps/fold0 … fold4, asdiv-a/fold0 … fold4 and svamp, each with train.jsonl and test.jsonl in GSM8K's format.
Each run is a `python train.py --preset NAME` that is printed as it starts; what is finished stays, what was interrupted
resumes. A tenth of each training file is set aside for validation; the test file is read when a run has ended.

Beside the latent model: a language model of the same size and steps, a bag of words, the majority program; and the same
latent model before training, with lambda 0, given another question's latent, the question's words in another order,
and the question without its last sentence.

Writes results/benchmarks.json: over all folds, answers and equations that are correct, with Wilson's interval.
"""

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json, write_json
from common.options import UserError, run_main
from common.programs import computable, compute, function_of, number_placeholders, program_of
from common.sources import Example, load_folder, same_answer
from common.stats import wilson
from eval_alignment import alignment, untrained
from evaluate_accuracy import accuracy, by_length
from model import NanoJEPA, load_run
from results.runs import ROOT
from results.study_runs import LANGUAGE_MODEL

RUNS = ROOT / "out" / "benchmarks"
FOLDS = {  # benchmark: folders below --data-dir
    "mawps": [f"mawps/fold{i}" for i in range(5)],
    "asdiv": [f"asdiv-a/fold{i}" for i in range(5)],
    "svamp": ["svamp"],
}
MODELS = {"latent": "", "language model": f"{LANGUAGE_MODEL} --regulariser none", "lambda 0": "--jepa-weight 0"}

# ------------------------------------------------------------------------------------------- trainings


def folder_of(benchmark: str, model: str, fold: str, seed: int) -> Path:
    return RUNS / f"{benchmark}-{model.replace(' ', '-')}-{Path(fold).name}-seed{seed}"


def train(benchmark: str, model: str, fold: str, seed: int, args) -> None:
    """One run, or what is missing of it."""
    run = folder_of(benchmark, model, fold, seed)
    if (run / "summary.json").is_file():
        return
    words = f"--preset {benchmark} {MODELS[model]} --seed {seed} --run {run} --no-final-eval"
    words = [*shlex.split(words), "--data-dir", str(Path(args.data_dir) / fold)]
    words += ["--resume"] if (run / "state.pt").is_file() else ["--overwrite"]
    print("python train.py", shlex.join(words), flush=True)
    threads = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // args.jobs))}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *words], capture_output=True, text=True, env=os.environ | threads
    )
    if done.returncode:
        raise UserError(f"a training failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")


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
def by_mismatched_latents(model: NanoJEPA, examples: list[Example]) -> list[bool]:
    """Each question answered from the latent of the next one, in the order of the file."""
    z_hat = torch.empty(len(examples), model.config.n_embd)
    for index in by_length(model, [e.question for e in examples], 64, quiet=True):
        z_hat[index] = model.predict([examples[i].question for i in index]).cpu()
    programs = model.decode(z_hat.roll(-1, 0).to(model.device))
    numbers = [number_placeholders(e.question)[1] for e in examples]
    return [same_answer(compute(p, n), e.answer) for p, n, e in zip(programs, numbers, examples, strict=True)]


# ------------------------------------------------------------------------------------------- measures


def correct_of(rows: list[dict], examples: list[Example]) -> dict[str, int]:
    """predictions.jsonl's rows -> how many answers and equations are correct, by both read-outs."""
    found = defaultdict(int)
    for row, e in zip(rows, examples, strict=True):
        gold = function_of(row.get("gold_program") or "")
        for name, answer, program in (
            ("decoded", "prediction", "program"),
            ("nearest", "nearest", "nearest_program"),
        ):
            found[f"answer_{name}"] += same_answer(row[answer], e.answer)
            found[f"equation_{name}"] += bool(gold) and function_of(row.get(program, "")) == gold
    return dict(found)


def measure(benchmark: str, model_name: str, fold: str, seed: int, args) -> dict:
    """One trained run -> counts of correct answers, and its cosines."""
    run = folder_of(benchmark, model_name, fold, seed)
    kept = run / "benchmark.json"
    if kept.is_file() and kept.stat().st_mtime > (run / "model.safetensors").stat().st_mtime:
        return read_json(kept)
    splits, model = load_folder(str(Path(args.data_dir) / fold)), load_run(run)
    test = splits["test"]
    summary = read_json(run / "summary.json")
    result = {"n": len(test), **{name: summary[name] for name in ("n_params", "steps", "train_seconds")}}

    def count(model, examples):
        return correct_of(accuracy(model, examples, splits["train"])[1], examples)

    result["correct"] = {"": count(model, test)}
    if model_name != "lambda 0":
        result["correct"]["shuffled"] = count(model, [shuffled(e) for e in test])
        result["correct"]["without the last sentence"] = count(model, [without_last_sentence(e) for e in test])
    if model_name == "latent":
        result["correct"]["another question's latent"] = {"answer_decoded": sum(by_mismatched_latents(model, test))}
        result["correct"]["untrained"] = count(untrained(model), test)
        result |= {k: alignment(model, test)[0][k] for k in ("cos_own", "cos_other", "auc", "retrieval_at_1")}
    write_json(kept, result)
    return result


def baselines(fold: str, args) -> dict:
    """What no network is needed for: the majority program, and a bag of words and pairs of words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    splits = load_folder(str(Path(args.data_dir) / fold))
    train = [(e, program) for e in (*splits["train"], *splits["val"]) if (program := program_of(e))]
    texts, programs = [number_placeholders(e.question)[0].lower() for e, _ in train], [p for _, p in train]
    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", binary=True)
    classifier = LogisticRegression(C=3.0, max_iter=300).fit(vectorizer.fit_transform(texts), programs)
    majority, found = max(set(programs), key=programs.count), defaultdict(lambda: defaultdict(int))
    for e in splits["test"]:
        text, numbers = number_placeholders(e.question)
        likely = classifier.predict_proba(vectorizer.transform([text.lower()]))[0]
        order = [classifier.classes_[i] for i in likely.argsort()[::-1]]
        choice = next((p for p in order if computable(p, numbers)), order[0])
        for name, program in (("bag of words", choice), ("majority program", majority)):
            found[name]["answer_decoded"] += same_answer(compute(program, numbers), e.answer)
            found[name]["equation_decoded"] += function_of(program) == function_of(program_of(e) or "")
    return {name: {"n": len(splits["test"]), "correct": {"": dict(counts)}} for name, counts in found.items()}


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
    jobs = [(benchmark, model, fold, seed) for model in args.models for seed in args.seeds for fold in folds]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(*job, args), jobs))
    for model in args.models:
        rows[model] = over_folds([measure(*job, args) for job in jobs if job[1] == model])
        rows[model] |= {"options": f"--preset {benchmark} {MODELS[model]}".strip(), "seeds": args.seeds}
    for name, row in rows.items():
        shown = [
            f"{k} {row[k]['mean']:.1%}" for k in ("answer_decoded", "answer_nearest", "equation_decoded") if k in row
        ]
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
