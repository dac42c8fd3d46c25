"""Three phases that hand over to each other: what a run's folder holds, how it resumes, what is refused."""

import shutil

import pytest
import torch
from helpers import call, same, script, torchrun, weights
from reasoner_tiny import PROMPTS, TINY, trained_run

from common.checkpoint import read_json
from common.options import UserError
from model import load_run as load_nanojepa
from reasoner import train
from reasoner.config import PHASES
from reasoner.model import Reasoner, Talker
from reasoner.phases import load_phase, load_run


@pytest.fixture
def run(tmp_path):
    """A copy of the trained run, to be changed."""
    return shutil.copytree(trained_run().run, tmp_path / "run")


def test_one_command_trains_the_three_phases_and_measures_the_test_split():
    run, stdout = trained_run().run, trained_run().stdout
    summary = read_json(run / "summary.json")
    low, high = summary["route_accuracy_ci95"]
    assert 0 <= low <= summary["route_accuracy"] <= high <= 1 and summary["n"] == 12
    assert list(summary["phases"]) == list(PHASES) and "route accuracy" in stdout
    assert summary["steps"] == sum(phase["steps"] for phase in summary["phases"].values()) == 12
    sst, talker = summary["phases"]["sst"], summary["phases"]["talker"]
    assert {"jepa_loss", "val_cos_own", "val_cos_other"} <= sst.keys() and "val_token_loss" in talker
    for phase in PHASES:
        assert (run / phase / "loss_curve.png").is_file() and read_json(run / phase / "config.json")["trained"] == phase


def test_a_phase_is_loaded_from_its_folder_alone():
    run = trained_run().run
    reasoner, talker = Reasoner.from_pretrained(run / "sst"), Talker.from_pretrained(run / "talker")
    assert reasoner.latent and len(talker.speak(reasoner.rollout(PROMPTS[:2]))) == 2
    assert load_run(run).answer(PROMPTS) == talker.speak(reasoner.rollout(PROMPTS))
    with pytest.raises(UserError, match="load the one of phase sst"):
        Reasoner.from_pretrained(run / "pretrain").rollout(PROMPTS)


def test_what_is_printed_first_is_a_row_and_what_each_of_its_chain_tokens_is_predicted_at():
    lines = trained_run().stdout.splitlines()
    prompt = next(line for line in lines if line.startswith("prompt"))
    steps = next(line for line in lines if line.startswith("at → predicts"))
    root, goal = prompt.split()[-4], prompt.split()[-2]
    assert steps.split("   ")[1].startswith(f"':' → '{root}'") and steps.endswith(f"'{goal}' → '[EOS]'")


def test_a_finished_run_that_is_resumed_trains_nothing(run):
    before = {phase: weights(run / phase) for phase in PHASES}
    done = call(train, *TINY, "--run", run, "--resume")
    assert done.stdout.count("finished, in") == 3
    assert all(same(before[phase], weights(run / phase)) for phase in PHASES)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit_in_every_phase(tmp_path):
    """Only --run and --resume are given: data, seed and sizes are those of the run."""
    call(train, *TINY, "--phase", "pretrain", "--max-steps", "4", "--run", tmp_path)
    call(train, "--phase", "all", "--max-steps", "0", "--resume", "--run", tmp_path, "--device", "cpu")
    for phase in PHASES:
        assert same(weights(trained_run().run / phase), weights(tmp_path / phase)), phase


