"""The loop and the scripts, run as a user runs them: what they write, how they resume, how they fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import PROBLEMS, TOKENIZER, encoded, tiny_config, tiny_model

from config import PRESETS, Config, UserError, parse
from data import Encoded, Example, make_batches
from evaluate_accuracy import accuracy, final_answer, majority
from model import load_run
from train import describe, fit, learning_rate, make_optimizer

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--dataset", "wordproblems", "--tokenizer", "bpe:400", "--n-layer", "2", "--n-head", "2", "--n-embd", "16",
        "--n-train", "192", "--batch-size", "16", "--epochs", "2", "--log-every", "4", "--device", "cpu"]  # fmt: skip


def script(*args, check=True, launcher=(sys.executable,), **environment):
    """Run a top-level script as a user would -> CompletedProcess with text output."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([*launcher, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=200, env=env)
    assert not check or done.returncode == 0, done.stderr
    return done


def torchrun(port, *words):
    """The launcher of two processes, for `script`; words: "-m" before a module's name."""
    two = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    return [sys.executable, *two, *words, "--"]


def weights(run):
    return load_file(Path(run) / "model.safetensors")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One complete run of 24 steps, shared by the tests that only look at it."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, script("train.py", *TINY, "--dropout", "0.1", "--run", run)


# ---------------------------------------------------------------------------------------------- a run


def test_a_run_leaves_what_the_design_promises(trained):
    run, done = trained
    promised = ("config.json model.safetensors tokenizer.json state.pt log.jsonl summary.json token_loss_curve.png "
                "jepa_loss_curve.png").split()  # fmt: skip
    assert set(promised) <= {p.name for p in run.iterdir()}
    summary = json.loads((run / "summary.json").read_text())
    keys = "n_params steps epochs train_seconds examples_per_second token_loss jepa_loss val_token_loss val_jepa_loss"
    final = "exact_match retrieval_at_1 cos_own cos_other"
    assert set(f"{keys} {final}".split()) <= set(summary) and summary["steps"] == 24 and summary["epochs"] == 2
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == [4, 8, 12, 16, 20, 24]
    assert [x["step"] for x in lines if "val_loss" in x] == [12, 24]
    assert (run / "best" / "model.safetensors").is_file()
    assert "predicts" in done.stdout and "[PRED]" in done.stdout and "exact match" in done.stdout
    assert not list(run.rglob("*.tmp"))


def test_state_loads_without_executing_code(trained):
    assert torch.load(trained[0] / "state.pt", weights_only=True)["step"] == 24


def test_the_curves_are_pictures_of_more_than_one_colour(trained):
    for name in ("token_loss_curve.png", "jepa_loss_curve.png"):
        pixels = np.asarray(Image.open(trained[0] / name).convert("RGB"))
        assert pixels.shape[0] > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_evaluation_writes_the_promised_keys(trained):
    run, _ = trained
    script("eval_alignment.py", "--run", run, "--limit", 60, "--compare", run)
    script("evaluate_accuracy.py", "--run", run, "--limit", 40)
    alignment, accuracy = (json.loads((run / f"{name}.json").read_text()) for name in ("alignment", "accuracy"))
    keys = ("n cos_own cos_other margin auc retrieval_at_1 retrieval_at_5 retrieval_at_10 mrr effective_rank_z "
            "effective_rank_z_hat mean_pairwise_cos_z").split()  # fmt: skip
    assert set(keys) <= set(alignment) and set(keys) <= set(alignment["untrained"]) and "cos_own_ci95" in alignment
    keys = ("n exact_match_decoded exact_match_decoded_ci95 exact_match_nearest exact_match_nearest_ci95 "
            "constant_from_train constant_best_on_test seconds").split()  # fmt: skip
    assert set(keys) <= set(accuracy) and accuracy["n"] == 40
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and {"question", "gold", "prediction", "cosine"} <= set(rows[0])
    assert all((run / f"alignment_{name}.png").is_file() for name in ("cosines", "map", "over_training"))


