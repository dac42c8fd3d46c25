"""The studies of README.md and results/README.md: train their runs, measure them, write JSON and print a table.

    python results/studies.py leak --only words        the word problems, no download
    python results/studies.py lambda --data-dir DIR    and the part on GSM8K
    python results/studies.py all --data-dir DIR --jobs 2 && python results/figures.py

Each run is a `python train.py OPTIONS` that is printed as it starts. What is finished stays, what was interrupted
resumes; `--jobs` trainings go side by side, each on its share of the cores.

Writes results/<study>.json: means over seeds, the standard deviation (n - 1) beside them, and the options of each run.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import PRESETS, Config, UserError, parse, resolve_device, run_main, write_json  # noqa: E402
from data import Encoded, load_splits  # noqa: E402
from eval_alignment import alignment, neighbours, untrained  # noqa: E402
from evaluate_accuracy import accuracy, by_length  # noqa: E402
from model import load_run  # noqa: E402
from train import read_log, validation_loss  # noqa: E402

RUNS = ROOT / "out" / "studies"
SEEDS = (1, 2, 3)
VOTES = 10  # samples a question, for the answer by majority
LAMBDAS = ("0", "0.1", "0.5", "1", "2", "4")

# ------------------------------------------------------------------------------------------- the runs

WORDS = "--preset quick --epochs 2 --eval-every 350 --val-accuracy --no-final-eval"
SHORT = "--preset quick --epochs 1 --no-final-eval"
GSM8K = "--preset gsm8k-small --tokenizer bpe:2048 --n-embd 96 --n-head 4 --epochs 2 --no-final-eval"
LANGUAGE_MODEL = "--mask causal --jepa-weight 0 --decode-weight 0"
SCRATCH = (
    "--preset gsm8k-small --tokenizer bpe:2048 --n-embd 128 --n-head 4 --batch-size 32 --lr 2e-3"
    " --question-weight 0.1 --val-accuracy --no-final-eval"
)
EQUATIONS = f"{LANGUAGE_MODEL} --answer-view equations --max-new-tokens 160"
PROGRAM = f"{LANGUAGE_MODEL} --answer-view program --max-new-tokens 120"

LEAK = {
    "words, jepa": f"{WORDS} --jepa-weight 4",
    "words, none": f"{WORDS} --jepa-weight 4 --mask none",
    "gsm8k, jepa": f"{GSM8K} --jepa-weight 1",
    "gsm8k, none": f"{GSM8K} --jepa-weight 1 --mask none",
}
LAMBDA = {f"words, {x}": f"{WORDS} --jepa-weight {x}" for x in LAMBDAS} | {
    f"gsm8k, {x}": f"{GSM8K} --jepa-weight {x}" for x in LAMBDAS
}
LAMBDA_45M = {
    f"gsm8k, {x}": f"--epochs 5 --batch-size 64 --no-final-eval --jepa-weight {x}" for x in LAMBDAS
}  # a GPU's
COLLAPSE = {
    "stop-gradient": SHORT,
    "EMA target": f"{SHORT} --target ema",
    "neither": f"{SHORT} --target grad",
    "stop-gradient, MLP": f"{SHORT} --predictor mlp",
    "stop-gradient, VICReg": f"{SHORT} --vicreg-var 1 --vicreg-cov 0.04",
    "stop-gradient, SIGReg": f"{SHORT} --sigreg 0.1",
    "stop-gradient, no decoding": f"{SHORT} --decode-weight 0",
    "EMA target, no decoding": f"{SHORT} --target ema --decode-weight 0",
    "neither, no decoding": f"{SHORT} --target grad --decode-weight 0",
    "EMA target, MLP, no decoding": f"{SHORT} --target ema --predictor mlp --decode-weight 0",
    "neither, VICReg, no decoding": f"{SHORT} --target grad --vicreg-var 1 --vicreg-cov 0.04 --decode-weight 0",
    "neither, SIGReg, no decoding": f"{SHORT} --target grad --sigreg 0.1 --decode-weight 0",
}
SPACE = {
    "latent": f"{WORDS} --jepa-weight 4",
    "latent, tokens into it": f"{WORDS} --jepa-weight 4 --decode-pred-weight 1",
    "language model": f"{WORDS} {LANGUAGE_MODEL}",
    "language model, worked solution": f"{WORDS} {LANGUAGE_MODEL} --answer-view solution --max-new-tokens 32",
}
FROM_SCRATCH = {  # how high GSM8K goes: about 35,000 examples each, about three times as many from "3x" on
    "latent, variants": f"{SCRATCH} --epochs 2 --variants 4 --jepa-weight 4",
    "direct": f"{SCRATCH} --epochs 5 {LANGUAGE_MODEL}",
    "direct, variants": f"{SCRATCH} --epochs 2 --variants 4 {LANGUAGE_MODEL}",
    "equations, variants": f"{SCRATCH} --epochs 2 --variants 4 {EQUATIONS} --block-size 384",
    "equations, variants, 3x as long": f"{SCRATCH} --epochs 4 --variants 8 {EQUATIONS} --block-size 384",
    "program, width 256": f"{SCRATCH} --n-embd 256 --lr 1e-3 --question-weight 0.3 --epochs 15 --dropout 0.3 {PROGRAM}",
}
STUDIES = {
    "leak": LEAK,
    "lambda": LAMBDA,
    "space": SPACE,
    "collapse": COLLAPSE,
    "scratch": FROM_SCRATCH,
    "lambda-45m": LAMBDA_45M,
}
SIMILAR = {"words": "4", "gsm8k": "1"}  # the lambda whose latents are looked at, beside lambda 0
ON_A_CPU = ("leak", "lambda", "space", "collapse", "similar")  # what `all` means


def part_of(options):
    return "words" if "--preset quick" in options else "gsm8k"


def folder_of(options, seed):
    """The same options are the same run, whichever study asks for it."""
    words = [w.removeprefix("--") for w in shlex.split(options) if w not in ("--no-final-eval", "--preset")]
    return RUNS / f"{'-'.join(words).replace(':', '')}-seed{seed}"


def command(options, seed, args):
    """-> (words after `python train.py`, Config that they mean)."""
    words = [
        *shlex.split(options),
        "--seed",
        str(seed),
        "--run",
        str(folder_of(options, seed)),
        "--device",
        args.device,
    ]
    if part_of(options) == "gsm8k" and args.data_dir:
        words += ["--data-dir", args.data_dir]
    return words, parse(Config, PRESETS, "", words)[0]


def trained(folder, config):
    """Is the run there, ended, and of this very configuration?"""
    if not (folder / "summary.json").is_file():
        return False
    found = json.loads((folder / "config.json").read_text())
    ignored = {"vocab_size", "resume", "overwrite", "data_dir", "run", "device"}
    return all(found.get(k) == v for k, v in asdict(config).items() if k not in ignored)


def train(options, seed, args):
    """Train one run, or continue it, or do nothing if it is there."""
    words, config = command(options, seed, args)
    folder = folder_of(options, seed)
    if trained(folder, config):
        return
    folder.mkdir(parents=True, exist_ok=True)
    words += [
        "--resume" if (folder / "state.pt").is_file() and not (folder / "summary.json").is_file() else "--overwrite"
    ]
    print("python train.py", shlex.join(words), flush=True)
    threads = str(max(1, os.cpu_count() // args.jobs))
    with open(folder / "train.txt", "w") as output:
        done = subprocess.run([sys.executable, ROOT / "train.py", *words], stdout=output, stderr=subprocess.STDOUT,
                              env=os.environ | {"OMP_NUM_THREADS": threads})  # fmt: skip
    if done.returncode:
        raise UserError(f"a training failed: {(folder / 'train.txt').read_text().strip().splitlines()[-1]}")


# --------------------------------------------------------------------------------------------- measures


def measure(options, seed, args):
    """One trained run on the test split -> dict of figures; kept in the run's folder."""
    folder = folder_of(options, seed)
    kept = folder / "study.json"
    if kept.is_file() and kept.stat().st_mtime > (folder / "model.safetensors").stat().st_mtime:
        return json.loads(kept.read_text())
    device = resolve_device(args.device)
    model = load_run(folder, device.device)
    splits = load_splits(replace(model.config, data_dir=args.data_dir) if part_of(options) == "gsm8k" else model.config)
    votes = VOTES if model.config.answer_view == "program" else 0
    result = accuracy(model, splits["test"], splits["train"], votes=votes)[0] | alignment(model, splits["test"])[0]
    if votes:
        validation = accuracy(model, splits["val"], splits["train"], votes=votes)[0]
        result |= {f"val_{name}": validation[name] for name in ("exact_match_voted", "exact_match_voted_ci95")}
    # the training forward pass itself, on the test split: under mask none the prediction has the answer before it
    isolated, view = model.config.mask != "causal", model.config.answer_view
    test = Encoded(splits["test"], model.tokenizer, model.config.block_size, "test", isolated, view)
    result["forward_n"] = len(test)  # --answer-view program: those with a program
    result |= {f"forward_{name}": v for name, v in validation_loss(model, test, model.config, device).items()}
    summary, (_, checks) = json.loads((folder / "summary.json").read_text()), read_log(folder)
    kept_names = ("n_params", "steps", "train_seconds", "val_exact_match")
    result |= {name: summary[name] for name in kept_names if name in summary} | {"val_n": len(splits["val"])}
    passes = (model.config.decode_weight > 0) + (model.config.decode_pred_weight > 0)
    tokens = test.length.mean() + passes * (test.m + 1).mean()  # an example's, in both passes
    targets = (test.n - 1).mean() + max(1, passes) * (test.m + 1).mean()  # the output layer is needed there only
    head = model.embed.weight.numel()
    result["flops_per_example"] = 6.0 * float((summary["n_params"] - head) * tokens + head * targets)
    size = model.config.batch_size
    result["curve"] = [{"examples": x["step"] * size, "exact_match": x["val_exact_match"]}
                       for x in checks if "val_exact_match" in x]  # fmt: skip
    write_json(kept, result)
    return result


