"""The demo: one question, one answer, on this machine only."""

import os

import pytest
from helpers import call
from tiny import tiny_model

import main
from common.checkpoint import save_model, write_json
from common.options import UserError

QUESTION = "Tom has 12 pears. Ana gives Tom 7 more. How many pears are there now?"


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_new_tokens=3, block_size=64).eval()


@pytest.fixture(scope="module")
def candidates(model):
    return main.candidates_of(model, [str(i) for i in range(40)], "the whole numbers to 39")


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """A run's folder; the switches that `main` sets in the environment are undone after the test."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_DATASETS_OFFLINE", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    save_model(model, model.config, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def launched(run, monkeypatch):
    """A function: main.py with gradio's server replaced -> what it was started with."""
    import gradio

    seen = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **kw: (seen.update(kw), "http://127.0.0.1:7860/", None))
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: None)

    def start(*options, check=True):
        done = call(main, "--run", run, "--device", "cpu", *options, check=check)
        return seen | {"printed": done.stdout, "error": done.stderr}

    return start


# ------------------------------------------------------------------------------------------- the thought


def test_the_same_question_gets_the_same_answer_whatever_was_asked_between(model, candidates):
    first = main.think(model, candidates, QUESTION)
    assert first.answer and main.think(model, candidates, "How old is Ben?").tokens != first.tokens
    assert main.think(model, candidates, QUESTION) == first


@pytest.mark.parametrize("mask", ("jepa", "causal"))
def test_the_answer_never_exceeds_max_new_tokens(mask, candidates, monkeypatch):
    model = tiny_model(max_new_tokens=3, block_size=64, mask=mask).eval()
    lengths, decode = [], model.tokenizer.decode
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids: lengths.append(len(ids)) or decode(ids))
    main.think(model, candidates, QUESTION)
    assert lengths == [3]  # the untrained model does not stop by itself: the limit stops it


def test_a_causal_run_answers_from_the_question_not_from_a_latent(monkeypatch):
    model = tiny_model(mask="causal", block_size=64).eval()
    candidates = main.candidates_of(model, ["1", "2"], "two")
    monkeypatch.setattr(model, "decode", lambda *a, **k: pytest.fail("decoded from z_hat"))
    assert main.think(model, candidates, QUESTION).answer == model.answer([QUESTION])[0]


def test_a_question_that_fills_the_context_is_answered_and_one_token_more_is_not(model, candidates):
    fits = QUESTION + "?" * (64 - 1 - len(model.tokenizer.encode([QUESTION])[0]))
    assert len(main.think(model, candidates, fits).tokens) == 64  # exactly block_size with [PRED]
    refused = main.think(model, candidates, fits + "?")
    assert refused == main.Thought(message=refused.message) and "65 tokens" in refused.message


def test_an_empty_and_a_wordless_question_each_get_their_own_message_and_no_answer(model, candidates):
    refused = [main.think(model, candidates, question) for question in ("", " \n", None, "12 + 7 = ?")]
    assert all(thought == main.Thought(message=thought.message) and thought.message for thought in refused)
    empty, blank, none, wordless = (thought.message for thought in refused)
    assert empty == blank == none != wordless


def test_the_nearest_answers_are_sorted_and_their_cosines_and_the_control_are_cosines(model, candidates):
    thought = main.think(model, candidates, QUESTION)
    cosines = [cos for _, cos in thought.nearest]
    every = main.cosine(model.predict([QUESTION]), model.encode(candidates.answers))
    assert len(cosines) == main.TOP and cosines == sorted(cosines, reverse=True)
    assert all(-1 <= cos <= 1 for cos in cosines) and cosines[0] == pytest.approx(float(every.max()), abs=1e-5)
    assert cosines[-1] > thought.control == pytest.approx(float(every.mean()), abs=1e-5)
    assert thought.nearest[0][0] == candidates.answers[int(every.argmax())]


def test_the_tokens_shown_spell_the_question_and_end_in_pred(model, candidates):
    *pieces, last = main.think(model, candidates, QUESTION).tokens
    assert last == "[PRED]" and "".join(pieces).replace(" ", "") == QUESTION.replace(" ", "")


def test_half_an_emoji_is_answered(model, candidates):
    """It made the tokenizer raise."""
    assert main.think(model, candidates, "half an emoji \ud83c").answer


def test_candidates_are_the_test_answers_or_whole_numbers_if_the_data_is_not_here(model, tmp_path, capsys):
    assert "different answers of the test split" in main.load_candidates(model).source
    gone = tiny_model(dataset="gsm8k", data_dir=str(tmp_path / "gone")).eval()
    assert main.load_candidates(gone).answers == [str(i) for i in range(101)]
    assert "gone" in capsys.readouterr().out


def test_candidates_that_were_asked_for_by_hand_are_not_quietly_replaced(model, tmp_path):
    with pytest.raises(UserError, match="typo"):
        main.load_candidates(model, str(tmp_path / "typo"))


# ---------------------------------------------------------------------------------------------- the page


def test_the_page_has_the_examples_and_reports_to_nobody(model, candidates):
    page = main.build(model, candidates, "about", [QUESTION])
    assert QUESTION in str(page.get_config_file()) and not page.analytics_enabled


def test_what_a_model_writes_is_shown_as_text_not_as_markup(candidates):
    thought = main.Thought(answer="<b>7</b>", nearest=(("<i>8</i>", 0.5),), control=0.25)
    html = main.show(thought, candidates)
    assert "&lt;b&gt;7" in html and "&lt;i&gt;8" in html and "0.500" in html and "0.250" in html
    assert 'role="alert"' in main.show(main.Thought(message="no"), candidates)


@pytest.mark.parametrize(
    "summary, changes, words",
    (
        ({}, {}, "never measured against"),
        ({"cos_own": 0.95, "cos_other": 0.94}, {}, "too near to each other"),
        ({"cos_own": 0.9, "cos_other": 0.2}, {}, "as much as it stands above"),
        ({"cos_own": 0.9, "cos_other": 0.2}, {"jepa_weight": 0.0}, "mean nothing"),
        ({"cos_own": 0.9, "cos_other": 0.2}, {"mask": "causal"}, "mean little"),
        ({"cos_own": 0.9, "cos_other": 0.2}, {"mask": "none"}, "nor the cosines mean much"),
    ),
)
def test_the_page_says_what_its_cosines_are_worth(summary, changes, words, run):
    if summary:
        write_json(run / "summary.json", summary)
    assert words in main.describe(tiny_model(**changes), run)


def test_main_binds_to_loopback_unless_asked_otherwise_and_shares_nothing(launched):
    seen = launched()
    assert seen["server_name"] == "127.0.0.1" and seen["server_port"] is None
    assert seen["share"] is False and seen["run_history"] is False and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert "answers at http://127.0.0.1:7860/" in seen["printed"]
    assert launched("--host", "0.0.0.0")["server_name"] == "0.0.0.0"


def test_a_port_that_cannot_be_had_is_one_line_not_a_traceback(launched):
    error = launched("--port", "70000", check=False)["error"]
    assert error.startswith("error: cannot listen on --host 127.0.0.1 --port 70000") and "Traceback" not in error
