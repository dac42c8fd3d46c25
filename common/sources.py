"""Where questions come from: GSM8K of the Hub, files in its format, any JSONL. What is skipped is counted and printed.

An example is a question and its final answer; `solution` is the worked solution behind it.

    question  "Natalia sold clips to 48 of her friends …"
    answer    "72"
    solution  "… she sold 48/2 = <<48/2=24>>24 clips in May. … #### 72"
"""

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np

from common.options import UserError

N_VAL = 500  # most training questions that are set aside for validation; GSM8K's number
MAX_CHARS = 50_000  # of a text; no context here holds more, and a BPE trains in quadratic time on one endless word
VAL_SEED = 0  # fixed: every run sets aside the same ones, whatever its --seed


@dataclass(frozen=True)
class Example:
    """`ops` are the operations of the solution in order, one character of + - * / each; "" if unknown.
    `solution` is the worked solution, ending in "#### answer", with GSM8K's <<48/2=24>> annotations if any."""

    question: str
    answer: str
    ops: str = ""
    solution: str = field(default="", compare=False, repr=False)


# -------------------------------------------------------------------------------------------- answers

_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,2})?")
_MINUS = str.maketrans(dict.fromkeys("−–‐‑‒﹣－", "-"))  # what people and their keyboards write for it
_SCALE = re.compile(
    r"[\s-]?(?:k|bn|mln|lakh|crore|(?:hundred|thousand|million|billion|trillion|dozen)s?|and a half)\b", re.I
)


def canonical(text: str) -> str | None:
    """A number as it is written in one way only: '+1,007.50' -> '1007.5', '-0' -> '0', '1e3' -> '1000'; else None."""
    text = text.strip().translate(_MINUS)
    if not _NUMBER.fullmatch(text):
        return None
    whole, point, decimals = format(Decimal(text.replace(",", "")), "f").partition(".")
    number = f"{whole}{point}{decimals}".rstrip("0").rstrip(".") if point else whole
    return "0" if number == "-0" else number


def parse_answer(text: str) -> str | None:
    """The final answer after `####`, a canonical number: '… #### $1,234.50 a day' -> '1234.5'; None if there is none.

    Its line may hold words, a currency sign, a unit or a percent sign beside the number. What could be read as another
    number than is meant is no answer: 1/2, 3:30, --5, 5 or 6, 2 million.
    """
    _, mark, tail = text.rpartition("####")
    line = tail.partition("\n")[0].translate(_MINUS)
    digits = [i for i, c in enumerate(line) if c.isnumeric()]  # ½ and ² are some, too
    if not mark or not digits:
        return None
    first, end = digits[0], digits[-1] + 1
    first -= line[:first].endswith(".")
    before = re.split(r"[^\W_]", line[:first])  # at its letters
    sign = re.sub(r"[\s:=~≈,\"'`*\[{($€£¥₹]", "", before[-1])
    # "No.5", "x-5", "Answer - 5": part of a word, a sign, or a dash?
    doubtful = len(before) > 1 and re.match(r"\Z|[-+]|\s*[-+]\s", before[-1])
    in_words = re.search(r"\b(?:minus|negative)\s*$", line[:first], re.I)
    if doubtful or in_words or sign not in ("", "+", "-") or _SCALE.match(line[end:]):
        return None
    return canonical(sign + line[first:end])


def same_answer(a: str, b: str) -> bool:
    """Do two answers, parsed or generated, name the same number? '7' and '7.0' do."""
    return (canonical(a) or a.strip()) == (canonical(b) or b.strip())


def solution_ops(text: str) -> str:
    """Operations of an annotated GSM8K solution, in order: 'he has <<48/2=24>>24 …' -> '/'."""
    return "".join(op for calc in re.findall(r"<<([^<=>]*)=", text) for op in re.findall(r"(?<=[\d.)%])[-+*/]", calc))


def without_annotations(solution: str) -> str:
    """A worked solution in words: '48/2 = <<48/2=24>>24' -> '48/2 = 24'."""
    return re.sub(r"<<[^<>]*>>", "", solution)


def equations(example: Example) -> str:
    """GSM8K's annotations alone, '48/2=24, 48+24=72 #### 72'; all of a solution that has none, and is equations."""
    found = re.findall(r"<<([^<>]*)>>", example.solution)
    if found or "\n" in example.solution:
        return f"{', '.join(found)} #### {example.answer}".strip()
    return example.solution


# ---------------------------------------------------------------------------------------------- files

TEXT_KEYS = (("question", "answer"), ("input", "target"))  # of two texts


def parse_lines(path: str | Path) -> Iterator[tuple[int, object]]:
    """JSONL file -> (line number, parsed line) pairs; empty lines are passed over, a bad one is named.

    Numbers become floats: Python refuses a whole number of thousands of digits, and others take quadratic time.
    """
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, _parse_line(line, f"{path}:{number}")
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: str | Path, error: OSError) -> UserError:
    """What to raise where a file of --data-dir is missing, a folder, or closed to the user."""
    why = (error.strerror or str(error)).lower()
    return UserError(f"{path}: {why}; --data-dir must name a folder of files that you may read")


