"""data.py: answers, files, splits, word problems, tokenizers, batches.

What the fast code computes with index arithmetic is checked against loops over examples that are slow and obvious.
"""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import data
from config import Config, UserError
from data import (
    Encoded,
    Example,
    answer_text,
    compute,
    epoch_order,
    load_jsonl,
    load_splits,
    load_tokenizer,
    make_batches,
    ordered_batches,
    parse_answer,
    program,
    question_text,
    resample,
    same_answer,
    slots,
    solution_ops,
    train_tokenizer,
    variants,
    word_problems,
)

LEVELS = (1, 2, 3, 4)

# --------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "text, answer",
    (
        ("She pays 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### 1,234,567.89", "1234567.89"),
        ("#### -5", "-5"),
        ("#### +5", "5"),
        ("#### 0.50", "0.50"),
        ("#### .5", ".5"),
        ("#### -.5", "-.5"),
        ("#### $1,200", "1200"),
        ("#### €-3", "-3"),
        ("#### 20%", "20"),
        ("#### 7.", "7"),
        ("#### 12, as asked", "12"),
        ("#### 30 apples", "30"),
        ("####5", "5"),
        ("#### 3 so no: #### 4", "4"),
        ("the answer is 7", None),
        ("#### ", None),
        ("#### none", None),
        ("#### 3 ####", None),
        ("", None),
    ),
)
def test_the_answer_is_the_number_after_the_last_mark(text, answer):
    assert parse_answer(text) == answer


def test_answers_are_the_same_if_they_name_the_same_number():
    for a, b in (("7", "7.0"), ("1,234", "1234"), (".5", "0.50"), ("-0", "0"), ("7.", " 7 "), ("+3", "3")):
        assert same_answer(a, b) and same_answer(b, a), (a, b)
    for a, b in (("7", "-7"), ("7", "70"), ("", "0"), ("[EOS]", "0"), ("7 7", "77"), ("0.1", "0.10000000000000001")):
        assert not same_answer(a, b) and not same_answer(b, a), (a, b)
    assert same_answer("many ", "many") and not same_answer("many", "few")


def test_operations_are_read_from_the_annotations_in_order():
    assert (
        solution_ops("He has 48/2 = <<48/2=24>>24. Then <<24+48=72>>72, <<-3*2=-6>>, <<(5+4)/.5=18>> #### 72")
        == "/+*+/"
    )
    assert solution_ops("3 + 4 = 7 #### 7") == ""


# ------------------------------------------------------------------------------ variants of a question

APPLES = Example("Ana has 12 apples and buys 8 boxes of 6 apples. Each costs $2.50. How many apples has she?", "60",
                 "*+", "She buys 8*6=<<8*6=48>>48 apples.\nShe has 12+48=<<12+48=60>>60 apples.\n#### 60")  # fmt: skip
POOL = list(range(2, 200))


def test_a_variant_has_other_numbers_and_an_answer_that_its_own_calculations_give():
    for seed in range(50):
        new = resample(APPLES, random.Random(seed), POOL)
        a, b, c = map(int, re.match(r"Ana has (\d+) apples and buys (\d+) boxes of (\d+) apples. Each costs \$2.50.",
                                    new.question).groups())  # fmt: skip
        assert new.answer == str(a + b * c) and new.ops == "*+"
        assert f"<<{b}*{c}={b * c}>>" in new.solution and new.solution.endswith(f"#### {a + b * c}")
        assert 6 <= a <= 24 and 4 <= b <= 16 and 3 <= c <= 12


@pytest.mark.parametrize("question,solution", [
    ("He has 5 and 5 more.", "<<5+5=10>>10 <<10/2=5>>5 #### 5"),  # the result is a quantity too: which 5 is which?
    ("He has 20% of 50.", "<<20*.01*50=11>>10 #### 10"),  # does not compute
    ("He has many.", "<<3*4=12>>12 #### 12"),  # no quantity in the question
    ("He has 3 of 4.", "no calculation #### 12"),
    ("He has 3 of 4.", "<<3*4=12>>12 #### 13"),  # the answer is not a result
    ("He has 3 of 4.", "<<3*x=12>>12 #### 12"),
    ("He has 3 of 4.", "<<3/0=12>>12 #### 12"),
    ("The 3rd of 3.", "<<3*4=12>>12 #### 12"),  # 3rd would stay while 3 changes
    ("2 hours a mile, twice as long for 8 miles.", "<<8*2=16>>16 <<16*2=32>>32 #### 32"),  # the second 2 is "twice"
    ("10 of 50, then 10% more.", "<<50+10=60>>60 <<60*10/100=6>>6 #### 6"),  # the second 10 is "10%"
    ("He has $2.50 and $1.50.", "<<2.50+1.50=4>>4 #### 4"),  # prices stay, so nothing would change
])  # fmt: skip
def test_a_question_that_cannot_be_varied_safely_is_left_alone(question, solution):
    assert resample(Example(question, parse_answer(solution), "", solution), random.Random(0), POOL) is None


