"""The studies of README.md and results/README.md: train their runs, measure them, write JSON and print a table.

    python results/studies.py leak --only words        the word problems, no download
    python results/studies.py lambda --data-dir DIR    and the part on GSM8K
    python results/studies.py llm-jepa --data-dir DIR  DIR holds nl-rx/synth and nl-rx/turk
    python results/studies.py all --data-dir DIR --jobs 2 && python results/figures.py

Each run is a `python train.py OPTIONS` that is printed as it starts. What is finished stays, what was interrupted
resumes; `--jobs` trainings go side by side, each on its part of the cores.

Writes results/<study>.json: means over seeds, the standard deviation (n - 1) beside them, and the options of each run.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.batching import length_bucketed
from common.checkpoint import read_json, write_json
from common.device import Device, resolve_device
from common.log import read_log
from common.loop import mean_metrics
from common.options import run_main
from common.sources import Example, same_answer
from common.stats import wilson
from data import TokenizedDataset
from eval_alignment import alignment
from evaluate_accuracy import accuracy, by_length, final_answer
from model import NanoJEPA, load_run
from results import similar_questions
from results.runs import ROOT
from results.study_runs import STUDIES, folder_of, part_of, splits_of, train_all

SEEDS = (1, 2, 3)
SAMPLES, TEMPERATURE = 10, 0.8  # of self-consistency: samples must differ, and stay close to what the model believes
ON_A_CPU = ("leak", "lambda", "space", "collapse", "similar")  # what `all` means

# --------------------------------------------------------------------------------- self-consistency


def sampler(temperature: float) -> Callable[[Tensor], Tensor]:
    """-> logits (B, V) -> sampled tokens (B,)."""
    return lambda logits: (logits / temperature).softmax(-1).multinomial(1)[:, 0]


def majority(model: NanoJEPA, questions: list[str], n: int, seed: int = 0) -> list[str]:
    """The commonest answer of n samples a question, "" if none has one (self-consistency, Wang et al. 2022)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        samples = [model.answer(questions, choose=sampler(TEMPERATURE)) for _ in range(n)]
    answers = ([x for text in row if (x := final_answer(model, text))] for row in zip(*samples, strict=True))
    return [max(row, key=lambda x, row=row: sum(same_answer(x, y) for y in row), default="") for row in answers]


def self_consistency(model: NanoJEPA, examples: list[Example], batch_size: int = 64) -> dict:
    """Exact match of the majority of SAMPLES samples a question (maj@k), with its interval."""
    hits = 0
    for index in by_length(model, [e.question for e in examples], batch_size):
        voted = majority(model, [examples[i].question for i in index], SAMPLES, seed=index[0])
        hits += sum(same_answer(answer, examples[i].answer) for answer, i in zip(voted, index, strict=True))
    n = len(examples)
    return {"exact_match_voted": hits / n, "exact_match_voted_ci95": wilson(hits, n)}


# --------------------------------------------------------------------------------------------- measures


def flops_per_example(model: NanoJEPA, data: TokenizedDataset) -> float:
    """FLOPs of a training example: 6 a parameter and token, the output layer's at targets only."""
    config, head = model.config, model.embed.weight.numel()
    passes = (config.decode_weight > 0) + (config.decode_pred_weight > 0)
    tokens = data.length.mean() + passes * (data.m + 1).mean()  # in all passes
    targets = (data.n - 1).mean() + max(1, passes) * (data.m + 1).mean()
    return 6.0 * float((model.n_params() - head) * tokens + head * targets)


def forward_pass(model: NanoJEPA, test: TokenizedDataset, device: Device) -> dict:
    """The training forward pass itself on the test split: under mask none the prediction has the answer in sight."""
    found = mean_metrics(model, length_bucketed(test, model.config.batch_size), device)
    model.eval()
    return {"forward_n": len(test), **{f"forward_{name}": value for name, value in found.items()}}


def of_training(folder: Path, batch_size: int) -> dict:
    """What the run logged: its size, its last validation, and exact match over the examples seen."""
    summary, (_, checks) = read_json(folder / "summary.json"), read_log(folder)
    kept = {
        name: summary[name] for name in ("n_params", "steps", "train_seconds", "val_exact_match") if name in summary
    }
    curve = [
        {"examples": x["step"] * batch_size, "exact_match": x["val_exact_match"]}
        for x in checks
        if "val_exact_match" in x
    ]
    return kept | {"curve": curve}