def _parse_line(line: bytes, where: str) -> object:
    try:
        text = line.decode("utf-8")
        row = json.loads(text, parse_int=float)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # fails on a surrogate without its other half
        return row
    except UnicodeDecodeError as error:
        why = f"not UTF-8 text (byte {error.start} of the line)"
    except UnicodeEncodeError:
        why = "half of a surrogate pair, \\ud800 to \\udfff, is no character"
    except json.JSONDecodeError as error:
        why = f"not valid JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        why = "JSON that is nested too deeply"
    raise UserError(f"{where}: {why}")


def _examples(rows: Iterable[tuple[int, object]], where: str | Path, dataset: str = "gsm8k") -> list[Example]:
    """(line number, row) pairs -> examples; under `pairs` the answer is all of the second text.

    What is skipped is counted and printed, never hidden.
    """
    keys_of_texts = TEXT_KEYS if dataset == "pairs" else TEXT_KEYS[:1]
    examples, too_long, no_number = [], [], []
    for line, row in rows:
        row = row if isinstance(row, dict) else {}
        keys = next((keys for keys in keys_of_texts if all(isinstance(row.get(key), str) for key in keys)), None)
        if keys is None:
            needed = ", or ".join(f'"{first}" and "{second}"' for first, second in keys_of_texts)
            raise UserError(f"{where}:{line}: needs the strings {needed}")
        question, text = (row[key].strip() for key in keys)
        if max(len(question), len(text)) > MAX_CHARS:
            too_long.append(line)
        elif dataset == "pairs":
            examples.append(Example(question, text))
        elif (answer := parse_answer(text)) is None:
            no_number.append(line)
        else:
            examples.append(Example(question, answer, solution_ops(text), text))
    n = len(examples) + len(too_long) + len(no_number)
    for skipped, why in (
        (too_long, f"longer than {MAX_CHARS:,} characters"),
        (no_number, "without one plain number as the answer after ####"),
    ):
        if skipped:
            shown = ", ".join(map(str, skipped[:5])) + (", …" if len(skipped) > 5 else "")
            print(f"{where}: skipped {len(skipped)} of {n} rows {why} (line {shown})")
    if not examples:
        answer = "…" if dataset == "pairs" else "… #### 42"
        raise UserError(f'{where}: no usable rows; each line must be {{"question": …, "answer": "{answer}"}}')
    return examples


def load_jsonl(path: str | Path, dataset: str = "gsm8k") -> list[Example]:
    """File in GSM8K's format, one {"question", "answer"} a line; under `pairs` the answer is any text."""
    return _examples(parse_lines(path), path, dataset)


def download_gsm8k() -> dict[str, list[Example]]:
    """{"train", "test"} of openai/gsm8k (Cobbe et al. 2021, arXiv 2110.14168), from the Hub or its cache."""
    from datasets import load_dataset  # optional: only the Hub needs it

    try:
        found = load_dataset("openai/gsm8k", "main")
    except Exception as error:  # the libraries below `datasets` raise a dozen types when the Hub is out of reach
        raise UserError(
            f"could not download openai/gsm8k from the Hub ({type(error).__name__}). Without a network: "
            "--data-dir DIR (a folder with train.jsonl and test.jsonl), or another --dataset"
        ) from error
    return {split: _examples(enumerate(found[split], 1), f"openai/gsm8k {split}") for split in ("train", "test")}


def load_folder(data_dir: str, dataset: str = "gsm8k") -> dict[str, list[Example]]:
    """DIR -> {"train", "val", "test"}. Validation is DIR/val.jsonl, or always the same training questions."""
    files = {split: Path(data_dir) / f"{split}.jsonl" for split in ("train", "val", "test")}
    there = [split for split in files if split != "val" or os.path.exists(files[split])]
    return with_validation({split: load_jsonl(files[split], dataset) for split in there}, data_dir)


def load_gsm8k(data_dir: str = "") -> dict[str, list[Example]]:
    """{"train", "val", "test"} of a folder in GSM8K's format, or of the Hub."""
    return load_folder(data_dir) if data_dir else with_validation(download_gsm8k(), "openai/gsm8k")


def with_validation(found: dict[str, list[Example]], where: str) -> dict[str, list[Example]]:
    """{"train", "test"} and perhaps "val" -> all three: without it, a tenth of the training examples, at most 500, is
    set aside. Questions that training shares with the others stay, and are counted and printed."""
    train, n = found["train"], len(found["train"])
    if "val" not in found:
        if n < 2:
            raise UserError(f"{where}: one usable row to train on, and validation takes it; add rows, or val.jsonl")
        order = np.random.default_rng(VAL_SEED).permutation(n)
        n_val = min(N_VAL, -(-n // 10))
        train, val = ([train[i] for i in sorted(part)] for part in (order[n_val:], order[:n_val]))
        found = {"train": train, "val": val, "test": found["test"]}
    trained = {e.question for e in train}
    repeated = {name: sum(e.question in trained for e in found[name]) for name in ("val", "test")}
    if any(repeated.values()):
        counts = " and ".join(f"{k} of {len(found[name])} {name} questions" for name, k in repeated.items() if k)
        print(f"{where}: WARNING: {counts} are in the training split, too; their accuracy is not that of new questions")
    return found
