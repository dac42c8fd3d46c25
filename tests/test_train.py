"""train.py as a user runs it: what a run leaves, how it resumes, what it refuses."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import call, same, script, weights
from tiny import TINY, TOKENIZER, tiny_config, tiny_data

import eval_alignment
import evaluate_accuracy
import train
from common.checkpoint import read_json
from common.log import read_log
from common.plots import BLUE, ORANGE
from data import TokenizedDataset
from model import load_run

SHORT = [*TINY, "--epochs", "1", "--n-train", "96", "--no-final-eval"]  # 6 steps


def files(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


def logged(run: Path) -> tuple[list[dict], list[dict]]:
    """The log without what clocks measure."""
    clocks = ("seconds", "tokens_per_second")
    return tuple([{k: v for k, v in row.items() if k not in clocks} for row in rows] for rows in read_log(run))


def refused(*words) -> str:
    """train.py ends with status 1 -> its one line."""
    done = call(train, *words, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    return lines[0]


# ---------------------------------------------------------------------------------------------- a run


def test_a_run_leaves_what_the_design_promises(trained):
    promised = "config.json model.safetensors tokenizer.json state.pt log.jsonl summary.json token_loss_curve.png"
    assert {*promised.split(), "jepa_loss_curve.png", "best", "state.previous.pt", ".lock"} == files(trained.run)
    assert files(trained.run / "best") == {"config.json", "model.safetensors", "tokenizer.json"}
    train_lines, val_lines = read_log(trained.run)
    assert [x["step"] for x in train_lines] == [4, 8, 12, 16, 20, 24]
    assert [x["step"] for x in val_lines] == [12, 24]


def test_a_summary_has_what_others_read(trained):
    summary = read_json(trained.run / "summary.json")
    training = "n_params steps epochs train_seconds examples_per_second token_loss jepa_loss val_token_loss"
    final = "val_jepa_loss exact_match exact_match_ci95 constant_from_train retrieval_at_1 cos_own cos_other"
    assert {*training.split(), *final.split()} <= summary.keys()
    assert summary["steps"] == 24 and summary["epochs"] == 2
    assert summary["n_params"] == load_run(trained.run).n_params()
    assert summary["token_loss"] == read_log(trained.run)[0][-1]["token_loss"]


def test_the_last_lines_report_the_test_split_beside_its_controls(trained):
    summary = read_json(trained.run / "summary.json")
    shown = (
        f"exact match, decoded from z_hat {summary['exact_match']:.2%}",
        f"always answering {summary['constant_from_train_answer']} ({summary['constant_from_train']:.1%}).",
        f"its own answer's (cosine {summary['cos_own']:.3f}) than to another's ({summary['cos_other']:.3f})",
        f"try next: python main.py --run {trained.run} python eval_alignment.py --run {trained.run}",
    )
    assert all(line in " ".join(trained.stdout.split()) for line in shown)


def test_the_saved_model_is_the_trained_one(trained):
    model, state = load_run(trained.run), torch.load(trained.run / "state.pt", weights_only=True)
    assert state["step"] == 24 and same(dict(model.state_dict()), dict(state["model"]))
    assert model.tokenizer.n_vocab == model.config.vocab_size == len(model.embed.weight)


def test_the_curves_show_each_loss_over_training_with_the_control_beside_it(trained, tmp_path, drawn):
    shutil.copy(trained.run / "log.jsonl", tmp_path)
    train.plot(tmp_path)
    train_lines, val_lines = read_log(trained.run)

    (token,), (jepa,) = (drawn[f"{name}_loss_curve.png"].axes for name in ("token", "jepa"))
    lines = {line.get_label(): line for line in token.get_lines() + jepa.get_lines()}
    expected = {
        "train": (train_lines, "token_loss"),
        "validation": (val_lines, "val_token_loss"),
        "own answer, training": (train_lines, "jepa_loss"),
        "own answer, validation": (val_lines, "val_jepa_loss"),
    }
    for label, (rows, key) in expected.items():
        assert lines[label].get_xdata().tolist() == [row["step"] for row in rows]
        assert lines[label].get_ydata().tolist() == [row[key] for row in rows]
        assert lines[label].get_color() == BLUE
    control = lines["another's (control), validation"]
    assert control.get_ydata().tolist() == [1 - row["val_cos_other"] for row in val_lines]
    assert control.get_color() == lines["another's (control), training"].get_color() == ORANGE


def test_the_printed_example_shows_the_mask_and_the_targets():
    batch = tiny_data().batch([0])
    lines = train.describe(batch, TOKENIZER, tiny_config()).splitlines()[1:]
    pred, width = next(i for i, line in enumerate(lines) if "[PRED]" in line), len(lines)
    assert lines[pred].endswith("■" * (pred + 1) + "·" * (width - pred - 1))
    assert lines[-1].endswith("·" * (pred + 1) + "■" * (width - pred - 1)) and "[EOS]" in lines[-1]
    token, predicts = ([line[at : at + 16].rstrip() for line in lines] for at in (4, 20))
    assert predicts[: pred - 1] == token[1:pred], "a question's token predicts the next"
    assert set(predicts[pred - 1 :]) == {"-"}, "only the question has next-token targets"


def test_under_the_causal_mask_the_printed_answer_has_targets_too():
    lines = train.describe(tiny_data(mask="causal").batch([0]), TOKENIZER, tiny_config(mask="causal")).splitlines()
    assert lines[-2].split()[2] == "[EOS]" and lines[-1].split()[2] == "-"


def test_two_trainings_with_the_same_seed_are_bit_equal(tmp_path):
    """In one process: nothing that the first leaves behind may reach the second."""
    for name in ("a", "b"):
        call(train, *SHORT, "--run", tmp_path / name)
    call(train, *SHORT, "--seed", "7", "--run", tmp_path / "c")
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert same(a, b) and not same(a, c)
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


def test_validation_can_decode_its_questions(tmp_path):
    call(train, *SHORT, "--eval-every", 4, "--val-accuracy", "--run", tmp_path)
    _, val = read_log(tmp_path)
    assert [row["step"] for row in val] == [4, 6] and all(0 <= row["val_exact_match"] <= 1 for row in val)


@pytest.mark.parametrize("options", ("--target ema", "--regulariser sigreg --grad-accum 2", "--decode-pred-weight 1"))
def test_what_the_objective_adds_is_trained_and_logged(options, tmp_path):
    call(train, *SHORT, *options.split(), "--run", tmp_path)
    train_lines, val_lines = read_log(tmp_path)
    names = {"--regulariser": "regulariser_loss", "--decode-pred-weight": "decode_pred_loss"}
    name = names.get(options.split()[0], "jepa_loss")
    assert name in train_lines[-1] and f"val_{name}" in val_lines[-1]


# ---------------------------------------------------------------------------------------------- resume


def test_a_run_killed_without_warning_and_resumed_equals_an_unbroken_one_bit_for_bit(trained, tmp_path):
    """SIGKILL in the middle of a step, dropout on, the checkpoint three steps older."""
    kill_at_batch_9 = (
        "import os, signal, sys, train\n"
        "from data import TokenizedDataset\n"
        "cut, seen = TokenizedDataset.batch, []\n"
        "def batch(data, index, denominators=None):\n"
        "    seen.extend([1] * (len(index) > 1 and data.length.size == 192))\n"
        "    len(seen) == 9 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return cut(data, index, denominators)\n"
        "TokenizedDataset.batch = batch\n"
        "train.main(sys.argv[1:])"
    )
    run = tmp_path / "run"
    done = script("-c", kill_at_batch_9, *TINY, "--save-every", "5", "--run", run, check=False, PYTHONPATH=".")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(run / "state.pt", weights_only=True)["step"] == 5
    call(train, "--run", run, "--resume")
    assert same(weights(run), weights(trained.run)) and same(weights(run / "best"), weights(trained.run / "best"))
    resumed_train, resumed_val = logged(run)
    whole_train, whole_val = logged(trained.run)
    assert [row["step"] for row in resumed_train] == [row["step"] for row in whole_train], "a step was logged twice"
    assert resumed_val == whole_val and resumed_train[-1] == whole_train[-1]


def test_ctrl_c_leaves_a_checkpoint_and_the_command_that_continues(tmp_path, monkeypatch):
    cut, seen = TokenizedDataset.batch, []

    def batch(self, *args):
        seen.append(1)
        if len(seen) == 4:  # the first is the one that is printed
            os.kill(os.getpid(), signal.SIGINT)
        return cut(self, *args)

    monkeypatch.setattr(TokenizedDataset, "batch", batch)
    done = call(train, *SHORT, "--run", tmp_path / "run", check=False)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("interrupted at step 3 of 6; continue with: python ")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 3


def test_a_finished_run_is_trained_on_for_the_epochs_that_resume_asks_for(run):
    before = logged(run)[0]
    call(train, "--run", run, "--resume", "--epochs", "3")
    assert logged(run)[0][: len(before)] == before and read_json(run / "summary.json")["steps"] == 36


def test_resume_refuses_what_would_change_the_run(trained):
    assert "lr = 0.0006, not 0.5" in refused("--run", trained.run, "--resume", "--lr", "0.5")


def test_a_run_that_is_there_or_is_not_there_is_a_clear_mistake(trained, tmp_path):
    assert "no checkpoint" in refused("--run", tmp_path / "none", "--resume")
    assert "already holds a run" in refused(*TINY, "--run", trained.run)


# -------------------------------------------------------------------------------------------- overwrite


def test_overwrite_leaves_nothing_of_the_run_that_was_there(run):
    """Its alignment figures stayed, beside the new run's curves."""
    before = files(run)
    for name in ("alignment.json", "alignment_map.png", "alignment-other_cosines.png", "predictions.jsonl"):
        (run / name).write_text("old")
    (run / "notes.txt").write_text("mine")
    call(train, *SHORT, "--overwrite", "--run", run)
    assert files(run) == before - {"state.previous.pt"} | {"notes.txt"}
    assert read_log(run)[0][-1]["step"] == 6, "the old run's log was continued"


