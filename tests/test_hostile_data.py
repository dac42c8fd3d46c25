"""Input from people: whatever a file holds, it is read right, skipped and counted, or refused in one line with its row.

Nothing in a text, however it is made, takes more than linear time to read.
"""

import json
import os
import time
from decimal import Decimal

import pytest
from helpers import call
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train
from common.options import UserError
from common.programs import function_of, normal_form, number_placeholders, program_of, value_of
from common.sources import (
    MAX_CHARS,
    Example,
    canonical,
    equations,
    load_folder,
    load_jsonl,
    parse_answer,
    parse_lines,
    same_answer,
    solution_ops,
    without_annotations,
)
from latent_stack.pairs import jsonl_from_folder
from reasoner.config import ReasonerConfig
from reasoner.corpus import passages, read_passages

many = settings(max_examples=300, deadline=None, derandomize=True)


def row(question="What?", answer="#### 1", **others) -> bytes:
    return json.dumps({"question": question, "answer": answer, **others}).encode() + b"\n"


# ----------------------------------------------------------------------------------------------- files

FAULTS = (
    (b'{"question": [' + b"[" * 100_000, "nested too deeply"),
    (b'{"question": NaN, "answer": Infinity}', "needs the strings"),
    (b'{"question": 1' + b"1" * 5000 + b', "answer": "#### 1"}', "needs the strings"),
    (rb'{"question": "\ud83d", "answer": "#### 1"}', "surrogate"),
    (rb'{"question": "a", "answer": "#### 1", "\uDE00": 1}', "surrogate"),
    (row().decode().encode("utf-16"), "not UTF-8"),
    (b'{"question": "\xed\xa0\x80", "answer": "#### 1"}', "not UTF-8"),
    (b"\x00", "not valid JSON"),
)


@pytest.mark.parametrize("line, reason", FAULTS)
def test_a_hostile_line_is_refused_with_its_file_and_row(tmp_path, line, reason):
    """Deep nesting was a RecursionError, a long integer a ValueError, half a surrogate pair broke the tokenizer."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(row() + line + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:[23]: .*{reason}"):  # a line of UTF-16 holds half a newline
        load_jsonl(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=80) | st.text(st.characters(), max_size=40).map(lambda text: row(text, text)[:-1]))
@example(b"\xef\xbb\xbf")
@example(row("\ud83d")[:-1])
@example(b'{"question": "a", "answer": "#### 1e999999999"}')
@example(b'{"question": "a", "answer": 1e999}')
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, line):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(row() + line)
    for dataset in ("gsm8k", "pairs"):
        try:
            assert load_jsonl(path, dataset)[0].question == "What?"
        except UserError as error:
            assert "any.jsonl:" in str(error) and "\n" not in str(error)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    """Windows writes one before the first line, and `cat` of two such files leaves one in the middle."""
    bom = b"\xef\xbb\xbf"
    for name, line in (("a.jsonl", row(input="x", target="y", text="z")), ("a.txt", b"z\n")):
        (tmp_path / name).write_bytes(bom + line + (bom + line) * (name == "a.jsonl") + bom * (name == "a.jsonl"))
    for split in ("train", "test"):
        os.link(tmp_path / "a.jsonl", tmp_path / f"{split}.jsonl")
    assert len(load_jsonl(tmp_path / "a.jsonl")) == 2
    assert [p.input for p in jsonl_from_folder(tmp_path)["test"]] == ["x", "x"]
    assert list(read_passages(tmp_path / "a.jsonl")) == ["z", "z"] and list(read_passages(tmp_path / "a.txt")) == ["z"]


def test_a_whole_number_of_any_length_beside_the_texts_is_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(row()[:-2] + b', "id": ' + b"7" * 100_000 + b', "score": NaN}')
    assert len(load_jsonl(tmp_path / "a.jsonl")) == 1


@pytest.mark.parametrize("name", ("a.jsonl", "a.txt"))
def test_what_cannot_be_opened_is_named(tmp_path, name, monkeypatch):
    """A folder of the file's name, and a file of somebody else, ended in a traceback."""

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    readers = [read_passages] + [parse_lines] * (name == "a.jsonl")
    (tmp_path / name).mkdir()
    for reader in readers:
        with pytest.raises(UserError, match=rf"{name}: is a directory; --data-dir"):
            list(reader(tmp_path / name))
        with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"{name}: permission denied; --data-dir"):
            patch.setattr("builtins.open", closed)
            list(reader(tmp_path / name))


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such file"):
        passages("train", ReasonerConfig(dataset="text", data_dir=str(tmp_path)))


