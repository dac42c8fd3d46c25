"""Questions and answers: where they come from, how they become tokens, how tokens become batches.

An example is a question and its final answer; nanoJEPA never sees a chain of thought. (Its baseline, an ordinary
language model, may: `answer_view = solution` puts the worked solution where the answer stands, `equations` only its
calculations, `program` its calculations over letters, which then stand for the numbers in the question, too.)

    question  "Tom has 12 pears. Ana gives Tom 7 more pears. How many pears does Tom have?"
    answer    "19"

    one row   q1 q2 … qn [PRED] [ANS] a1 … am [EOS] (padding)
    segment    0  0 …  0    0     1    1 …  1    1      -1          a view is a segment; padding is -1
    position   0  1 … n-1   n     0    1 …  m   m+1      0          each view counts from 0
    target    q2 q3 …  -    -     -    - …  -    -       -          [PRED] and [EOS] carry no target

With `batching = packed` a row holds several examples; they are just more segments.

Shapes: B rows, T tokens a row, N examples, M longest answer in tokens, K positions that carry a target.
"""

import json
import math
import random
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from itertools import count
from pathlib import Path

import numpy as np
import torch

from config import UserError, atomic

N_VAL = 500  # GSM8K training questions set aside for validation
VAL_SEED = 0  # fixed: every run sets aside the same ones, whatever its --seed


@dataclass(frozen=True)
class Example:
    """`ops` are the operations of the solution in order, one character of + - * / each; "" if unknown.
    `solution` is the worked solution, ending in "#### answer", with GSM8K's <<48/2=24>> annotations if any."""

    question: str
    answer: str
    ops: str = ""
    solution: str = field(default="", compare=False, repr=False)


# ------------------------------------------------------------------------------------- answers and GSM8K

_NUMBER = re.compile(r"([+-]?)[$€£]?\s?([+-]?)(\d[\d,]*(?:\.\d+)?|\.\d+)")


def parse_answer(text):
    """The final answer after `####`, without thousands separators: '… #### 1,234' -> '1234'; None if there is none.

    Signs and decimals are kept; a leading currency sign and a trailing unit, percent sign or full stop are not.
    """
    _, mark, tail = text.rpartition("####")
    found = _NUMBER.search(tail.replace("−", "-").partition("\n")[0]) if mark else None
    return "".join(found.groups()).replace(",", "").replace("+", "") if found else None


def same_answer(a, b):
    """Do two answers, parsed or written by a model, name the same number? '7' and '7.0' do."""
    try:
        return Decimal(a.replace(",", "")) == Decimal(b.replace(",", ""))
    except InvalidOperation:
        return a.strip() == b.strip()


def solution_ops(text):
    """Operations of an annotated GSM8K solution, in order: 'he has <<48/2=24>>24 …' -> '/'."""
    return "".join(op for calc in re.findall(r"<<([^=>]*)=", text) for op in re.findall(r"(?<=[\d.)%])[-+*/]", calc))


def answer_text(example, view):
    """What the answer view holds: the final answer, the worked solution without calculator annotations, only its
    equations (GSM8K's annotations, '48/2=24, 48+24=72 #### 72'; all of a solution that has none, and is equations), or
    the solution as an operation program, 'α/2,α+a' (None if it cannot be written as one)."""
    if view == "answer":
        return example.answer
    if view == "program":
        return program(example)
    equations = re.findall(r"<<([^>]*)>>", example.solution)
    if view == "equations" and (equations or "\n" in example.solution):
        return f"{', '.join(equations)} #### {example.answer}".strip()
    return re.sub(r"<<[^>]*>>", "", example.solution)


_NUMBER_TEXT = r"\d+(?:,\d{3})*(?:\.\d+)?"
_QUANTITY = rf"(?<![\w.,/:-]){_NUMBER_TEXT}(?![\w%/:-]|[.,]\d)"  # not the numbers of 2nd, 5k, 20%, 1/2, 7:30
_OPERAND = r"\d+\.?\d*|\.\d+"


def _values(pattern, text):
    return [float(x.replace(",", "")) for x in re.findall(pattern, text)]