def test_validation_comes_every_so_many_steps_and_can_decode(tmp_path):
    script("train.py", *TINY, "--eval-every", 5, "--val-accuracy", "--no-final-eval", "--run", tmp_path / "r")
    lines = [json.loads(x) for x in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    checks = [x for x in lines if "val_loss" in x]
    assert [x["step"] for x in checks] == [5, 10, 12, 15, 20, 24]
    assert all(0 <= x["val_exact_match"] <= 1 for x in checks)


def test_a_worked_solution_is_for_the_language_model_only(tmp_path):
    options = [*TINY, "--answer-view", "equations", "--run", tmp_path / "r"]
    refused = script("train.py", *options, check=False)
    assert refused.returncode == 1 and "--mask causal" in refused.stderr
    options += ["--mask", "causal", "--decode-weight", 0, "--jepa-weight", 0]
    refused = script("train.py", *options, "--max-new-tokens", 4, check=False)
    assert refused.returncode == 1 and "--max-new-tokens 4 cuts it" in refused.stderr
    script("train.py", *options, "--max-new-tokens", 40, "--overwrite")
    script("evaluate_accuracy.py", "--run", tmp_path / "r", "--limit", 20)


def test_a_language_model_writes_programs_and_answers_with_what_they_compute(shared_data, tmp_path):
    options = [*TINY, "--dataset", "gsm8k", "--data-dir", shared_data / "gsm8k", "--tokenizer", "bpe:512",
               "--block-size", 320, "--mask", "causal", "--decode-weight", 0, "--jepa-weight", 0, "--max-steps", 4,
               "--answer-view", "program", "--max-new-tokens", 80, "--no-final-eval",
               "--run", tmp_path / "r"]  # fmt: skip
    assert "examples whose solution is no program" in script("train.py", *options).stdout
    model, question = load_run(tmp_path / "r"), "Ana has 3 pens and 4 books."
    read = Encoded([Example(question, "7", "+", "<<3+4=7>>7 #### 7")], model.tokenizer, 320, answer_view="program")
    assert read.tokens[: read.n[0]].tolist() == model.read([question])[0], "trained on other text than is asked"
    model._generate = lambda *_: ["α*2,a+β", "nonsense"]
    assert model.answer(["3 pens and 4 pens", "?"]) == ["α*2,a+β #### 10", "nonsense #### "]
    assert final_answer(model, "α*2,a+β #### 10") == "10" and final_answer(model, "nonsense #### ") == ""


def test_the_majority_of_samples_is_the_greedy_answer_when_nothing_is_left_to_chance():
    model = tiny_model(mask="causal", answer_view="solution").eval()
    drawn = iter((["#### 7.5", "no"], ["#### 3", "no"], ["#### 3", "#### 3"], ["#### 7.50", "no"], ["#### 7.5", "no"]))
    model.answer = lambda questions, temperature: next(drawn)
    assert majority(model, ["?", "?"], 5, 1.0) == ["7.5", "3"]
    model, state = tiny_model(mask="causal").eval(), torch.get_rng_state()
    assert majority(model, ["1 and 2?", "3?"], 3, temperature=1e-4) == model.answer(["1 and 2?", "3?"])
    assert majority(model, ["1 and 2?"], 3, 5.0) == majority(model, ["1 and 2?"], 3, 5.0), "not reproducible"
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="--votes samples token by token"):
        accuracy(tiny_model(), PROBLEMS[:2], PROBLEMS, votes=3)
    result, rows = accuracy(model, PROBLEMS[:4], PROBLEMS, votes=3)
    assert "exact_match_voted_ci95" in result and all("voted" in row for row in rows)


def test_only_what_follows_the_mark_of_a_worked_solution_is_its_answer():
    model = tiny_model(mask="causal", answer_view="solution")
    assert final_answer(model, "3 + 4 = 7. #### 7") == "7" and final_answer(model, "3 + 4 = 7.") == ""
    assert final_answer(tiny_model(), "7") == "7"


# ---------------------------------------------------------------------------------------------- resume


