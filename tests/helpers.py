"""What all tests share: scripts run in this process or in one of their own, and weights to compare."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import load_file

from common.options import run_main

ROOT = Path(__file__).resolve().parent.parent


def call(module: ModuleType, *words, check: bool = True) -> SimpleNamespace:
    """A script's `main` in this process, as a command line would run it -> returncode, stdout, stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_main(lambda: module.main([str(w) for w in words]))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
            if isinstance(stop.code, str):
                err.write(stop.code)
    done = SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
    assert not check or code == 0, done.stderr
    return done


def environment(**changes) -> dict:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | changes


def script(*words, check: bool = True, launcher=(sys.executable,), **changes) -> subprocess.CompletedProcess:
    """A script in a process of its own, for what only a process can show: signals, torchrun, a locale."""
    command = [*launcher, *map(str, words)]
    reads = dict(capture_output=True, encoding="utf-8", errors="replace", timeout=200)
    done = subprocess.run(command, cwd=ROOT, env=environment(**changes), **reads)
    assert not check or done.returncode == 0, done.stderr
    return done


def torchrun(*words: str, processes: int = 2) -> list[str]:
    """The launcher of several processes, for `script`; words: "-m" before a module's name."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*command, *words, "--"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    """Bit-equal tensors under the same names?"""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
