"""What helps to say a sentence back: how many ideas, what they are read from, how the language model reads them.

    python results/latent_ideas.py --pretrain DIR
    python results/latent_ideas.py --pretrain DIR --only "16 ideas" "1 idea" --seeds 0 --json part.json

Every row is what `python -m latent_stack.train --preset ideas` does before the task, on few sentences and with the
row's options: the rows of READ_OFF by soft tokens alone, those of SAID by the language model. Measured on held-out
sentences: how many are exact but for the case, which the encoder does not know, and how many of the names are there;
each beside another sentence's ideas (control) and, paired over sentences, the difference to the first row of its kind.
What is finished stays. Writes results/latent_ideas.json.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import is_started, read_json, write_json
from common.options import UserError, run_main
from common.stats import bootstrap_mean, paired_difference, signed
from latent_stack.experiments.measures import derangement, recall_of
from latent_stack.experiments.sayback import never_names, plain, spelled
from latent_stack.model import load_run
from latent_stack.pairs import load_pairs
from latent_stack.pretrain import of_length
from results.runs import ROOT, folder_of, slug, train_once

BASE = (
    "--preset ideas --ideas 16 --prefix-len 16 --pretrain-tokens 16 --pretrain-texts 6000 --pretrain-random 2000 "
    "--pretrain-words 2 --pretrain-steps 1 --dataset paraphrase --n-train 16 --max-steps 1 --n-eval 2"
)
READ_OFF = {
    "16 ideas": "",
    "8 ideas": "--ideas 8",
    "4 ideas": "--ideas 4",
    "1 idea": "--ideas 1",
    "from the words alone": "--queries-read words",
    "8 ideas, from the words alone": "--ideas 8 --queries-read words",
    "from the encoder alone": "--queries-read encoder",
    "from the encoder alone, with LoRA": "--queries-read encoder --lora-encoder 8 --no-cache",
    "no lists of random words": "--pretrain-random 0",
}
SAID = {
    "LoRA": "",
    "LoRA, soft tokens not sharpened": "--sharpen 0",
    "keys and values": "--lora-decoder 0 --prefix-kv",
    "LoRA, keys and values": "--prefix-kv",
    "the soft tokens alone, by both losses at once": "--lora-decoder 0 --sharpen 0 --pretrain-words 0 --trains all",
}
VARIANTS = READ_OFF | {name: f"--pretrain-steps 100 {words}" for name, words in SAID.items()}
N = 400  # held-out sentences


def train(name: str, seed: int, args) -> Path:
    """Train one variant, unless it is there -> the folder of its first stage."""
    folder = folder_of(args.out, f"{slug(name)}-{seed}", BASE, args.pretrain, VARIANTS[name], args.options)
    words = shlex.split(f"{BASE} {VARIANTS[name]} {args.options} --seed {seed}")
    words += ["--run", str(folder), "--pretrain", args.pretrain]
    words += ["--resume"] if is_started(folder) else ["--overwrite"]
    train_once(folder / "summary.json", "latent_stack.train", words)
    return folder / "pretrain"


@torch.no_grad()
def said_back(run: Path, by_lm: bool) -> dict[str, np.ndarray]:
    """-> {measure: a value a sentence, or for names one a sentence that has any}, own and of another sentence; kept."""
    kept = run.parent / "said_back.json"
    if kept.is_file():
        return {key: np.array(values) for key, values in read_json(kept).items()}
    model = load_run(run)
    texts = [p.target for p in of_length(load_pairs(model.config)["test"], model, model.config.max_target)[:N]]
    lower_case = never_names(model, texts)
    prefix, found = model.prefix(model.think(model.encode(texts))), {}
    said = model.generate_from_prefix(prefix) if by_lm else spelled(model, prefix)
    for name, words in (("", said), ("_shuffled", [said[i] for i in derangement(len(said))])):
        found[f"exact{name}"] = np.array([float(plain(a) == plain(b)) for a, b in zip(words, texts, strict=True)])
        found[f"names{name}"] = recall_of(words, texts, lower_case)["names"]
    write_json(kept, {key: values.tolist() for key, values in found.items()})
    return found


def measure(args) -> dict[str, dict]:
    rows, first = {}, {}
    for name in args.only:
        folders = [train(name, seed, args) for seed in args.seeds]
        kind = "SAID" if name in SAID else "READ_OFF"
        by_seed = [said_back(folder, kind == "SAID") for folder in folders]
        found = {key: np.mean([values[key] for values in by_seed], 0) for key in by_seed[0]}
        first.setdefault(kind, found)
        rows[name] = {"kind": kind, "options": VARIANTS[name], "by_seed": [float(x["exact"].mean()) for x in by_seed]}
        rows[name] |= {"n_params": load_run(folders[0]).n_params()}
        rows[name] |= {key: bootstrap_mean(values) for key, values in found.items()}
        for key in ("exact", "names"):
            rows[name][f"{key}_less_the_first"] = paired_difference(found[key], first[kind][key])
        print(f"{name}: {rows[name]['exact']['mean']:.1%} exact but for the case, by seed {rows[name]['by_seed']}")
    return rows


def print_table(rows: dict[str, dict]) -> None:
    print("\n| | exact | another's (control) | less the first of its kind | names |\n|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [f"{row[key]['mean']:.1%}" for key in ("exact", "exact_shuffled", "names")]
        cells.insert(2, signed(row["exact_less_the_first"], 3))
        print(f"| {name} | {' | '.join(cells)} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pretrain", required=True, help="file or folder of texts, as for latent_stack.train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="a training each")
    parser.add_argument("--options", default="", help="options for every training, as one word")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="these rows only")
    parser.add_argument("--out", type=Path, default=ROOT / "out/latent-ideas-settings", help="folder of the trainings")
    parser.add_argument("--json", type=Path, help="file to write [results/latent_ideas.json]")
    args = parser.parse_args(argv)
    if not args.json:
        if args.only != list(VARIANTS):
            raise UserError("--only gives a part of the table; name the file to write with --json FILE")
        args.json = ROOT / "results/latent_ideas.json"
    args.pretrain = str(Path(args.pretrain).resolve())
    rows = measure(args)
    write_json(args.json, {"base": BASE, "options": args.options, "seeds": args.seeds, "n": N, "variants": rows})
    print_table(rows)


if __name__ == "__main__":
    run_main(main)
