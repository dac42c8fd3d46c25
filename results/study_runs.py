"""The trainings of the studies: a study is a name and the options of `python train.py` for each of its runs.

The same options are the same run, whichever study asks for it. Each run is printed as it starts; what is finished
stays, what was interrupted resumes. A run on re-sampled GSM8K reads a folder that results/resample_numbers.py writes.
"""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import is_started, read_json
from common.options import UserError, parse
from common.sources import Example
from config import PRESETS, Config
from data import load_splits
from results import resample_numbers
from results.runs import ROOT, slug

RUNS = ROOT / "out" / "studies"
LAMBDAS = ("0", "0.1", "0.5", "1", "2", "4")

# ------------------------------------------------------------------------------------------- the runs

NARROW = (  # a small world and plain AdamW, as `quick` was when the studies were made
    "--preset quick-numbers --world narrow --tokenizer bpe:1024 --n-train 28000 --block-size 64 --word-dropout 0"
    " --optimizer adamw --lr 2e-3 --target stopgrad --regulariser none --decode-noise 0.5"
)
WORDS = f"{NARROW} --epochs 2 --eval-every 350 --val-accuracy --no-final-eval"
SHORT = f"{NARROW} --epochs 1 --no-final-eval"
GSM8K = "--preset gsm8k-small --tokenizer bpe:2048 --n-embd 96 --n-head 4 --epochs 2 --no-final-eval"
LANGUAGE_MODEL = "--mask causal --jepa-weight 0 --decode-weight 0"
VICREG, SIGREG = "--regulariser vicreg", "--regulariser sigreg --regulariser-weight 0.1"
SCRATCH = (
    "--preset gsm8k-small --tokenizer bpe:2048 --n-embd 128 --n-head 4 --batch-size 32 --lr 2e-3"
    " --question-weight 0.1 --val-accuracy --no-final-eval"
)
EQUATIONS = f"{LANGUAGE_MODEL} --answer-view solution --max-new-tokens 160 --block-size 384"
PROGRAM = f"{LANGUAGE_MODEL} --answer-view program --max-new-tokens 120"

# {folder below RUNS: options of results/resample_numbers.py}
RESAMPLED = {
    "resampled-4": "--times 4 --seed 1",
    "resampled-4-equations": "--times 4 --seed 1 --equations",
    "resampled-8-equations": "--times 8 --seed 1 --equations",
}

