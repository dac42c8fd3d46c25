"""Where pairs of texts come from: an input that becomes an idea, and the target to be generated from it.

paraphrase   two wordings of the same generated story; embedded, seeded, no download
samsum       a chat and its summary (Gliwa et al. 2019, arXiv 1911.12237); DialogSum beside it where present
cnn          a news article and its highlights            pairs   two sentences that mean the same
qa           question and context, and the answer         jsonl   DIR/SPLIT.jsonl, {"input": …, "target": …} a line
texts        the sentences of any files, each with itself
"""

import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.options import UserError
from common.sources import parse_lines
from common.word_problems import NARROW, split_of_pair
from latent_stack.config import StackConfig


@dataclass(frozen=True)
class Pair:
    """An input text and its target."""

    input: str
    target: str


Splits = dict[str, list[Pair]]

# --------------------------------------------------------------------------------------------- embedded

# events of the word problems that mean the same; {m} is named by both or by neither
SAME_EVENT = (
    ("{m} gives {n} {b} more {x}.", "Later {m} brings {b} {x}."),
    ("Then {n} finds {b} {x}.", "{b} more {x} arrive."),
    ("{n} gives {b} {x} to {m}.", "{m} takes {b} of the {x}."),
    ("Then {b} {x} are lost.", "{b} of the {x} break."),
)
assert {s for kind in SAME_EVENT for s in kind} <= {s for events in NARROW.event.values() for s in events}


def _wording(rng: random.Random, op: str, used: tuple = ()) -> tuple[str, str, str]:
    """Templates of a story's opening, event and question; none of `used`, another wording of the same story."""

    def draw(templates):
        return rng.choice([t for t in templates if t not in used])

    start = draw(NARROW.start)
    if used:
        kind = next(kind for kind in SAME_EVENT if used[1] in kind)
    else:
        kind = rng.choice([kind for kind in SAME_EVENT if kind[0] in NARROW.event[op]])
    return start, draw(kind), draw(NARROW.ask[op])


def paraphrases(split: str, n: int, seed: int = 0) -> list[Pair]:
    """n pairs of wordings of the same story: who, what, how many, more or fewer through whom; no sentence is shared.

    Splits are disjoint by construction: the numbers of a story form a pair of its own split (`split_of_pair`).
    """
    rng = random.Random(f"paraphrase {split} {seed if split == 'train' else 'fixed'}")
    pairs = []
    while len(pairs) < n:
        op, a, b = rng.choice("+-"), rng.randint(2, 49), rng.randint(2, 49)
        if op == "-":
            a, b = max(a, b), min(a, b)
        if split_of_pair(a, b) != split:
            continue
        n_and_m = rng.sample(NARROW.names, 2)
        words = dict(zip("nm", n_and_m, strict=True)) | {"x": rng.choice(NARROW.things), "a": a, "b": b}
        first = _wording(rng, op)
        second = _wording(rng, op, used=first)
        pairs.append(Pair(*(" ".join(t.format(**words) for t in wording) for wording in (first, second))))
    return pairs


# ----------------------------------------------------------------------------------------------- files

INPUT_KEYS = ("input", "dialogue", "article", "text")
TARGET_KEYS = ("target", "summary", "highlights")


def without_empty(pairs: list[Pair], where: str | Path) -> list[Pair]:
    """Pairs with an empty text are left out, counted and reported."""
    kept = [p for p in pairs if p.input and p.target]
    if len(kept) < len(pairs):
        print(f"{where}: left out {len(pairs) - len(kept)} of {len(pairs)} pairs with an empty text")
    if not kept:
        raise UserError(f"{where}: no usable pairs")
    return kept


def read_jsonl(path: str | Path) -> list[Pair]:
    """File with an input and a target a line; of the known names of either, the first that a line has counts."""
    pairs = []
    for number, row in parse_lines(path):
        row = row if isinstance(row, dict) else {}
        texts = [
            next((row[key] for key in keys if isinstance(row.get(key), str)), None)
            for keys in (INPUT_KEYS, TARGET_KEYS)
        ]
        if None in texts:
            raise UserError(f'{path}:{number}: needs the strings "input" and "target"')
        pairs.append(Pair(*(text.strip() for text in texts)))
    return without_empty(pairs, path)


