"""Faults on purpose: kills, damaged files, hostile rows, mistaken options, a demo under load. What survives is counted.

    python -m bench.reliability                                     nanoJEPA and JEPA-Reasoner, all but the load
    python -m bench.reliability --demo out/quick                    and a minute of load on that run's demo
    python -m bench.reliability --systems latent-stack --latent "--preset quick …"

    kills     a training is killed (SIGKILL) at random moments and resumed until it ends: the weights must be those of
              an unbroken one, bit for bit
    damage    bytes of each file of a run are flipped, cut off and inserted, at its beginning, its end and in between:
              loading must end in one line, or give what the whole file gives
    rows      rows of JSONL, most of them broken: each is read, skipped and counted, or refused in one line
    options   values that an option may or may not take: each is taken, or refused in one line

Writes results/reliability.json, beside what other calls wrote.
"""

import contextlib
import io
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch

from bench import demo_load
from bench.measure import ROOT
from common.checkpoint import is_started, read_config, read_json, read_state, weights_hash, write_json
from common.log import read_log
from common.options import UserError, opt, parse, run_main
from common.programs import program_of
from common.sources import load_jsonl
from common.word_problems import word_problems
from config import PRESETS, Config, EvalConfig
from latent_stack.config import StackConfig
from main import DemoConfig
from model import load_run
from reasoner.config import ReasonerConfig
from reasoner.phases import load_run as load_reasoner

QUESTION = "Ana has 12 pears. She buys 30 more pears. How many pears does Ana have?"
CONFIGS = (Config, EvalConfig, DemoConfig, ReasonerConfig, StackConfig)
TRAININGS = {
    "nanojepa": "train.py --preset quick --n-layer 2 --n-embd 32 --n-head 2 --n-train 2400 --eval-every 30"
    " --save-every 7 --no-final-eval",
    "reasoner": "-m reasoner.train --preset quick --n-layer 2 --n-embd 32 --n-head 2 --n-hidden 48 --n-train 800"
    " --n-eval 40 --epochs 2 --sst-epochs 1 --talker-epochs 1 --save-every 7",
    "latent-stack": "-m latent_stack.train --save-every 7",
}


@dataclass
class ReliabilityConfig:
    """How much of each."""

    systems: tuple = opt(("nanojepa", "reasoner"), "of nanojepa, reasoner and latent-stack")
    kills: int = opt(30, "kills of each system", low=0)
    latent: str = opt("", "options of latent_stack.train, backbones and data among them")
    damages: int = opt(100, "damages to each file of a run", low=0)
    rows: int = opt(10_000, "rows of JSONL", low=0)
    options: int = opt(200, "options", low=0)
    demo: str = opt("", "trained run whose demo is put under load; none: no load")
    clients: int = opt(64, "browsers that ask it", low=1)
    seconds: int = opt(60, "how long they ask", low=1)
    seed: int = opt(0, "of all that is random here", low=0)
    out: str = opt(str(ROOT / "results" / "reliability.json"), "the JSON that is written")


# ------------------------------------------------------------------------------------------------ kills


def start(words: str, run: Path) -> subprocess.Popen:
    """A training in `run`, begun or resumed."""
    resumes = any(is_started(folder) for folder in (run, *run.glob("*/")))
    command = [sys.executable, *shlex.split(words), "--run", str(run), "--device", "cpu"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return subprocess.Popen([*command, "--resume" if resumes else "--overwrite"], cwd=ROOT, **quiet)


def finish(process: subprocess.Popen) -> None:
    errors = process.communicate()[1].decode("utf-8", "replace")
    if process.returncode:
        raise UserError(f"a training failed: {errors.strip().splitlines()[-1] if errors.strip() else 'killed'}")


def results_of(run: Path) -> dict:
    """What two runs must have in common: all weights, and what validation logged."""
    found = {str(path.relative_to(run)): weights_hash(path.parent) for path in run.rglob("model.safetensors")}
    return found | {str(path.relative_to(run)): read_log(path.parent)[1] for path in run.rglob("log.jsonl")}


def kills(words: str, n: int, rng: random.Random) -> dict:
    """Kill and resume a training until it ended, again and again, until there were `n` kills -> counts."""
    with tempfile.TemporaryDirectory() as folder:
        whole, began = Path(folder) / "whole", time.monotonic()
        finish(start(words, whole))
        seconds, expected = time.monotonic() - began, results_of(whole)
        found = Counter()
        while found["kills"] < n:
            run, longest = Path(folder) / "killed", seconds
            while True:
                process = start(words, run)
                try:
                    process.wait(rng.uniform(0.2, 1.0) * longest)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    found["kills"] += 1
                    longest *= 1.05  # on a machine that became slower it would never end
                else:
                    finish(process)
                    break
            found["trainings"] += 1
            found["bit_equal"] += results_of(run) == expected
            found["files_left_over"] += len(list(run.rglob("*.tmp")))
            shutil.rmtree(run)
    return dict(found)


# ----------------------------------------------------------------------------------------------- damage


def damaged(data: bytes, n: int, rng: random.Random) -> Iterator[bytes]:
    """A file's bytes -> `n` times the same with one damage, half of them near its beginning or its end."""
    for i in range(n):
        at = rng.choice(
            (rng.randrange(len(data)), rng.randrange(min(64, len(data))), -1 - rng.randrange(min(64, len(data))))
        )
        at %= len(data)
        kind = ("flip", "flip", "cut", "insert", "zeros")[i % 5]
        if kind == "flip":
            yield data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]
        elif kind == "cut":
            yield data[:at]
        elif kind == "insert":
            yield data[:at] + bytes([rng.randrange(256)]) + data[at:]
        else:
            yield data[:at] + bytes(min(100, len(data) - at)) + data[at + 100 :]