def calculations(solution):
    """The computation graph of an annotated solution, in order: (operands, code of their combination `v`, result).

    [] if a step is anything but plain arithmetic, or does not compute what it says.
    """
    found = []
    for left, right in re.findall(r"<<([^=<>]+)=([^<>]+)>>", solution):
        operands, slot = _values(_OPERAND, left), count()
        try:
            if not re.fullmatch(r"[\d\s+\-*/().]+", left) or "**" in left or "//" in left:
                return []
            code = compile(re.sub(_OPERAND, lambda m: f"v[{next(slot)}]", left).strip(), "calculation", "eval")  # noqa: B023
            result = float(right)
            if abs(eval(code, {"__builtins__": {}, "v": operands}) - result) > 1e-9:
                return []
        except (ArithmeticError, SyntaxError, TypeError, ValueError):
            return []
        found.append((operands, code, result))
    return found


def resample(example, rng, pool, tries=30):
    """A GSM8K example, a random.Random, a sorted pool of integers -> the example with other numbers, or None.

    The <<48/2=24>> annotations of the solution are its computation graph. Every whole number of the question that the
    graph uses gets a value of the pool within a factor of two, the graph is evaluated anew, and the numbers in question
    and solution are replaced. Refused are questions whose graph is not plain arithmetic, does not give the answer or
    leaves open where an operand comes from; and draws whose results are not positive or stop being whole numbers.
    """
    graph = calculations(example.solution)
    if not graph or example.answer != _show(graph[-1][2]):
        return None
    given, every = (_values(pattern, example.question) for pattern in (_QUANTITY, _NUMBER_TEXT))
    results, operands = [row[2] for row in graph], [x for row in graph for x in row[0]]
    used = sorted(set(operands) & set(given))
    # "the 3rd" would keep its 3; the second 2 of "2 apples, twice as many pears" is no quantity that is written
    doubtful = any(given.count(x) < max(every.count(x), operands.count(x)) for x in used)
    if doubtful or set(given) & set(results) or len(set(results)) < len(results):
        return None  # an operand could come from two places
    near = {x: (bisect_left(pool, x / 2), bisect_right(pool, 2 * x)) for x in used if x > 1 and x == int(x)}
    near = {x: (low, high) for x, (low, high) in near.items() if pool[low:high] and {*pool[low:high]} != {x}}
    if not near:
        return None
    for _ in range(tries):
        new = {x: float(pool[rng.randrange(*near[x])]) if x in near else x for x in used}  # $2.50 stays $2.50
        for row, code, old in graph:
            try:
                value = eval(code, {"__builtins__": {}, "v": [new.get(x, x) for x in row]})
            except ZeroDivisionError:
                break
            new[old] = round(value, 0 if old == int(old) else 2)
            if value <= 0 or abs(value - new[old]) > 1e-9:
                break
        else:
            if len(set(new.values())) < len(new) or (set(operands) - set(new)) & set(new.values()):
                continue  # two quantities became one: the text would be ambiguous
            if all(new[x] == x for x in used):
                continue

            def other(match):
                x = float(match[0].replace(",", ""))
                return _show(new[x], "," in match[0]) if x in new else match[0]  # noqa: B023

            question = re.sub(_QUANTITY, other, example.question)
            solution = re.sub(_NUMBER_TEXT, other, example.solution)
            if calculations(solution):  # ".5" reads as a 5, for one
                return Example(question, parse_answer(solution), example.ops, solution)
    return None


def _show(x, commas=False):
    """Number -> '12', '1,200' or '2.50'."""
    return (f"{int(x):,}" if commas else str(int(x))) if x == int(x) else f"{x:.2f}"


SLOTS, RESULTS = "αβγδεζηθικλμνξοπρστυφχψω", "abcdefghijklmnopqrstuvwxyz"
_WRITTEN = rf"(?<![\d.])\.\d+|{_NUMBER_TEXT}"
# a number is read in one way only, unlike _OPERAND's: a refusal must not take exponential time
_TERM = rf"\(*(?:\d+(?:\.\d*)?|\.\d+|[a-z{SLOTS}])\)*"


def slots(question):
    """Question -> (the same with its numbers as Greek letters, {letter: number}); equal numbers share a letter."""
    numbers = dict(zip(SLOTS, dict.fromkeys(_values(_WRITTEN, question)), strict=False))
    letter = {x: name for name, x in numbers.items()}
    return re.sub(rf" ?({_WRITTEN})", lambda m: f" {letter.get(float(m[1].replace(',', '')), m[1])}", question), numbers


