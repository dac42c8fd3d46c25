"""Several processes: as many as there are, they train as one, continue each other's runs, and end together."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, call, environment, script, torchrun, weights
from tiny import TINY

import train
from common.log import read_log
from common.loop import interruptible

# 20 steps; a batch that four processes do not divide; no dropout, whose draws are each process' own
CHANGES = "--dropout 0 --batch-size 18 --warmup-steps 2 --lr 3e-3 --log-every 1 --save-every 5 --no-final-eval"
OPTIONS = [*TINY, *CHANGES.split()]
TOLERANCE = 1e-5  # relative, of what is logged; measured: 1e-6


def losses(run: Path) -> list[dict]:
    """Training and validation lines by step, without clocks and the control, which depends on the micro-batch."""
    left_out = ("seconds", "tokens_per_second", "window", "cos_other", "val_cos_other")
    return [
        {row["step"]: {name: value for name, value in row.items() if name not in left_out} for row in rows}
        for rows in read_log(run)
    ]


# ------------------------------------------------------------------------------------------ as one process


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    """The same 20 steps by one process, `alone`, and handed on every four steps, `relay`: 1, 2, 4, 2 sharded, 1."""
    folder = tmp_path_factory.mktemp("processes")
    alone, relay = folder / "alone", folder / "relay"
    call(train, *OPTIONS, "--run", alone)
    call(train, *OPTIONS, "--run", folder / "begun", "--max-steps", "4")
    shutil.copytree(folder / "begun", relay)  # this process is the one that writes in the other
    resumed = ["--run", relay, "--resume", "--max-steps"]
    script("train.py", *resumed, "8", "--grad-accum", "3", launcher=torchrun(processes=2))
    script("train.py", *resumed, "12", "--grad-accum", "1", launcher=torchrun(processes=4))
    script("train.py", *resumed, "16", "--grad-accum", "2", "--shard", launcher=torchrun(processes=2))
    sharded = torch.load(relay / "state.pt", weights_only=True)
    call(train, *resumed, "20")
    return SimpleNamespace(alone=alone, relay=relay, sharded=sharded)


@pytest.mark.slow
def test_runs_handed_on_between_one_two_and_four_processes_log_the_losses_of_one(runs):
    """Steps and validations alike, sharded or not: gradients are summed over all micro-batches, of whatever process."""
    for alone, relay in zip(losses(runs.alone), losses(runs.relay), strict=True):
        assert alone.keys() <= relay.keys(), "a step is missing"
        for step, row in alone.items():
            assert relay[step] == pytest.approx(row, rel=TOLERANCE), step


@pytest.mark.slow
def test_runs_handed_on_between_processes_end_at_the_weights_of_one(runs):
    one, relay = weights(runs.alone), weights(runs.relay)
    for name in one:
        torch.testing.assert_close(relay[name], one[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_checkpoint_of_a_sharded_run_is_that_of_an_ordinary_one(runs):
    """Whole tensors under the same names: one process, or any number, loads it and goes on."""

    def shapes(values):
        if isinstance(values, dict):
            return {name: shapes(value) for name, value in values.items()}
        return (values.dtype, values.shape) if torch.is_tensor(values) else type(values)

    assert shapes(runs.sharded) == shapes(torch.load(runs.alone / "state.pt", weights_only=True))


# ------------------------------------------------------------------------------------------ how they end


def test_a_ctrl_c_that_torchrun_passes_on_is_not_a_second_one():
    """The terminal has sent it to all processes already: what torchrun sent on would have cost the checkpoint."""
    with interruptible(processes=2) as received:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT] * 3


LOSING = """
import os, signal, sys, time
import train
from common.options import UserError, run_main
from data import TokenizedDataset

cut, seen = TokenizedDataset.batch, []

def batch(data, index, denominators=None):
    seen.append(1)
    if len(seen) == 9 and os.environ["RANK"] == sys.argv[1]:  # the first is the one that is printed
        print(f"\\nlost at {time.time()}", file=sys.stderr, flush=True)
        LOSS
    return cut(data, index, denominators)

TokenizedDataset.batch = batch
run_main(lambda: train.main(sys.argv[2:]))
"""


@pytest.fixture
def losing(tmp_path):
    """loss (code), rank -> the command of a training in which that process is lost in step 8."""

    def command(loss: str, rank: int) -> list[str]:
        (tmp_path / "losing.py").write_text(LOSING.replace("LOSS", loss), encoding="utf-8")
        return [str(tmp_path / "losing.py"), str(rank), *OPTIONS, "--run", str(tmp_path / "run")]

    return command


def ends_in_one_line(stderr: str) -> bool:
    """A survivor's: what happened to it, and no traceback."""
    return stderr.count("error: another process of this training ended") == 1 and "Traceback" not in stderr


def test_processes_that_nobody_watches_end_within_seconds_of_one_that_is_killed(losing, tmp_path):
    """As a scheduler starts them, without torchrun; the one that is killed is the one that writes."""
    command = [sys.executable, *losing("os.kill(os.getpid(), signal.SIGKILL)", rank=0)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    settings = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, PYTHONPATH=".")
    lost, survivor = (
        subprocess.Popen(
            command, cwd=ROOT, env=environment(RANK=str(rank), **settings), stderr=subprocess.PIPE, encoding="utf-8"
        )
        for rank in (0, 1)
    )
    try:
        assert lost.wait(120) == -9
        stderr = survivor.communicate(timeout=60)[1]
    finally:
        lost.kill(), survivor.kill()
    assert survivor.returncode == 1 and ends_in_one_line(stderr), stderr
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 5, "the last checkpoint is whole"


def test_a_mistake_in_one_process_ends_torchruns_others_within_seconds(losing):
    command = losing("raise UserError('a mistake of this process alone')", rank=1)
    done = script(*command, launcher=torchrun(), check=False, PYTHONPATH=".")
    stderr, report = done.stderr.split("torch/distributed/elastic/multiprocessing/api.py", 1)  # torchrun's own
    assert done.returncode and "error: a mistake of this process alone" in stderr
    assert "Traceback" not in stderr.replace("\r", "\n"), stderr
    assert time.time() - float(stderr.split("lost at ")[1].split()[0]) < 60