def outcome(use: Callable[[], object], expected: object = None) -> str:
    """What comes of it: "same", "another value", "refused" in one line, or "traceback"."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = use()
    except UserError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    except SystemExit:
        return "refused"
    except Exception:
        return "traceback"
    return "same" if found == expected else "another value"


def uses_of(system: str, run: Path) -> dict[str, Callable[[], object]]:
    """{file of a run: what reads it}; the result tells whether something was read wrong."""

    def state(folder):
        try:
            values = read_state(folder / "state.pt", torch.device("cpu"))
        except Exception as error:  # `load_state` then takes the checkpoint before
            raise UserError(str(error).replace("\n", " ")) from None
        return values["step"], {name: tensor.tolist() for name, tensor in values["model"].items()}

    def answers():
        return load_run(run).answer([QUESTION]), load_run(run).predict([QUESTION]).tolist()

    def chains():
        return load_reasoner(run).answer(["3 4 ; 3 5 ; root 3 goal 5 :"])

    if system == "nanojepa":
        names = ("config.json", "model.safetensors", "tokenizer.json")
        return {name: answers for name in names} | {"state.pt": lambda: state(run), "log.jsonl": lambda: read_log(run)}
    names = [f"{phase}/{name}" for phase in ("sst", "talker") for name in ("config.json", "model.safetensors")]
    read = {name: chains for name in names} | {"talker/state.pt": lambda: state(run / "talker")}
    return read | {"config.json": lambda: vars(read_config(run, ReasonerConfig, "", needed=("config.json",)))}


def damage(system: str, n: int, rng: random.Random) -> dict:
    """-> {file: how often each outcome}."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        finish(start(TRAININGS[system], run))
        for name, use in uses_of(system, run).items():
            data, expected = (run / name).read_bytes(), use()
            outcomes = Counter()
            for changed in damaged(data, n, rng):
                (run / name).write_bytes(changed)
                outcomes[outcome(use, expected)] += 1
            (run / name).write_bytes(data)
            found[name] = dict(outcomes)
    return found


# ------------------------------------------------------------------------------------------ rows, options

ODD = ("", "\0", "\ufeff", "é", "\ud800", "😀", "½", "–5", "1e999", "9" * 400, "1/2", "####", "<<", ">>", "<<1/0=0>>")
ODD += ("<<" + "1+" * 3000 + "1=1>>", "α+β", "\ue017", "NaN", "7.0", "-(5)", "$1,200.50", "\\", '"', "{" * 50, " " * 99)
VALUES = (None, True, 7, -0.0, 10**30, [], {}, ["x"], [[[]]] * 3, *ODD)


def row(rng: random.Random) -> bytes:
    """A row that a person, a program or a disk could have left."""
    example = rng.choice(word_problems("train", 50, 5))
    values = {"question": example.question, "answer": example.solution}
    for _ in range(rng.randrange(4)):
        key = rng.choice(("question", "answer"))
        text, at = str(values.get(key)), rng.randrange(60)
        how = rng.randrange(4)
        values[key] = text[:at] + rng.choice(ODD) + text[at:] if how < 2 else rng.choice((*VALUES, text * 50))
        if how == 3:
            del values[key]
    line = json.dumps(values, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return next(damaged(line, 1, rng)) if rng.random() < 0.3 else line


def rows(n: int, rng: random.Random) -> dict:
    """-> how often each outcome, and the slowest row's seconds."""
    found, slowest = Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"

        def use():
            return len([program_of(example) for example in load_jsonl(path)])

        for _ in range(n):
            path.write_bytes(row(rng))
            began = time.perf_counter()
            found[outcome(use, 1)] += 1
            slowest = max(slowest, time.perf_counter() - began)
    return {"read": found.pop("same", 0), **found, "slowest_seconds": round(slowest, 4)}


def options(n: int, rng: random.Random) -> dict:
    """-> how often each outcome."""
    found = Counter()

    def use():
        cls = rng.choice(CONFIGS)
        name = rng.choice([f.name for f in fields(cls) if f.metadata["help"]])
        word = rng.choice((f"--{name.replace('_', '-')}", f"--{name}", f"--{name[:-1]}", "--preset", name))
        value = rng.choice((*ODD, "inf", "nan", "-1", "0", "1", "x", "1e400", "9" * 5000, "a" * 5000, "quick"))
        parse(cls, PRESETS if cls is Config else {}, "", [word, value])

    for _ in range(n):
        found[outcome(use)] += 1
    return {"taken": found.pop("same", 0), **found}


# ------------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(ReliabilityConfig, {}, __doc__.split("\n\n")[0], argv)
    rng, result, measures = random.Random(config.seed), {}, {}
    for name in config.systems:
        words = f"{TRAININGS[name]} {config.latent * (name == 'latent-stack')}"
        if config.kills:
            measures[f"kills, {name}"] = partial(kills, words, config.kills, rng)
        if config.damages and name != "latent-stack":
            measures[f"damage, {name}"] = partial(damage, name, config.damages, rng)
    if config.rows:
        measures["rows"] = partial(rows, config.rows, rng)
    if config.options:
        measures["options"] = partial(options, config.options, rng)
    if config.demo:
        measures["load"] = partial(demo_load.measure, config.demo, config.clients, config.seconds)
    for name, measure in measures.items():
        result[name] = measure()
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    before = read_json(config.out) if Path(config.out).is_file() else {}  # of other systems: it stays
    write_json(config.out, before | {"clients": config.clients, "load_seconds": config.seconds, **result})


if __name__ == "__main__":
    run_main(main)