def read_arrow(folder: Path) -> list[Pair]:
    """A split of SAMSum as `datasets` saves it."""
    from datasets import load_from_disk

    try:
        rows = load_from_disk(str(folder))
        pairs = [Pair((row["dialogue"] or "").strip(), (row["summary"] or "").strip()) for row in rows]
    except (FileNotFoundError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{folder}: not a data set as `datasets` saves it, with dialogue and summary ({reason})"
        ) from None
    return without_empty(pairs, folder)


def _with_validation(splits: Splits) -> Splits:
    """Where there is no validation split, every tenth training pair is set aside."""
    if "validation" in splits:
        return splits
    whole = splits["train"]
    return splits | {"validation": whole[::10], "train": [p for i, p in enumerate(whole) if i % 10]}


def samsum_from_folder(folder: str | Path) -> Splits:
    """DIR/samsum/SPLIT as `datasets` saves it, or DIR/samsum/SPLIT.jsonl.

    A folder without a training split trains on the validation split, of which every eighth dialogue is set aside.
    DialogSum, where the folder has it, is trained on, too: all files but those with "test" in their name.
    """
    splits = {}
    for split in ("train", "validation", "test"):
        path = Path(folder) / "samsum" / split
        if os.path.isdir(path):
            splits[split] = read_arrow(path)
        elif os.path.exists(path.with_suffix(".jsonl")):
            splits[split] = read_jsonl(path.with_suffix(".jsonl"))
    if "test" not in splits or len(splits) < 2:
        raise UserError(
            f"{folder}: needs samsum/test and samsum/validation or samsum/train inside; "
            f"found {', '.join(splits) or 'none of them'}"
        )
    if "train" in splits:
        splits = _with_validation(splits)
    else:
        rest = splits["validation"]
        splits |= {"train": [p for i, p in enumerate(rest) if i % 8], "validation": rest[::8]}
    dialogsum = sorted((Path(folder) / "dialogsum").glob("*.jsonl"))
    extra = [pair for path in dialogsum if "test" not in path.stem.lower() for pair in read_jsonl(path)]
    return splits | {"train": splits["train"] + extra}


def jsonl_from_folder(folder: str | Path) -> Splits:
    """DIR/train.jsonl, DIR/test.jsonl and, where it exists, DIR/validation.jsonl."""
    paths = {split: Path(folder) / f"{split}.jsonl" for split in ("train", "validation", "test")}
    splits = {split: read_jsonl(path) for split, path in paths.items() if os.path.exists(path)}
    for split in ("train", "test"):
        if split not in splits:
            raise UserError(
                f"{folder}: no {split}.jsonl; it needs train.jsonl and test.jsonl, "
                'one {"input": …, "target": …} a line'
            )
    return _with_validation(splits)


# ----------------------------------------------------------------------------------- texts of any kind

TEXT_KEYS = (*INPUT_KEYS, *TARGET_KEYS, "question")


def sentences(text: str) -> list[str]:
    """A text's sentences, line by line."""
    return [s.strip() for line in text.splitlines() for s in re.split(r"(?<=[.!?])\s+", line) if s.strip()]


def texts_of_file(path: Path) -> list[str]:
    """The text of a .txt file, or those under known names in a .jsonl file."""
    if path.suffix == ".txt":
        return [path.read_text(encoding="utf-8", errors="replace")]
    rows = [row for _, row in parse_lines(path) if isinstance(row, dict)]
    return [row[key] for row in rows for key in TEXT_KEYS if isinstance(row.get(key), str)]


def texts_from(root: str | Path) -> Splits:
    """A .txt or .jsonl file, or all of them below a folder, data sets that `datasets` saved among them.

    Each different sentence is a pair with itself. Files with "test" in their path, else every tenth sentence, are the
    test split, in a random order.
    """
    root, found = Path(root), {"train": [], "test": []}
    for folder, _, names in [("", [], [root])] if root.is_file() else sorted(os.walk(root, followlinks=True)):
        paths = [Path(folder, name) for name in sorted(names) if Path(name).suffix in (".txt", ".jsonl")]
        texts = {path: texts_of_file(path) for path in paths}
        if "dataset_info.json" in names:
            texts[Path(folder)] = [text for p in read_arrow(Path(folder)) for text in (p.input, p.target)]
        for path, read in texts.items():
            split = "test" if path != root and "test" in str(path.relative_to(root)).lower() else "train"
            found[split] += [sentence for text in read for sentence in sentences(text)]
    splits = {split: [Pair(s, s) for s in dict.fromkeys(read)] for split, read in found.items()}
    if not splits["train"]:
        raise UserError(f"{root}: no texts for training in .txt or .jsonl files")
    if not splits["test"]:
        whole = splits["train"]
        splits = {"train": [p for i, p in enumerate(whole) if i % 10], "test": whole[::10]}
    random.Random(0).shuffle(splits["test"])
    return _with_validation(splits)