def program(example):
    """An annotated solution as an operation program (Amini et al. 2019, MathQA, arXiv 1905.13319), or None.

    '<<48/2=24>> … <<48+24=72>>' -> 'α/2,α+a': Greek letters are the question's numbers, a b c … the results so far,
    digits are numbers that the question does not write. None if the program would not compute the answer.
    """
    _, numbers = slots(example.question)
    letter, steps = {x: name for name, x in numbers.items()}, []
    for left, right in re.findall(r"<<([^=<>]+)=([^<>]+)>>", example.solution):
        if not re.fullmatch(rf"{_NUMBER_TEXT}|{_OPERAND}", right):
            return None
        left = re.sub(r"[\s,$]", "", left)
        if re.search(r"[-+*/]", left):  # "<<55=55>>" is no step
            if len(steps) == len(RESULTS):
                return None
            step = re.sub(_OPERAND, lambda m: letter.get(float(m[0]), m[0]), left)  # noqa: B023
            steps.append(re.sub(rf"({_OPERAND}|[a-z{SLOTS}])%", r"(\1/100)", step))
            letter[float(right.replace(",", ""))] = RESULTS[len(steps) - 1]
    text = ",".join(steps)
    return text if same_answer(compute(text, numbers), example.answer) else None


def compute(program, numbers):
    """An operation program, {letter: number} -> its last result as text, "" if there is none."""
    known = dict(numbers)
    try:
        for step, name in zip(program.split(","), RESULTS, strict=False):
            if not re.fullmatch(rf"{_TERM}(?:[-+*/]{_TERM})*", step):
                return ""
            step = re.sub(_OPERAND, lambda m: repr(float(m[0])), step)  # whole numbers could grow without end
            known[name] = eval(step, {"__builtins__": {}}, known)
        return f"{known[name]:.6f}".rstrip("0").rstrip(".") if math.isfinite(known[name]) else ""
    except Exception:  # a letter that stands for nothing, a division by zero, an open parenthesis
        return ""


def question_text(question, view):
    """What the model reads of a question: all of it; its numbers as letters for `program`."""
    return slots(question)[0] if view == "program" else question


def variants(examples, n, seed=0):
    """n times every example that `resample` can vary, with other numbers each time; told, how many it cannot."""
    if not n:
        return []
    rng = random.Random(f"variants {seed}")
    numbers = (x for e in examples for x in _values(_QUANTITY, e.question))
    pool = sorted(int(x) for x in numbers if x > 1 and x == int(x))  # with repeats: round numbers stay common
    found = [[resample(e, rng, pool) for e in examples] for _ in range(n)]
    new = [e for row in found for e in row if e]
    able = sum(any(row[i] for row in found) for i in range(len(examples)))
    print(f"{len(new):,} variants with other numbers, of {able:,} of {len(examples):,} training questions")
    return new


def _examples(rows, where):
    """(line number, row) pairs -> examples. Rows without an answer are counted and told, never hidden."""
    examples, skipped = [], []
    for line, row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)):
            raise UserError(f'{where}:{line}: needs the strings "question" and "answer"')
        answer = parse_answer(row["answer"])
        if answer is None:
            skipped.append(line)
        else:
            examples.append(
                Example(row["question"].strip(), answer, solution_ops(row["answer"]), row["answer"].strip())
            )
    if skipped:
        shown = ", ".join(map(str, skipped[:5])) + (", …" if len(skipped) > 5 else "")
        print(
            f"{where}: skipped {len(skipped)} of {len(examples) + len(skipped)} rows "
            f"without a '#### number' answer (line {shown})"
        )
    if not examples:
        raise UserError(f'{where}: no usable rows; each line wants {{"question": …, "answer": "… #### 42"}}')
    return examples


def parse_lines(path):
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


