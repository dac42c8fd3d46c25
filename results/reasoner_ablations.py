"""The ablations of reasoner/README.md: one pretrained Reasoner, its self-supervised training and Talker varied.

    python -m reasoner.train --preset quick
    python results/reasoner_ablations.py --run out/reasoner-quick --jobs 2

Each variant starts from RUN/pretrain (a Talker from RUN/sst) and is measured, free-running, on the test split of
trees. What is finished stays. k multiplies the whole loss, and AdamW divides by a gradient's size: it can act only
where gradients are clipped. Writes results/reasoner_ablations.json.
"""

import argparse
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json, weights_hash, write_json
from common.options import run_main
from common.stats import wilson
from eval_alignment import effective_rank
from reasoner.config import PRESETS
from reasoner.data import load_examples
from reasoner.experiments.measures import chain_accuracy, exposure_gap, rollouts
from reasoner.experiments.tree import mixed_latents, unit_embeddings
from reasoner.model import Reasoner, ReasonerTalker
from reasoner.phases import load_phase
from results.runs import ROOT, folder_of, slug, train_once

SST = {
    "as the preset": "",
    "hard targets": "--sst-loss hard",
    "RMS only": "--norm rms",
    "L2 only": "--norm l2",
    **{f"EMA {x}": f"--ema-decay {x}" for x in ("0", "0.9", "0.999")},
    **{f"k = {x}": f"--k {x}" for x in (1, 2, 3, 5, 6)},
    **{f"rollout {x}": f"--rollout {x}" for x in (1, 3)},
}
TALKER = {
    "mono, 1 block": "",
    "mono, 2 blocks": "--talker-layer 2",
    "mono, 4 blocks": "--talker-layer 4",
    "dual, 1 + 1 blocks": "--talker dual",
}


def train(phase: str, name: str, options: str, args) -> Path:
    """Train one variant of a phase from the run's earlier phase, unless it is there -> its folder."""
    earlier = args.run / ("pretrain" if phase == "sst" else "sst")
    values = PRESETS["quick"].values
    folder = folder_of(args.out, f"{phase}-{slug(name)}", values, args.options, options, weights_hash(earlier))
    where = ["--phase", phase, "--run", str(folder), "--overwrite", "--init", str(earlier)]
    words = ["--preset", "quick", *where, *shlex.split(f"{args.options} {options}")]
    threads = max(1, os.cpu_count() // args.jobs)
    train_once(folder / phase / "summary.json", "reasoner.train", words, threads)
    return folder / phase


@torch.no_grad()
def measure_sst(folder: Path, examples: list) -> dict:
    """A Reasoner without a Talker: routes read by the nearest embedding; cosines; is anything collapsing?"""
    reasoner, summary = load_phase(folder, "sst"), read_json(folder / "summary.json")
    t, latents = reasoner.tokenizer, rollouts(reasoner, examples)
    gold = [[*ids, t.eos] for ids in t.encode([x.chain for x in examples])]
    hits = sum(reasoner.nearest(r).tolist() == ids for r, ids in zip(latents, gold, strict=True))
    E = unit_embeddings(reasoner)[: reasoner.config.labels]
    pairwise = (E @ E.T).fill_diagonal_(0).sum() / (len(E) * (len(E) - 1))
    return {
        "route_accuracy": hits / len(examples),
        "ci95": wilson(hits, len(examples)),
        "val_cos_own": summary["val_cos_own"],
        "val_cos_other": summary["val_cos_other"],
        "embeddings_pairwise_cos": pairwise.item(),
        "embeddings_effective_rank": effective_rank(E),
        "train_seconds": summary["train_seconds"],
        **exposure_gap(reasoner, examples),
        "mixed": mixed_latents(reasoner, examples, latents),
    }


@torch.no_grad()
def measure_talker(folder: Path, examples: list, reasoner: Reasoner) -> dict:
    """The same chains, put into words by this Talker."""
    talker = load_phase(folder, "talker")
    accuracy, ci95, _ = chain_accuracy(ReasonerTalker(reasoner, talker), examples)
    return {"route_accuracy": accuracy, "ci95": ci95, "n_params": talker.n_params()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / "out/reasoner-quick", help="a finished quick run")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--options", default="", help="options for every training, as one word")
    parser.add_argument("--out", type=Path, default=ROOT / "out/reasoner-ablations", help="folder of the trainings")
    parser.add_argument("--json", type=Path, default=ROOT / "results/reasoner_ablations.json")
    args = parser.parse_args(argv)

    reasoner = load_phase(args.run / "sst", "sst")
    examples = load_examples("test", reasoner.config)
    jobs = [("sst", *x, args) for x in SST.items()] + [("talker", *x, args) for x in TALKER.items()]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(pool.map(lambda job: train(*job), jobs))
    result = {"n": len(examples), "options": args.options, "preset": PRESETS["quick"].values, "sst": {}, "talker": {}}
    for (phase, name, *_), folder in zip(jobs, folders, strict=True):
        measured = measure_sst(folder, examples) if phase == "sst" else measure_talker(folder, examples, reasoner)
        result[phase][name] = measured
    write_json(args.json, result)


if __name__ == "__main__":
    run_main(main)