def test_a_draw_that_would_divide_by_nothing_is_drawn_again():
    """The denominator of <<10/(8-6)=5>> is 0 whenever both draws agree, which the pool makes likely."""
    example = Example("Share 10 sweets among 8 less 6 children.", "5", "/-", "<<10/(8-6)=5>>5 #### 5")
    found = [resample(example, random.Random(seed), [4, 5, 5, 5, 5, 10, 12]) for seed in range(20)]
    assert any(found) and all(float(e.answer) > 0 for e in found if e)


def test_nothing_to_draw_from_is_no_variant():
    assert resample(APPLES, random.Random(0), []) is None


def test_variants_of_real_questions_compute(shared_data, capsys):
    examples = load_jsonl(shared_data / "gsm8k" / "train.jsonl")[:400]
    new = variants(examples, 1, seed=3)
    assert len(new) > 100 and f"{len(new):,} variants" in capsys.readouterr().out
    old = {e.question: e for e in examples}
    for e in new:
        assert e.question not in old
        calcs = re.findall(r"<<([^=<>]+)=([^<>]+)>>", e.solution)
        assert all(abs(eval(a) - float(b)) < 1e-9 for a, b in calcs) and float(calcs[-1][1]) == float(e.answer)
        strip = lambda text: re.sub(r"[\d.,]", "", text)  # noqa: E731
        assert sum(strip(e.question) == strip(x) for x in old) >= 1, "more than numbers changed"
    assert variants(examples, 1, seed=3) == new


def test_a_worked_solution_computes_its_answer_and_shows_no_annotations():
    for level in (1, 3):
        for e in problems("test", level)[:50]:
            steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)\.", e.solution)
            assert all(str(eval(f"{a}{op}{b}")) == c for a, op, b, c in steps) and len(steps) == len(e.ops)
            assert parse_answer(e.solution) == e.answer == steps[-1][-1]
    assert answer_text(APPLES, "answer") == "60"
    assert answer_text(APPLES, "equations") == "8*6=48, 12+48=60 #### 60"
    plain = Example("", "7", "+", "3 + 4 = 7. #### 7")  # a word problem's solution is equations already
    assert answer_text(plain, "equations") == plain.solution
    assert answer_text(Example("", "7", "", "It is\nseven.\n#### 7"), "equations") == "#### 7"
    assert answer_text(APPLES, "program") == "β*γ,α+a"
    assert answer_text(APPLES, "solution") == "She buys 8*6=48 apples.\nShe has 12+48=60 apples.\n#### 60"


def test_a_program_is_the_solution_over_the_letters_of_the_questions_numbers():
    text, numbers = slots(APPLES.question)
    assert text == "Ana has α apples and buys β boxes of γ apples. Each costs $ δ. How many apples has she?"
    assert numbers == {"α": 12, "β": 8, "γ": 6, "δ": 2.5}
    assert question_text(APPLES.question, "program") == text and question_text(APPLES.question, "answer") != text
    assert program(APPLES) == "β*γ,α+a" and compute("β*γ,α+a", numbers) == "60"
    made_of = lambda question, solution, answer: program(Example(question, answer, "", solution))  # noqa: E731
    assert made_of("20% of $1,500, twice.", "<<1500*20%=300>> <<300*2=600>> <<600=600>>", "600") == "β*(α/100),a*2"
    assert made_of("20% of 100.", "<<100*20%=20>>", "20") == "β*(α/100)" and slots(".5 and $.20 of 7.5.") == (
        " α and $ β of γ.", {"α": 0.5, "β": 0.2, "γ": 7.5})  # fmt: skip
    assert made_of("Half of 3.", "<<3*.5=1.5>>", "1.5") == "α*.5"
    assert made_of("1 and 2", "<<1+2=3>>", "4") is None and made_of("1 and 2", "three", "3") is None
    assert made_of("1 and 2", "<<1+x=3>>", "3") is None
    for broken in ("", "α/0", "b+1", "9**9**9", "α//2", "(α", "α(2)", "α.real", "-", "α+", "β*β", "__import__",
                   "*".join(["100"] * 60) + "*", ",".join(["9*9", *(f"{x}*{x}" for x in "abcdefghijkl")])):  # fmt: skip
        assert compute(broken, {"α": 3.0, "β": 1e200}) == "", broken  # the last two within a blink
    assert compute("α*05", {"α": 3.0}) == "15" and compute("α+0.004", {"α": 3.0}) == "3.004"
    with pytest.raises(UserError, match="wants solutions with <<48/2=24>> annotations"):
        Encoded(
            problems("test", 1)[:4], train_tokenizer("bpe:400", problems("train", 1)[:50]), 64, answer_view="program"
        )


