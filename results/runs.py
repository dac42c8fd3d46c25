"""Trainings of the siblings' tables, each in a process of its own: what is finished stays."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.options import UserError

ROOT = Path(__file__).resolve().parent.parent


def folder_of(out: Path, name: str, *made_of) -> Path:
    """Folder of a variant: its name, and a hash of all that it is made of, so that another preset is another run."""
    return out / f"{name}-{hashlib.sha256(' '.join(map(str, made_of)).encode()).hexdigest()[:8]}"


def slug(name: str) -> str:
    """'RMS only' -> 'RMS-only', for the name of a folder."""
    return "-".join(re.findall(r"[a-zA-Z0-9.]+", name))


def train_once(summary: Path, module: str, words: list[str], threads: int | None = None) -> None:
    """`python -m MODULE WORDS`, printed as it starts, unless its `summary` file is there."""
    if summary.is_file():
        return
    print("python -m", module, shlex.join(words), flush=True)
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    if done.returncode:
        raise UserError(f"a training failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
