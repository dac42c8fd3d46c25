"""eval_alignment.py and evaluate_accuracy.py: each figure against the slow obvious one, and what is written where."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call, same
from tiny import ANSWERS, PROBLEMS, QUESTIONS, tiny_config, tiny_model

import eval_alignment
import evaluate_accuracy
import main
from common.checkpoint import read_json
from common.options import UserError
from common.sources import Example
from config import EvalConfig
from eval_alignment import Latents, alignment, effective_rank, geometry, measure, neighbours, untrained
from evaluate_accuracy import (
    ReadOut,
    accuracy,
    by_length,
    choose_threshold,
    constants,
    exact_match,
    final_answer,
    output_name,
)
from model import NanoJEPA, load_run


def files(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


def latents(N: int = 40, A: int = 7, C: int = 16, noise: float = 1.0) -> Latents:
    """Random answers' latents, and predictions that lie near them."""
    rng = np.random.default_rng(0)
    own = torch.from_numpy(rng.integers(0, A, N))
    z = torch.from_numpy(rng.normal(size=(A, C))).float()
    z_hat = z[own] + noise * torch.from_numpy(rng.normal(size=(N, C))).float()
    answers = [str(i) for i in range(A)]
    return Latents(z_hat, z, own, [Example("?", answers[i], "+-*"[i % 3]) for i in own], answers)


# ------------------------------------------------------------------------------------------- alignment