def test_a_mistake_costs_nothing_of_the_run_that_was_there(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(*SHORT, "--overwrite", "--run", run, "--block-size", "8")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    "words, message",
    (
        ("--dataset gsm8k --data-dir nowhere", "nowhere/train.jsonl: no such file"),
        ("--data-dir DIR", "--dataset wordproblems is generated and reads no folder"),
        ("--tokenizer words", "--tokenizer words: must be gpt2, bpe:N"),
        ("--n-embd 15", "--n-embd 15 must be a multiple"),
        ("--block-size 8", "no example fits --block-size 8"),
        ("--device tpu", "no such device here"),
        ("--shard --optimizer muon", "--shard goes with --optimizer adamw"),
        ("--lr 1e30 --warmup-steps 0 --grad-clip 0", "the loss or its gradient is"),
        ("--run /proc/nowhere", "cannot write there"),
        ("--grad-accum 32", "less than one example for each of the 32 micro-batches"),
    ),
)
def test_a_users_mistake_is_one_line_and_no_traceback(words, message, tmp_path):
    assert message in refused(*SHORT, "--run", tmp_path / "run", *words.split())


def test_without_a_network_the_way_out_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    message = refused("--run", tmp_path / "run", "--tokenizer", "bpe:400", "--device", "cpu")
    assert "openai/gsm8k" in message and "--data-dir" in message and "--dataset" in message