LEAK = {
    "words, jepa": f"{WORDS} --jepa-weight 4",
    "words, none": f"{WORDS} --jepa-weight 4 --mask none",
    "gsm8k, jepa": f"{GSM8K} --jepa-weight 1",
    "gsm8k, none": f"{GSM8K} --jepa-weight 1 --mask none",
}
LAMBDA = {f"words, {x}": f"{WORDS} --jepa-weight {x}" for x in LAMBDAS} | {
    f"gsm8k, {x}": f"{GSM8K} --jepa-weight {x}" for x in LAMBDAS
}
LAMBDA_45M = {  # wants a GPU
    f"gsm8k, {x}": f"--epochs 5 --batch-size 64 --no-final-eval --jepa-weight {x}" for x in LAMBDAS
}
COLLAPSE = {
    "stop-gradient": SHORT,
    "EMA target": f"{SHORT} --target ema",
    "neither": f"{SHORT} --target grad",
    "stop-gradient, MLP": f"{SHORT} --predictor mlp",
    "stop-gradient, VICReg": f"{SHORT} {VICREG}",
    "stop-gradient, SIGReg": f"{SHORT} {SIGREG}",
    "stop-gradient, no decoding": f"{SHORT} --decode-weight 0",
    "EMA target, no decoding": f"{SHORT} --target ema --decode-weight 0",
    "neither, no decoding": f"{SHORT} --target grad --decode-weight 0",
    "EMA target, MLP, no decoding": f"{SHORT} --target ema --predictor mlp --decode-weight 0",
    "neither, VICReg, no decoding": f"{SHORT} --target grad {VICREG} --decode-weight 0",
    "neither, SIGReg, no decoding": f"{SHORT} --target grad {SIGREG} --decode-weight 0",
}
SPACE = {
    "latent": f"{WORDS} --jepa-weight 4",
    "latent, tokens into it": f"{WORDS} --jepa-weight 4 --decode-pred-weight 1",
    "language model": f"{WORDS} {LANGUAGE_MODEL}",
    "language model, worked solution": f"{WORDS} {LANGUAGE_MODEL} --answer-view solution --max-new-tokens 32",
}
FROM_SCRATCH = {  # how high GSM8K goes: about 35,000 examples each, about three times as many from "3x" on
    "latent, variants": f"{SCRATCH} --epochs 2 --data-dir resampled-4 --jepa-weight 4",
    "direct": f"{SCRATCH} --epochs 5 {LANGUAGE_MODEL}",
    "direct, variants": f"{SCRATCH} --epochs 2 --data-dir resampled-4 {LANGUAGE_MODEL}",
    "equations, variants": f"{SCRATCH} --epochs 2 --data-dir resampled-4-equations {EQUATIONS}",
    "equations, variants, 3x as long": f"{SCRATCH} --epochs 4 --data-dir resampled-8-equations {EQUATIONS}",
    "program, width 256": f"{SCRATCH} --n-embd 256 --lr 1e-3 --question-weight 0.3 --epochs 15 --dropout 0.3 {PROGRAM}",
}
NL_RX = "--dataset pairs --tokenizer bpe:1024 --n-embd 128 --n-head 4 --lr 2e-3 --decode-weight 0 --no-final-eval"
LLM_JEPA_MODELS = {  # no stopped gradient, as published: next tokens are meant to hold the latents apart
    "language model": "--mask causal --jepa-weight 0",
    "lambda 1": "--mask llm-jepa --target grad --jepa-weight 1",
    "lambda 1, EMA target and VICReg": f"--mask llm-jepa --target ema {VICREG} --jepa-weight 1",
    "lambda 4": "--mask llm-jepa --target grad --jepa-weight 4",
    "lambda 0": "--mask llm-jepa --target grad --jepa-weight 0",
    "lambda 0.5": "--mask llm-jepa --target grad --jepa-weight 0.5",
    "lambda 2": "--mask llm-jepa --target grad --jepa-weight 2",
}
NL_RX_DATA = {  # training questions: their folder, and passes over them
    "synth, 2000": ("nl-rx/synth --n-train 2000", 20),
    "synth, 8000": ("nl-rx/synth", 12),
    "turk, 2000": ("nl-rx/turk --n-train 2000", 20),
}
LLM_JEPA = {  # does a JEPA loss help a language model?
    f"{data}, {model}": f"{NL_RX} --data-dir {folder} --epochs {epochs} {options}"
    for data, (folder, epochs) in NL_RX_DATA.items()
    for model, options in LLM_JEPA_MODELS.items()
} | {  # as much compute as with the second answer
    f"{data}, language model, 1.3x as long": f"{NL_RX} --data-dir {folder} --epochs {round(1.3 * epochs)} "
    + LLM_JEPA_MODELS["language model"]
    for data, (folder, epochs) in NL_RX_DATA.items()
}
PARTS_OF_QUICK = "--preset quick --eval-every 75 --val-accuracy --no-final-eval"
ADAMW = "--optimizer adamw --lr 2e-3"
PARTS = {  # which part of `quick` brings it to 95% how soon?
    "quick": PARTS_OF_QUICK,
    "AdamW, not Muon": f"{PARTS_OF_QUICK} {ADAMW}",
    "stopped gradient, no EMA": f"{PARTS_OF_QUICK} --target stopgrad",
    "no VICReg": f"{PARTS_OF_QUICK} --regulariser none",
    "none of the three": f"{PARTS_OF_QUICK} {ADAMW} --target stopgrad --regulariser none",
}
STUDIES = {
    "parts": PARTS,
    "llm-jepa": LLM_JEPA,
    "leak": LEAK,
    "lambda": LAMBDA,
    "space": SPACE,
    "collapse": COLLAPSE,
    "scratch": FROM_SCRATCH,
    "lambda-45m": LAMBDA_45M,
}

