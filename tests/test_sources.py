"""common/sources.py: answers, and files in GSM8K's format; what is wrong with them is one line that names the place."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.options import UserError
from common.sources import (
    Example,
    download_gsm8k,
    equations,
    load_gsm8k,
    load_jsonl,
    parse_answer,
    same_answer,
    solution_ops,
    without_annotations,
)
from common.word_problems import word_problems

# -------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "text, answer",
    (
        ("She pays 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### 1,234,567.89", "1234567.89"),
        ("#### -5", "-5"),
        ("#### +5", "5"),
        ("#### \u22125", "-5"),
        ("#### 0.50", "0.5"),
        ("#### .5", "0.5"),
        ("#### -.5", "-0.5"),
        ("#### $1,200", "1200"),
        ("#### €-3", "-3"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
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
        ("####\n7", None),
        ("", None),
    ),
)
def test_the_answer_is_the_number_after_the_last_mark(text, answer):
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    "a, b", (("7", "7.0"), ("1,234", "1234"), (".5", "0.50"), ("-0", "0"), ("7.", " 7 "), ("+3", "3"), ("x ", "x"))
)
def test_answers_are_the_same_if_they_name_the_same_number(a, b):
    assert same_answer(a, b) and same_answer(b, a)


@pytest.mark.parametrize(
    "a, b",
    (("7", "-7"), ("7", "70"), ("", "0"), ("[EOS]", "0"), ("7 7", "77"), ("0.1", "0.10000000000000001"), ("x", "y")),
)
def test_answers_differ_if_they_name_different_numbers(a, b):
    assert not same_answer(a, b) and not same_answer(b, a)


def test_operations_are_read_from_the_annotations_in_order():
    text = "He has 48/2 = <<48/2=24>>24. Then <<24+48=72>>72, <<-3*2=-6>>, <<(5+4)/.5=18>> #### 72"
    assert solution_ops(text) == "/+*+/"
    assert solution_ops("3 + 4 = 7 #### 7") == ""


ANNOTATED = "She buys 8*6=<<8*6=48>>48 apples.\nShe has 12+48=<<12+48=60>>60 apples.\n#### 60"


def test_a_solution_in_words_shows_no_annotations():
    assert without_annotations(ANNOTATED) == "She buys 8*6=48 apples.\nShe has 12+48=60 apples.\n#### 60"


def test_equations_are_the_annotations_alone():
    assert equations(Example("", "60", "", ANNOTATED)) == "8*6=48, 12+48=60 #### 60"
    assert equations(Example("", "7", "", "It is\nseven.\n#### 7")) == "#### 7"
    assert equations(word_problems("test", 1, world="narrow")[0]) == "7*2=14 #### 14"


# ----------------------------------------------------------------------------------------------- files


def row(question="What?", answer="#### 1") -> str:
    return json.dumps({"question": question, "answer": answer})


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    """load_jsonl refuses the file -> its one line."""
    with pytest.raises(UserError) as caught:
        load_jsonl(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_rows_become_examples(tmp_path):
    path = write(tmp_path / "a.jsonl", row(" How many? ", "<<2*3=6>>6\n#### 1,006"), "", row("Où?", "#### 2"))
    examples = load_jsonl(path)
    assert examples == [Example("How many?", "1006", "*"), Example("Où?", "2", "")]
    assert examples[0].solution == "<<2*3=6>>6\n#### 1,006"


def test_a_missing_file_says_what_to_give(tmp_path):
    assert "--data-dir" in refused(tmp_path / "no.jsonl")


def test_a_broken_line_is_named_by_number_and_column(tmp_path):
    path = write(tmp_path / "a.jsonl", row(), "", '{"question": "x" "answer": "#### 1"}')
    assert re.search(r"a\.jsonl:3: .*column 18", refused(path))


@pytest.mark.parametrize(
    "line", ('{"question": "x"}', '{"question": "x", "answer": 1}', '["x", "#### 1"]', "7", "null")
)
def test_a_line_without_question_and_answer_is_named(tmp_path, line):
    message = refused(write(tmp_path / "a.jsonl", row(), line))
    assert "a.jsonl:2:" in message and "question" in message and "answer" in message


def test_rows_without_an_answer_are_counted_and_printed_and_the_rest_kept(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", row("a"), row("b", "7"), row("c"), *[row("d", "#### none")] * 6)
    assert [e.question for e in load_jsonl(path)] == ["a", "c"]
    printed = capsys.readouterr().out
    assert "skipped 7 of 9 rows" in printed and "line 2, 4, 5, 6, 7, …" in printed


def test_nothing_is_printed_when_nothing_is_skipped(tmp_path, capsys):
    load_jsonl(write(tmp_path / "a.jsonl", row()))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("lines", ((), ("", " "), (row(answer="7"),)))
def test_a_file_without_a_usable_row_is_refused(tmp_path, lines):
    assert "no usable rows" in refused(write(tmp_path / "a.jsonl", *lines))


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(row().encode() + b"\n" + row("caf").encode().replace(b"caf", b"caf\xe9"))
    assert re.search(r"a\.jsonl:2: not UTF-8", refused(tmp_path / "a.jsonl"))


def test_without_a_network_the_download_and_the_ways_around_it_are_named(monkeypatch):
    def refuse(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    with pytest.raises(UserError, match="openai/gsm8k.*ConnectionError.*--data-dir.*--dataset"):
        download_gsm8k()


# ---------------------------------------------------------------------------------------------- splits


def folder_of(path: Path, n_train: int, n_test: int) -> str:
    write(path / "train.jsonl", *[row(f"train {i}") for i in range(n_train)])
    write(path / "test.jsonl", *[row(f"test {i}") for i in range(n_test)])
    return str(path)


def questions(splits: dict) -> dict[str, list[str]]:
    return {split: [e.question for e in examples] for split, examples in splits.items()}


def test_pairs_are_any_two_texts_under_either_names(tmp_path):
    rows = ('{"question": " a dog ", "answer": "un 1,0 chien"}', '{"input": "x", "target": "#### 7"}')
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert load_jsonl(tmp_path / "a.jsonl", "pairs") == [Example("a dog", "un 1,0 chien"), Example("x", "#### 7")]


@pytest.mark.parametrize("row", ('{"question": "a"}', '{"input": "a", "answer": "b"}', "[1]", '{"input": 1}'))
def test_a_row_that_is_no_pair_is_named(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(row, encoding="utf-8")
    with pytest.raises(UserError, match='a.jsonl:1: needs the strings "question" and "answer", or "input"'):
        load_jsonl(tmp_path / "a.jsonl", "pairs")


@pytest.mark.parametrize("n_train, n_val", ((60, 6), (3000, 300), (6000, 500)))
def test_splits_of_a_folder_are_disjoint_and_complete(tmp_path, n_train, n_val):
    found = questions(load_gsm8k(folder_of(tmp_path, n_train, 7)))
    assert [len(found[split]) for split in ("train", "val", "test")] == [n_train - n_val, n_val, 7]
    assert {*found["train"], *found["val"]} == {f"train {i}" for i in range(n_train)}
    assert found["test"] == [f"test {i}" for i in range(7)]


def test_validation_is_a_random_sample_and_the_same_in_every_run(tmp_path):
    """With another validation split per seed, runs of different seeds train on each other's validation questions."""
    data_dir = folder_of(tmp_path, 60, 7)
    assert load_gsm8k(data_dir) == load_gsm8k(data_dir)
    assert load_gsm8k(data_dir)["val"] != [Example(f"train {i}", "1") for i in range(12)], "the file's head"


def test_a_folders_own_validation_file_is_used_and_all_of_train_trained_on(tmp_path):
    """An augmented train.jsonl must not move its copies of a question into validation."""
    data_dir = folder_of(tmp_path, 60, 7)
    write(tmp_path / "val.jsonl", row("val 0"), row("val 1"))
    found = questions(load_gsm8k(data_dir))
    assert found["val"] == ["val 0", "val 1"] and found["train"] == [f"train {i}" for i in range(60)]


def test_gsm8k_has_the_sizes_and_favourite_answers_that_are_quoted(gsm8k, capsys):
    splits = load_gsm8k(str(gsm8k))
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 6973, "val": 500, "test": 1319}
    assert capsys.readouterr().out == "", "rows were skipped"
    counts = Counter(e.answer for e in splits["test"])
    assert round(counts["5"] / 1319, 4) == 0.0303 and round(counts["4"] / 1319, 4) == 0.0265
    assert sum(e.ops != "" for e in splits["train"]) > 0.95 * 6973
