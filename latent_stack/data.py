"""Pairs of texts: an input that becomes an idea, and the target that the idea is to be said as.

    paraphrase   two wordings of the same generated story; embedded, seeded, no download
    samsum       a chat and its summary (Gliwa et al. 2019, arXiv 1911.12237); DialogSum beside it where present
    cnn          a news article and its highlights            pairs   two sentences that mean the same
    qa           question and context, and the answer         jsonl   DIR/SPLIT.jsonl, {"input": …, "target": …} a line

Shapes: B pairs, L input tokens, T target tokens with BOS and EOS, H encoder width.
"""

import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from config import UserError
from data import ASK, EVENT, NAMES, START, THINGS, epoch_order, parse_lines, split_of_pair

CACHE = Path("out/latent-cache")


@dataclass(frozen=True)
class Pair:
    """An input text and what it is to be said as."""

    input: str
    target: str


# --------------------------------------------------------------------------------------------- embedded

# events of `data.EVENT` that say the same in other words; {m} is named by both or by neither
SAME_EVENT = (
    ("{m} gives {n} {b} more {x}.", "Later {m} brings {b} {x}."),
    ("Then {n} finds {b} {x}.", "{b} more {x} arrive."),
    ("{n} gives {b} {x} to {m}.", "{m} takes {b} of the {x}."),
    ("Then {b} {x} are lost.", "{b} of the {x} break."),
)
assert {s for kind in SAME_EVENT for s in kind} <= {s for events in EVENT.values() for s in events}


def paraphrases(split, n, seed=0):
    """n pairs of wordings of the same story: who, what, how many, more or fewer through whom; no sentence is shared.

    Splits are disjoint by construction: the numbers of a story form a pair of its own split (`data.split_of_pair`).
    """
    rng = random.Random(f"paraphrase {split} {seed if split == 'train' else 'fixed'}")

    def wording(op, first, second, words, unlike):
        start = rng.choice([s for s in START if s not in unlike])
        kind = next((k for k in SAME_EVENT if set(k) & set(unlike)), None)  # that of the first wording
        if kind is None:
            kind = rng.choice([k for k in SAME_EVENT if k[0] in EVENT[op]])
        event = rng.choice([s for s in kind if s not in unlike])
        ask = rng.choice([s for s in ASK[op] if s not in unlike])
        filled = (start.format(a=first, **words), event.format(b=second, **words), ask.format(**words))
        return " ".join(filled), (start, event, ask)

    pairs = []
    while len(pairs) < n:
        op, first, second = rng.choice("+-"), rng.randint(2, 49), rng.randint(2, 49)
        first, second = (max(first, second), min(first, second)) if op == "-" else (first, second)
        if split_of_pair(first, second) != split:
            continue
        words = dict(zip("nm", rng.sample(NAMES, 2), strict=True)) | {"x": rng.choice(THINGS)}
        one, used = wording(op, first, second, words, ())
        pairs.append(Pair(one, wording(op, first, second, words, used)[0]))
    return pairs


# ------------------------------------------------------------------------------------------ files, Hub


def read_jsonl(path, source=("input", "dialogue", "article", "text"), target=("target", "summary", "highlights")):
    """File with an input and a target a line -> list of Pair; the first of the known names that a line has counts."""
    pairs = []
    for number, row in parse_lines(path):
        try:
            one = next(row[k] for k in source if isinstance(row.get(k), str))
            other = next(row[k] for k in target if isinstance(row.get(k), str))
        except (StopIteration, AttributeError):
            raise UserError(f'{path}:{number}: needs the strings "input" and "target"') from None
        pairs.append(Pair(one.strip(), other.strip()))
    return without_empty(pairs, path)


def without_empty(pairs, where):
    """Pairs with an empty text are left out, counted and told."""
    kept = [p for p in pairs if p.input and p.target]
    if len(kept) < len(pairs):
        print(f"{where}: left out {len(pairs) - len(kept)} of {len(pairs)} pairs with an empty text")
    if not kept:
        raise UserError(f"{where}: no usable pairs")
    return kept


def saved_samsum(folder):
    """DIR -> {split: pairs} of DIR/samsum/SPLIT as `datasets` saves it, or DIR/samsum/SPLIT.jsonl."""
    from datasets import load_from_disk

    found = {}
    for split in ("train", "validation", "test"):
        path = Path(folder) / "samsum" / split
        if path.is_dir():
            try:
                rows = load_from_disk(str(path))
                found[split] = without_empty(
                    [Pair((r["dialogue"] or "").strip(), (r["summary"] or "").strip()) for r in rows], path
                )
            except (FileNotFoundError, KeyError, ValueError) as error:
                raise UserError(f"{path}: not a data set as `datasets` saves it, with dialogue and summary "
                                f"({' '.join(str(error).split())[:120]})") from None  # fmt: skip
        elif path.with_suffix(".jsonl").is_file():
            found[split] = read_jsonl(path.with_suffix(".jsonl"))
    if "test" not in found or len(found) < 2:
        raise UserError(f"{folder}: wants samsum/test and samsum/validation or samsum/train inside; "
                        f"found {', '.join(found) or 'none of them'}")  # fmt: skip
    return found


