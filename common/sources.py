"""Where questions come from: GSM8K of the Hub, files in its format, any JSONL. What is skipped is counted and printed.

An example is a question and its final answer; `solution` is the worked solution behind it.

    question  "Natalia sold clips to 48 of her friends …"
    answer    "72"
    solution  "… she sold 48/2 = <<48/2=24>>24 clips in May. … #### 72"
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from common.options import UserError

N_VAL = 500  # most training questions that are set aside for validation; GSM8K's number
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

_NUMBER = re.compile(r"([+-]?)[$€£]?\s?([+-]?)(\d[\d,]*(?:\.\d+)?|\.\d+)")


def parse_answer(text: str) -> str | None:
    """The final answer after `####`, without thousands separators: '… #### 1,234' -> '1234'; None if there is none.

    Signs and decimals are kept; a leading currency sign and a trailing unit, percent sign or full stop are not.
    """
    _, mark, tail = text.rpartition("####")
    found = _NUMBER.search(tail.replace("−", "-").partition("\n")[0]) if mark else None
    return "".join(found.groups()).replace(",", "").replace("+", "") if found else None


def same_answer(a: str, b: str) -> bool:
    """Do two answers, parsed or generated, name the same number? '7' and '7.0' do."""
    try:
        return Decimal(a.replace(",", "")) == Decimal(b.replace(",", ""))
    except InvalidOperation:
        return a.strip() == b.strip()


def solution_ops(text: str) -> str:
    """Operations of an annotated GSM8K solution, in order: 'he has <<48/2=24>>24 …' -> '/'."""
    return "".join(op for calc in re.findall(r"<<([^=>]*)=", text) for op in re.findall(r"(?<=[\d.)%])[-+*/]", calc))


def without_annotations(solution: str) -> str:
    """A worked solution in words: '48/2 = <<48/2=24>>24' -> '48/2 = 24'."""
    return re.sub(r"<<[^>]*>>", "", solution)


def equations(example: Example) -> str:
    """GSM8K's annotations alone, '48/2=24, 48+24=72 #### 72'; all of a solution that has none, and is equations."""
    found = re.findall(r"<<([^>]*)>>", example.solution)
    if found or "\n" in example.solution:
        return f"{', '.join(found)} #### {example.answer}".strip()
    return example.solution


# ---------------------------------------------------------------------------------------------- files

TEXT_KEYS = (("question", "answer"), ("input", "target"))  # of two texts


def parse_lines(path: str | Path) -> Iterator[tuple[int, object]]:
    """JSONL file -> (line number, parsed line) pairs; empty lines are passed over, a bad one is named."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}:{number}: not UTF-8 text (byte {error.start} of the line)") from None
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})") from None


def _math_examples(rows: Iterable[tuple[int, object]], where: str | Path) -> list[Example]:
    """(line number, row) pairs -> examples. Rows without an answer are counted and printed, never hidden."""
    examples, skipped = [], []
    for line, row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)):
            raise UserError(f'{where}:{line}: needs the strings "question" and "answer"')
        solution, answer = row["answer"].strip(), parse_answer(row["answer"])
        if answer is None:
            skipped.append(line)
        else:
            examples.append(Example(row["question"].strip(), answer, solution_ops(solution), solution))
    if skipped:
        shown = ", ".join(map(str, skipped[:5])) + (", …" if len(skipped) > 5 else "")
        n = len(examples) + len(skipped)
        print(f"{where}: skipped {len(skipped)} of {n} rows without a '#### number' answer (line {shown})")
    if not examples:
        raise UserError(f'{where}: no usable rows; each line must be {{"question": …, "answer": "… #### 42"}}')
    return examples


def _text_examples(rows: Iterable[tuple[int, object]], where: str | Path) -> list[Example]:
    """The same of any two texts: the answer is all of the second one."""
    examples = []
    for line, row in rows:
        keys = next(
            (k for k in TEXT_KEYS if isinstance(row, dict) and all(isinstance(row.get(x), str) for x in k)), None
        )
        if keys is None:
            raise UserError(f'{where}:{line}: needs the strings "question" and "answer", or "input" and "target"')
        examples.append(Example(*(row[key].strip() for key in keys)))
    if not examples:
        raise UserError(f"{where}: no rows")
    return examples


def load_jsonl(path: str | Path, dataset: str = "gsm8k") -> list[Example]:
    """File in GSM8K's format, one {"question", "answer"} a line; under `pairs` the answer is any text."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; --data-dir is a folder with train.jsonl and test.jsonl")
    return (_text_examples if dataset == "pairs" else _math_examples)(parse_lines(path), path)


def download_gsm8k() -> tuple[list[Example], list[Example]]:
    """(train, test) of openai/gsm8k (Cobbe et al. 2021, arXiv 2110.14168) from the Hugging Face Hub or its cache."""
    from datasets import load_dataset  # optional: only the Hub needs it

    try:
        found = load_dataset("openai/gsm8k", "main")
    except Exception as error:  # the libraries below `datasets` raise a dozen types when the Hub is out of reach
        raise UserError(
            f"could not download openai/gsm8k from the Hub ({type(error).__name__}). Without a network: "
            "--data-dir DIR (a folder with train.jsonl and test.jsonl), or another --dataset"
        ) from error
    return tuple(_math_examples(enumerate(found[split], 1), f"openai/gsm8k {split}") for split in ("train", "test"))


def load_folder(data_dir: str, dataset: str = "gsm8k") -> dict[str, list[Example]]:
    """DIR -> {"train", "val", "test"}. Validation is DIR/val.jsonl, or always the same training questions."""
    files = {split: Path(data_dir) / f"{split}.jsonl" for split in ("train", "val", "test")}
    if not files["val"].is_file():
        return with_validation(*(load_jsonl(files[split], dataset) for split in ("train", "test")))
    return {split: load_jsonl(path, dataset) for split, path in files.items()}


def load_gsm8k(data_dir: str = "") -> dict[str, list[Example]]:
    """{"train", "val", "test"} of a folder in GSM8K's format, or of the Hub."""
    return load_folder(data_dir) if data_dir else with_validation(*download_gsm8k())


def with_validation(train: list[Example], test: list[Example]) -> dict[str, list[Example]]:
    """-> {"train", "val", "test"}: a tenth of the training examples, at most 500, is set aside for validation."""
    order = np.random.default_rng(VAL_SEED).permutation(len(train))
    n_val = min(N_VAL, -(-len(train) // 10))
    return {
        "train": [train[i] for i in sorted(order[n_val:])],
        "val": [train[i] for i in sorted(order[:n_val])],
        "test": test,
    }