def test_nearly_every_solution_of_gsm8k_is_a_program_that_computes_its_answer(shared_data):
    examples = load_jsonl(shared_data / "gsm8k" / "test.jsonl")
    programs = {e: p for e in examples if (p := program(e)) is not None}
    assert len(programs) > 0.88 * len(examples)
    assert sum(bool(slots(e.question)[1]) and not re.search("[α-ω]", p) for e, p in programs.items()) < 20


# ----------------------------------------------------------------------------------------------- files


def row(question="What?", answer="#### 1"):
    return json.dumps({"question": question, "answer": answer})


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def told(path):
    """load_jsonl refuses the file -> its one line."""
    with pytest.raises(UserError) as caught:
        load_jsonl(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_rows_become_examples(tmp_path):
    path = write(tmp_path / "a.jsonl", row(" How many? ", "<<2*3=6>>6\n#### 1,006"), "", row("Où?", "#### 2"))
    assert load_jsonl(path) == [Example("How many?", "1006", "*"), Example("Où?", "2", "")]


def test_a_missing_file_says_what_to_give(tmp_path):
    assert "--data-dir" in told(tmp_path / "no.jsonl")


def test_a_broken_line_is_named_by_number_and_column(tmp_path):
    path = write(tmp_path / "a.jsonl", row(), "", '{"question": "x" "answer": "#### 1"}')
    assert re.search(r"a\.jsonl:3: .*column 18", told(path))


@pytest.mark.parametrize(
    "line", ('{"question": "x"}', '{"question": "x", "answer": 1}', '["x", "#### 1"]', "7", "null")
)
def test_a_line_without_question_and_answer_is_named(tmp_path, line):
    said = told(write(tmp_path / "a.jsonl", row(), line))
    assert "a.jsonl:2:" in said and "question" in said and "answer" in said


def test_rows_without_an_answer_are_counted_and_told_and_the_rest_kept(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", row("a"), row("b", "7"), row("c"), *[row("d", "#### none")] * 6)
    assert [e.question for e in load_jsonl(path)] == ["a", "c"]
    assert "skipped 7 of 9 rows" in (said := capsys.readouterr().out) and "line 2, 4, 5, 6, 7, …" in said


def test_nothing_is_told_when_nothing_is_skipped(tmp_path, capsys):
    load_jsonl(write(tmp_path / "a.jsonl", row()))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("lines", ((), ("", " "), (row(answer="7"),)))
def test_a_file_without_a_usable_row_is_refused(tmp_path, lines):
    assert "no usable rows" in told(write(tmp_path / "a.jsonl", *lines))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(row().encode() + b"\n" + row("caf").encode().replace(b"caf", b"caf\xe9"))
    assert "UTF-8" in told(tmp_path / "a.jsonl")


@pytest.mark.parametrize("package, get", (("datasets", data.load_hub_gsm8k), ("tiktoken", data.GPT2Tokenizer)))
def test_without_a_network_the_download_and_the_ways_around_it_are_named(monkeypatch, package, get):
    def refuse(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, package, SimpleNamespace(load_dataset=refuse, get_encoding=refuse))
    with pytest.raises(UserError, match="gsm8k|gpt2") as caught:
        get()
    assert "--dataset wordproblems" in str(caught.value) and "ConnectionError" in str(caught.value)


# ---------------------------------------------------------------------------------------------- splits


def folder_of(path, n_train, n_test):
    write(path / "train.jsonl", *[row(f"train {i}") for i in range(n_train)])
    write(path / "test.jsonl", *[row(f"test {i}") for i in range(n_test)])
    return str(path)


@pytest.mark.parametrize("n_train, n_val", ((60, 12), (3000, 500)))
def test_splits_of_a_folder_are_disjoint_and_complete(tmp_path, n_train, n_val):
    splits = load_splits(Config(data_dir=folder_of(tmp_path, n_train, 7)))
    names = {split: {e.question for e in examples} for split, examples in splits.items()}
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": n_train - n_val,
        "val": n_val,
        "test": 7,
    }
    assert names["train"] | names["val"] == {f"train {i}" for i in range(n_train)}
    assert names["test"] == {f"test {i}" for i in range(7)}


def test_validation_questions_are_the_same_whatever_the_seed(tmp_path):
    """With another validation split per seed, runs of different seeds train on each other's validation questions."""
    data_dir = folder_of(tmp_path, 60, 7)
    first, second = (load_splits(Config(data_dir=data_dir, seed=seed)) for seed in (1, 2))
    assert first == second
    assert [e.question for e in first["val"]] != [f"train {i}" for i in range(12)], (
        "the file's head is no random sample"
    )


def test_gsm8k_has_the_sizes_and_favourite_answers_that_are_quoted(shared_data, capsys):
    splits = load_splits(Config(data_dir=str(shared_data / "gsm8k")))
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 6973, "val": 500, "test": 1319}
    assert capsys.readouterr().out == "", "rows were skipped"
    counts = Counter(e.answer for e in splits["test"])
    assert round(counts["5"] / 1319, 4) == 0.0303 and round(counts["4"] / 1319, 4) == 0.0265
    assert sum(e.ops != "" for e in splits["train"]) > 0.95 * 6973


