"""The settings of latent_stack/README.md side by side: the source document's second phase, and what quick has of it.

    python results/latent_settings.py --data-dir DIR
    python results/latent_settings.py --data-dir DIR --only "phase 2" --json phase2.json

Every row is `python -m latent_stack.train --preset quick --no-reconstruct`, half of the preset's steps, with the MLP of
2 layers that the preset had between the ideas, with the row's options and then those of `--options`; seed and data are
the same. What is finished stays, what was interrupted resumes. Writes results/latent_settings.json and prints a
Markdown table. The validation loss given the matched idea stands beside that given a mismatched one: the difference is
what the language model reads from ideas, with an interval over the validation texts, and, paired over them, its
difference to the first row's.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import is_started, read_json, write_json
from common.device import resolve_device
from common.options import UserError, run_main
from common.stats import bootstrap_ratio, signed
from latent_stack.config import PRESETS
from latent_stack.data import TokenizedDataset
from latent_stack.model import load_run
from latent_stack.pairs import load_pairs
from latent_stack.train import validation_losses
from results.runs import ROOT, folder_of, slug, train_once

BASE = "--preset quick --no-reconstruct --middle mlp --middle-layers 2"
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


def train(name: str, options: str, args) -> Path:
    """Train one setting, unless it is there -> its folder."""
    folder = folder_of(args.out, slug(name), PRESETS["quick"].values, BASE, args.data_dir, options, args.options)
    words = [*shlex.split(f"{BASE} {options} {args.options}"), "--run", str(folder)]
    words += ["--data-dir", args.data_dir] if args.data_dir else []
    words += ["--resume"] if is_started(folder) else ["--overwrite"]
    train_once(folder / "summary.json", "latent_stack.train", words)
    return folder


def mismatch_costs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Validation texts: nats of each target, given a mismatched idea minus given the matched (N,); its tokens (N,)."""
    device = resolve_device("auto")
    model = load_run(folder, device.device)
    data = TokenizedDataset(load_pairs(model.config)["val"], model.backbones, model.config, "validation")
    matched, mismatched = validation_losses(model, data, device)
    return mismatched - matched, data.length - 1


def measure(args) -> dict[str, dict]:
    """{name of the setting: its summary, and what its ideas are worth to the language model, per target token}."""
    rows, first = {}, None
    for name in args.only:
        folder = train(name, SETTINGS[name], args)
        cost, tokens = mismatch_costs(folder)
        first = cost if first is None else first
        rows[name] = {
            "options": SETTINGS[name],
            **read_json(folder / "summary.json"),
            "val_loss_difference": bootstrap_ratio(cost, tokens),
            "val_loss_difference_less_the_first": bootstrap_ratio(cost - first, tokens),
        }
    return rows


def print_table(rows: dict[str, dict]) -> None:
    print(
        "\n| setting | trained | validation loss, matched idea | mismatched - matched | its delta to the first row | "
        "ROUGE-L, matched | mismatched |\n|---|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        differences = (row["val_loss_difference"], row["val_loss_difference_less_the_first"])
        cells = [f"{row['n_params']:,}", f"{row['val_loss']:.3f}", *(signed(x, 3) for x in differences)]
        for measure in ("rougeL", "rougeL_shuffled"):
            low, high = row[f"{measure}_ci95"]
            cells.append(f"{row[measure]:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", default="", help="DIR/samsum, as for latent_stack.train; without: paraphrases")
    parser.add_argument("--options", default="", help="options for every training, as one word")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="these rows only")
    parser.add_argument("--out", type=Path, default=ROOT / "out/latent-settings", help="folder of the trainings")
    parser.add_argument("--json", type=Path, help="file to write [results/latent_settings.json]")
    args = parser.parse_args(argv)
    if not args.json:
        if args.only != list(SETTINGS):
            raise UserError("--only gives a part of the table; name the file to write with --json FILE")
        args.json = ROOT / "results/latent_settings.json"
    args.data_dir = args.data_dir and str(Path(args.data_dir).resolve())

    rows = measure(args)
    about = {"options": args.options, "data": "samsum" if args.data_dir else "paraphrase"}
    write_json(args.json, about | {"preset": PRESETS["quick"].values, "settings": rows})
    print_table(rows)


if __name__ == "__main__":
    run_main(main)