# ------------------------------------------------------------------------------------- a run, its data


def part_of(options: str) -> str:
    """The data of a run: generated word problems, or GSM8K."""
    return "words" if "--preset quick" in options else "gsm8k"


def folder_of(options: str, seed: int) -> Path:
    words = [w.removeprefix("--") for w in shlex.split(options) if w not in ("--no-final-eval", "--preset")]
    return RUNS / f"{slug(' '.join(words))}-seed{seed}"


def command(options: str, seed: int, args) -> tuple[list[str], Config]:
    """-> (words after `python train.py`, the configuration that they mean)."""
    words = shlex.split(options)
    if "--data-dir" in words:  # re-sampled GSM8K, or a folder below the data's
        at = words.index("--data-dir") + 1
        words[at] = str((RUNS if words[at] in RESAMPLED else Path(args.data_dir)) / words[at])
    words += ["--seed", str(seed), "--run", str(folder_of(options, seed)), "--device", args.device]
    if part_of(options) == "gsm8k" and args.data_dir and "--data-dir" not in words:
        words += ["--data-dir", args.data_dir]
    return words, parse(Config, PRESETS, "", words)[0]


def splits_of(options: str, config: Config, args) -> dict[str, list[Example]]:
    """The data of a trained run, wherever GSM8K lies today."""
    _, asked = command(options, 0, args)
    return load_splits(replace(config, data_dir=asked.data_dir))


def resample(options: str, args) -> None:
    """Write the re-sampled GSM8K that a run reads, unless it is there."""
    for name, words in RESAMPLED.items():
        folder = RUNS / name
        if name in shlex.split(options) and not (folder / "test.jsonl").is_file():  # the last one that is written
            words = ["--data-dir", args.data_dir, "--out", str(folder), *shlex.split(words)]
            print("python results/resample_numbers.py", shlex.join(words), flush=True)
            resample_numbers.main(words)


# ------------------------------------------------------------------------------------------- training


def is_trained(folder: Path, config: Config) -> bool:
    """Is the run there, ended, and of this very configuration?"""
    if not (folder / "summary.json").is_file():
        return False
    found = read_json(folder / "config.json")
    ignored = {"vocab_size", "resume", "overwrite", "data_dir", "run", "device"}
    ignored |= {name for name in ("epochs", "max_new_tokens") if not getattr(config, name)}  # train.py filled them in
    return all(found.get(name) == value for name, value in asdict(config).items() if name not in ignored)


def train(options: str, seed: int, args) -> None:
    """Train one run, or continue it, or do nothing if it is there."""
    words, config = command(options, seed, args)
    folder = folder_of(options, seed)
    if is_trained(folder, config):
        return
    folder.mkdir(parents=True, exist_ok=True)
    interrupted = is_started(folder) and not (folder / "summary.json").is_file()
    words += ["--resume" if interrupted else "--overwrite"]
    print("python train.py", shlex.join(words), flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // args.jobs))}
    with open(folder / "train.txt", "wb") as output:
        train_py = [sys.executable, ROOT / "train.py", *words]
        done = subprocess.run(train_py, stdout=output, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        printed = (folder / "train.txt").read_text(encoding="utf-8", errors="replace").strip()
        raise UserError(f"a training failed: {(printed or 'killed').splitlines()[-1]}")


def train_all(every: list[str], args) -> None:
    """All seeds of all runs, `args.jobs` side by side."""
    for options in every:
        resample(options, args)
    jobs = [(options, seed, args) for seed in args.seeds for options in every]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(*job), jobs))
