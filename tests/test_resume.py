"""Interrupted, killed, damaged: a run goes on as if nothing had happened, or says why it cannot."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import same, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_tiny import STEPS, Line, batches, logged, toy_config, trained

from common.checkpoint import read_state
from common.log import read_log
from common.loop import fit
from common.options import UserError

# -------------------------------------------------------------------------------- interruption and resume


def interrupted_by(error, at: int):
    """Batches that end in an exception, or send this process a signal, when those of step `at` are asked for."""

    def make(epoch, k):
        if STEPS * epoch + k == at:
            if isinstance(error, int):
                os.kill(os.getpid(), error)
            else:
                raise error
        return batches(epoch, k)

    return make


class Killed(BaseException):
    """Nothing in the loop may catch it, as nothing can catch SIGKILL."""


@pytest.mark.parametrize("save_every", (1, 4, 5))
def test_a_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, save_every):
    trained(tmp_path / "whole", save_every=save_every)
    with pytest.raises(Killed):
        trained(tmp_path / "broken", interrupted_by(Killed(), 9), save_every=save_every)
    step = torch.load(tmp_path / "broken" / "state.pt", weights_only=True)["step"]
    assert 6 <= step <= 9, "the checkpoint is older than the kill"
    trained(tmp_path / "broken", save_every=save_every, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_what_was_logged_after_the_checkpoint_is_logged_once(tmp_path):
    trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "broken", interrupted_by(Killed(), 9))
    assert read_log(tmp_path / "broken")[0][-1]["step"] == 8, "nothing was logged after the checkpoint"
    trained(tmp_path / "broken", resume=True)
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")


def test_resume_keeps_the_lowest_validation_loss(tmp_path):
    losses = iter((1.0, 2.0, 3.0))
    with pytest.raises(Killed):
        trained(tmp_path / "run", interrupted_by(Killed(), 9), validate=lambda model: {"loss": next(losses)})
    best = weights(tmp_path / "run" / "best")
    trained(tmp_path / "run", validate=lambda model: {"loss": next(losses)}, resume=True)
    assert same(weights(tmp_path / "run" / "best"), best)


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_signal_ends_the_step_in_progress_and_leaves_a_checkpoint(tmp_path, number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        trained(tmp_path / "run", interrupted_by(number, 8))
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "interrupted at step 9 of 18; continue with: python " in message
    assert f"--run {tmp_path / 'run'} --resume" in message
    trained(tmp_path / "run", resume=True)
    trained(tmp_path / "whole")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def interrupted_validation(times: int, at: int):
    """A validation that is interrupted so many times, when it is called the `at`-th time."""
    calls = []

    def validate(model):
        calls.append(1)
        for _ in range(times if len(calls) == at else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0}

    return validate


@pytest.mark.parametrize("at", (1, 3))
def test_an_interruption_during_validation_is_not_swallowed(tmp_path, at, capsys):
    """After the last step it was: the run ended as if nothing had happened."""
    with pytest.raises(SystemExit) as stop:
        trained(tmp_path / "run", validate=interrupted_validation(1, at))
    assert stop.value.code == 128 + signal.SIGINT
    assert f"interrupted at step {at * STEPS} of 18" in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == at * STEPS


def test_a_second_interruption_does_not_wait_for_a_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", validate=interrupted_validation(2, 2))
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == STEPS


# ---------------------------------------------------------------------------------------- damaged files


def test_other_data_is_refused(tmp_path):
    trained(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="data has changed: 7 steps an epoch, not 6"):
        fit(Line(), 7, batches, toy_config(tmp_path / "run", resume=True))


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A run that was killed in step 13, with checkpoints of steps 10 and 12."""
    run = tmp_path_factory.mktemp("broken") / "run"
    with pytest.raises(Killed):
        trained(run, interrupted_by(Killed(), 13), save_every=5)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    trained(run, save_every=5)
    return run


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