# --------------------------------------------------------------------------------------- word problems


@cache
def problems(split, level, n=3000, seed=0):
    return word_problems(split, n, level, seed)


def fold(numbers, ops):
    """(first, …), operations -> (result, unordered operand pairs of the steps); None if a difference is negative."""
    result, pairs = numbers[0], []
    for op, b in zip(ops, numbers[1:], strict=True):
        pairs.append((min(result, b), max(result, b)))
        result = {"+": result + b, "-": result - b, "*": result * b}[op]
        if result < 0:
            return None, pairs
    return result, pairs


def readings(example):
    """The ways to read a problem from its text alone, all numbers or all but one -> list of operand pairs per way."""
    numbers = tuple(int(x) for x in re.findall(r"\d+", example.question))
    spare = len(numbers) - len(example.ops) - 1
    assert spare in (0, 1), example
    ways = {numbers} if not spare else {numbers[:i] + numbers[i + 1 :] for i in range(len(numbers))}
    found = [fold(way, example.ops) for way in ways]
    return [pairs for result, pairs in found if str(result) == example.answer]


@pytest.mark.parametrize("level", LEVELS)
def test_word_problems_are_reproducible_and_only_training_depends_on_the_seed(level):
    make = lambda split, seed: word_problems(split, 50, level, seed)  # noqa: E731
    assert make("train", 1) == make("train", 1) != make("train", 2)
    for split in ("val", "test"):
        assert make(split, 1) == make(split, 2)
    assert make("val", 1) != make("test", 1)


def test_more_problems_begin_with_the_same_ones():
    assert word_problems("train", 50, 3)[:20] == word_problems("train", 20, 3)


def as_lists(steps):
    return [step.tolist() for step in steps]


def digest():
    """A hash of what a resumed run must find unchanged."""
    made = [word_problems(split, 99, level, 7) for split in ("train", "val", "test") for level in LEVELS]
    return hashlib.sha256(repr((made, as_lists(epoch_order(np.arange(500) % 7, 16, 3, 2)))).encode()).hexdigest()


def test_word_problems_and_epochs_are_the_same_in_another_process():
    """A seed that goes through hash() differs between processes, and --resume would continue on other data."""
    paths = os.pathsep.join(os.path.dirname(os.path.abspath(f)) for f in (data.__file__, __file__))
    code, env = "import test_data; print(test_data.digest())", os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == digest(), done.stderr


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ("train", "val", "test"))
def test_the_answer_follows_from_the_numbers_in_the_text(split, level):
    for example in problems(split, level):
        n_steps, n_spare = (1 if level < 3 else 2), (1 if level == 4 else 0)
        assert len(example.ops) == n_steps
        assert len(re.findall(r"\d+", example.question)) == n_steps + 1 + n_spare, example
        assert readings(example), f"no reading gives the answer: {example}"
        assert int(example.answer) >= 0


