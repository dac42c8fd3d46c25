"""Plain text of any size: streamed from files or the Hub, tokenized once, kept on disk, never in memory whole.

Passages                text of one split, read anew whenever it is gone through
tokenized_on_disk       its token ids in a memory-mapped Arrow file
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from common.options import UserError
from common.sources import parse_lines, unreadable
from common.tokenizers import Tokenizer
from reasoner.config import ReasonerConfig
from reasoner.tasks import SPLIT_FRACTIONS, Example, split_of

HUB = (  # id, configuration, column, fraction of the passages
    ("allenai/c4", "en", "text", 0.6),
    ("Salesforce/wikitext", "wikitext-103-raw-v1", "text", 0.2),
    ("open-web-math/open-web-math", None, "text", 0.2),
)


def read_passages(path: Path) -> Iterator[str]:
    """A .txt file (passages between empty lines) or a .jsonl file ("text") -> its passages, in order."""
    if path.suffix == ".jsonl":
        for number, row in parse_lines(path):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(f'{path}:{number}: needs one {{"text": …}} a line')
            yield row["text"]
        return
    try:
        with open(path, encoding="utf-8-sig") as file:  # with or without a byte-order mark
            for is_empty, lines in groupby(file, key=lambda line: not line.strip()):
                if not is_empty:
                    yield "".join(lines).strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise unreadable(path, error) from None


def stream_hub(seed: int) -> Iterator[str]:
    """Passages of C4, WikiText and OpenWebMath, interleaved as HUB states, as they come from the network."""
    from datasets import interleave_datasets, load_dataset  # optional: only text needs it

    try:
        parts = [
            load_dataset(name, part, split="train", streaming=True).select_columns(column)
            for name, part, column, _ in HUB
        ]
        mixed = interleave_datasets(
            parts,
            [fraction for *_, fraction in HUB],
            seed=seed,
            stopping_strategy="all_exhausted_without_replacement",
        )
        yield from (row["text"] for row in mixed if row["text"].strip())
    except Exception as error:  # the libraries below `datasets` raise a dozen types when the Hub is out of reach
        names = ", ".join(name for name, *_ in HUB)
        raise UserError(
            f"could not stream {names} from the Hub ({type(error).__name__}). Without a network: "
            "--data-dir DIR with .txt or .jsonl files"
        ) from error


@dataclass(frozen=True)
class Passages:
    """Plain text of one split, without prompts: an iterable of `Example`.

    A passage belongs to one split by its own text, so that a passage that comes twice cannot be in two. By all of its
    fields `datasets` recognises passages that it has tokenized before.
    """

    split: str
    n: int  # passages at most
    seed: int
    files: tuple = ()  # (path, bytes, time of the last change); none: the Hub
    made_of: tuple = (HUB, tuple(SPLIT_FRACTIONS.items()))

    def _texts(self) -> Iterator[str]:
        if not self.files:
            yield from stream_hub(self.seed)
        for path, *_ in self.files:
            yield from read_passages(Path(path))

    def __iter__(self) -> Iterator[Example]:
        is_empty = True
        for text in islice((t for t in self._texts() if split_of(t) == self.split), self.n):
            is_empty = False
            yield Example("", text)
        if is_empty:
            source = Path(self.files[0][0]).parent if self.files else "the Hub"
            raise UserError(f"{source}: too few passages; none falls into the {self.split} split")


def passages(split: str, config: ReasonerConfig) -> Passages:
    """The passages of --data-dir, or of the Hub."""
    n = config.n_train if split == "train" else config.n_eval
    if not config.data_dir:
        return Passages(split, n, config.seed)
    paths = sorted(p for p in Path(config.data_dir).glob("*") if p.suffix in (".txt", ".jsonl"))
    if not paths:
        raise UserError(f"{config.data_dir}: holds no .txt and no .jsonl file")
    try:
        files = tuple((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    except OSError as error:  # a link to nowhere
        raise unreadable(error.filename, error) from None
    return Passages(split, n, config.seed, files)


def tokenized_rows(
    passages: Iterable[Example], tokenizer: Tokenizer, block_size: int, n_thoughts: int
) -> Iterator[dict]:
    """Passages, a thousand at a time -> for each its row of ids, their number, and whether it was cut off."""
    examples, begin = iter(passages), [tokenizer.ans, *[tokenizer.pred] * n_thoughts]
    room = block_size - len(begin) - 1
    while texts := [x.chain for x in islice(examples, 1000)]:
        for ids in tokenizer.encode(texts):
            row = [*begin, *ids[:room], tokenizer.eos]
            yield {"tokens": row, "length": len(row), "cut": len(ids) > room}


def tokenized_on_disk(passages: Passages, tokenizer: Tokenizer, block_size: int, n_thoughts: int):
    """-> `datasets.Dataset` with the columns of `tokenized_rows`, memory-mapped.

    `datasets` keeps the file in its cache, where later phases, baselines, other processes and resumed runs find it.
    """
    from datasets import Dataset, Features, List, Value  # optional: only text needs it
    from datasets.exceptions import DatasetGenerationError

    ids = Value("uint16" if tokenizer.n_vocab <= 1 << 16 else "int32")
    values = dict(passages=passages, tokenizer=tokenizer, block_size=block_size, n_thoughts=n_thoughts)
    try:
        return Dataset.from_generator(
            tokenized_rows,
            features=Features({"tokens": List(ids), "length": Value("int32"), "cut": Value("bool")}),
            gen_kwargs=values,
        ).with_format("numpy")
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