def summary(values):
    """list of floats -> mean, standard deviation (n - 1) and the values."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": std, "values": values}


def summarise(found):
    """list of the seeds' dicts -> {figure: {"mean", "std", "values"}}; curves point by point."""
    table = {}
    for name, value in found[0].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table[name] = summary([f[name] for f in found])
    if found[0]["curve"]:
        table["curve"] = [{"examples": points[0]["examples"], "exact_match": [p["exact_match"] for p in points]}
                          for points in zip(*(f["curve"] for f in found), strict=True)]  # fmt: skip
    return table


# ------------------------------------------------------------------- where do similar questions go?


def labels_of(examples):
    """-> what a question may be like another in: the operations of its solution, their number, the answer's size."""
    return {
        "operations": ["".join(sorted(set(e.ops))) for e in examples],
        "steps": [min(len(e.ops), 5) for e in examples],  # 5: five or more
        "magnitude": [len(str(int(abs(float(e.answer))))) for e in examples],  # digits
    }


def question_latents(model, examples):
    """-> z_hat (N, C), in the order of the examples."""
    z_hat = torch.empty(len(examples), model.config.n_embd)
    for index in by_length(model, [e.question for e in examples], 64):
        z_hat[index] = model.predict([examples[i].question for i in index]).cpu()
    return F.normalize(z_hat, dim=-1)


