"""The demo: one question, one answer, on this machine only."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import call
from tiny import tiny_model

import main
from common.checkpoint import save_model, write_json
from common.known_world import known_world
from common.losses import cosine
from common.options import UserError
from common.sources import Example
from common.tokenizers import train_tokenizer
from common.word_problems import word_problems
from demo import answer
from demo.page import build, newest_runs
from demo.thought import (
    N_EXAMPLES,
    TOP,
    Knowledge,
    Thought,
    candidates_of,
    describe,
    load_knowledge,
    max_characters,
    think,
    world_of,
)
from model import NanoJEPA, greedy

QUESTION = "Tom has 12 pears. Ana gives Tom 7 more. How many pears are there now?"


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_new_tokens=3, block_size=64, n_train=500).eval()


@pytest.fixture(scope="module")
def candidates(model):
    return candidates_of(model, [str(i) for i in range(40)], "the whole numbers to 39")


@pytest.fixture(scope="module")
def knowledge(candidates):
    return Knowledge(candidates)


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """A run's folder; the switches that `main` sets in the environment are undone after the test."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_DATASETS_OFFLINE", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1")
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


def test_the_same_question_gets_the_same_answer_whatever_was_asked_between(model, knowledge):
    first = think(model, knowledge, QUESTION)
    assert first.answer and think(model, knowledge, "How old is Ben?").tokens != first.tokens
    assert think(model, knowledge, QUESTION) == first


@pytest.mark.parametrize("mask", ("jepa", "causal"))
def test_the_answer_never_exceeds_max_new_tokens(mask, knowledge, monkeypatch):
    model = tiny_model(max_new_tokens=3, block_size=64, mask=mask).eval()
    lengths, decode = [], model.tokenizer.decode
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids: lengths.append(len(ids)) or decode(ids))
    think(model, knowledge, QUESTION)
    assert lengths[0] == 3  # the untrained model does not stop by itself: the limit stops it


def test_a_causal_run_answers_from_the_question_not_from_a_latent(monkeypatch):
    model = tiny_model(mask="causal", block_size=64).eval()
    knowledge = Knowledge(candidates_of(model, ["1", "2"], "two"))
    monkeypatch.setattr(model, "decode", lambda *a, **k: pytest.fail("decoded from z_hat"))
    assert think(model, knowledge, QUESTION).answer == model.answer([QUESTION])[0]


def test_a_question_that_fills_the_context_is_answered_and_one_token_more_is_not(model, knowledge):
    fits = QUESTION + "?" * (64 - 1 - len(model.tokenizer.encode([QUESTION])[0]))
    assert len(think(model, knowledge, fits).tokens) == 64  # exactly block_size with [PRED]
    refused = think(model, knowledge, fits + "?")
    assert refused == Thought(message=refused.message) and "65 tokens" in refused.message


def test_a_question_of_a_megabyte_is_refused_before_it_is_read(model, knowledge, monkeypatch):
    """Ten of them took 400 MB: each became a quarter of a million tokens first."""
    monkeypatch.setattr(model, "tokenize", lambda texts: pytest.fail("tokenized"))
    longest = max_characters(model)
    refused = think(model, knowledge, "x" * (longest + 1))
    assert refused == Thought(message=refused.message)
    assert f"{longest + 1:,} characters, and the model reads {longest:,} at most" in refused.message


def test_an_empty_and_a_wordless_question_each_get_their_own_message_and_no_answer(model, knowledge):
    refused = [think(model, knowledge, question) for question in ("", " \n", None, "12 + 7 = ?")]
    assert all(thought == Thought(message=thought.message) and thought.message for thought in refused)
    empty, blank, none, wordless = (thought.message for thought in refused)
    assert empty == blank == none != wordless


def test_the_nearest_answers_are_sorted_and_their_cosines_and_the_control_are_cosines(model, candidates, knowledge):
    thought = think(model, knowledge, QUESTION)
    cosines = [cos for _, cos in thought.nearest]
    every = cosine(model.predict([QUESTION]), model.encode(candidates.texts))
    assert len(cosines) == TOP and cosines == sorted(cosines, reverse=True)
    assert all(-1 <= cos <= 1 for cos in cosines) and cosines[0] == pytest.approx(float(every.max()), abs=1e-5)
    assert cosines[-1] > thought.control == pytest.approx(float(every.mean()), abs=1e-5)
    assert thought.nearest[0][0] == candidates.texts[int(every.argmax())]


def test_the_tokens_shown_spell_the_question_and_end_in_pred(model, knowledge):
    *pieces, last = (piece for piece, _ in think(model, knowledge, QUESTION).tokens)
    assert last == "[PRED]" and "".join(pieces).replace(" ", "") == QUESTION.replace(" ", "")


def test_the_decoders_likeliest_tokens_are_those_of_greedy_decoding_and_their_probabilities_fall(model, knowledge):
    thought, ids = think(model, knowledge, QUESTION), []
    model.decode(model.predict([QUESTION]), choose=lambda logits: ids.append(int(logits.argmax())) or greedy(logits))
    assert [step[0][0] for step in thought.steps] == model.tokenizer.pieces(ids)
    assert all(1 > step[0][1] > step[1][1] > 0 for step in thought.steps) and len(thought.z_hat) == model.config.n_embd


