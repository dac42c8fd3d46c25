"""JEPA-Reasoner beside its baselines on tasks that can be learned from scratch: word problems, real and generated.

    python results/reasoner_tasks.py mwp --data-dir DIR --seeds 0 1 2     MAWPS and ASDiv-A, a fold a seed
    python results/reasoner_tasks.py problems --seeds 0 1                 generated problems of two steps
    python results/reasoner_tasks.py problems --models coupled "JEPA-Reasoner, trunk as many steps"

Equal steps: a baseline trains all of its weights in as many steps as JEPA-Reasoner's three phases have together. Equal
phases: in "trunk as many steps" the Reasoner itself has as many, and the Talker comes on top; with hard targets and
tokens fed back it is an ordinary language model of the same phases. What is finished stays.

Of each model, over all seeds: answers correct, their paired difference to the coupled Transformer, equations that hold,
latents or tokens a chain, seconds an answer (one thread, batches of 256); the Reasoner also without its Talker, with
tokens fed back (controls) and with its latents sharpened. Intervals are over questions. Writes
results/reasoner_tasks.json under the task and its seeds, "mwp 0 1 2".
"""

import argparse
import shlex
import sys
import time
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json, write_json
from common.options import run_main
from common.stats import clustered_mean
from reasoner.config import PRESETS
from reasoner.data import load_examples
from reasoner.experiments.dial import equations_that_hold
from reasoner.experiments.measures import correct, exposure_gap, generate, rollouts
from reasoner.model import NearestDecoder, ReasonerTalker
from reasoner.phases import load_run
from results.runs import ROOT, folder_of, slug, train_once

# what is compared is varied below, whatever the preset's own choice
COSINE = "--sst-loss cosine --sharpen 0 --sst-epochs"
TASKS = {
    "mwp": f"--preset mwp --data-dir {{data_dir}} --fold {{seed}} {COSINE} 3",
    "problems": f"--preset problems {COSINE} 1",
}
TASKS["three steps"] = f"{TASKS['problems']} --difficulty 6"
HARD = "JEPA-Reasoner, trunk as many steps, hard targets"
MODELS = {
    "coupled": "--model coupled",
    "coupled-talker": "--model coupled-talker",
    "coconut": "--model coconut",
    "JEPA-Reasoner": "",
    "JEPA-Reasoner, trunk as many steps": "--sst-epochs {as_many}",
    "JEPA-Reasoner, noise": "--sst-noise 0.8",
    "JEPA-Reasoner, contrast": "--contrast 1",
    "JEPA-Reasoner, contrast of 0.3": "--contrast 0.3",
    "JEPA-Reasoner, contrast of 0.1": "--contrast 0.1",
    "JEPA-Reasoner, trunk as many steps, contrast": "--sst-epochs {as_many} --contrast 1",
    HARD: "--sst-epochs {as_many} --sst-loss hard",
    f"{HARD}, noise": "--sst-epochs {as_many} --sst-loss hard --sst-noise 0.8",
    f"{HARD}, own latents": "--sst-epochs {as_many} --sst-loss hard --rollout 1 --sst-sampling",
    "JEPA-Reasoner, a latent a step": "--reasoning steps",
    "JEPA-Reasoner, a latent a step, 8 passes": "--reasoning steps --sst-epochs 8",
}
MODELS |= {  # Reasoner and Talker, five blocks together; the presets have 4 + 1
    f"JEPA-Reasoner, trunk as many steps, {n} + {5 - n} blocks": "--sst-epochs {as_many} "
    f"--n-layer {n} --talker-layer {5 - n}"
    for n in (3, 2, 1)
}
FIRST = "coupled"  # what the others are compared with
SHARPEN = 0.01


def options(task: str, model: str, seed: int, data_dir: str) -> str:
    """What `python -m reasoner.train` is called with."""
    preset = PRESETS[TASKS[task].split()[1]].values
    as_many = int(TASKS[task].partition("--sst-epochs ")[2].split()[0]) + preset.get("talker_epochs", 1)
    words = f"{TASKS[task]} {MODELS[model]} --seed {seed}"
    return " ".join(words.format(data_dir=data_dir, seed=seed, as_many=as_many).split())


@torch.no_grad()
def answers(model, examples: list) -> dict:
    """One model on the test split -> {"correct": of each example, "texts", "chain", "seconds"}."""
    generate(model, examples[:256])  # the first call is slower
    began = time.perf_counter()
    texts = generate(model, examples)
    seconds = time.perf_counter() - began
    if model.config.of_steps:
        chain = [len(latents) for latents in rollouts(model.reasoner, examples)]
    else:
        chain = [len(ids) + 1 + model.config.n_thoughts for ids in model.tokenizer.encode(texts)]  # with [EOS]
    hits = [int(x) for x in correct(model, examples, texts)]
    return {"correct": hits, "texts": texts, "chain": mean(chain), "seconds": seconds / len(examples)}