def test_the_measures_of_alignment_are_those_of_a_loop_over_questions():
    found, given = measure(latents()), latents()
    cos_own, cos_other, ranks, closer = [], [], [], []
    for i, z_hat in enumerate(given.z_hat):
        cosines = [float(z_hat @ z / (z_hat.norm() * z.norm())) for z in given.z]
        own = cosines[given.own[i]]
        cos_own.append(own)
        cos_other.append(np.mean([cosines[j] for j in given.own if j != given.own[i]]))
        ranks.append(1 + sum(c > own for c in cosines))
        closer.append(np.mean([c < own for j, c in enumerate(cosines) if j != given.own[i]]))
    expected = {
        "n": 40,
        "n_answers": 7,
        "cos_own": np.mean(cos_own),
        "cos_other": np.mean(cos_other),
        "margin": np.mean(cos_own) - np.mean(cos_other),
        "auc": np.mean(closer),
        "mrr": np.mean([1 / r for r in ranks]),
        "retrieval_at_1": np.mean([r <= 1 for r in ranks]),
        "retrieval_at_5": np.mean([r <= 5 for r in ranks]),
        "retrieval_at_5_chance": 5 / 7,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name
    for name in ("cos_own", "cos_other", "margin", "auc", "mrr", "retrieval_at_1"):
        low, high = found[f"{name}_ci95"]
        assert low <= found[name] <= high


def test_perfect_predictions_are_first_everywhere():
    found = measure(latents(noise=0.0))
    assert found["cos_own"] == pytest.approx(1) and found["retrieval_at_1"] == found["auc"] == found["mrr"] == 1


def test_a_collapsed_model_has_cosine_1_and_finds_nothing():
    """The figure that deceived: its 0.95 was the cosine of everything with everything."""
    given = latents()
    given.z[:] = given.z[0]
    given.z_hat[:] = given.z[0]
    found = measure(given)
    assert found["cos_own"] == pytest.approx(1) == found["cos_other"] and found["margin"] == pytest.approx(0)
    assert found["retrieval_at_1"] == 0 and found["auc"] == pytest.approx(0.5)
    assert found["effective_rank_z_hat"] < 1.01 and found["mean_pairwise_cos_z_hat"] == pytest.approx(1)


def test_the_effective_rank_counts_the_dimensions_in_use():
    z = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    assert effective_rank(z) == pytest.approx(8, abs=0.05)
    assert effective_rank(z * torch.tensor([1.0] * 3 + [0.0] * 5) + 7) == pytest.approx(3, abs=0.05)


def test_geometry_is_that_of_a_loop_over_pairs():
    z = latents().z_hat
    unit = z / z.norm(dim=1, keepdim=True)
    pairs = [float(a @ b) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
    found = geometry(z, "x")
    assert found["mean_pairwise_cos_x"] == pytest.approx(np.mean(pairs), abs=1e-5)
    assert found["deviation_x"] == pytest.approx(float(unit.std(0).mean()) * 16**0.5, abs=1e-5)


def test_neighbours_are_the_nearest_other_questions():
    given = latents()
    labels = [example.answer for example in given.examples]
    unit = given.z_hat / given.z_hat.norm(dim=1, keepdim=True)
    near, chance = [], []
    for i in range(40):
        order = sorted((j for j in range(40) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        near.append(np.mean([labels[j] == labels[i] for j in order[:5]]))
        chance.append(np.mean([labels[j] == labels[i] for j in order]))
    found = neighbours(given.z_hat, labels, "x")
    assert found["neighbours_share_x"] == pytest.approx(np.mean(near))
    assert found["neighbours_share_x_chance"] == pytest.approx(np.mean(chance))


def test_further_candidates_make_retrieval_harder():
    model = tiny_model().eval()
    few, _ = alignment(model, PROBLEMS[:20])
    many, _ = alignment(model, PROBLEMS[:20], [str(i) for i in range(200)])
    assert many["n_answers"] >= 200 and many["n"] == few["n"] == 20
    assert many["retrieval_at_5"] < few["retrieval_at_5"]


def test_one_answer_alone_is_nothing_to_compare():
    with pytest.raises(UserError, match="two different answers"):
        alignment(tiny_model(), [PROBLEMS[0]] * 3)


def test_the_untrained_control_is_the_model_before_its_first_step(trained):
    """Same seed, same first weights: what differs between the two columns is training alone."""
    model = load_run(trained.run)
    torch.manual_seed(model.config.seed)
    first, fresh = NanoJEPA(model.config), untrained(model)
    assert same(dict(fresh.state_dict()), dict(first.state_dict()))
    assert not same(dict(fresh.state_dict()), dict(model.state_dict()))
    assert fresh.predict(QUESTIONS[:2]).shape == model.predict(QUESTIONS[:2]).shape


# --------------------------------------------------------------------------------------------- accuracy


def answering(monkeypatch, *texts: str):
    """A model that decodes these texts, one a question."""
    model, given = tiny_model().eval(), dict(zip(QUESTIONS, texts, strict=False))
    asked = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda questions: asked.append(questions) or predict(questions))
    monkeypatch.setattr(model, "decode", lambda z_hat, *_: [given[q] for q in asked[-1]])
    monkeypatch.setattr(model, "answer", lambda questions: [given[q] for q in questions])
    return model


def test_an_exact_match_names_the_right_number(monkeypatch):
    texts = [f"{ANSWERS[0]}.0", "no number", ANSWERS[2], f"{ANSWERS[3]}1"]
    model = answering(monkeypatch, *texts)
    result, rows = accuracy(model, PROBLEMS[:4], PROBLEMS)
    assert result["n"] == 4 and result["exact_match_decoded"] == 0.5
    assert result["exact_match_decoded_ci95"][0] < 0.5 < result["exact_match_decoded_ci95"][1]
    assert [row["prediction"] for row in rows] == texts and [row["gold"] for row in rows] == ANSWERS[:4]
    assert exact_match(model, PROBLEMS[:4]) == 0.5 and model.training, "validation goes on training"


def test_the_nearest_answer_is_the_candidate_of_the_largest_cosine():
    model = tiny_model().eval()
    candidates = sorted({*ANSWERS[:10], "1000", "7"})
    _, rows = accuracy(model, PROBLEMS[:10], PROBLEMS, ["1000", "7"])
    z = torch.nn.functional.normalize(model.encode(candidates), dim=-1)
    cosines = torch.nn.functional.normalize(model.predict(QUESTIONS[:10]), dim=-1) @ z.T
    assert [row["nearest"] for row in rows] == [candidates[i] for i in cosines.argmax(1)]
    own = [float(cosines[i, candidates.index(ANSWERS[i])]) for i in range(10)]
    assert [row["cosine"] for row in rows] == pytest.approx(own, abs=1e-4)


def test_a_question_that_does_not_fit_counts_as_wrong(monkeypatch, capsys):
    long = replace(PROBLEMS[0], question="How many? " * 100)
    model = answering(monkeypatch, *ANSWERS)
    result, rows = accuracy(model, [*PROBLEMS[:3], long], PROBLEMS)
    assert result["exact_match_decoded"] == 0.75 and rows[3]["prediction"] == "" and rows[3]["cosine"] is None
    assert "1 of 4 questions are longer than the context" in capsys.readouterr().out


def test_batches_of_like_length_hold_every_question_once():
    model, length = tiny_model(), [len(ids) for ids in tiny_model().tokenize(QUESTIONS)]
    batches = by_length(model, QUESTIONS, 10)
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(64)) and [len(b) for b in batches] == [10] * 6 + [4]
    assert [length[i] for i in order] == sorted(length)


def test_constants_are_what_no_model_is_needed_for():
    test, train = ([Example("?", a) for a in answers] for answers in ("1223", "3331"))
    found = constants(test, train, tiny_config())
    assert (found["constant_from_train"], found["constant_from_train_answer"]) == (0.25, "3")
    assert (found["constant_best_on_test"], found["constant_best_on_test_answer"]) == (0.5, "2")


SUM, MINUS = (
    Example(f"{words} 8 and 2?", answer, op, f"<<8{op}2={answer}>> #### {answer}")
    for words, op, answer in (("The sum of", "+", "10"), ("Of", "-", "6"))
)


def test_where_programs_are_wanted_the_majority_program_is_a_baseline_too():
    found = constants([SUM, MINUS, MINUS], [SUM, SUM, MINUS], tiny_config(answer_view="program"))
    assert (found["majority_program"], found["majority_program_exact_match"]) == ("α+β", 1 / 3)


def test_programs_are_decoded_and_retrieved_among_the_computable_ones_of_training(monkeypatch):
    triple = Example("Of 9, 2 and 4?", "15", "++", "<<9+2+4=15>> #### 15")
    model = tiny_model(answer_view="program").eval()
    monkeypatch.setattr(NanoJEPA, "decode", lambda self, z_hat: ["β+α"] * len(z_hat))
    result, rows = accuracy(model, [SUM, MINUS], [SUM, triple])
    assert [row["nearest_program"] for row in rows] == ["α+β"] * 2, "α-β is the test split's"
    assert [row["prediction"] for row in rows] == [row["nearest"] for row in rows] == ["10", "10"]
    assert result["exact_match_decoded"] == result["equation_decoded"] == result["equation_nearest"] == 0.5


def test_an_example_without_a_program_counts_as_wrong_and_has_no_cosine():
    model = tiny_model(answer_view="program").eval()
    result, rows = accuracy(model, [SUM, Example("Of 8?", "77", "", "#### 77")], [SUM])
    assert result["equation_nearest"] == 0.5 and rows[1]["cosine"] is None and rows[1]["gold_program"] is None


@pytest.mark.parametrize(
    "gaps, correct, threshold",
    (
        ([0.6, 0.9, 0.7, 0.8], [0, 1, 1, 1], 0.7),
        ([0.9, 0.8, 0.7], [1, 1, 1], 0.7),
        ([0.9, 0.8], [0, 1], None),
        ([-1.0, -1.0], [1, 1], None),  # questions that are never answered
    ),
)
def test_the_threshold_is_the_smallest_above_which_enough_answers_are_correct(gaps, correct, threshold):
    assert choose_threshold(gaps, [bool(x) for x in correct]) == threshold


def test_what_is_strange_or_read_out_in_two_ways_is_never_answered(monkeypatch):
    model = answering(monkeypatch, *ANSWERS[:20])
    monkeypatch.setattr(evaluate_accuracy, "objection", lambda model, world, question: "strange")
    splits = {"train": PROBLEMS, "val": PROBLEMS[:20]}
    _, rows = accuracy(model, PROBLEMS[:20], PROBLEMS)
    assert all((row["gap"] >= 0) == (row["prediction"] == row["nearest"]) for row in rows)
    found = evaluate_accuracy.coverage(model, splits, rows, PROBLEMS[:20])
    assert found["coverage"] == 0 and found["threshold"] is None and found["answered_correct"] is None
    assert found["curve"][-1] == [1.0, 1.0], "all questions, all decoded correctly"


def test_the_gap_is_between_the_two_nearest_candidates():
    found = ReadOut("7", "7", torch.tensor([0.1, 0.9, -2.0, 0.6]))
    assert found.gap() == pytest.approx(0.3) and ReadOut("7", "7", torch.tensor([0.5])).gap() == 1.5


def test_pairs_are_compared_as_texts(monkeypatch):
    monkeypatch.setattr(NanoJEPA, "decode", lambda self, z_hat: ["7.0", "a dog"])
    examples = [Example("seven", "7"), Example("hound", "a dog")]
    for dataset, correct in (("pairs", 0.5), ("gsm8k", 1.0)):
        assert accuracy(tiny_model(dataset=dataset).eval(), examples, examples)[0]["exact_match_decoded"] == correct


def test_only_what_follows_the_mark_of_a_worked_solution_is_its_answer():
    model = tiny_model(mask="causal", answer_view="solution")
    assert final_answer(model, "3 + 4 = 7. #### 7") == "7" and final_answer(model, "3 + 4 = 7.") == ""
    assert final_answer(tiny_model(), "7") == "7"
    program = tiny_model(mask="causal", answer_view="program")
    assert final_answer(program, "α*2,a+β #### 10") == "10" and final_answer(program, "nonsense #### ") == ""


# ------------------------------------------------------------------------------------------ the scripts


def test_accuracy_is_written_with_the_promised_keys(run):
    done = call(evaluate_accuracy, "--run", run, "--limit", 40, "--device", "cpu")
    found = read_json(run / "accuracy-first-40.json")
    promised = "n exact_match_decoded exact_match_decoded_ci95 exact_match_nearest exact_match_nearest_ci95"
    assert {*promised.split(), "constant_from_train", "constant_best_on_test", "seconds"} <= found.keys()
    assert found["n"] == 40 and found["split"] == "test" and found["dataset"] == "wordproblems"
    assert f"{found['exact_match_nearest']:.2%}" in done.stdout and "oracle constant" in done.stdout
    rows = [json.loads(line) for line in (run / "predictions-first-40.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 40 and {"question", "gold", "prediction", "nearest", "cosine", "gap"} == rows[0].keys()


def test_alignment_is_written_beside_that_of_the_untrained_model(run):
    done = call(eval_alignment, "--run", run, "--limit", 60, "--device", "cpu")
    found = read_json(run / "alignment-first-60.json")
    promised = "n cos_own cos_own_ci95 cos_other margin auc retrieval_at_1 retrieval_at_5 retrieval_at_10 mrr"
    collapse = "effective_rank_z effective_rank_z_hat mean_pairwise_cos_z"
    for column in (found, found["untrained"]):
        assert {*promised.split(), *collapse.split()} <= column.keys() and column["n"] == 60
    row = next(line for line in done.stdout.splitlines() if line.startswith("cos_own")).split()
    assert row[1:3] == [f"{found['cos_own']:.4f}", f"{found['untrained']['cos_own']:.4f}"]
    assert {"alignment-first-60_cosines.png", "latents-first-60.png"} <= files(run)


def test_a_limit_makes_retrieval_no_easier(run):
    """Fewer questions have fewer answers among which the right one is nearest."""
    for limit in (10, 60):
        call(eval_alignment, "--run", run, "--limit", limit, "--device", "cpu")
        assert read_json(run / f"alignment-first-{limit}.json")["n_answers"] > 60


def test_evaluating_twice_gives_the_same_figures(run):
    found = []
    for _ in range(2):
        call(evaluate_accuracy, "--run", run, "--limit", 40, "--device", "cpu")
        found.append({k: v for k, v in read_json(run / "accuracy-first-40.json").items() if k != "seconds"})
    assert found[0] == found[1]


@pytest.fixture
def other_data(tmp_path) -> Path:
    """A folder of other questions in GSM8K's format."""
    (tmp_path / "OTHER").mkdir()
    rows = [json.dumps({"question": f"How many are {i} and {i}?", "answer": f"#### {2 * i}"}) for i in range(20)]
    for split in ("train", "test"):
        (tmp_path / "OTHER" / f"{split}.jsonl").write_text("\n".join(rows))
    return tmp_path / "OTHER"


@pytest.mark.parametrize("module, name", ((evaluate_accuracy, "accuracy"), (eval_alignment, "alignment")))
def test_figures_on_other_data_are_written_beside_the_runs_own(module, name, run, other_data):
    """They once overwrote the run's own, as did those of the first few questions."""
    call(module, "--run", run, "--device", "cpu")
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    call(module, "--run", run, "--data-dir", other_data, "--device", "cpu")
    call(module, "--run", run, "--limit", 20, "--device", "cpu")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert read_json(run / f"{name}-OTHER.json")["n"] == 20


def test_only_the_runs_own_folder_is_its_own_data(tmp_path, monkeypatch):
    """For a run without a folder the current one was taken for its own."""
    monkeypatch.chdir(tmp_path)
    here, generated = tiny_model(data_dir=str(tmp_path), dataset="gsm8k"), tiny_model()
    assert output_name("accuracy", here, EvalConfig()) == "accuracy"
    assert output_name("accuracy", here, EvalConfig(data_dir=".")) == "accuracy"
    assert output_name("accuracy", generated, EvalConfig(data_dir=".")) == f"accuracy-{tmp_path.name}"
    assert output_name("accuracy", generated, EvalConfig(split="val")) == "accuracy-val"


@pytest.mark.parametrize("module", (eval_alignment, evaluate_accuracy, main))
def test_nothing_puts_random_weights_in_place_of_a_checkpoint(module, tmp_path):
    done = call(module, "--run", tmp_path / "none", check=False)
    assert done.returncode == 1 and "no checkpoint" in done.stderr and "Traceback" not in done.stderr