# ------------------------------------------------------------------------------------------------- Hub


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hub: `texts` makes (input, target) of a row, or None where it is no pair."""

    repo: str
    name: str | None
    texts: Callable[[dict], tuple | None]


HUB = {
    "samsum": HubDataset("knkarthick/samsum", None, lambda r: (r["dialogue"], r["summary"])),
    "cnn": HubDataset("abisee/cnn_dailymail", "3.0.0", lambda r: (r["article"], r["highlights"])),
    "pairs": HubDataset(
        "google-research-datasets/paws",
        "labeled_final",
        lambda r: (r["sentence1"], r["sentence2"]) if r["label"] else None,
    ),
    "qa": HubDataset("rajpurkar/squad", None, lambda r: (f"{r['question']}\n{r['context']}", r["answers"]["text"][0])),
}


def from_hub(name: str) -> Splits:
    """Data set of the Hugging Face Hub; where the Hub has no test split, validation is halved."""
    from datasets import load_dataset

    source = HUB[name]
    try:
        data = load_dataset(source.repo, source.name)
    except Exception as error:  # the libraries below `datasets` raise a dozen types when the Hub is out of reach
        raise UserError(
            f"could not download {source.repo} from the Hub ({type(error).__name__}). Without a network: "
            "--data-dir DIR, or --dataset paraphrase"
        ) from error
    splits = {}
    for split in ("train", "validation", "test"):
        if split in data:
            texts = [pair for pair in map(source.texts, data[split]) if pair]
            pairs = [Pair(*((text or "").strip() for text in pair)) for pair in texts]
            splits[split] = without_empty(pairs, f"{source.repo} {split}")
    if "test" not in splits:
        splits |= {"validation": splits["validation"][::2], "test": splits["validation"][1::2]}
    return splits


# ---------------------------------------------------------------------------------------------- splits


def _find_splits(config: StackConfig) -> Splits:
    if config.dataset == "texts":
        if not config.data_dir:
            raise UserError("--dataset texts needs --data-dir, a file or folder of texts")
        return texts_from(config.data_dir)
    if config.data_dir:
        return (samsum_from_folder if config.dataset == "samsum" else jsonl_from_folder)(config.data_dir)
    if config.dataset == "jsonl":
        raise UserError("--dataset jsonl needs --data-dir DIR with train.jsonl and test.jsonl")
    return from_hub(config.dataset)


def load_pairs(config: StackConfig) -> Splits:
    """{"train", "val", "test"} of the data set that a configuration names; no test input is trained on."""
    if config.dataset == "paraphrase":
        if config.data_dir:
            raise UserError(
                f"--data-dir {config.data_dir}: --dataset paraphrase is generated; samsum and jsonl read a folder"
            )
        n_train = config.n_train or 1200
        sizes = {"train": n_train, "val": min(200, n_train), "test": 500}
        return {split: paraphrases(split, n, config.seed) for split, n in sizes.items()}

    splits = _find_splits(config)
    tested = {p.input for p in splits["test"]}  # SAMSum itself repeats a few dialogues across its splits
    train, val = ([p for p in splits[name] if p.input not in tested] for name in ("train", "validation"))
    left_out = len(splits["train"]) + len(splits["validation"]) - len(train) - len(val)
    if left_out:
        print(f"left out {left_out} training and validation pairs whose input is in the test split")
    if not train or not val:
        raise UserError(f"{config.data_dir or config.dataset}: no pairs are left for training and validation")
    if config.n_train:
        train = random.Random(config.seed).sample(train, min(config.n_train, len(train)))
    return {"train": train, "val": val, "test": splits["test"]}