def test_a_text_without_end_is_skipped_and_counted(tmp_path, capsys):
    """A question of one megabyte, a single word, trained a BPE for a quarter of an hour."""
    (tmp_path / "a.jsonl").write_bytes(row() + row("a" * 1_000_000) + row("b", "b" * (MAX_CHARS + 1) + "#### 1"))
    for dataset in ("gsm8k", "pairs"):
        assert len(load_jsonl(tmp_path / "a.jsonl", dataset)) == 1
        assert "skipped 2 of 3 rows longer than 50,000 characters (line 2, 3)" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- splits


def folder_of(path, **splits) -> str:
    for split, questions in splits.items():
        (path / f"{split}.jsonl").write_bytes(b"".join(map(row, questions)))
    return str(path)


@pytest.mark.parametrize("dataset", ("gsm8k", "pairs"))
def test_questions_that_training_shares_with_other_splits_are_counted_and_stay(tmp_path, capsys, dataset):
    """A test question that is trained on is not a new one, and nothing said so."""
    splits = load_folder(folder_of(tmp_path, train="abcd", val="xd", test="abxy"), dataset)
    assert [len(examples) for examples in splits.values()] == [4, 2, 4]
    printed = capsys.readouterr().out
    assert "1 of 2 val questions and 2 of 4 test questions are in the training split" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("dataset", ("gsm8k", "pairs"))
def test_a_single_training_row_is_the_reason_that_is_given(tmp_path, dataset):
    """Validation took it; the error blamed the annotations of an empty training split."""
    words = ["--dataset", dataset, "--preset", "gsm8k-small", "--tokenizer", "bpe:400", "--max-steps", "1"]
    words += ["--data-dir", folder_of(tmp_path, train="a", test="b"), "--run", tmp_path / "run"]
    done = call(train, *words, check=False)
    assert done.returncode == 1 and "one usable row to train on, and validation takes it" in done.stderr
    assert len(load_folder(folder_of(tmp_path, train="ab"), dataset)["train"]) == 1
    assert len(load_folder(folder_of(tmp_path, train="a", val="b"), dataset)["train"]) == 1


# ---------------------------------------------------------------------------------------- linear time

ATOMS = (
    *("<<", "<<1", "<<1+1", "<<=", "<<1=", "<<1=1", "<", "<>", "<<>", ">", "=", "1", "1,", "1,111", "1.", ".1", "."),
    *("(", ")", "()", "(1", "-", "- ", "1+", "1/", "#", "####", "#### ", " ", "%", "1%", "1e", "a", "α", "½", "٣"),
)
FRAMES = ("{}x", "#### {}5", "#### 5{}6", "<<1+{}=1>> #### 1", "<<1+1=2{}x>> #### 2")
READERS = {
    "answer": parse_answer,
    "comparison": lambda text: same_answer(text, text + "1"),
    "operations": solution_ops,
    "words": without_annotations,
    "equations": lambda text: equations(Example("", "1", "", text)),
    "placeholders": number_placeholders,
    "program": lambda text: program_of(Example("1 and 2", "2", "", text)),
    "value": lambda text: value_of(text, {"α": 1.0}),
    "normal form": normal_form,
    "function": function_of,
}


