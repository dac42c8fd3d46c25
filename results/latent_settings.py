"""The settings of latent_stack/README.md side by side: the roadmap's second phase, and what the quick preset has of it.

    python results/latent_settings.py --data-dir DIR
    python results/latent_settings.py --data-dir DIR --only "phase 2" --json phase2.json

Every row is `python -m latent_stack.train --preset quick --no-reconstruct`, half of the preset's steps, with the row's
options and then those of `--options`; seed and data are the same. What is finished stays, what was interrupted
resumes. Writes results/latent_settings.json and prints a Markdown table. The validation loss given the own idea stands
beside that given another text's: the difference is what the language model reads from ideas, with an interval over the
validation texts, and, paired over them, less that of the first row.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import UserError, resolve_device, run_main, write_json  # noqa: E402
from latent_stack.config import PRESETS  # noqa: E402
from latent_stack.data import Encoded, load_pairs  # noqa: E402
from latent_stack.model import LatentStack  # noqa: E402
from latent_stack.train import validation_losses  # noqa: E402
from results.runs import folder_of, slug, train_once  # noqa: E402

BASE = "--preset quick --no-reconstruct"
SETTINGS = {
    "base": "",
    "no middle model": "--middle identity",
    "residual middle model": "--middle residual",
    "residual, 4 layers": "--middle residual --middle-layers 4",
    "frozen language model": "--lora-decoder 0",
    "no bag of words": "--words-weight 0",
    "attention pooling": "--pooling attention",
    "first token and MLP": "--pooling cls",
    "512-d idea": "--latent-dim 512",
    "4 layers in the middle": "--middle-layers 4",
    "LoRA on the encoder, too": "--lora-encoder 8 --no-cache",
    "phase 2": "--pooling attention --latent-dim 512 --middle-layers 4 --lora-encoder 8 --no-cache",
    "twice as many steps": "--epochs 2 --words-epochs 6",
}


def train(name, options, args):
    """Train one setting, unless it is there -> its folder."""
    folder = folder_of(args.out, slug(name), PRESETS["quick"].values, BASE, args.data_dir, options, args.options)
    words = [*shlex.split(f"{BASE} {options} {args.options}"), "--run", str(folder)]
    words += ["--data-dir", args.data_dir] if args.data_dir else []
    words += ["--resume"] if (folder / "state.pt").is_file() else ["--overwrite"]
    train_once(folder / "summary.json", "latent_stack.train", words)
    return folder


def differences(folder):
    """Validation texts: nats of each target given another text's idea, less given the own (N,), and its tokens (N,)."""
    model, device = LatentStack.from_pretrained(folder), resolve_device("auto")
    data = Encoded(load_pairs(model.config)["val"], model.to(device.device), "val")
    own, other = validation_losses(model, data, device)
    return other - own, np.array([data.total([i]) for i in range(len(data))])


def per_token(nats, tokens, n=1000):
    """Nats and tokens of N texts -> nats a token, with its 95% bootstrap interval over the texts."""
    draw = np.random.default_rng(0).integers(0, len(nats), (n, len(nats)))
    means = nats[draw].sum(1) / tokens[draw].sum(1)
    return {"mean": float(nats.sum() / tokens.sum()), "ci95": np.percentile(means, [2.5, 97.5]).tolist()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", default="", help="DIR/samsum, as for latent_stack.train; without: paraphrases")
    parser.add_argument("--options", default="", help="options for every training, as one word")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="these rows only")
    parser.add_argument("--out", type=Path, default=ROOT / "out/latent-settings", help="folder of the trainings")
    parser.add_argument("--json", type=Path, help="file to write [results/latent_settings.json]")
    args = parser.parse_args(argv)
    if not args.json:
        if args.only != list(SETTINGS):
            raise UserError("--only gives a part of the table; --json FILE says where to write it")
        args.json = ROOT / "results/latent_settings.json"
    args.data_dir = args.data_dir and str(Path(args.data_dir).resolve())
    rows, first = {}, None
    for name in args.only:
        folder = train(name, SETTINGS[name], args)
        heard, tokens = differences(folder)
        first = heard if first is None else first
        rows[name] = {"options": SETTINGS[name], **json.loads((folder / "summary.json").read_text(encoding="utf-8")),
                      "val_loss_difference": per_token(heard, tokens),
                      "val_loss_difference_less_the_first": per_token(heard - first, tokens)}  # fmt: skip
    about = {"options": args.options, "data": "samsum" if args.data_dir else "paraphrase"}
    write_json(args.json, about | {"preset": PRESETS["quick"].values, "settings": rows})

    print("\n| setting | trained | validation loss, own idea | another's less own | the same, less the first row's | "
          "ROUGE-L, own | another's |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for name, row in rows.items():
        rouge = [f"{row[k]:.3f} ({row[f'{k}_ci95'][0]:.3f} to {row[f'{k}_ci95'][1]:.3f})" for k in
                 ("rougeL", "rougeL_shuffled")]  # fmt: skip
        heard = [f"{row[k]['mean']:+.3f} ({row[k]['ci95'][0]:+.3f} to {row[k]['ci95'][1]:+.3f})" for k in
                 ("val_loss_difference", "val_loss_difference_less_the_first")]  # fmt: skip
        print(f"| {name} | {row['n_params']:,} | {row['val_loss']:.3f} | {' | '.join(heard + rouge)} |")


if __name__ == "__main__":
    run_main(main)