HUB = {  # id, configuration, name of the validation split, how a row becomes a pair (None: it is none)
    "samsum": ("knkarthick/samsum", None, "validation", lambda r: (r["dialogue"], r["summary"])),
    "cnn": ("abisee/cnn_dailymail", "3.0.0", "validation", lambda r: (r["article"], r["highlights"])),
    "pairs": ("google-research-datasets/paws", "labeled_final", "validation",
              lambda r: (r["sentence1"], r["sentence2"]) if r["label"] else None),
    "qa": ("rajpurkar/squad", None, "validation",
           lambda r: (f"{r['question']}\n{r['context']}", r["answers"]["text"][0])),
}  # fmt: skip


def from_hub(name):
    """Data set of the Hugging Face Hub -> {split: pairs}; where the Hub has no test split, validation is halved."""
    from datasets import load_dataset

    repo, part, validation, pair = HUB[name]
    try:
        data = load_dataset(repo, part)
    except Exception as error:  # the libraries below `datasets` raise a dozen types when the Hub is out of reach
        raise UserError(f"could not download {repo} from the Hub ({type(error).__name__}). Without a network: "
                        "--data-dir DIR, or --dataset paraphrase") from error  # fmt: skip
    read = lambda rows: [Pair(*((x or "").strip() for x in p)) for p in map(pair, rows) if p]  # noqa: E731
    found = {split: without_empty(read(data[split]), f"{repo} {split}")
             for split in {"train", validation, "test"} & set(data)}  # fmt: skip
    if "test" not in found:
        found[validation], found["test"] = found[validation][::2], found[validation][1::2]
    return found


def load_pairs(config):
    """Config -> {"train", "val", "test"} of lists of Pair.

    SAMSum from a folder that has no training split trains on its validation split, of which every eighth dialogue is
    set aside. DialogSum, where the folder has it, is trained on, too: all files but those with "test" in their name.
    """
    if config.dataset == "paraphrase":
        if config.data_dir:
            raise UserError(f"--data-dir {config.data_dir}: --dataset paraphrase is generated; samsum and jsonl read "
                            "a folder")  # fmt: skip
        sizes = {"train": config.n_train or 1200, "val": 200, "test": 500}
        return {split: paraphrases(split, n, config.seed) for split, n in sizes.items()}
    if config.data_dir and config.dataset == "samsum":
        found = saved_samsum(config.data_dir)
        beside = sorted((Path(config.data_dir) / "dialogsum").glob("*.jsonl"))
        extra = [p for path in beside if "test" not in path.stem.lower() for p in read_jsonl(path)]
        if "validation" not in found:
            whole = found["train"]
            found |= {"validation": whole[::10], "train": [p for i, p in enumerate(whole) if i % 10]}
        if "train" not in found:
            rest = found.pop("validation")
            found |= {"train": [p for i, p in enumerate(rest) if i % 8], "validation": rest[::8]}
        found["train"] = found["train"] + extra
    elif config.data_dir:
        paths = {split: Path(config.data_dir) / f"{split}.jsonl" for split in ("train", "validation", "test")}
        found = {split: read_jsonl(path) for split, path in paths.items() if path.is_file()}
        missing = [split for split in ("train", "test") if split not in found]
        if missing:
            raise UserError(
                f"{config.data_dir}: no {missing[0]}.jsonl; wanted are train.jsonl and test.jsonl, "
                'one {"input": …, "target": …} a line'
            )
        if "validation" not in found:
            whole = found["train"]
            found |= {"validation": whole[::10], "train": [p for i, p in enumerate(whole) if i % 10]}
    elif config.dataset == "jsonl":
        raise UserError("--dataset jsonl wants --data-dir DIR with train.jsonl and test.jsonl")
    else:
        found = from_hub(config.dataset)
    tested = {p.input for p in found["test"]}  # SAMSum itself repeats a few dialogues across its splits
    train, val = ([p for p in found[split] if p.input not in tested] for split in ("train", "validation"))
    double = len(found["train"]) + len(found["validation"]) - len(train) - len(val)
    if double:
        print(f"left out {double} training and validation pairs whose input is in the test split")
    if not train or not val:
        raise UserError(f"{config.data_dir or config.dataset}: no pairs are left for training and validation")
    if config.n_train:
        train = random.Random(config.seed).sample(train, min(config.n_train, len(train)))
    return {"train": train, "val": val, "test": found["test"]}


# ---------------------------------------------------------------------------------------------- batches


@dataclass
class Batch:
    """B pairs. tokens (B, T): BOS y1 … EOS, -1 behind it. The input as tokens, or as a frozen encoder's states.

    input_ids  (B, L) int64, padded        hidden  (B, L, H) fp32, or None
    seen       (B, L) bool, True = a token
    n_targets  float: target tokens of the whole optimiser step, what summed losses are divided by
    """

    input_ids: torch.Tensor
    seen: torch.Tensor
    tokens: torch.Tensor
    n_targets: float
    hidden: torch.Tensor | None = None

    @property
    def n_tokens(self):
        """Tokens of inputs and targets, without padding."""
        return int(self.seen.sum() + (self.tokens >= 0).sum())

    def to(self, device):
        tensors = {k: v for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in tensors.items()})