def test_a_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(trained, tmp_path):
    """Killed without warning, with dropout on; the checkpoint is older than the kill."""
    run = tmp_path / "killed"
    slow = [sys.executable, "-c", "import sys, time, runpy, data; cut = data.Encoded.batch\n"
            "data.Encoded.batch = lambda *a, **k: (time.sleep(0.15), cut(*a, **k))[1]\n"
            "sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')"]  # fmt: skip
    args = [*TINY, "--dropout", "0.1", "--run", str(run), "--save-every", "5"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([*slow, "train.py", *args], cwd=ROOT, **quiet,
                               env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})  # fmt: skip
    deadline = time.time() + 90
    while not (run / "state.pt").exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.4)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()
    process.wait()
    step = torch.load(run / "state.pt", weights_only=True)["step"]
    assert 0 < step < 24
    script("train.py", "--run", run, "--resume")
    assert same(weights(run), weights(trained[0]))
    whole, resumed = ([json.loads(x) for x in (r / "log.jsonl").read_text().splitlines()] for r in (trained[0], run))
    clocks = ("seconds", "tokens_per_second")
    strip = lambda lines: {x["step"]: {k: v for k, v in x.items() if k not in clocks} for x in lines if "val_loss" in x}  # noqa: E731
    assert strip(whole) == strip(resumed)
    steps = [x["step"] for x in resumed if "loss" in x]
    assert steps == sorted(set(steps)), "a step was logged twice"


def test_resume_refuses_what_would_change_the_run(trained, tmp_path):
    refused = script("train.py", "--run", trained[0], "--resume", "--lr", "0.5", check=False)
    assert refused.returncode == 1 and "lr = 0.0006, not 0.5" in refused.stderr and "Traceback" not in refused.stderr
    absent = script("train.py", "--run", tmp_path / "none", "--resume", check=False)
    assert absent.returncode == 1 and "no checkpoint" in absent.stderr
    again = script("train.py", *TINY, "--run", trained[0], check=False)
    assert again.returncode == 1 and "already holds a run" in again.stderr