@pytest.mark.parametrize("shard", ("--no-shard", "--shard"))
def test_two_processes_train_all_phases_as_one(tmp_path, shard):
    script("reasoner.train", *TINY, shard, "--run", tmp_path, "--overwrite", launcher=torchrun("-m"))
    for phase in PHASES:
        one, two = weights(trained_run().run / phase), weights(tmp_path / phase)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "words,message",
    [
        ("sst --run NEW", "no checkpoint in"),
        ("sst --run NEW --init RUN/talker", "needed is one of 'pretrain'"),
        ("talker --run NEW --init RUN/pretrain", "needed is one of 'sst'"),
        ("sst --run NEW --init RUN/pretrain --n-layer 1", "has n_layer = 2, not 1"),
        ("sst --run RUN", "already holds a run"),
        ("talker --run NEW --init RUN/sst --resume", "there is no run in"),
        ("all --run NEW --init RUN/sst", "--init is for"),
        ("sst --run NEW --model coupled", "has a single phase"),
        ("all --run NEW --model coconut --shard", "--shard is not for --model coconut"),
        ("all --run RUN/sst", "is the folder of a single phase"),
        ("all --run RUN --model coupled", "already holds a run"),
        ("all --run RUN --resume --labels 13", "has labels = 12, not 13"),
        ("all --run NEW --data-dir RUN", "--dataset tree is generated and reads no folder"),
        ("all --run NEW --grad-accum 64", "less than one example for each of the 64"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(words, message, tmp_path):
    words = words.replace("RUN", str(trained_run().run)).replace("NEW", str(tmp_path / "new")).split()
    done = call(train, *TINY, "--phase", *words, check=False)
    assert done.returncode == 1 and message in done.stderr and "\n" not in done.stderr.strip()


def test_a_phase_is_not_loaded_as_another_phase_or_another_system():
    run = trained_run().run
    with pytest.raises(UserError, match="of system 'reasoner', not of nanojepa"):
        load_nanojepa(run / "sst")
    with pytest.raises(UserError, match="of phase 'pretrain'; needed is one of 'sst'"):
        load_phase(run / "pretrain", "sst")


def test_a_single_phase_takes_epochs_as_its_own_in_its_first_run_and_resumed(tmp_path):
    first = [*TINY, "--phase", "sst", "--init", trained_run().run / "pretrain", "--epochs", "1"]
    for words, epochs in ((first, 1), (["--resume", "--epochs", "2"], 2)):
        call(train, *words, "--run", tmp_path)
        assert read_json(tmp_path / "sst" / "summary.json")["epochs"] == epochs


@pytest.mark.parametrize("words", ["--leaves 99", "--n-layer 3"])
def test_a_mistake_costs_nothing(words, run):
    (run / "tree.json").write_text("{}", encoding="utf-8")
    done = call(train, *TINY, "--phase", "sst", "--overwrite", "--run", run, *words.split(), check=False)
    assert done.returncode == 1
    assert (run / "sst" / "model.safetensors").is_file() and (run / "tree.json").is_file()


def test_an_unfinished_phase_is_no_beginning_for_the_next(run):
    (run / "pretrain" / "summary.json").unlink()
    done = call(train, *TINY, "--phase", "sst", "--overwrite", "--run", run, check=False)
    assert "pretrain is not finished; " in done.stderr and "--phase pretrain --resume" in done.stderr


def test_a_phase_trained_anew_removes_what_came_of_the_old_one_and_nothing_else(run):
    (run / "tree.json").write_text("{}", encoding="utf-8")
    (run / "notes.txt").write_text("", encoding="utf-8")
    shutil.copytree(run / "sst", run / "kept")  # no phase of this run
    before = weights(run / "pretrain")
    call(train, *TINY, "--run", run, "--phase", "sst", "--overwrite", "--seed", "7")
    assert not (run / "talker").exists() and not (run / "tree.json").exists() and not (run / "summary.json").exists()
    assert (run / "notes.txt").is_file() and (run / "kept" / "model.safetensors").is_file()
    assert same(before, weights(run / "pretrain"))
    shutil.copytree(trained_run().run / "talker", run / "talker")
    with pytest.raises(UserError, match="trained on other latents than those now in"):
        load_run(run)


def test_a_later_phase_is_not_taken_for_one_of_new_weights(run):
    call(train, "--run", run, "--phase", "pretrain", "--epochs", "3", "--resume", "--device", "cpu")
    done = call(train, "--run", run, "--phase", "all", "--resume", "--device", "cpu", check=False)
    assert "was trained from other weights" in done.stderr


@pytest.mark.parametrize("kind", ["coupled", "coupled-talker", "coconut"])
def test_a_baseline_is_trained_and_measured_by_the_same_command(kind, tmp_path):
    call(train, *TINY, "--model", kind, "--run", tmp_path)
    summary = read_json(tmp_path / "summary.json")
    assert "route_accuracy" in summary and summary["phases"]["coupled"]["steps"] == 12


def test_text_goes_through_the_three_phases_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    text = "\n\n".join(f"passage {i}, of {i % 7} words" for i in range(150))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    run = tmp_path / "run"
    words = [*TINY, "--dataset", "text", "--data-dir", tmp_path, "--tokenizer", "bpe:340", "--run", run]
    first = call(train, *words, "--phase", "pretrain", "--max-steps", "2")
    assert " 0 passages cut off" in first.stdout
    call(train, *words, "--phase", "all", "--resume", "--max-steps", "0")
    for phase, epochs in (("pretrain", 2), ("sst", 1), ("talker", 1)):
        assert read_json(run / phase / "summary.json")["epochs"] == epochs
    assert Reasoner.from_pretrained(run / "sst").rollout([""]).size(-1) == 32