def padded(rows, value):
    """Lists of ids -> (B, longest) int64."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)


def read_states(path, shape, rows=2**16):
    """File of the cache -> its states, a memory-mapped fp16 array of `shape`; read through once, `rows` at a time.

    A UserError where it is damaged.
    """
    try:
        states = np.load(path, mmap_mode="r")
        whole = states.shape == shape and states.dtype == np.float16
    except (OSError, ValueError, EOFError):
        whole = False
    if not whole or not all(np.isfinite(states[i : i + rows]).all() for i in range(0, len(states), rows)):
        raise UserError(f"{path} is damaged; delete it, and the encoder's states are computed again")
    return states


class Encoded:
    """A split as token ids; what is cut off is told."""

    def __init__(self, pairs, model, where="data"):
        self.pairs, self.model, config = pairs, model, model.config
        self.inputs, cut = model.encoder_ids([p.input for p in pairs])
        targets = model.decoder_tokenizer([p.target for p in pairs], add_special_tokens=False)["input_ids"]
        # a target that is cut off does not end where it was cut
        end = lambda ids: [model.eos] if len(ids) <= config.max_target else []  # noqa: E731
        self.targets = [[model.bos, *ids[: config.max_target], *end(ids)] for ids in targets]
        long = sum(len(ids) > config.max_target for ids in targets)
        for n, what, option, limit in ((cut, "inputs", "max-input", model.max_input),
                                       (long, "targets", "max-target", config.max_target)):  # fmt: skip
            if n:
                print(f"{where}: {n} of {len(pairs)} {what} cut off at --{option} {limit} tokens")
        self.length = np.array([len(t) for t in self.targets])
        self.states = None

    def __len__(self):
        return len(self.pairs)

    def cache(self, folder=CACHE, progress=None):
        """Keep the frozen encoder's states of this split on disk: fp16, named by the encoder and all input tokens.

        A UserError where the disk is too small or a state too large for fp16, and of a file that is damaged.
        """
        key = json.dumps([self.model.config.encoder_hash, self.inputs])
        path = Path(folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
        offset = np.concatenate([[0], np.cumsum([len(r) for r in self.inputs])])
        shape = (int(offset[-1]), self.model.config.encoder_dim)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            size, free = 2 * shape[0] * shape[1] / 2**30, shutil.disk_usage(path.parent).free / 2**30
            if size > 0.9 * free:  # a memory-mapped file on a full disk kills the process instead of raising
                raise UserError(
                    f"the encoder's states need {size:.1f} GiB in {path.parent}, where {free:.1f} GiB are free; "
                    "--no-cache does without them, --n-train takes fewer pairs"
                )
            if size > 1:
                print(f"the encoder's states take {size:.1f} GiB in {path.parent}; --no-cache does without them")
            try:
                states = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                order = np.argsort([len(r) for r in self.inputs], kind="stable")
                for i in (progress or (lambda x: x))(range(0, len(order), 32)):
                    index = order[i : i + 32]
                    ids, seen = self.model.pad([self.inputs[j] for j in index])
                    hidden = self.model.hidden(ids, seen).half().cpu()
                    if not hidden[seen].isfinite().all():
                        raise UserError(
                            "the encoder's states are too large for the cache's half precision; give --no-cache"
                        )
                    for row, j in enumerate(index):
                        states[offset[j] : offset[j + 1]] = hidden[row, : len(self.inputs[j])].numpy()
                states.flush()
                temporary.replace(path)
            except OSError as error:
                raise UserError(f"could not write {path} ({error.strerror}); --no-cache does without it") from None
            finally:
                temporary.unlink(missing_ok=True)
        self.states, self.offset = read_states(path, shape), offset
        return self

    def batch(self, index, n_targets=None):
        """Pairs `index` (B,) -> Batch; `n_targets`: those of the whole optimiser step, where it is more than these."""
        ids, seen = self.model.pad([self.inputs[i] for i in index])
        hidden = None
        if self.states is not None:
            rows = [torch.from_numpy(np.array(self.states[self.offset[i] : self.offset[i + 1]])).float() for i in index]
            hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        tokens = padded([self.targets[i] for i in index], -1)
        return Batch(ids, seen, tokens, n_targets or self.total(index), hidden)

    def total(self, index):
        """Target tokens that are predicted: all but BOS."""
        return float(sum(len(self.targets[i]) - 1 for i in index))


def make_batches(data, config, rank=0, world=1):
    """-> (steps per epoch, batches): `batches(epoch, k)` yields this process's micro-batches of step k."""
    order = lru_cache(maxsize=1)(lambda epoch: epoch_order(data.length, config.batch_size, config.seed, epoch))

    def batches(epoch, k):
        index, parts = order(epoch)[k], world * config.grad_accum
        for i in range(config.grad_accum):
            yield data.batch(index[rank * config.grad_accum + i :: parts], data.total(index))

    return len(order(0)), batches
