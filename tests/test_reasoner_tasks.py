"""The comparison on word problems: the commands it runs, what it pools over seeds."""

from types import SimpleNamespace

import pytest
import torch
from helpers import call
from reasoner_tiny import TINY

from common.checkpoint import read_json
from common.options import parse
from reasoner import trace, train
from reasoner.config import PRESETS, ReasonerConfig
from results import reasoner_tasks as tasks


def test_every_model_of_every_task_is_a_command_and_phases_and_steps_are_as_equal_as_it_says():
    for task in tasks.TASKS:
        found = {}
        for model in tasks.MODELS:
            words = tasks.options(task, model, 2, "DIR").split()
            found[model] = parse(ReasonerConfig, PRESETS, "", words)[0]
        whole = found["coupled"].epochs + found["coupled"].sst_epochs + found["coupled"].talker_epochs
        equal, more = found["JEPA-Reasoner"], found["JEPA-Reasoner, trunk as many steps"]
        assert equal.epochs + equal.sst_epochs + equal.talker_epochs == whole == more.epochs + more.sst_epochs
        assert {config.seed for config in found.values()} == {2}
        assert {config.fold for config in found.values()} == {2 if task == "mwp" else 0}


def test_models_are_trained_once_compared_question_by_question_and_measured_once(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        tasks,
        "train_once",
        lambda summary, module, words, threads: summary.is_file() or trained.append(call(train, *words)),
    )
    tiny = " ".join([*TINY, "--n-eval", "30"])
    args = ["problems", "--options", tiny, "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "a.json")]
    models = ["--models", "JEPA-Reasoner", "JEPA-Reasoner, a latent a step"]
    tasks.main([*args, *models])
    assert len(trained) == 3
    found = read_json(tmp_path / "a.json")["problems 0"]["models"]
    controls = {
        f"JEPA-Reasoner{x}" for x in (", by the nearest embedding", ", tokens fed back", ", sharpened, τ = 0.01")
    }
    assert set(found) == {"coupled", "JEPA-Reasoner", "JEPA-Reasoner, a latent a step"} | controls
    assert all(row["n"] == 30 and row["chain"] >= 1 for row in found.values())
    assert {row["torch"] for row in found.values()} == {torch.__version__}
    assert found["coupled"]["less_the_coupled"]["mean"] == 0 and "exposure" in found["JEPA-Reasoner"]
    tasks.main([*args, *models])
    assert len(trained) == 3 and read_json(tmp_path / "a.json")["problems 0"]["models"] == found


def test_a_program_that_somebody_asks_for_is_computed_with_the_numbers_of_the_prompt():
    model = SimpleNamespace(
        config=ReasonerConfig(dataset="mwp", reasoning="program"),
        tokenizer=SimpleNamespace(encode=lambda texts: [list(range(len(x.split()))) for x in texts]),
        answer=lambda prompts: ["α*β-α"],
    )
    assert trace.ask(model, "Tom has 4 cups and 2.5 plates.") == "α*β-α = 6"
    assert trace.ask(model, "Tom has 4 cups.") == "α*β-α = (nothing)"


def test_a_question_answered_under_two_seeds_is_one_cluster():
    """Else the interval would be narrower than the questions warrant."""

    def run(hits):
        answers = {"": {"correct": hits, "chain": 3, "seconds": 0.1}}
        figures = dict(n_params=1, steps=1, train_seconds=1, control=0.1, equations={})
        return {"answers": answers, "examples": [str(i) for i in range(len(hits))], **figures}

    hits = [1, 0] * 50
    once, twice = tasks.pooled([run(hits)], [run(hits)], ""), tasks.pooled([run(hits)] * 2, [run([0] * 100)] * 2, "")
    assert (
        twice["accuracy"]["ci95"] == pytest.approx(once["accuracy"]["ci95"])
        and twice["n"] == 200
        and twice["by_seed"] == [0.5, 0.5]
    )
    assert twice["less_the_coupled"]["mean"] == 0.5 and once["less_the_coupled"] == {"mean": 0, "ci95": [0, 0]}