@pytest.mark.parametrize("damage", ("half", "empty", "nonsense", "another object", "other shapes", "missing"))
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, broken, whole, damage, capsys):
    run = Path(shutil.copytree(broken, tmp_path / "run"))
    data, path = (run / "state.pt").read_bytes(), run / "state.pt"
    if damage in ("another object", "other shapes"):
        values = torch.load(path, weights_only=True)
        values["model"]["linear.weight"] = torch.zeros(2, 2)
        torch.save([1, 2] if damage == "another object" else values, path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "nonsense": b"nonsense"}[damage])
    trained(run, save_every=5, resume=True)
    assert "state.previous.pt, step 10" in capsys.readouterr().err
    assert same(weights(run), weights(whole)) and logged(run) == logged(whole)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 1, exclude_max=True))
def test_no_flipped_byte_of_a_checkpoint_goes_unnoticed_or_matters(broken, where):
    """torch.load takes flipped weights for weights."""
    data = (broken / "state.pt").read_bytes()
    path = broken.parent / "flipped.pt"
    path.write_bytes(flipped(data, int(where * len(data))))
    try:
        found = read_state(path, torch.device("cpu"))
    except Exception:
        return
    expected = torch.load(broken / "state.pt", weights_only=True)
    assert found["step"] == expected["step"] and same(found["model"], expected["model"])
    moments = (x["optimizer"]["state"][0] for x in (found, expected))
    assert same(*moments)


@pytest.mark.parametrize("error", (PermissionError(13, "Permission denied"), MemoryError()))
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path, broken, monkeypatch, error):
    """Out of memory, the advice was to start anew with --overwrite."""

    def read(*_):
        raise error

    monkeypatch.setattr("common.loop.read_state", read)
    with pytest.raises((UserError, MemoryError)) as caught:
        trained(Path(shutil.copytree(broken, tmp_path / "run")), save_every=5, resume=True)
    assert "damaged" not in str(caught.value)


def test_a_damaged_checkpoint_does_not_become_the_one_before(tmp_path, broken):
    """A kill between the two renames of the next save would have left nothing that resumes."""
    run = Path(shutil.copytree(broken, tmp_path / "run"))
    (run / "state.pt").write_bytes(b"")
    with pytest.raises(Killed):
        trained(run, interrupted_by(Killed(), 15), save_every=14, resume=True)
    assert [torch.load(run / name, weights_only=True)["step"] for name in ("state.pt", "state.previous.pt")] == [14, 12]


def test_a_run_whose_checkpoints_are_both_damaged_is_refused(tmp_path, broken):
    run = Path(shutil.copytree(broken, tmp_path / "run"))
    for name in ("state.pt", "state.previous.pt"):
        (run / name).write_bytes(b"")
    with pytest.raises(UserError, match="state.pt is damaged .* and .*state.previous.pt is damaged .*--overwrite"):
        trained(run, resume=True)


@pytest.mark.parametrize("damage", ("half a line", "bytes", "gone"))
def test_a_damaged_log_does_not_block_a_run(tmp_path, broken, whole, damage, capsys):
    """Half a line, left by a full disk or a kill, was a JSONDecodeError; a deleted log a FileNotFoundError."""
    run = Path(shutil.copytree(broken, tmp_path / "run"))
    path = run / "log.jsonl"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-5] if damage == "half a line" else data + b"\x00\xff\n[1]\n")
    trained(run, save_every=5, resume=True)
    reason = {"half a line": "1 damaged line", "bytes": "2 damaged lines", "gone": "it begins anew at step 12"}
    assert reason[damage] in capsys.readouterr().err
    for found, expected in zip(logged(run), logged(whole), strict=True):
        assert all(row in expected for row in found)
        assert len(found) == len(expected) or damage == "half a line" or all(row["step"] > 12 for row in found)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_during_a_log_line_leaves_a_run_that_resumes(tmp_path, whole):
    run = tmp_path / "run"

    def make(epoch, k):
        if (epoch, k) == (2, 1):
            (run / "log.jsonl").rename(run / "kept")
            (run / "log.jsonl").symlink_to("/dev/full")
        return batches(epoch, k)

    with pytest.raises(UserError, match="could not write .*log.jsonl: No space left"):
        trained(run, make, save_every=5)
    (run / "kept").replace(run / "log.jsonl")
    trained(run, save_every=5, resume=True)
    assert same(weights(run), weights(whole)) and logged(run) == logged(whole)
