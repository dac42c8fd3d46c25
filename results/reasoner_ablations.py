"""The ablations of reasoner/README.md: one pretrained Reasoner, its self-supervised training and Talker varied.

    python -m reasoner.train --preset quick
    python results/reasoner_ablations.py --run out/reasoner-quick --jobs 2

Each variant starts from RUN/pretrain (a Talker from RUN/sst) and is read out, free-running, on the test split of trees.
What is finished stays. k multiplies the whole loss, and AdamW divides by a gradient's size: it can act only where
gradients are clipped. Writes results/reasoner_ablations.json and prints a Markdown table.
"""

import argparse
import json
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import run_main, write_json  # noqa: E402
from eval_alignment import effective_rank  # noqa: E402
from evaluate_accuracy import wilson  # noqa: E402
from reasoner.config import PRESETS  # noqa: E402
from reasoner.data import load_items  # noqa: E402
from reasoner.evaluate import chains, exposure, mixed_latents  # noqa: E402
from reasoner.model import Pair, Reasoner, Talker, load_phase, sha_of  # noqa: E402
from reasoner.train import chain_accuracy  # noqa: E402
from results.runs import folder_of, slug, train_once  # noqa: E402

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


def train(phase, name, options, args):
    """Train one variant of a phase from the run's earlier phase, unless it is there -> its folder."""
    earlier = args.run / ("pretrain" if phase == "sst" else "sst")
    values = PRESETS["quick"].values
    folder = folder_of(args.out, f"{phase}-{slug(name)}", values, args.options, options, sha_of(earlier))
    words = ["--preset", "quick", "--phase", phase, "--run", str(folder), "--overwrite", "--init", str(earlier),
             *shlex.split(f"{args.options} {options}")]  # fmt: skip
    threads = max(1, os.cpu_count() // args.jobs)
    train_once(folder / phase / "summary.json", "reasoner.train", words, threads)
    return folder / phase


@torch.no_grad()
def measure_sst(folder, items):
    """A Reasoner without a Talker: routes read by the nearest embedding; cosines; is anything collapsing?"""
    reasoner = load_phase(Reasoner, folder, "sst")
    latents = chains(reasoner, items)
    gold = reasoner.tokenizer.encode([x.chain for x in items])
    hits = sum(reasoner.nearest(r).tolist() == [*ids, reasoner.tokenizer.eos]
               for r, ids in zip(latents, gold, strict=True))  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    E = F.normalize(reasoner.target.weight[: reasoner.config.labels], dim=-1)
    pairwise = (E @ E.T).fill_diagonal_(0).sum() / (len(E) * (len(E) - 1))
    row = {"route_accuracy": hits / len(items), "ci95": wilson(hits, len(items)), "val_cos_own": summary["val_cos_own"],
           "val_cos_other": summary["val_cos_other"], "embeddings_pairwise_cos": pairwise.item(),
           "embeddings_effective_rank": effective_rank(E), "train_seconds": summary["train_seconds"]}  # fmt: skip
    return row | exposure(reasoner, items) | {"mixed": mixed_latents(reasoner, items, latents)}


@torch.no_grad()
def measure_talker(folder, items, reasoner):
    """The same chains, spoken by this Talker."""
    talker = load_phase(Talker, folder, "talker")
    share, ci95, _ = chain_accuracy(Pair(reasoner, talker), items)
    return {"route_accuracy": share, "ci95": ci95, "n_params": talker.n_params()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / "out/reasoner-quick", help="a finished quick run")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--options", default="", help="options for every training, as one word")
    parser.add_argument("--out", type=Path, default=ROOT / "out/reasoner-ablations", help="folder of the trainings")
    parser.add_argument("--json", type=Path, default=ROOT / "results/reasoner_ablations.json")
    args = parser.parse_args(argv)
    reasoner = load_phase(Reasoner, args.run / "sst", "sst")
    items = load_items("test", reasoner.config)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [("sst", *x, args) for x in SST.items()] + [("talker", *x, args) for x in TALKER.items()]
        folders = list(pool.map(lambda job: train(*job), jobs))
    result = {"n": len(items), "options": args.options, "preset": PRESETS["quick"].values, "sst": {}, "talker": {}}
    for (phase, name, *_), folder in zip(jobs, folders, strict=True):
        result[phase][name] = measure_sst(folder, items) if phase == "sst" else measure_talker(folder, items, reasoner)
    write_json(args.json, result)

    print(
        "\n| self-supervised training | routes right, by the nearest embedding | cos own / other | chain tokens "
        "right, free / true inputs | weight of the sibling less that of another node |\n|---|---|---|---|---|"
    )
    for name, row in result["sst"].items():
        mixed = "none is right so far"
        if row["mixed"]:
            beta = row["mixed"]["beta_difference"]
            mixed = f"{beta['mean']:+.4f} ({beta['ci95'][0]:+.4f} to {beta['ci95'][1]:+.4f})"
        print(f"| {name} | {row['route_accuracy']:.1%} ({100 * row['ci95'][0]:.1f} to {100 * row['ci95'][1]:.1f}) | "
              f"{row['val_cos_own']:.3f} / {row['val_cos_other']:.3f} | {row['free_running']:.1%} / "
              f"{row['teacher_forced']:.1%} | {mixed} |")  # fmt: skip
    print("\n| Talker | parameters | routes right |\n|---|---|---|")
    for name, row in result["talker"].items():
        low, high = (100 * x for x in row["ci95"])
        print(f"| {name} | {row['n_params']:,} | {row['route_accuracy']:.1%} ({low:.1f} to {high:.1f}) |")


if __name__ == "__main__":
    run_main(main)
