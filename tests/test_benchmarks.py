"""results/benchmarks.py and results/typed_questions.py: questions made harder, counts over folds, what READMEs ask."""

import json
import re
from types import SimpleNamespace

import pytest
from helpers import ROOT
from tiny import tiny_model

from common.sources import Example
from demo.thought import Knowledge, Thought
from results import benchmarks, typed_questions

SUM = Example("Ana has 8 red pears . Bo gives her 2 . How many pears has Ana ?", "10", "+", "<<8+2=10>> #### 10")


def test_shuffling_moves_words_and_leaves_numbers_where_they_are():
    before, after = SUM.question.split(), benchmarks.shuffled(SUM).question.split()
    assert sorted(before) == sorted(after) and before != after
    assert [i for i, w in enumerate(before) if w.isdigit()] == [i for i, w in enumerate(after) if w.isdigit()]
    assert benchmarks.shuffled(SUM) == benchmarks.shuffled(SUM)


@pytest.mark.parametrize(
    "question, rest",
    ((SUM.question, "Ana has 8 red pears . Bo gives her 2 ."), ("8 pears, 2 gone?", "8 pears,"), ("How many?", "?")),
)
def test_the_last_sentence_can_be_taken_away(question, rest):
    assert benchmarks.without_last_sentence(Example(question, "1")).question == rest


def test_counts_of_folds_are_added():
    found = [{"n": 10, "cos_own": 0.5, "correct": {"": {"answer": 5}, "x": {"answer": 1}}}] * 2
    table = benchmarks.over_folds(
        [*found, {"n": 20, "cos_own": 0.8, "correct": {"": {"answer": 20}, "x": {"answer": 0}}}]
    )
    assert table["n"] == 40 and table["answer"]["mean"] == 0.75 and table["answer"]["folds"] == [0.5, 0.5, 1.0]
    assert table["x, answer"]["mean"] == 0.05 and table["cos_own"] == pytest.approx(0.6)
    low, high = table["answer"]["ci95"]
    assert 0.5 < low < 0.75 < high < 0.9


def test_a_bag_of_words_and_the_majority_program_are_counted(tmp_path):
    for split, n in (("train", 20), ("test", 5)):
        rows = []
        for i in range(2, 2 + n):
            rows += [
                {
                    "question": f"the sum of {i} and {50 + i}",
                    "answer": f"<<{i}+{50 + i}={50 + 2 * i}>> #### {50 + 2 * i}",
                }
            ]
            rows += [{"question": f"take {i} from {50 + i}", "answer": f"<<{50 + i}-{i}=50>> #### 50"}]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = benchmarks.baselines(str(tmp_path), SimpleNamespace(data_dir=""))
    assert found["bag of words"]["correct"][""] == {"exact_match_decoded": 10, "equation_decoded": 10}
    assert found["majority program"]["correct"][""]["exact_match_decoded"] == 5


def test_an_answer_to_a_question_from_outside_is_wrong_whatever_it_is(monkeypatch):
    thoughts = {"a": Thought(answer="7"), "b": Thought(answer="7", doubt="odd"), "c": Thought(message="no words")}
    monkeypatch.setattr(typed_questions, "think", lambda model, knowledge, question: thoughts[question])
    found = typed_questions.judged(tiny_model(), Knowledge(None), dict.fromkeys("abc"))
    assert (found["correct"], found["wrong"], found["unknown"]) == (0, 1, 2)
    assert typed_questions.judged(tiny_model(), Knowledge(None), {"a": "7.0"})["correct"] == 1


def test_every_question_that_readme_and_docstrings_ask_is_among_the_typed_ones_and_answered_correctly():
    asked = set()
    for file in ("README.md", "model.py", "main.py"):
        text = (ROOT / file).read_text(encoding="utf-8")
        asked |= {q for q in re.findall(r'"([A-Z][^"]*\?)"', text) if re.search(r"\d", q)}
    assert len(asked) >= 3 and asked <= {*typed_questions.SMALL, *typed_questions.LARGE}
    found = json.loads((ROOT / "results" / "typed.json").read_text(encoding="utf-8"))["quick"]
    missed = {q for name in found for key in ("answered_wrongly", "unanswered") for q in found[name].get(key, ())}
    assert not asked & missed