def test_the_distractor_may_be_any_of_the_numbers():
    """A distractor that always comes last is no distractor: a model learns to ignore the last number."""
    where = Counter()
    for example in problems("train", 4):
        numbers = [int(x) for x in re.findall(r"\d+", example.question)]
        fit = [i for i in range(4) if str(fold(numbers[:i] + numbers[i + 1 :], example.ops)[0]) == example.answer]
        if len(fit) == 1:
            where[fit[0]] += 1
    assert len(where) == 4 and min(where.values()) > 200, where


def test_no_operand_pair_of_a_held_out_problem_occurs_in_training():
    """Whatever the operation, the order, the step and the level: otherwise a look-up table would pass for reasoning."""
    seen = {split: set() for split in ("train", "val", "test")}
    for level in LEVELS:
        for split, n in (("train", 8000), ("val", 1000), ("test", 1000)):
            for example in problems(split, level, n):
                ways = readings(example)
                if len(ways) == 1:  # with a distractor now and then two readings give the answer
                    seen[split].update(ways[0])
    assert min(map(len, seen.values())) > 500
    for a, b in (("train", "test"), ("train", "val"), ("val", "test")):
        shared = seen[a] & seen[b]
        assert not shared, f"{len(shared)} pairs are both in {a} and in {b}, such as {sorted(shared)[:3]}"


@pytest.mark.parametrize("level", LEVELS)
def test_word_problems_are_varied(level):
    strip = re.compile(rf"\b({'|'.join((*data.NAMES, *data.THINGS, *data.GROUPS))})\b")
    wordings, ops = {}, Counter(example.ops for example in problems("train", level))
    for example in problems("train", level):
        wordings.setdefault(example.ops, set()).add(re.sub(r"\d+", "#", strip.sub("_", example.question)))
    assert set(ops) == ({"+", "-", "*"} if level < 3 else {a + b for a in "+-*" for b in "+-*"})
    assert min(ops.values()) > 0.02 * 3000
    few = {name: len(found) for name, found in wordings.items() if len(found) < 40}
    assert not few, f"fewer than 40 wordings: {few}"
    assert len(set(problems("train", level))) > 0.97 * 3000, "problems repeat"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ("train", "test"))
def test_no_answer_is_a_favourite(split, level):
    """A constant guess must not look like skill."""
    answer, count = Counter(example.answer for example in problems(split, level, 1000)).most_common(1)[0]
    assert count < 0.05 * 1000, f"{answer} is the answer of {count} of 1000"


def test_load_splits_gives_the_word_problems_that_the_options_ask_for():
    splits = load_splits(Config(dataset="wordproblems", n_train=30, difficulty=3, seed=5))
    assert splits["train"] == word_problems("train", 30, 3, 5)
    assert splits["test"] == word_problems("test", 1000, 3) and splits["val"] == word_problems("val", 500, 3)


# ------------------------------------------------------------------------------------------ tokenizers


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer("bpe:512", problems("train", 1))


@pytest.fixture
def gpt2(monkeypatch, request):
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        folder = request.getfixturevalue("shared_data") / "tiktoken"
        if not folder.is_dir():
            pytest.skip("tiktoken's cache is neither in TIKTOKEN_CACHE_DIR nor in ../shared/data/tiktoken")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return train_tokenizer("gpt2", [])


@pytest.fixture(params=("bpe", "gpt2"))
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_answers_survive_the_tokenizer(tokenizer):
    rng = np.random.default_rng(0)
    answers = [str(i) for i in range(-150, 2000)] + [str(x) for x in rng.integers(-(10**7), 10**7, 500)]
    answers += [f"{x:.2f}" for x in rng.normal(0, 1000, 200)] + [".5", "-.5", "0.50", "-0", "00", "12345678"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(answers)] == answers
    assert [tokenizer.encode([a])[0] for a in answers[::50]] == tokenizer.encode(answers)[::50]


def test_different_answers_have_different_tokens(tokenizer):
    answers = [str(i) for i in range(5000)] + ["1.0", "10", "01", "-1", "0.1", ".1"]
    assert len({tuple(ids) for ids in tokenizer.encode(answers)}) == len(set(answers))