def probe(fit_on, fit_labels, test_on, test_labels):
    """Logistic regression on standardised features (N, C), arrays or sparse -> share of right test labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=300)).fit(
        fit_on, fit_labels).score(test_on, test_labels)  # fmt: skip


def similar_questions(args):
    """Neighbours and linear probes on question latents, beside an untrained model, lambda 0 and a bag of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    result = {}
    for part, lam in SIMILAR.items():
        if args.only not in (None, part):
            continue
        for seed in args.seeds:
            models = {f"lambda {x}": load_run(folder_of(LAMBDA[f"{part}, {x}"], seed)) for x in (lam, "0")}
            first = next(iter(models.values()))
            config = replace(first.config, data_dir=args.data_dir) if part == "gsm8k" else first.config
            splits = load_splits(config)
            fit_on, test_on = splits["train"][:4000], [e for e in splits["test"] if e.ops]
            fit_on = [e for e in fit_on if e.ops]
            features = {name: [question_latents(m, x).numpy() for x in (fit_on, test_on)]
                        for name, m in (models | {"untrained": untrained(first)}).items()}  # fmt: skip
            words = TfidfVectorizer(min_df=2, token_pattern=r"\w+").fit([e.question for e in fit_on])
            features["bag of words"] = [words.transform([e.question for e in x]).toarray() for x in (fit_on, test_on)]
            theirs, ours = labels_of(fit_on), labels_of(test_on)
            for name, (fit_x, test_x) in features.items():
                row = result.setdefault(f"{part}, {name}", {})
                for label in ours:
                    near = neighbours(torch.from_numpy(test_x).float(), ours[label], label)
                    row.setdefault(f"neighbours, {label}", []).append(near[f"neighbours_share_{label}"])
                    row.setdefault(f"neighbours, {label}, chance", []).append(near[f"neighbours_share_{label}_chance"])
                    common = max(set(theirs[label]), key=theirs[label].count)
                    row.setdefault(f"probe, {label}, chance", []).append(ours[label].count(common) / len(test_on))
                    if len(set(theirs[label])) > 1:
                        row.setdefault(f"probe, {label}", []).append(probe(fit_x, theirs[label], test_x, ours[label]))
    return {name: {key: summary(v) for key, v in row.items() if v} for name, row in result.items()}