# ---------------------------------------------------------------------------------- files, real and small


def folder_of(path: Path, **sizes: int) -> Path:
    """A data folder in GSM8K's format; the questions name their split."""
    path.mkdir()
    for split, n in sizes.items():
        rows = [{"question": f"{split} question {i}, plus {i}?", "answer": f"#### {2 * i}"} for i in range(n)]
        (path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_folder_of_ones_own_is_trained_on_and_its_validation_file_is_validated_on(tmp_path):
    words = [*SHORT, "--dataset", "gsm8k", "--max-steps", "2", "--batch-size", "8"]
    data = folder_of(tmp_path / "data", train=40, val=7, test=5)
    done = call(train, *words, "--data-dir", data, "--run", tmp_path / "run")
    assert "40 training, 7 validation, 5 test examples" in done.stdout
    (data / "val.jsonl").unlink()
    done = call(train, *words, "--data-dir", data, "--run", tmp_path / "run", "--overwrite")
    assert "36 training, 4 validation, 5 test examples" in done.stdout


PAIRS = [(f"{x} has {n} {y}", f"{y} {n}") for x in ("Ana", "Bo") for y in ("pen", "cup") for n in range(9)]


def test_two_texts_of_ones_own_are_learned_measured_and_compared_as_texts(tmp_path):
    for split in ("train", "val", "test"):
        rows = [{"input": a, "target": b} for a, b in PAIRS]
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    words = "--dataset pairs --epochs 120 --batch-size 18 --n-embd 32 --lr 1e-2 --decode-pred-weight 1 --dropout 0"
    done = call(train, *SHORT, "--final-eval", *words.split(), "--data-dir", tmp_path, "--run", tmp_path / "run")
    assert read_json(tmp_path / "run" / "summary.json")["exact_match"] > 0.9, done.stdout
    for module in (eval_alignment, evaluate_accuracy):
        call(module, "--run", tmp_path / "run")
    assert read_json(tmp_path / "run" / "accuracy.json")["dataset"] == "pairs"
    assert "neighbours_share_ops" not in read_json(tmp_path / "run" / "alignment.json")


def test_a_schedule_that_ends_in_its_warm_up_is_warned_of_and_epochs_0_makes_enough_steps(tmp_path):
    data = folder_of(tmp_path / "data", train=60, test=5)
    words = [*SHORT, "--dataset", "gsm8k", "--data-dir", data, "--max-steps", "1", "--batch-size", "27"]
    done = call(train, *words, "--run", tmp_path / "few", "--epochs", "25")
    assert "WARNING    50 steps are all warm-up" in done.stdout
    done = call(train, *words, "--run", tmp_path / "enough", "--epochs", "0")
    assert "WARNING" not in done.stdout and "1000 epochs of 2 steps of 27 examples" in done.stdout
    assert read_json(tmp_path / "enough" / "config.json")["epochs"] == 1000


@pytest.fixture
def small_gsm8k(gsm8k, tmp_path) -> Path:
    """The first few questions of each of its files."""
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split, n in (("train", 100), ("test", 20)):
        lines = (gsm8k / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:n]), encoding="utf-8")
    return folder


