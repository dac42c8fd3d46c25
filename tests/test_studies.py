"""results/: what the studies train, measure, write and draw, in miniature; other numbers; what is collected."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, call
from tiny import PROBLEMS, tiny_model

import data
from common.sources import Example, load_gsm8k
from results import collect, figures, resample_numbers, similar_questions, studies, study_runs

ARGS = SimpleNamespace(data_dir="", device="cpu", jobs=1, seeds=[1, 2], only="words")
TINY = "--preset quick-numbers --n-train 96 --epochs 1 --n-embd 16 --n-head 2 --n-layer 1 --batch-size 16 "
TINY += "--tokenizer bpe:400 --block-size 128 --no-final-eval --eval-every 3 --val-accuracy"


# ------------------------------------------------------------------------------------------- the runs


@pytest.mark.parametrize("study", studies.STUDIES)
def test_every_run_of_a_study_is_a_command_that_train_py_takes(study):
    for name, options in studies.STUDIES[study].items():
        _, config = study_runs.command(options, 1, ARGS)
        assert config.seed == 1 and config.run == str(study_runs.folder_of(options, 1)), name
        assert (config.dataset == "wordproblems") == (study_runs.part_of(options) == "words"), name


def test_runs_of_a_study_differ_and_the_same_options_are_the_same_run():
    every = [o for runs in studies.STUDIES.values() for o in runs.values()]
    assert len({study_runs.folder_of(o, 1) for o in every}) == len(set(every))
    assert study_runs.folder_of(every[0], 1) != study_runs.folder_of(every[0], 2)


def train_in_process(every, args):
    """study_runs.train_all without a process for each run."""
    import train

    for options in every:
        for seed in args.seeds:
            words, config = study_runs.command(options, seed, args)
            if not study_runs.is_trained(study_runs.folder_of(options, seed), config):
                print("python train.py", *words)
                call(train, *words)


@pytest.mark.slow
def test_a_study_trains_measures_and_draws_and_does_not_train_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(studies, "train_all", train_in_process)
    monkeypatch.setattr(similar_questions, "N_FIT", 60)
    monkeypatch.setattr(data, "N_TEST", 80)
    monkeypatch.setattr(data, "N_VAL", 30)
    lam = {f"words, {x}": f"{TINY} --jepa-weight {x}" for x in ("0", "4")}
    runs = {
        "lambda": lam,
        "space": {"latent": lam["words, 4"]},
        "leak": {"words, jepa": lam["words, 4"], "words, none": f"{TINY} --mask none"},
        "collapse": {"stop-gradient": lam["words, 4"], "neither, no decoding": lam["words, 0"]},
        "scratch": {"direct": lam["words, 4"]},
    }
    monkeypatch.setattr(similar_questions, "LAMBDA", lam)
    for study, options in runs.items():
        monkeypatch.setitem(studies.STUDIES, study, options)
    for study in (*runs, "similar"):
        studies.main([study, "--seeds", "1", "2", "--out", str(tmp_path), "--only", "words", "--device", "cpu"])
    assert capsys.readouterr().out.count("python train.py") == 6, "three sets of options, two seeds"

    row = json.loads((tmp_path / "lambda.json").read_text())["runs"]["words, 4"]
    assert len(row["cos_own"]["values"]) == 2 and row["options"] == lam["words, 4"]
    assert row["cos_own"]["mean"] == pytest.approx(sum(row["cos_own"]["values"]) / 2)
    assert row["forward_n"]["mean"] == 80 and row["flops_per_example"]["mean"] > 0
    curve = json.loads((tmp_path / "space.json").read_text())["runs"]["latent"]["curve"]
    assert [p["examples"] for p in curve] == [48, 96] and len(curve[0]["exact_match"]) == 2
    similar = json.loads((tmp_path / "similar.json").read_text())["runs"]
    assert set(similar) == {f"words, {x}" for x in ("lambda 4", "lambda 0", "untrained", "bag of words")}
    figures.draw(tmp_path)
    assert {p.stem for p in tmp_path.glob("*.png")} == {"lambda", "space", "leak", "collapse", "scratch", "similar"}


def test_a_run_is_trained_by_train_py_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_runs, "RUNS", tmp_path)
    options = f"{TINY} --max-steps 1"
    study_runs.train_all([options], SimpleNamespace(**vars(ARGS) | {"seeds": [1]}))
    folder = study_runs.folder_of(options, 1)
    assert study_runs.is_trained(folder, study_runs.command(options, 1, ARGS)[1])
    assert not study_runs.is_trained(folder, study_runs.command(options + " --lr 1e-5", 1, ARGS)[1])
    (folder / "state.pt").unlink()
    study_runs.train_all([options], SimpleNamespace(**vars(ARGS) | {"seeds": [1]}))
    assert capsys.readouterr().out.count("python train.py") == 1


def test_lambdas_stand_at_their_places_on_the_axis(tmp_path, drawn):
    """0, 0.1, 0.5, 1, 2, 4 were drawn at equal distances."""
    run = {"options": "--preset quick-numbers"}
    for row in figures.LAMBDA_ROWS.values():
        run |= {key: {"mean": 0.5, "std": 0.1} for _, key, *_ in row}
    figures.lam({f"words, {x}": run for x in ("0", "0.1", "4")}, tmp_path / "lambda.png")
    for axes in drawn["lambda.png"].axes:
        assert axes.get_xscale() == "symlog" and axes.get_xticks().tolist() == [0, 0.1, 4]
        assert axes.get_lines()[0].get_xdata().tolist() == [0, 0.1, 4]


def test_every_study_in_results_has_its_figure():
    results = ROOT / "results"
    missing = [n for n in figures.FIGURES if (results / f"{n}.json").is_file() and not (results / f"{n}.png").is_file()]
    assert not missing, f"python results/figures.py draws {missing}"


# --------------------------------------------------------------------------------- self-consistency


def test_the_majority_of_samples_is_taken_and_does_not_touch_the_generator(monkeypatch):
    model, said = tiny_model(), iter([["5", "7"], ["5.0", ""], ["6", "7"]])
    monkeypatch.setattr(model, "answer", lambda questions, choose: next(said))
    before = torch.random.get_rng_state()
    assert studies.majority(model, ["a", "b"], 3) == ["5", "7"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_differ_where_the_model_is_unsure_and_agree_where_it_is_not():
    torch.manual_seed(0)
    sample = studies.sampler(0.8)
    assert len(sample(torch.zeros(64, 5)).unique()) == 5
    assert set(sample(torch.tensor([[0.0, 99.0, 0.0]]).repeat(64, 1)).tolist()) == {1}


def test_self_consistency_reports_the_rate_over_all_questions(monkeypatch):
    """A question that does not fit the context counts as wrong."""
    model = tiny_model(mask="causal", block_size=32)
    examples = PROBLEMS[:6] + [Example("long " * 40, "1")]
    gold = {e.question: e.answer for e in examples}
    monkeypatch.setattr(studies, "majority", lambda model, questions, n, seed: [gold[q] for q in questions])
    fitting = sum(len(ids) + 1 <= 32 for ids in model.tokenize(list(gold)))
    assert studies.self_consistency(model, examples)["exact_match_voted"] == fitting / 7 < 1


# ------------------------------------------------------------------------------------ other numbers

CLIPS = Example(
    "Natalia sold clips to 48 of her friends in April, and then 24 more in May. How many in all?",
    "72",
    "+",
    "She sold 48+24 = <<48+24=72>>72 clips. #### 72",
)


def test_other_numbers_give_another_question_whose_solution_is_right():
    new = resample_numbers.resample(CLIPS, random.Random(0), list(range(2, 200)))
    (step,) = resample_numbers.computation_graph(new.solution)
    a, b = step.operands
    assert {a, b} != {48, 24} and 24 <= a <= 96 and 12 <= b <= 48
    assert f"to {a:.0f} of her friends" in new.question and f"then {b:.0f} more" in new.question
    assert new.answer == f"{a + b:.0f}" and new.solution.endswith(f"#### {new.answer}")


@pytest.mark.parametrize(
    "question, solution",
    [
        ("He has 2 apples.", "He has <<2*3=7>>7. #### 7"),  # calculated wrongly
        ("He has 2 apples, then 2 pears.", "<<2+2=4>>4 #### 4"),  # equal, but each written: fine
        ("He has 2 apples and twice as many pears.", "<<2*2=4>>4 #### 4"),  # the second 2 is not written
        ("The 3rd of 3 boys has 3.", "<<3+1=4>>4 #### 4"),  # the 3 of "3rd" would stay
        ("He has 5 apples and 10 pears.", "<<5+5=10>>10, <<10+10=20>>20 #### 20"),  # 10 has two sources
        ("He has 4 apples.", "He is 2^2 = <<2**2=4>>4. #### 4"),  # no plain arithmetic
        ("He has none.", "None at all. #### 0"),
    ],
)
def test_a_question_whose_numbers_are_ambiguous_stays_as_it_is(question, solution):
    example = Example(question, solution.split()[-1], "", solution)
    new = resample_numbers.resample(example, random.Random(0), list(range(2, 100)))
    assert (new is not None) == (question == "He has 2 apples, then 2 pears.")


def test_results_stay_positive_and_whole():
    shared = Example("He has 60 sweets for 12 boys.", "5", "/", "<<60/12=5>>5 each. #### 5")
    pool, rng = list(range(2, 200)), random.Random(0)
    found = [resample_numbers.resample(shared, rng, pool) for _ in range(40)]
    assert all(e is None or float(e.answer) == int(e.answer) > 0 for e in found)
    assert len({e.question for e in found if e}) > 3


@pytest.fixture
def small_gsm8k(tmp_path):
    """A folder in GSM8K's format: ten questions to train on, two to test."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, n in (("train", 10), ("test", 2)):
        lines = [{"question": f"{CLIPS.question} {'I' * i}", "answer": CLIPS.solution} for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    return folder


def test_the_script_writes_the_questions_then_the_others_and_the_same_validation(tmp_path, small_gsm8k):
    for out, option in (("plain", "--no-equations"), ("equations", "--equations")):
        done = call(resample_numbers, "--data-dir", small_gsm8k, "--out", tmp_path / out, "--times", 2, option)
        assert "of 9 of 9 training questions" in done.stdout
    before, plain, only = (load_gsm8k(str(tmp_path / name)) for name in ("data", "plain", "equations"))
    assert plain["train"][:9] == before["train"] and len(plain["train"]) > 9
    assert (plain["val"], plain["test"]) == (before["val"], before["test"])
    assert [(e.question, e.answer) for e in only["train"]] == [(e.question, e.answer) for e in plain["train"]]
    assert only["train"][0].solution == "48+24=72 #### 72"


def test_the_folder_that_is_read_is_not_written(small_gsm8k):
    before = (small_gsm8k / "train.jsonl").read_bytes()
    refused = call(resample_numbers, "--data-dir", small_gsm8k, "--out", small_gsm8k, check=False)
    assert refused.returncode == 1 and "the folder that is read" in refused.stderr
    assert (small_gsm8k / "train.jsonl").read_bytes() == before


def test_a_study_writes_the_data_that_its_run_reads(tmp_path, monkeypatch, small_gsm8k, capsys):
    monkeypatch.setattr(study_runs, "RUNS", tmp_path)
    args = SimpleNamespace(**vars(ARGS) | {"data_dir": str(small_gsm8k)})
    options = study_runs.FROM_SCRATCH["latent, variants"]
    for _ in range(2):
        study_runs.resample(options, args)
    assert capsys.readouterr().out.count("python results/resample_numbers.py") == 1
    _, config = study_runs.command(options, 1, args)
    assert config.data_dir == str(tmp_path / "resampled-4")
    splits = study_runs.splits_of(options, config, args)
    assert len(splits["train"]) > 30 and (len(splits["val"]), len(splits["test"])) == (1, 2)


# ------------------------------------------------------------------------------------------- collect


def test_collecting_copies_results_and_figures_without_texts_and_averages_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "RESULTS", tmp_path / "results")
    for seed, score in (("a", 0.5), ("b", 0.7)):
        run = tmp_path / seed
        run.mkdir()
        values = {"exact_match": score, "data_dir": "somebody/data", "device": "cpu"}
        for name in ("summary.json", "config.json"):
            (run / name).write_text(json.dumps(values))
        (run / "any.json").write_text(json.dumps({"examples": ["a text"], "x": 1}))
        (run / "other.json").write_text(json.dumps({"examples": 40}))
        (run / "curve.png").write_bytes(b"png")
        (run / "predictions.jsonl").write_text("{}")
    call(collect, "name", tmp_path / "a", tmp_path / "b")
    found = {p.name: p for p in (tmp_path / "results" / "name").iterdir()}
    assert set(found) == {"summary.json", "any.json", "other.json", "curve.png", "seeds.json"}
    assert json.loads(found["summary.json"].read_text()) == {"exact_match": 0.5, "device": "cpu"}
    assert json.loads(found["any.json"].read_text()) == {"x": 1}
    assert json.loads(found["other.json"].read_text()) == {"examples": 40}
    assert json.loads(found["seeds.json"].read_text())["exact_match"]["mean"] == pytest.approx(0.6)
    unfinished = call(collect, "name", tmp_path / "c", check=False)
    assert unfinished.returncode == 1 and "no summary.json" in unfinished.stderr