@pytest.mark.parametrize("name", READERS)
def test_no_text_takes_longer_to_read_than_its_length_explains(name):
    """'<<' without '>>', and a long number with a letter behind it, took quadratic time; 3,000 terms a RecursionError.

    In quadratic time these texts take seconds each; in linear time, milliseconds.
    """
    for frame in FRAMES:
        for atom in ATOMS:
            text = frame.format(atom * (40_000 // len(atom)))
            began = time.process_time()
            READERS[name](text)
            assert time.process_time() - began < 0.5, (frame, atom)


@many
@given(st.lists(st.sampled_from([*ATOMS, "#### ", ">> ", "α+"]), max_size=30).map("".join))
def test_every_reader_survives_every_text(text):
    for reader in READERS.values():
        reader(text)


def test_a_number_too_large_for_a_float_stays_as_it_is():
    """All such numbers shared one placeholder, infinity."""
    huge = "9" * 400
    assert number_placeholders(f"{huge} and 7") == (f" {huge} and α", {"α": 7.0})
    assert parse_answer(f"#### {huge}") == huge and not same_answer(huge, "8" * 400)
    assert program_of(Example(f"{huge} and 7", huge, "", f"<<{huge}*1={huge}>> #### {huge}")) is None


# -------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "answer, expected",
    (
        ("–5", "-5"),
        ("-(5)", "-5"),
        ("(-5)", "-5"),
        ("1e3", "1000"),
        ("1.5E-2", "0.015"),
        ("-€ 1,200.50 a day", "-1200.5"),
        ("the answer is: -5!", "-5"),
        ("low-cost: 5", "5"),
        (r"\boxed{5}", "5"),
        ("**5**", "5"),
        ("1\u00a0%", "1"),
        ("\uff0d\uff15", "-5"),
    ),
)
def test_an_answer_is_read_as_it_is_meant(answer, expected):
    """An en dash and a parenthesis lost the sign; an exponent was cut off."""
    assert parse_answer(f"#### {answer}") == expected


@pytest.mark.parametrize(
    "answer",
    (
        *("1/2", "1 1/2", "2½", "5²", "3:30", "--5", "+-5", "±5", "<5", "5-7", "5 or 6", "7 hours 30 minutes", "1 000"),
        *(
            "1,5",
            "1.000,50",
            "0x10",
            "1_000",
            "1e400",
            "2 million",
            "2 millions",
            "3 dozens",
            "5bn",
            "3 and a half",
            "minus 5",
            "5k",
            "No.5",
            "x-5",
            "Answer – 5",
            "—5",
            "1..5",
        ),
        *("...5", "(1)(2)", "NaN", "-inf", "½"),
    ),
)
def test_an_answer_that_could_mean_another_number_is_none(answer):
    """1/2 was read as 1, 3:30 as 3, and --5 crashed whatever compared it later."""
    assert parse_answer(f"#### {answer}") is None


SPELLINGS = ("{}", "+{}", "00{}", "{}.", "{}.0", "{:,}", "{}e0", "{:,}.000", " {} ")


@many
@given(st.integers(0, 10**12), st.booleans(), st.sampled_from(SPELLINGS), st.sampled_from("-−–"))
def test_a_number_has_one_form_however_it_is_written(x, negative, spelling, minus):
    """7, 7.0 and 007 were three candidates of a read-out, and each other's control."""
    text = spelling.format(x)
    text = minus + text.strip().lstrip("+") if negative else text
    expected = str(-x if negative else x)
    assert parse_answer(f"so #### {text}") == canonical(text) == canonical(expected) == expected
    assert same_answer(text, expected) and same_answer(expected, text)
    assert not same_answer(text, str(x + 1))


@many
@given(st.text("0123456789.,+-–−eE$%/:()½ x#\n", max_size=12))
def test_an_answer_is_one_canonical_number_or_none(text):
    """Whatever is read is read the same again, and names the number that Decimal reads in its text."""
    answer = parse_answer(f"#### {text}")
    assert answer is None or (answer == canonical(answer) == parse_answer(f"#### {answer}"))
    number = canonical(text)
    if number is not None:
        assert answer in (number, None) and same_answer(text, number)
        assert Decimal(number) == Decimal(text.strip().replace(",", "").replace("–", "-").replace("−", "-"))


def test_spellings_of_one_answer_are_one_candidate_in_a_folder(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"".join(row("a", f"#### {x}") for x in ("7", "7.0", "007", "+7", "$7.")))
    assert {e.answer for e in load_jsonl(tmp_path / "a.jsonl")} == {"7"}


def test_no_answer_of_real_data_is_skipped_or_changed(shared_data, capsys):
    """What is stricter with people's files must not change a published number."""
    for folder in ("gsm8k", "mwp/svamp", "mwp/mawps/fold0", "mwp/asdiv-a/fold0"):
        for split in ("train", "test"):
            path = shared_data / folder / f"{split}.jsonl"
            rows = [row for _, row in parse_lines(path)]
            written = [Decimal(row["answer"].rpartition("####")[2].replace(",", "").strip()) for row in rows]
            assert [Decimal(e.answer) for e in load_jsonl(path)] == written
    assert capsys.readouterr().out == ""