def test_a_short_run_on_real_gsm8k_with_the_real_gpt2_encoding(small_gsm8k, gpt2_cache, tmp_path):
    small = "--n-embd 8 --n-layer 1 --n-head 2 --batch-size 8 --max-steps 8 --log-every 2 --lr 1e-2 --warmup-steps 1"
    words = [*small.split(), "--no-final-eval", "--data-dir", small_gsm8k, "--run", tmp_path / "run", "--device", "cpu"]
    assert "90 training, 10 validation, 20 test examples" in call(train, *words).stdout
    losses = [row["token_loss"] for row in read_log(tmp_path / "run")[0]]
    assert losses[-1] < losses[0] and read_json(tmp_path / "run" / "config.json")["tokenizer"] == "gpt2"


@pytest.mark.parametrize("mask", ("causal", "jepa"))
def test_programs_of_real_gsm8k_are_trained_on_decoded_and_computed(small_gsm8k, tmp_path, mask):
    options = f"--dataset gsm8k --tokenizer bpe:512 --block-size 320 --max-steps 3 --answer-view program --mask {mask}"
    done = call(train, *SHORT, *options.split(), "--data-dir", small_gsm8k, "--run", tmp_path / "r")
    assert "examples whose solution is no program" in done.stdout
    assert load_run(tmp_path / "r").answer(["Ana has 3 pens and 4 books."], 3)[0].count("####") == 1
    longest = read_json(tmp_path / "r" / "config.json")["max_new_tokens"]
    assert longest > 20, "of the longest training program and [EOS]"


def test_the_latent_of_a_whole_solution_can_be_the_target(tmp_path):
    call(train, *SHORT, "--final-eval", "--answer-view", "solution", "--run", tmp_path / "r")
    assert {"exact_match", "retrieval_at_1"} <= read_json(tmp_path / "r" / "summary.json").keys()