def test_no_text_encodes_to_a_special_token(tokenizer):
    special = {tokenizer.pred, tokenizer.ans, tokenizer.eos, tokenizer.pad}
    assert len(special) == 4 and max(special) < tokenizer.n_vocab and tokenizer.n_vocab % 64 == 0
    texts = ["[PRED] [ANS][EOS] [PAD]", "<|endoftext|>", "[UNK]", "</s>", "", " ", "\n", "\x00", "Ünïcödé 数 🍐"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert all(0 <= i < min(special) for i in ids), text
        assert len(ids) > 1 or len(text) < 2, f"{text} is one token"
        assert bool(ids) == bool(text)
    assert (
        tokenizer.decode(tokenizer.encode(["[PRED]"])[0] + [tokenizer.pred, tokenizer.n_vocab - 1])
        == "[PRED][PRED][PAD]"
    )


def test_a_digit_is_one_token_that_tells_its_place(bpe):
    ones, tens, hundreds = (bpe.encode(texts) for texts in (["7"], ["70", "71"], ["700", "754"]))
    assert [len(ids) for ids in (*ones, *tens, *hundreds)] == [1, 2, 2, 3, 3]
    assert tens[0][0] == tens[1][0] and hundreds[0][0] == hundreds[1][0], "one digit at one place, two tokens"
    assert len({ones[0][0], tens[0][0], hundreds[0][0]}) == 3, "one token for a digit at different places"
    alone = bpe.encode(["47"])[0]
    for text in ("Tom has 47 pears.", "47 pears", "47.", "(47)", "$47"):
        ids = bpe.encode([text])[0]
        assert any(ids[i : i + 2] == alone for i in range(len(ids))), text


def test_common_words_are_one_token(bpe):
    assert all(len(ids) == 1 for ids in bpe.encode([" How", " many", " has", " more"]))
    assert np.mean([len(ids) for ids in bpe.encode([e.question for e in problems("test", 1)])]) < 30


def test_a_saved_tokenizer_gives_the_same_ids(bpe, tmp_path):
    bpe.save(tmp_path)
    again = load_tokenizer("bpe:512", tmp_path)
    texts = [text for e in problems("test", 4, 100) for text in (e.question, e.answer)] + ["-1,234.5", "Zoë 7"]
    assert again.encode(texts) == bpe.encode(texts)
    assert vars(again) | {"bpe": 0} == vars(bpe) | {"bpe": 0}, "special ids or the vocabulary's size differ"


def test_training_a_tokenizer_twice_gives_the_same_ids(bpe):
    """--seed and --resume promise equal runs, which needs equal ids."""
    texts = [e.question for e in problems("test", 2, 200)]
    assert train_tokenizer("bpe:512", problems("train", 1)).encode(texts) == bpe.encode(texts)


@pytest.mark.parametrize("size", (400, 512, 1024))
def test_a_trained_tokenizer_has_at_most_the_entries_asked_for(size):
    assert train_tokenizer(f"bpe:{size}", problems("train", 1)).pad < size


@pytest.mark.parametrize("name", ("gpt3", "bpe", "bpe:", "bpe:big", "bpe:-5", "bpe:100", "BPE:512", "", "word:512"))
def test_a_wrong_tokenizer_name_is_refused(name):
    with pytest.raises(UserError, match=f"--tokenizer {name}: wants gpt2, or bpe:N"):
        train_tokenizer(name, [])


def test_a_run_without_its_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json: missing"):
        load_tokenizer("bpe:512", tmp_path)


# --------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def examples():
    mixed = [e for level in LEVELS for e in problems("train", level, 60)]
    return [*mixed, Example("Why?", "-3.5"), Example("What is 1 + 1? " * 5, "2"), Example("", "0")]


def views(batch):
    """Batch -> for each example its question view and its answer view, as flat positions in order."""
    segment = batch.segment.flatten()
    return [[(segment == s).nonzero()[:, 0].tolist() for s in (2 * k, 2 * k + 1)] for k in range(len(batch.pred_at))]


def contents(batch):
    """Batch -> sorted list of (question view, answer view) as token ids: what is in it, wherever it stands."""
    tokens = batch.tokens.flatten()
    return sorted((tokens[q].tolist(), tokens[a].tolist()) for q, a in views(batch))


def expected(bpe, example):
    """Example -> its two views as token ids, the obvious way."""
    return [*bpe.encode([example.question])[0], bpe.pred], [bpe.ans, *bpe.encode([example.answer])[0], bpe.eos]


@pytest.mark.parametrize("isolated", (True, False))
@pytest.mark.parametrize("packed", (False, True))
def test_a_batch_holds_each_example_once_and_in_order(bpe, examples, packed, isolated):
    index = np.random.default_rng(1).permutation(len(examples))[:64]
    index[:3] = range(len(examples) - 3, len(examples))  # the odd ones
    batch = Encoded(examples, bpe, 160, isolated=isolated).batch(index, packed=packed)
    B, T = batch.tokens.shape
    assert batch.segment.shape == batch.position.shape == (B, T) and T <= 160
    assert B < 64 if packed else B == 64
    tokens, position = batch.tokens.flatten(), batch.position.flatten()
    for i, (q, a) in zip(index, views(batch), strict=True):
        both = q + a
        assert (tokens[q].tolist(), tokens[a].tolist()) == expected(bpe, examples[i])
        assert both == list(range(both[0], both[0] + len(both))), "an example is torn"
        assert both[0] // T == both[-1] // T, "an example runs over the end of its row"
        again = range(len(a)) if isolated else range(len(q), len(both))
        assert position[both].tolist() == [*range(len(q)), *again]
    padding = batch.segment.flatten() < 0
    assert batch.n_tokens == int((~padding).sum()) == sum(len(q + a) for q, a in views(batch))
    assert (tokens[padding] == bpe.pad).all() and not (tokens[~padding] == bpe.pad).any()


@pytest.mark.parametrize("packed", (False, True))
def test_the_indices_of_a_batch_point_at_what_they_say(bpe, examples, packed):
    index = np.random.default_rng(2).permutation(len(examples))[:40]
    index[:3] = range(len(examples) - 3, len(examples))
    batch = Encoded(examples, bpe, 160).batch(index, packed=packed)
    tokens, N = batch.tokens.flatten().tolist(), len(index)
    question, answer, decode = [], [], []  # (position, token to predict)
    for k, (q, a) in enumerate(views(batch)):
        assert (batch.pred_at[k], batch.eos_at[k]) == (q[-1], a[-1])
        assert tokens[q[-1]] == bpe.pred and tokens[a[-1]] == bpe.eos
        question += [(at, tokens[at + 1]) for at in q[:-2]]  # the last token of the question and [PRED] predict nothing
        answer += [(at, tokens[at + 1]) for at in a[:-1]]  # [EOS] predicts nothing
        ids = [tokens[at] for at in a[1:-1]]
        M = batch.decode_tokens.shape[1]
        assert batch.decode_tokens[k].tolist() == ids + [bpe.pad] * (M - len(ids))
        decode += [(k * (M + 1) + j, token) for j, token in enumerate([*ids, bpe.eos])]
    assert list(zip(batch.question_at.tolist(), batch.question_ids.tolist(), strict=True)) == question
    assert list(zip(batch.answer_at.tolist(), batch.answer_ids.tolist(), strict=True)) == answer
    assert list(zip(batch.decode_at.tolist(), batch.answer_ids.tolist(), strict=True)) == decode
    assert batch.decode_tokens.shape[0] == N
    assert batch.share == {"question": len(question), "answer": len(answer), "examples": N}


def test_the_control_of_an_example_has_another_answer(bpe):
    """A control with the own answer would have cosine 1 and hide what it is there to show."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        answers = [str(a) for a in rng.integers(0, rng.integers(1, 5), rng.integers(1, 12))]
        batch = Encoded([Example("What?", a) for a in answers], bpe, 64).batch(rng.permutation(len(answers)))
        own = [bpe.decode([i for i in ids if i != bpe.pad]) for ids in batch.decode_tokens.tolist()]
        for k, other in enumerate(batch.other.tolist()):
            assert own[other] != own[k] if other >= 0 else len(set(own)) == 1


def test_examples_too_long_are_left_out_counted_and_told(bpe, examples, capsys):
    size = [len(q) + len(a) for q, a in (expected(bpe, e) for e in examples)]
    limit = sorted(size)[len(size) // 2]
    encoded = Encoded(examples, bpe, limit, "val")
    kept = [i for i, n in enumerate(size) if n <= limit]
    assert encoded.index.tolist() == kept and encoded.examples == [examples[i] for i in kept]
    assert encoded.length.tolist() == [size[i] for i in kept] and max(encoded.length) == limit
    said = capsys.readouterr().out
    assert f"val: left out {len(size) - len(kept)} of {len(size)}" in said
    assert f"--block-size {limit}" in said and str(max(size)) in said
    Encoded(examples, bpe, max(size))
    assert capsys.readouterr().out == ""


def test_a_block_size_that_nothing_fits_is_refused(bpe, examples):
    with pytest.raises(UserError, match="train: no example fits --block-size 4"):
        Encoded(examples[:9], bpe, 4, "train")


# ---------------------------------------------------------------------------------------------- epochs


def test_an_epoch_is_a_function_of_seed_and_epoch_alone():
    length = np.random.default_rng(0).integers(5, 50, 1000)
    one = as_lists(epoch_order(length, 16, seed=1, epoch=2))
    np.random.seed(9)
    assert as_lists(epoch_order(length, 16, seed=1, epoch=2)) == one
    for other in (as_lists(epoch_order(length, 16, 1, 3)), as_lists(epoch_order(length, 16, 2, 2))):
        assert {tuple(sorted(s)) for s in other}.isdisjoint({tuple(sorted(s)) for s in one}), "the same batch again"


@pytest.mark.parametrize("n, size", ((1000, 16), (100, 32), (7, 16), (64, 64), (1, 1)))
def test_an_epoch_holds_no_example_twice_and_drops_less_than_a_batch(n, size):
    steps = epoch_order(np.arange(n) % 13, size, 0, 0)
    seen = [i for step in steps for i in step]
    size = min(n, size)
    assert {len(step) for step in steps} == {size} and len(set(seen)) == len(seen) == n // size * size


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("packed, limit", ((False, 0.1), (True, 0.25)))
def test_little_of_a_batch_is_padding(bpe, level, packed, limit):
    encoded = Encoded(problems("train", level), bpe, Config.block_size)
    batches = [encoded.batch(index, packed=packed) for index in epoch_order(encoded.length, 32, 0, 0)]
    padding = 1 - sum(b.n_tokens for b in batches) / sum(b.tokens.numel() for b in batches)
    assert padding < limit, f"{padding:.1%} padding"


@pytest.mark.parametrize("batching", ("grouped", "packed"))
@pytest.mark.parametrize("world, grad_accum", ((1, 1), (1, 3), (2, 1), (2, 3)))
def test_micro_batches_of_all_processes_are_exactly_the_step(bpe, examples, batching, world, grad_accum):
    """And each divides its sums by the whole step's targets: a mean of means would weigh short examples more."""
    encoded = Encoded(examples, bpe, 160)
    config = Config(batch_size=32, grad_accum=grad_accum, seed=3, batching=batching)
    made = [make_batches(encoded, config, rank, world) for rank in range(world)]
    order = epoch_order(encoded.length, 32, 3, 1)
    assert {steps for steps, _ in made} == {len(order)}
    for k in (0, len(order) - 1):
        whole = encoded.batch(order[k])
        parts = [list(batches(1, k)) for _, batches in made]
        assert [len(p) for p in parts] == [grad_accum] * world
        parts = [batch for p in parts for batch in p]
        assert sorted(sum(map(contents, parts), [])) == contents(whole)
        assert all(batch.share == whole.share for batch in parts)
        for name, at in (("question", "question_at"), ("answer", "answer_at"), ("examples", "pred_at")):
            assert sum(len(getattr(batch, at)) for batch in parts) == whole.share[name]


@pytest.mark.parametrize("packed", (False, True))
def test_a_split_is_measured_on_every_example_once(bpe, examples, packed):
    encoded = Encoded(examples, bpe, 160)
    batches = list(ordered_batches(encoded, 50, packed))
    assert sorted(sum(map(contents, batches), [])) == sorted(expected(bpe, e) for e in examples)
    whole = encoded.batch(np.arange(len(encoded))).share
    assert all(batch.share == whole for batch in batches) and whole["examples"] == len(examples)


@pytest.mark.parametrize("n", (100, 1700))
def test_every_example_is_trained_on_sooner_or_later(n):
    """The remainder of the division was once cut after sorting by length: the longest examples were never seen."""
    seen = {i for epoch in range(40) for step in epoch_order(np.arange(n), 32, 0, epoch) for i in step}
    assert seen == set(range(n))


@pytest.mark.parametrize(
    "text, answer", (("#### -$5", "-5"), ("#### $-5", "-5"), ("#### \u22125", "-5"), ("####\n7", None))
)
def test_signs_before_a_currency_are_kept_and_the_next_line_is_no_answer(text, answer):
    assert parse_answer(text) == answer