def test_interrupt_leaves_a_clean_checkpoint_one_line_and_status_130(tmp_path):
    run = tmp_path / "stopped"
    args = [sys.executable, "train.py", *TINY, "--epochs", "2000", "--run", str(run)]
    process = subprocess.Popen(args, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    deadline = time.time() + 90
    while not (run / "state.pt").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr and "--resume" in stderr.strip().splitlines()[-1]
    step = torch.load(run / "state.pt", weights_only=True)["step"]
    assert f"interrupted at step {step} of" in stderr


# -------------------------------------------------------------------------------------------- data parallel


def test_two_processes_train_as_one_on_the_same_global_batch(tmp_path):
    args = ["train.py", *TINY, "--dropout", "0", "--no-final-eval", "--batch-size", "12"]
    script(*args, "--run", tmp_path / "one")
    script(*args, "--run", tmp_path / "two", "--grad-accum", "3", launcher=torchrun(29517))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-4)
    logs = [[json.loads(x) for x in (tmp_path / r / "log.jsonl").read_text().splitlines()] for r in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        for name in set(a) - {"seconds", "tokens_per_second", "cos_other"}:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("args,said", [
    (["--data-dir", "nowhere"], "nowhere/train.jsonl: no such file"),
    (["--tokenizer", "words"], "--tokenizer words: wants gpt2, or bpe:N"),
    (["--n-embd", "15"], "--n-embd 15 must be a multiple"),
    (["--block-size", "8"], "no example fits --block-size 8"),
    (["--device", "cuda"] if not torch.cuda.is_available() else ["--device", "tpu"], "no such device here"),
    (["--lr", "1e30", "--warmup-steps", "0", "--grad-clip", "0"], "the loss is"),
    (["--run", "/proc/nowhere"], "cannot write there"),
])  # fmt: skip
def test_a_users_mistake_is_one_line_and_no_traceback(args, said, tmp_path):
    base = [*TINY, "--run", tmp_path / "run"]
    if "--data-dir" in args:
        base += ["--dataset", "gsm8k"]
    done = script("train.py", *base, *args, check=False)
    lines = [x for x in done.stderr.splitlines() if x.startswith("error")]
    assert done.returncode == 1 and len(lines) == 1 and said in lines[0] and "Traceback" not in done.stderr, done.stderr


def test_without_a_network_the_way_out_is_named(tmp_path):
    empty = {"HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1"}
    done = script("train.py", "--run", tmp_path / "run", "--tokenizer", "bpe:400", check=False, **empty)
    assert done.returncode == 1 and "--data-dir" in done.stderr and "--dataset wordproblems" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluation_never_puts_random_weights_in_place_of_a_checkpoint(tmp_path):
    for name in ("eval_alignment.py", "evaluate_accuracy.py", "main.py"):
        done = script(name, "--run", tmp_path / "none", check=False)
        assert done.returncode == 1 and "no checkpoint" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_in_one_line_and_harms_nothing(tmp_path, monkeypatch):
    """The checkpoint's temporary file is a link to /dev/full, where every write fails as on a full disk."""
    from config import atomic

    (tmp_path / "state.pt").write_text("old")
    (tmp_path / f"state.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no space left.*intact"):
        with atomic(tmp_path / "state.pt") as path:
            torch.save({"x": torch.zeros(100_000)}, path)
    assert (tmp_path / "state.pt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------ small pieces


def test_the_learning_rate_warms_up_and_decays_to_its_floor():
    config = tiny_config(lr=1.0, warmup_steps=10, min_lr=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == 1.0 == max(rates) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_gains_do_not_decay_and_every_parameter_is_optimised_once():
    model = tiny_model(target="ema")
    optimizer = make_optimizer(model, tiny_config(weight_decay=0.3))
    grouped = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == sum(p.requires_grad for p in model.parameters())
    assert all(g["weight_decay"] == (0.3 if p.dim() >= 2 else 0) for g in optimizer.param_groups for p in g["params"])


def test_fit_asks_nothing_of_a_model_but_loss_and_metrics(tmp_path):
    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(4, 4))

        def forward(self, batch):
            loss = (self.w - 1).square().mean()
            return loss, {"loss": loss.detach()}

    steps, batches = make_batches(encoded(), tiny_config())
    config = tiny_config(run=str(tmp_path), lr=0.1, epochs=10, warmup_steps=1, weight_decay=0.0)
    summary = fit(Line(), steps, batches, config)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert summary["steps"] == 10 * steps and last["loss"] < 0.05


def test_the_printed_example_shows_the_mask_and_the_targets():
    batch = encoded(PROBLEMS[:1]).batch([0])
    lines = describe(batch, TOKENIZER, "jepa").splitlines()[1:]
    pred = next(i for i, line in enumerate(lines) if "[PRED]" in line)
    width = len(lines)
    assert lines[pred].endswith("■" * (pred + 1) + "·" * (width - pred - 1))
    assert lines[-1].endswith("·" * (pred + 1) + "■" * (width - pred - 1)) and "[EOS]" in lines[-1]


def test_every_preset_parses_and_says_its_hardware_minutes_and_figures():
    for name, preset in PRESETS.items():
        config, _ = parse(Config, PRESETS, "", ["--preset", name])
        assert all(getattr(config, key) == value for key, value in preset.values.items())
        assert "min" in preset.about and any(word in preset.about for word in ("CPU", "GPU", "RTX"))


# -------------------------------------------------------------------------------------------- real GSM8K


def test_a_short_run_on_real_gsm8k_with_the_real_gpt2_encoding(shared_data, tmp_path):
    if not (shared_data / "gsm8k" / "train.jsonl").is_file():
        pytest.skip("needs GSM8K's train.jsonl and test.jsonl")
    run, data = tmp_path / "gsm8k", ["--data-dir", shared_data / "gsm8k"]
    small = (
        "--n-embd 32 --n-layer 2 --n-head 2 --batch-size 16 --max-steps 12 --log-every 4 --no-final-eval --device cpu"
    )
    cache = {"TIKTOKEN_CACHE_DIR": str(shared_data / "tiktoken")}
    done = script("train.py", *data, *small.split(), "--run", run, **cache)
    assert "6,973 training, 500 validation, 1,319 test examples" in done.stdout
    losses = [json.loads(x)["token_loss"] for x in (run / "log.jsonl").read_text().splitlines() if '"token_loss"' in x]
    assert losses[-1] < losses[0]
    script("evaluate_accuracy.py", *data, "--run", run, "--limit", 50, **cache)
    assert json.loads((run / "accuracy.json").read_text())["n"] == 50