def test_the_map_marks_z_hat_and_the_nearest_candidate_and_the_mask_is_the_models(model, knowledge):
    tab, thought = answer.tab_of("run", model, knowledge), think(model, knowledge, QUESTION)
    drawn = answer.map_of(tab, thought)
    assert drawn.count('class="near"') == drawn.count('class="mark"') == drawn.count("<line") == 1
    assert drawn.count("<circle") == len(knowledge.candidates.texts) + 1
    assert 'class="near"' in drawn and f"<title>{thought.nearest[0][0]}</title>" in drawn.split('class="near"')[1][:80]
    n, m = len(thought.tokens), 2 + len(model.tokenizer.encode([thought.answer])[0])
    mask = answer.mask_of(tab, thought)
    assert mask.count('class="pred"') == n and mask.count('class="answer"') == m * (m + 1) // 2
    leak = answer.mask_of(answer.tab_of("run", tiny_model(mask="none", block_size=64), knowledge), thought)
    assert leak.count('class="pred"') == n + m


def test_two_runs_answer_the_same_question_side_by_side(model, knowledge):
    tab = answer.tab_of("out/one", model, knowledge)
    other = answer.tab_of("out/two", tiny_model(mask="causal", block_size=64, max_new_tokens=3).eval(), knowledge)
    page = build({"nanojepa": replace(tab, other=other)})
    (ask,) = {f.fn for f in page.fns.values() if getattr(f.fn, "__name__", "") == "ask"}
    shown = ask(QUESTION)
    assert shown.count('class="strip"') == 2 and "out/one" in shown and "language model, token by token" in shown


def test_half_an_emoji_is_answered(model, knowledge):
    """It made the tokenizer raise."""
    assert think(model, knowledge, "half an emoji \ud83c").answer


def test_candidates_are_the_test_answers_or_whole_numbers_if_the_data_is_not_here(model, tmp_path, capsys):
    found = load_knowledge(model)
    assert "different answers of the test split" in found.candidates.source and len(found.examples) == N_EXAMPLES
    gone = load_knowledge(tiny_model(dataset="gsm8k", data_dir=str(tmp_path / "gone")).eval())
    assert gone.candidates.texts == [str(i) for i in range(101)] and gone.world is None and not gone.examples
    assert "gone" in capsys.readouterr().out


def test_candidates_that_were_asked_for_by_hand_are_not_quietly_replaced(model, tmp_path):
    with pytest.raises(UserError, match="typo"):
        load_knowledge(model, str(tmp_path / "typo"))


# ---------------------------------------------------------------------------------------- its limits

PROBLEMS = word_problems("train", 200)


@pytest.fixture(scope="module")
def sure(model, candidates):
    """Knowledge under which every gap is wide enough."""
    return Knowledge(candidates, world_of(model, {"train": PROBLEMS, "val": PROBLEMS}), 0.0)


@pytest.fixture
def agreeing(monkeypatch):
    """Both read-outs give the nearest candidate."""
    monkeypatch.setattr(NanoJEPA, "decode", lambda self, z_hat, choose=None: [str(z_hat_to_nearest(self, z_hat))])


def z_hat_to_nearest(model, z_hat) -> int:
    return int(cosine(z_hat, model.encode([str(i) for i in range(40)])).argmax())


def test_a_question_like_those_of_training_is_answered(model, sure, agreeing):
    thought = think(model, sure, PROBLEMS[0].question)
    assert thought.doubt == "" and thought.answer == thought.nearest[0][0]


@pytest.mark.parametrize(
    "question, doubt",
    (
        ("What is the capital of France?", "it has no numbers, a training question 1 to 2"),
        ("Tom has 2 pears. He buys 3 and 4 more. How many are there?", "it has 3 numbers"),
        ("Tom has 87654 pears. Ana gives Tom 30 more pears. How many?", "no training question has the number 87654"),
    ),
)
def test_what_training_never_held_is_not_answered(model, sure, agreeing, question, doubt):
    thought = think(model, sure, question)
    assert doubt in thought.doubt and "I do not know" in answer.show(answer.tab_of("run", model, sure), thought)


@pytest.mark.parametrize(
    "threshold, doubt", ((1.5, "the second candidate is too near"), (None, "no confidence was high"))
)
def test_an_unsure_prediction_is_not_answered(model, sure, agreeing, threshold, doubt):
    thought = think(model, replace(sure, threshold=threshold), PROBLEMS[0].question)
    assert doubt in thought.doubt


def test_read_outs_that_disagree_are_not_answered(model, sure, monkeypatch):
    monkeypatch.setattr(NanoJEPA, "decode", lambda self, z_hat, choose=None: ["77"])
    assert "the two read-outs disagree: decoded 77" in think(model, sure, PROBLEMS[0].question).doubt