def load_jsonl(path):
    """File in GSM8K's format, one {"question", "answer"} a line -> list of Example."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; --data-dir wants a folder with train.jsonl and test.jsonl in GSM8K's format"
        )
    return _examples(parse_lines(path), path)


def load_hub_gsm8k():
    """(train, test) of openai/gsm8k (Cobbe et al. 2021, arXiv 2110.14168) from the Hugging Face Hub or its cache."""
    from datasets import load_dataset

    try:
        dataset = load_dataset("openai/gsm8k", "main")
    except Exception as error:  # the libraries below `datasets` raise a dozen types when the Hub is out of reach
        raise UserError(
            f"could not download openai/gsm8k from the Hub ({type(error).__name__}). Without a network: "
            "--data-dir DIR (a folder with train.jsonl and test.jsonl) or --dataset wordproblems"
        ) from error
    return tuple(_examples(enumerate(dataset[split], 1), f"openai/gsm8k {split}") for split in ("train", "test"))


def load_splits(config):
    """Config -> {"train", "val", "test"} of lists of Example. GSM8K's validation questions are always the same 500."""
    if config.dataset == "wordproblems":
        if config.variants:
            raise UserError("--variants is GSM8K's; for more word problems: --n-train")
        sizes = {"train": config.n_train, "val": N_VAL, "test": 1000}
        return {split: word_problems(split, size, config.difficulty, config.seed) for split, size in sizes.items()}
    if config.data_dir:
        train, test = (load_jsonl(Path(config.data_dir) / f"{split}.jsonl") for split in ("train", "test"))
    else:
        train, test = load_hub_gsm8k()
    order = np.random.default_rng(VAL_SEED).permutation(len(train))
    n_val = min(N_VAL, len(train) // 5)  # a small file of one's own keeps at least four fifths for training
    kept = [train[i] for i in sorted(order[n_val:])]
    return {
        "train": kept + variants(kept, config.variants, config.seed),
        "val": [train[i] for i in sorted(order[:n_val])],
        "test": test,
    }


# ----------------------------------------------------------------------------------------- word problems

NAMES = "Ana Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kara Leo Mia Noah Olga Paul Rosa Sam Tina Zoe".split()
THINGS = "apples books coins cards shells stamps marbles pencils cookies stones pears stickers balls beads keys".split()
GROUPS = "boxes bags baskets jars packs rows crates drawers".split()

# {n} is the owner, {m} another person, {x} the things, {g} a kind of group; {a}, {b} and {d} are numbers.
START = (
    "{n} has {a} {x}.",
    "There are {a} {x} on {n}'s desk.",
    "{n} starts the day with {a} {x}.",
    "{n} owns {a} {x}.",
    "At home {n} keeps {a} {x}.",
)
START_TIMES = (
    "{n} has {a} {g} with {b} {x} in each.",
    "{n} has {a} {g} and each holds {b} {x}.",
    "{n} fills {a} {g} with {b} {x} each.",
    "{n} buys {a} {g} of {b} {x}.",
)
EVENT = {
    "+": (
        "{m} gives {n} {b} more {x}.",
        "Then {n} finds {b} {x}.",
        "{n} buys {b} more {x}.",
        "Later {m} brings {b} {x}.",
        "{b} more {x} arrive.",
    ),
    "-": (
        "{n} gives {b} {x} to {m}.",
        "Then {b} {x} are lost.",
        "{n} sells {b} {x}.",
        "{m} takes {b} of the {x}.",
        "{b} of the {x} break.",
    ),
    "*": (
        "{m} has {b} times as many {x}.",
        "{m} collects {b} times that number of {x}.",
        "{m} owns {b} times as many {x}.",
    ),
}
ASK = {
    "+": ("How many {x} are there now?", "How many {x} does {n} have in total?", "What is the total number of {x}?"),
    "-": ("How many {x} are left?", "How many {x} remain?", "How many {x} does {n} still have?"),
    "*": ("How many {x} does {m} have?", "How many {x} are {m}'s?"),
    "groups": ("How many {x} are there in all?", "How many {x} is that?", "How many {x} does {n} have altogether?"),
}
DISTRACTOR = (
    "{n} is {d} years old.",
    "{m} has {d} cousins.",
    "The walk to school takes {d} minutes.",
    "{n} woke up {d} minutes late.",
    "The shop is open for {d} hours.",
)


@cache
def split_of_pair(a, b):
    """The one split in which the operands a and b may meet, in either order and under any operation."""
    u = random.Random(f"{min(a, b)} {max(a, b)}").random()
    return "test" if u < 0.15 else "val" if u < 0.2 else "train"  # most pairs train; both others stay varied


def word_problems(split, n, difficulty=1, seed=0):
    """The embedded data set: n short arithmetic word problems with computable answers, seeded, no download.

    A problem opens with a quantity, tells one or two events and asks for the result:

        level 1   one step; sums and differences of numbers to 49, products of 2 and 3 with numbers to 99
        level 2   one step; sums and differences of numbers to 999, products of 2…9 with numbers to 999
        level 3   two steps, the second on the result of the first; sizes as in level 1
        level 4   level 3 and a sentence with a number that does not matter

    Splits are disjoint by construction: an unordered pair of operands belongs to train, val or test
    (`split_of_pair`), and *every* step of a problem uses a pair of its own split. Answers are integers >= 0.
    `val` and `test` ignore the seed: all runs are measured on the same problems.
    """
    rng = random.Random(f"{split} {difficulty} {seed if split == 'train' else 'fixed'}")
    top, product_top, factor_top = (999, 999, 9) if difficulty == 2 else (49, 99, 3)

    def step(first=None):
        """One operation on `first`, or on a fresh number, that this split may see -> (op, a, b, result), or None."""
        for _ in range(500):  # a large first number may have no partner in a small split
            op = rng.choice("+-*" if first is None or first <= product_top else "+-")
            a = rng.randint(2, product_top if op == "*" else top) if first is None else first
            b = rng.randint(2, factor_top if op == "*" else top)
            if op == "-" and b > a:
                if first is not None:
                    continue
                a, b = b, a
            if split_of_pair(a, b) == split:
                return op, a, b, {"+": a + b, "-": a - b, "*": a * b}[op]
        return None

    def telling(sentences, named):
        """The sentences, only those that name a person if two people own things."""
        return [s for s in sentences if not named or "{n}" in s or "{m}" in s]

    def problem():
        steps = [step()]
        while difficulty >= 3 and len(steps) < 2:
            second = step(steps[0][3])
            steps = [*steps, second] if second else [step()]
        result = steps[-1][3]
        (op, a, b, _), words = steps[0], dict(zip("nmo", rng.sample(NAMES, 3), strict=True))
        named = False
        words |= {"x": rng.choice(THINGS), "g": rng.choice(GROUPS)}
        if op == "*" and rng.random() < 0.6:  # groups of things: the factor comes first
            sentences, ask = [rng.choice(START_TIMES).format(a=b, b=a, **words)], "groups"
        else:
            sentences, ask = [rng.choice(START).format(a=a, **words), rng.choice(EVENT[op]).format(b=b, **words)], op
        for op, _, b, _ in steps[1:]:
            if ask == "*":  # the quantity is now the other person's, and the rest must say whose it speaks of
                words["n"], words["m"], named = words["m"], words["o"], True
            sentences, ask = [*sentences, rng.choice(telling(EVENT[op], named)).format(b=b, **words)], op
        if difficulty >= 4:
            where = rng.randrange(len(sentences) + 1)
            sentences.insert(where, rng.choice(DISTRACTOR).format(d=rng.randint(2, 60), **words))
        question = " ".join([*sentences, rng.choice(telling(ASK[ask], named)).format(**words)])
        worked = " ".join(f"{a} {op} {b} = {c}." for op, a, b, c in steps)
        return Example(question, str(result), "".join(op for op, *_ in steps), f"{worked} #### {result}")

    return [problem() for _ in range(n)]


# ------------------------------------------------------------------------------------------- tokenizers

SPECIAL = ("[PRED]", "[ANS]", "[EOS]", "[PAD]")


class Tokenizer:
    """Text <-> token ids; `pred`, `ans`, `eos`, `pad` are the ids of the special tokens, which no text encodes to.

    `n_vocab` counts everything and is rounded up to a multiple of 64, which GPUs' matrix units like.
    """

    def __init__(self, n_text):
        self.pred, self.ans, self.eos, self.pad = range(n_text, n_text + len(SPECIAL))
        self.n_text, self.n_vocab = n_text, -(-(n_text + len(SPECIAL)) // 64) * 64

    def decode(self, ids):
        """Token ids -> text; special tokens, which no answer should hold, stay visible as [PRED] and the like."""
        return self.text(ids) if all(i < self.n_text for i in ids) else "".join(self.pieces(ids))

    def save(self, folder):
        """Write what `load_tokenizer` needs and the package does not already have."""


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE of 50,257 entries through tiktoken."""

    def __init__(self):
        import tiktoken

        try:
            self.encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # whatever the HTTP stack raises when there is no network
            raise UserError(
                f"could not download the gpt2 vocabulary ({type(error).__name__}). Without a network: --tokenizer "
                "bpe:4096, --dataset wordproblems, or TIKTOKEN_CACHE_DIR at a folder where tiktoken has cached it"
            ) from error
        super().__init__(self.encoding.n_vocab)

    def encode(self, texts):
        """list of str -> list of lists of ids; text that spells a special token stays plain text."""
        return self.encoding.encode_ordinary_batch(texts)

    def text(self, ids):
        """ids, none special -> text."""
        return self.encoding.decode(ids)

    def pieces(self, ids):
        """ids -> one readable string a token."""
        text = [self.encoding.decode_single_token_bytes(i).decode("utf-8", "replace") if i < self.n_text else
                SPECIAL[min(i - self.n_text, len(SPECIAL) - 1)] for i in ids]  # fmt: skip
        return text


class BPETokenizer(Tokenizer):
    """A byte-level BPE trained on the training split, with a token for every digit *at its place*.

    "47 pears" -> 4·10  7·1  " pears". Ten digits at up to eight places are 80 tokens for all whole numbers; a model
    that must first count how many digits follow learns arithmetic late or not at all (Nogueira et al. 2021, arXiv
    2102.13019, compare ways of writing a number; place markers do best).
    """

    PLACES = 8
    FIRST = 0xE000  # digit d at place p is the private-use character FIRST + 10 p + d while the BPE sees the text

    def __init__(self, bpe):
        self.bpe = bpe
        super().__init__(bpe.get_vocab_size())

    @classmethod
    def _mark(cls, text):
        """'47' -> the characters of 4 at place 1 and 7 at place 0."""
        return re.sub(r"[0-9]+", lambda run: "".join(
            chr(cls.FIRST + 10 * min(place, cls.PLACES - 1) + int(digit))
            for place, digit in zip(range(len(run[0]) - 1, -1, -1), run[0], strict=True)), text)  # fmt: skip

    @classmethod
    def _unmark(cls, text):
        return "".join(str((ord(c) - cls.FIRST) % 10) if 0 <= ord(c) - cls.FIRST < 10 * cls.PLACES else c for c in text)

    @classmethod
    def train(cls, texts, n_vocab):
        """iterable of str -> BPETokenizer of `n_vocab` entries in all (fewer if the texts hold fewer merges)."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        bpe = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.Split(tokenizers.Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s"), "isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        digits = [chr(cls.FIRST + i) for i in range(10 * cls.PLACES)]
        trainer = trainers.BpeTrainer(vocab_size=n_vocab - len(SPECIAL) - len(digits), show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
        bpe.train_from_iterator((re.sub("[0-9]", "", text) for text in texts), trainer)
        bpe.add_tokens([tokenizers.AddedToken(c, lstrip=True, normalized=False) for c in digits])
        return cls(bpe)

    def encode(self, texts):
        """list of str -> list of lists of ids."""
        return [e.ids for e in self.bpe.encode_batch([self._mark(t) for t in texts])]

    def text(self, ids):
        """ids, none special -> text; a number sticks to the word before it, since its space is not a token."""
        return self._unmark(self.bpe.decode(ids))

    def pieces(self, ids):
        """ids -> one readable string a token."""
        return [
            self._unmark(self.bpe.decode([i])) if i < self.n_text else SPECIAL[min(i - self.n_text, len(SPECIAL) - 1)]
            for i in ids
        ]

    def save(self, folder):
        with atomic(Path(folder) / "tokenizer.json") as path:
            self.bpe.save(str(path))


def train_tokenizer(name, examples, answer_view="answer"):
    """`gpt2`, or `bpe:N` trained on the examples -> Tokenizer."""
    if name == "gpt2":
        return GPT2Tokenizer()
    kind, _, size = name.partition(":")
    if kind != "bpe" or not size.isdecimal() or int(size) < 340:
        raise UserError(
            f"--tokenizer {name}: wants gpt2, or bpe:N with N >= 340 "
            "(256 bytes, 80 digits at their places, 4 special tokens)"
        )
    texts = ((question_text(e.question, answer_view), answer_text(e, answer_view)) for e in examples)
    return BPETokenizer.train((text for pair in texts for text in pair if text), int(size))


def load_tokenizer(name, folder):
    """The tokenizer of the run in `folder`."""
    if name == "gpt2":
        return GPT2Tokenizer()
    import tokenizers

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: missing; the run in {folder} was trained with --tokenizer {name} and cannot be read without it"
        )
    try:
        return BPETokenizer(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{path}: not a tokenizer ({error})") from None


# ---------------------------------------------------------------------------------------------- batches


@dataclass
class Batch:
    """N examples in B rows; what the model needs and nothing else. Indices are int64; `*_at` index flat positions.

    tokens, segment, position  (B, T)
    question_at, question_ids  (K,)  positions of `tokens` that predict a question token, and that token
    pred_at, eos_at            (N,)  positions of [PRED] and of [EOS]
    answer_at                  (K',) positions of `tokens` that would predict an answer token (used under --mask causal)
    decode_tokens              (N, M) answer tokens: the decode pass reads [latent] a1 … am
    decode_at, answer_ids      (K',) positions of the (N, M+1) decode pass that predict an answer token or [EOS], and it
    other                      (N,)  an example of the batch with another answer, each cosine's control; -1 if none
    share                      floats, summed losses are divided by: targets and examples of the *whole* optimiser
                               step, so that micro-batches and processes add up to exactly one large batch
    """

    tokens: torch.Tensor
    segment: torch.Tensor
    position: torch.Tensor
    question_at: torch.Tensor
    question_ids: torch.Tensor
    pred_at: torch.Tensor
    eos_at: torch.Tensor
    answer_at: torch.Tensor
    decode_tokens: torch.Tensor
    decode_at: torch.Tensor
    answer_ids: torch.Tensor
    other: torch.Tensor
    share: dict

    @property
    def n_tokens(self):
        """Real tokens: all but padding."""
        return int((self.segment >= 0).sum())

    def to(self, device):
        """Copy to a device without waiting for the copy."""
        if torch.device(device).type == "cpu":
            return self
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        pin = (lambda t: t.pin_memory()) if torch.device(device).type == "cuda" else (lambda t: t)
        return Batch(**{k: pin(v).to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in moved.items()})


def _ranges(starts, lengths):
    """starts (N,), lengths (N,) -> the ranges start … start+length-1, one after the other (sum of lengths,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths - starts, lengths)


class Encoded:
    """A split as one contiguous array of token ids; batches are cut from it without a Python loop over examples."""

    def __init__(self, examples, tokenizer, block_size, where="data", isolated=True, answer_view="answer"):
        """Examples that do not fit `block_size`, or have no program where one is wanted, are left out, counted and
        told; `isolated` views count from 0."""
        texts = [answer_text(e, answer_view) for e in examples]
        if None in texts:
            print(f"{where}: left out {texts.count(None)} of {len(texts)} examples whose solution is no program")
        questions = tokenizer.encode([question_text(e.question, answer_view) for e in examples])
        answers = tokenizer.encode([text or "" for text in texts])
        size = [0 if t is None else len(q) + len(a) + 3 for q, a, t in zip(questions, answers, texts, strict=True)]
        fits = [n <= block_size for n in size]
        if not all(fits):
            longest = max(size)
            print(f"{where}: left out {fits.count(False)} of {len(fits)} examples longer than --block-size "
                  f"{block_size} tokens (the longest needs {longest})")  # fmt: skip
        self.index = np.flatnonzero([fit and text is not None for fit, text in zip(fits, texts, strict=True)])
        if not len(self.index):
            raise UserError(f"{where}: --answer-view program wants solutions with <<48/2=24>> annotations, as GSM8K's; "
                            "none has a usable one" if texts.count(None) == len(texts) else
                            f"{where}: no example fits --block-size {block_size}")  # fmt: skip
        self.examples = [examples[i] for i in self.index]
        self.tokenizer, self.block_size, self.isolated = tokenizer, block_size, isolated
        rows = [(questions[i], answers[i]) for i in self.index]
        self.n = np.array([len(q) for q, _ in rows])  # question tokens
        self.m = np.array([len(a) for _, a in rows])  # answer tokens
        self.length = self.n + self.m + 3  # with [PRED], [ANS] and [EOS]
        self.start = np.concatenate([[0], np.cumsum(self.length)[:-1]])
        t = tokenizer
        self.tokens = np.fromiter((i for q, a in rows for i in (*q, t.pred, t.ans, *a, t.eos)), np.int64)
        self.answer_id = np.unique([e.answer for e in self.examples], return_inverse=True)[1]

    def __len__(self):
        return len(self.n)

    def totals(self, index):
        """What a summed loss over these examples is divided by to be a mean (see Batch.share)."""
        n, m = self.n[index], self.m[index]
        return {
            "question": float(max(1, np.maximum(n - 1, 0).sum())),
            "answer": float((m + 1).sum()),
            "examples": float(len(n)),
        }

    def rows(self, index, packed):
        """Which row each example goes to and where in it -> (row (N,), offset (N,), T)."""
        length = self.length[index]
        if not packed:
            return np.arange(len(index)), np.zeros(len(index), np.int64), int(length.max())
        row, offset, free = np.zeros(len(index), np.int64), np.zeros(len(index), np.int64), []
        for i in np.argsort(-length, kind="stable"):  # first fit, longest first
            r = next((r for r, space in enumerate(free) if space >= length[i]), len(free))
            if r == len(free):
                free.append(self.block_size)
            row[i], offset[i] = r, self.block_size - free[r]
            free[r] -= int(length[i])
        return row, offset, self.block_size

    def batch(self, index, share=None, packed=False):
        """Examples `index` (N,) -> Batch."""
        index = np.asarray(index)
        n, m, length = self.n[index], self.m[index], self.length[index]
        row, offset, T = self.rows(index, packed)
        B, N, M = int(row.max()) + 1, len(index), int(m.max())
        begin = row * T + offset  # flat position of each example's first token
        at = _ranges(begin, length)
        tokens = np.full(B * T, self.tokenizer.pad)
        segment, position = np.full(B * T, -1), np.zeros(B * T, np.int64)
        tokens[at] = self.tokens[_ranges(self.start[index], length)]
        views = np.stack([n + 1, m + 2], 1).ravel()  # lengths of q…[PRED], [ANS]…[EOS], of the next example, …
        segment[at] = np.repeat(np.arange(2 * N), views)
        position[at] = (
            _ranges(np.zeros(2 * N, np.int64), views) if self.isolated else _ranges(np.zeros(N, np.int64), length)
        )
        question_at = _ranges(begin, np.maximum(n - 1, 0))
        answer_at = _ranges(begin + n + 1, m + 1)  # [ANS] a1 … am predict a1 … am [EOS]
        decode_tokens = np.full((N, M), self.tokenizer.pad)
        decode_tokens[np.arange(M) < m[:, None]] = tokens[_ranges(begin + n + 2, m)]
        arrays = dict(
            tokens=tokens.reshape(B, T), segment=segment.reshape(B, T), position=position.reshape(B, T),
            question_at=question_at, question_ids=tokens[question_at + 1], pred_at=begin + n, eos_at=begin + length - 1,
            answer_at=answer_at, decode_tokens=decode_tokens, decode_at=_ranges(np.arange(N) * (M + 1), m + 1),
            answer_ids=tokens[answer_at + 1], other=_another(self.answer_id[index]),
        )  # fmt: skip
        return Batch(**{k: torch.from_numpy(v) for k, v in arrays.items()}, share=share or self.totals(index))


def _another(labels):
    """labels (N,) -> for each item the position of an item with another label, or -1: the nearest one after it."""
    N = len(labels)
    other = np.full(N, -1)
    for shift in range(1, N):
        todo = other < 0
        if not todo.any():
            break
        candidate = (np.arange(N) + shift) % N
        other = np.where(todo & (labels[candidate] != labels), candidate, other)
    return other


def epoch_order(length, batch_size, seed, epoch):
    """Lengths (N,) -> the epoch's optimiser steps, a list of index arrays: a pure function of its arguments.

    Shuffled, then sorted by length within chunks of 50 batches, cut into batches, batches shuffled: a batch holds
    like lengths, so that little of it is padding, and no two epochs hold the same batches. The remainder
    of the division is left out, other examples in each epoch, so that every step has the same weight.
    """
    rng = np.random.default_rng([seed, epoch])
    batch_size = min(batch_size, len(length))
    order = rng.permutation(len(length))[: len(length) // batch_size * batch_size]
    chunk = 50 * batch_size
    order = np.concatenate(
        [c[np.argsort(length[c], kind="stable")] for c in np.split(order, range(chunk, len(order), chunk))]
    )
    steps = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [steps[i] for i in rng.permutation(len(steps))]


def make_batches(data, config, rank=0, world=1):
    """Encoded, Config -> (steps per epoch, batches): `batches(epoch, k)` yields the micro-batches of this process
    in step k of that epoch. All processes together see exactly the examples of one process alone."""
    steps = len(epoch_order(data.length, config.batch_size, config.seed, 0))
    order = lru_cache(maxsize=1)(lambda epoch: epoch_order(data.length, config.batch_size, config.seed, epoch))

    def batches(epoch, k):
        index, parts = order(epoch)[k], world * config.grad_accum
        share = data.totals(index)
        for i in range(config.grad_accum):
            yield data.batch(index[rank * config.grad_accum + i :: parts], share, config.batching == "packed")

    return steps, batches


def ordered_batches(data, batch_size, packed=False):
    """Every example once, like lengths together -> Batches whose summed losses are the means over the whole split."""
    order, share = np.argsort(data.length, kind="stable"), data.totals(slice(None))
    for i in range(0, len(order), batch_size):
        yield data.batch(order[i : i + batch_size], share, packed)