def measure(run: Path) -> dict:
    """A trained run -> its summary's figures, and `answers` of it, of a Reasoner also of its controls; kept."""
    kept = run / "tasks.json"
    if kept.is_file():
        return read_json(kept)
    model, summary = load_run(run), read_json(run / "summary.json")
    examples = load_examples("test", model.config)
    result = {name: summary[name] for name in ("n_params", "steps", "train_seconds", "control", "control_is")}
    result["torch"] = ", ".join(sorted({phase["torch"] for phase in summary["phases"].values()}))
    models = {"": model}
    of_tokens = isinstance(model, ReasonerTalker) and not model.config.of_steps
    if of_tokens:
        result["exposure"] = exposure_gap(model.reasoner, examples)
        models |= {
            ", by the nearest embedding": NearestDecoder(model.reasoner),
            ", tokens fed back": NearestDecoder(model.reasoner, feed_tokens=True),
        }
    result["answers"] = {name: answers(x, examples) for name, x in models.items()}
    if of_tokens:
        model.reasoner.config.sharpen = SHARPEN
        result["answers"][f", sharpened, τ = {SHARPEN}"] = answers(model, examples)
    result["examples"] = [x.prompt for x in examples]
    result["equations"] = (
        {}
        if model.config.computes
        else {name: equations_that_hold(examples, found["texts"], 0) for name, found in result["answers"].items()}
    )
    write_json(kept, result)
    return result


def pooled(runs: list[dict], first: list[dict], name: str) -> dict:
    """The runs of all seeds -> one row; a question that more than one of them answers is one cluster."""
    found = [run["answers"][name] for run in runs]
    asked = [x for run in runs for x in run["examples"]]
    hits = [x for row in found for x in row["correct"]]
    baseline = [x for run in first for x in run["answers"][""]["correct"]]
    row = {
        "n": len(hits),
        "accuracy": clustered_mean(hits, asked),
        "by_seed": [mean(row["correct"]) for row in found],
        "less_the_coupled": clustered_mean([a - b for a, b in zip(hits, baseline, strict=True)], asked),
        **{key: mean(row[key] for row in found) for key in ("chain", "seconds")},
        **{key: mean(run[key] for run in runs) for key in ("n_params", "steps", "train_seconds", "control")},
        "torch": ", ".join(sorted({run.get("torch", "not recorded") for run in runs})),
    }
    if runs[0]["equations"]:
        row["equations"] = mean(run["equations"][name]["mean"] for run in runs)
    if "exposure" in runs[0] and not name:
        row["exposure"] = {key: mean(run["exposure"][key] for run in runs) for key in runs[0]["exposure"]}
    return row


def in_words(row: dict) -> str:
    accuracy, less = row["accuracy"], row["less_the_coupled"]
    return (
        f"{accuracy['mean']:.1%} ({accuracy['ci95'][0]:.1%} to {accuracy['ci95'][1]:.1%}), minus {FIRST} "
        f"{100 * less['mean']:+.1f} ({100 * less['ci95'][0]:+.1f} to {100 * less['ci95'][1]:+.1f}) points"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data-dir", default="", help="mwp: holds mawps/fold0 … and asdiv-a/fold0 …")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of each training; mwp: the fold, too")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--options", default="", help="options for every training, as one word")
    parser.add_argument("--out", type=Path, default=ROOT / "out/reasoner-tasks", help="folder of the trainings")
    parser.add_argument("--json", type=Path, default=ROOT / "results/reasoner_tasks.json")
    args = parser.parse_args(argv)

    result = read_json(args.json) if args.json.is_file() else {}
    part, first = result.setdefault(" ".join(map(str, (args.task, *args.seeds))), {"models": {}}), []
    for model in [FIRST, *(name for name in args.models if name != FIRST)]:
        runs = []
        for seed in args.seeds:
            words = f"{options(args.task, model, seed, args.data_dir)} {args.options}"
            preset = PRESETS[words.split()[1]].values
            run = folder_of(args.out, f"{slug(args.task)}-{slug(model)}-{seed}", preset, words)
            train_once(run / "summary.json", "reasoner.train", ["--run", str(run), *shlex.split(words)], 1)
            runs.append(measure(run))
        first = first or runs
        for name in runs[0]["answers"]:
            part["models"][f"{model}{name}"] = pooled(runs, first, name)
            print(f"{args.task}, {model}{name}: {in_words(part['models'][f'{model}{name}'])}", flush=True)
        write_json(args.json, result)


if __name__ == "__main__":
    run_main(main)