COLUMNS = {
    "exact match": ("exact_match_decoded", "{:.1%}"), "nearest": ("exact_match_nearest", "{:.1%}"),
    "cos own": ("cos_own", "{:.3f}"), "cos other": ("cos_other", "{:.3f}"), "AUC": ("auc", "{:.3f}"),
    "rank of z": ("effective_rank_z", "{:.1f}"), "rank of ẑ": ("effective_rank_z_hat", "{:.1f}"),
    "pairwise cos of z": ("mean_pairwise_cos_z", "{:.3f}"),
    "question loss": ("forward_question_loss", "{:.3f}"), "forward cos own": ("forward_cos_own", "{:.3f}"),
    "forward cos other": ("forward_cos_other", "{:.3f}"),
}  # fmt: skip


def print_table(table):
    """A Markdown table, a run a line."""
    print(f"\n| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, row in table.items():
        cells = [
            f"{shape.format(row[key]['mean'])} ± {shape.format(row[key]['std'])}" for key, shape in COLUMNS.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


# ------------------------------------------------------------------------------------------------- main


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("study", choices=[*STUDIES, "similar", "all"])
    parser.add_argument("--data-dir", default="", help="GSM8K as DIR/train.jsonl and DIR/test.jsonl")
    parser.add_argument("--only", choices=("words", "gsm8k"), help="one part of a study")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the JSON")
    args = parser.parse_args(argv)

    for study in ON_A_CPU if args.study == "all" else [args.study]:
        if study == "similar":
            parts = {part: lam for part, lam in SIMILAR.items() if args.only in (None, part)}
            jobs = [LAMBDA[f"{part}, {x}"] for part, lam in parts.items() for x in (lam, "0")]
        else:
            jobs = list(STUDIES[study].values())
        jobs = [o for o in jobs if args.only in (None, part_of(o))]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda job: train(*job, args), [(o, s) for s in args.seeds for o in jobs]))
        if study == "similar":
            table = similar_questions(args)
        else:
            table = {}
            for name, options in STUDIES[study].items():
                if options in jobs:
                    found = summarise([measure(options, seed, args) for seed in args.seeds])
                    table[name] = {"options": options, "seeds": list(args.seeds)} | found
            print_table(table)
        path = args.out / f"{study}.json"
        if args.only and path.is_file():  # the other part stays
            table = json.loads(path.read_text())["runs"] | table
        write_json(path, {"runs": table})


if __name__ == "__main__":
    run_main(main)