def measure(options: str, seed: int, args) -> dict:
    """One trained run on the test split -> its figures; kept in the run's folder."""
    folder = folder_of(options, seed)
    kept = folder / "study.json"
    if kept.is_file() and kept.stat().st_mtime > (folder / "model.safetensors").stat().st_mtime:
        return read_json(kept)
    device = resolve_device(args.device)
    model = load_run(folder, device.device)
    splits = splits_of(options, model.config, args)
    test = splits["test"]

    result = accuracy(model, test, splits["train"])[0] | alignment(model, test)[0]
    if model.config.answer_view == "program":
        result |= {"votes": SAMPLES, "temperature": TEMPERATURE, **self_consistency(model, test)}
        result |= {f"val_{name}": value for name, value in self_consistency(model, splits["val"]).items()}
    data = TokenizedDataset(test, model.tokenizer, model.config, "test")
    result |= forward_pass(model, data, device)
    result |= of_training(folder, model.config.batch_size) | {"val_n": len(splits["val"])}
    result["flops_per_example"] = flops_per_example(model, data)
    write_json(kept, result)
    return result


# ---------------------------------------------------------------------------------------------- tables


def summary(values: list[float]) -> dict:
    """Values of the seeds -> mean, standard deviation (n - 1) and the values."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": std, "values": values}


def over_seeds(found: list[dict]) -> dict:
    """The seeds' figures -> {figure: {"mean", "std", "values"}}; curves point by point."""
    table = {}
    for name, value in found[0].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table[name] = summary([f[name] for f in found])
    if found[0].get("curve"):
        table["curve"] = [
            {"examples": points[0]["examples"], "exact_match": [p["exact_match"] for p in points]}
            for points in zip(*(f["curve"] for f in found), strict=True)
        ]
    return table


COLUMNS = {
    "exact match": ("exact_match_decoded", "{:.1%}"),
    "nearest": ("exact_match_nearest", "{:.1%}"),
    "cos matched": ("cos_own", "{:.3f}"),
    "cos mismatched": ("cos_other", "{:.3f}"),
    "AUC": ("auc", "{:.3f}"),
    "rank of z": ("effective_rank_z", "{:.1f}"),
    "rank of ẑ": ("effective_rank_z_hat", "{:.1f}"),
    "pairwise cos of z": ("mean_pairwise_cos_z", "{:.3f}"),
    "question loss": ("forward_question_loss", "{:.3f}"),
}


def print_table(table: dict[str, dict]) -> None:
    """A Markdown table, a run a line."""
    print(f"\n| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, row in table.items():
        cells = [f"{form.format(row[key]['mean'])} ± {form.format(row[key]['std'])}" for key, form in COLUMNS.values()]
        print(f"| {name} | {' | '.join(cells)} |")


# ------------------------------------------------------------------------------------------------- main


def is_asked(name: str, options: str, args) -> bool:
    return args.only in (None, part_of(options)) and (not args.runs or name in args.runs)


def run_study(study: str, args) -> dict[str, dict]:
    """Train and measure -> what results/<study>.json has of each run."""
    if study == "similar":
        train_all(similar_questions.runs_of(args.only), args)
        found = similar_questions.measure(args)
        return {name: over_seeds(rows) for name, rows in found.items()}
    runs = {name: options for name, options in STUDIES[study].items() if is_asked(name, options, args)}
    train_all(list(runs.values()), args)
    table = {}
    for name, options in runs.items():
        found = over_seeds([measure(options, seed, args) for seed in args.seeds])
        table[name] = {"options": options, "seeds": list(args.seeds)} | found
    print_table(table)
    return table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("study", choices=[*STUDIES, "similar", "all"])
    parser.add_argument("--data-dir", default="", help="GSM8K as DIR/train.jsonl and DIR/test.jsonl")
    parser.add_argument("--only", choices=("words", "gsm8k"), help="one part of a study")
    parser.add_argument("--runs", nargs="*", metavar="NAME", help="these runs of the study only")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the JSON")
    args = parser.parse_args(argv)

    for study in ON_A_CPU if args.study == "all" else [args.study]:
        table = run_study(study, args)
        path = args.out / f"{study}.json"
        if (args.only or args.runs) and path.is_file():  # the others stay
            table = read_json(path)["runs"] | table
        write_json(path, {"runs": table})


if __name__ == "__main__":
    run_main(main)