def test_the_world_of_training_is_summed_up_and_strange_words_and_numbers_are_marked():
    t = train_tokenizer("words:1", [e.question for e in PROBLEMS])
    world = known_world(PROBLEMS, PROBLEMS, t, t.encode)
    assert "sums" in world.summary() and "1 to 2 of them a question" in world.summary()
    ids = t.encode(["how many gnus"])[0]
    assert world.strange_tokens(ids, t.unk) == [False, False, True]
    assert world.strange_numbers("12 and 87654") == [87654] and world.strange_words("How many GNUS, gnus?") == ["gnus"]


def test_ask_prints_the_answer_alone_on_its_last_line(run, monkeypatch):
    monkeypatch.setattr(answer, "think", lambda *a: Thought(answer="5", doubt="it is odd" * ("Paris" in a[-1])))
    for question, last in (("Tom has 2 pears.", "5"), ("Paris?", "I do not know")):
        assert call(main, "--run", run, "--device", "cpu", "--ask", question).stdout.splitlines()[-1] == last


def test_ask_reads_questions_from_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Paris?\n\n12 + 7\nRome?\n"))
    done = call(main, "--run", run, "--ask", "-", check=False)
    assert done.stdout.count("I do not know") == 2 and "line 3: There are no words" in done.stderr, "the rest is asked"
    monkeypatch.setattr("sys.stdin", io.StringIO("Paris?\n\nRome?\n"))
    assert call(main, "--run", run, "--ask", "-").stdout.count("I do not know") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no question on standard input" in call(main, "--run", run, "--ask", "-", check=False).stderr


def test_options_that_the_demo_would_ignore_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a run below out/
    for words, reason in (
        (("--run", run, "--compare", run, "--ask", "How many?"), "--compare"),
        (("--run", run, "--compare", tmp_path), "no checkpoint"),
        (("--data-dir", tmp_path), "no trained run"),
    ):
        assert reason in call(main, *words, check=False).stderr


def test_a_single_candidate_has_a_map(model):
    """Two principal components of one latent were a traceback."""
    one = Knowledge(candidates_of(model, ["7"], "one"))
    tab = answer.tab_of("run", model, one)
    assert answer.map_of(tab, think(model, one, QUESTION)).count("<circle") == 2


def test_views_of_pairs_need_no_words():
    model = tiny_model(dataset="pairs", data_dir="gone", block_size=64, max_new_tokens=3).eval()
    assert think(model, Knowledge(candidates_of(model, ["42"], "one")), "12+30").message == ""


# ---------------------------------------------------------------------------------------------- the page


def page_of(model, knowledge):
    return build({"nanojepa": answer.tab_of("out/run", model, knowledge)})


def test_the_page_has_the_examples_and_reports_to_nobody(model, candidates):
    page = page_of(model, Knowledge(candidates, examples=(Example(QUESTION, "19"),)))
    assert QUESTION in str(page.get_config_file()) and not page.analytics_enabled


def test_what_a_model_writes_is_shown_as_text_not_as_markup(model, knowledge):
    tab = answer.tab_of("run", model, knowledge)
    thought = Thought(
        "<b>7</b>", nearest=(("<i>8</i>", 0.5),), control=0.25, tokens=(("<u>", True),), z_hat=(0.5,) * 32
    )
    html = answer.show(tab, thought)
    assert all(f"&lt;{part}" in html for part in ("b&gt;7", "i&gt;8", "u&gt;")) and "0.500" in html and "0.250" in html
    assert "✓ the true answer is 7.0" in answer.show(tab, replace(thought, answer="7"), QUESTION, "7.0")
    assert "✗ the true answer is 7" in answer.show(tab, thought, QUESTION, "7")
    assert 'role="alert"' in answer.show(tab, Thought(message="no"))


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
    assert words in describe(tiny_model(**changes), run)


def test_main_binds_to_loopback_unless_asked_otherwise_and_shares_nothing(launched):
    seen = launched()
    assert seen["server_name"] == "127.0.0.1" and seen["server_port"] is None
    assert seen["share"] is False and seen["run_history"] is False and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert "answers at http://127.0.0.1:7860/" in seen["printed"]
    assert launched("--host", "0.0.0.0")["server_name"] == "0.0.0.0"


def test_a_port_that_cannot_be_had_is_one_line_not_a_traceback(launched):
    error = launched("--port", "70000", check=False)["error"]
    assert error.startswith("error: cannot listen on --host 127.0.0.1 --port 70000") and "Traceback" not in error


def test_without_a_name_the_newest_run_below_out_is_asked(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no trained run in out/; train one with: python train.py --preset quick"):
        newest_runs()
    for age, name in enumerate(("new", "old", "another system", "unfinished")):
        config = replace(model.config, system="reasoner") if name == "another system" else model.config
        save_model(model, config, f"out/{name}")
        os.utime(f"out/{name}/model.safetensors", (1e9 - age, 1e9 - age))
    os.remove("out/unfinished/model.safetensors")
    save_model(model, model.config, "out/broken")
    Path("out/broken/config.json").write_text("{", encoding="utf-8")
    assert newest_runs() == {"nanojepa": os.path.join("out", "new")}
