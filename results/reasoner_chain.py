"""What makes a chain of latents decide: self-supervised training varied, and what is fed back.

    python -m reasoner.train --preset cfg-small
    python results/reasoner_chain.py --preset cfg-small --run out/reasoner-cfg --noise 0 0.6
    python -m reasoner.train --preset gsm8k-small --data-dir DIR
    python results/reasoner_chain.py --preset gsm8k-small --run out/reasoner-gsm8k \\
        --options "--data-dir DIR --sst-loss cosine --sharpen 0"

Each variant starts from RUN/pretrain and is read by the nearest embedding, without a Talker: with its latents fed back,
with them sharpened, and with tokens fed back, the control. What is finished stays. Writes the preset's part of
results/reasoner_chain.json and, where a variant was measured at all settings (`--fed-back all`), its figure.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json, weights_hash, write_json
from common.options import UserError, run_main
from common.stats import paired_difference
from reasoner.config import PRESETS, EvalConfig
from reasoner.data import load_examples
from reasoner.experiments.dial import LATENT, SETTINGS, TOKENS, draw, in_words, measure_setting
from reasoner.experiments.measures import exposure_gap
from reasoner.phases import load_phase
from results.runs import ROOT, folder_of, slug, train_once

ALL = "--sst-noise 0.8 --contrast 1 --rollout 1 --sst-sampling --sharpen 0.06"
VARIANTS = {
    "as the preset": "",
    "noise": "--sst-noise 0.8",
    "without noise": "--sst-noise 0",
    "contrast 0.1": "--contrast 0.1",
    "contrast 1": "--contrast 1",
    "rollout": "--rollout 1",
    "sampled rollout": "--rollout 1 --sst-sampling",
    "sharpened rollout": "--rollout 1 --sharpen 0.06",
    "noise, contrast 1": "--sst-noise 0.8 --contrast 1",
    "noise, contrast 1, sampled and sharpened rollout": ALL,
}
SHARPENED = "sharpened, τ = 0.01"
FED_BACK = (LATENT, "0.06", "0.01", TOKENS)  # of the dial's settings


def train(name: str, args) -> Path:
    """Self-supervised training of one variant from the run's pretraining, unless it is there -> its folder."""
    earlier, words = args.run / "pretrain", shlex.split(f"{args.options} {VARIANTS[name]}")
    made_of = (PRESETS[args.preset].values, args.options, VARIANTS[name], weights_hash(earlier))
    folder = folder_of(args.out, f"{args.preset}-{slug(name)}", *made_of)
    where = ["--phase", "sst", "--run", str(folder), "--overwrite", "--init", str(earlier)]
    train_once(folder / "sst" / "summary.json", "reasoner.train", ["--preset", args.preset, *where, *words], 1)
    return folder / "sst"


@torch.no_grad()
def measure(folder: Path, fed_back: list[str], limit: int, noise: list[float], first: dict) -> dict:
    """One variant -> exposure gap, and for each way to feed back a row for each noise. `first`: the token accuracy of
    each example of the first variant's latents, filled in and compared with."""
    reasoner, config = load_phase(folder, "sst"), EvalConfig()
    examples = load_examples("test", reasoner.config)[: limit or None]
    result = {"n": len(examples), "train_seconds": read_json(folder / "summary.json")["train_seconds"]}
    gap, sharpened = (exposure_gap(reasoner, examples, sharpen=x) for x in (0.0, 0.01))  # whatever it was trained with
    result |= gap | {SHARPENED: sharpened}
    print(f"  true inputs {result['teacher_forced']:.1%}, free-running {result['free_running']:.1%}")
    for name in fed_back:
        result[name] = []
        for norm in noise:
            readers = {"nearest": reasoner.nearest_text}
            row, hits = measure_setting(reasoner, readers, examples, config, norm, SETTINGS[name])
            row["less_the_first"] = paired_difference(hits, first.setdefault(norm, hits), config.seed)
            result[name].append(row)
        print(f"  {name:<10}{'; '.join(map(in_words, result[name]))}", flush=True)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="cfg-small", choices=PRESETS)
    parser.add_argument("--run", type=Path, required=True, help="a run whose pretraining is finished")
    parser.add_argument("--options", default="", help="options for every training, as one word")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.0], help="norms of Gaussian noise on what is fed back"
    )
    parser.add_argument("--fed-back", nargs="+", default=FED_BACK, choices=[*SETTINGS, "all"])
    parser.add_argument("--limit", type=int, default=0, help="test examples (0: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "out/reasoner-chain", help="folder of the trainings")
    parser.add_argument("--json", type=Path, default=ROOT / "results/reasoner_chain.json")
    args = parser.parse_args(argv)

    result, first = read_json(args.json) if args.json.is_file() else {}, {}
    part = result.setdefault(args.preset, {"variants": {}})
    fed_back = list(SETTINGS) if "all" in args.fed_back else [LATENT, *(x for x in args.fed_back if x != LATENT)]
    if args.variants[0] != "as the preset":  # what the others are compared with
        args.variants = ["as the preset", *(name for name in args.variants if name != "as the preset")]
    for name in args.variants:
        folder = train(name, args)
        print(f"{args.preset}, {name}: {VARIANTS[name] or '(no further option)'}")
        row = measure(folder, fed_back, args.limit, args.noise, first)
        if other := next((x for x in part["variants"].values() if x["n"] != row["n"]), None):
            raise UserError(f"{args.json} has rows of {other['n']} examples, not {row['n']}; give another --json")
        part["variants"][name] = row
        write_json(args.json, result)
        if set(SETTINGS) <= set(row):
            draw(row, f"{args.preset}, {name}", args.json.with_name(f"dial-{args.preset}-{slug(name)}.png"))


if __name__ == "__main__":
    run_main(main)
