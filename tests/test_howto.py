"""CONTRIBUTING's how-tos, followed as they stand; only the trainings are shrunk to seconds."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, call, environment
from test_readme import commands_of, text_of
from tiny import TINY

import main as demo
import train

SHRUNK = [*TINY[2:], "--n-train", "96", "--epochs", "1", "--overwrite"]  # the data set is the how-to's


def how_to(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## )", text_of("CONTRIBUTING.md"), re.S | re.M)[1]


def block(title: str, language: str) -> str:
    """The one block of code in a language below a title."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", how_to(title), re.S | re.M)
    return found


@pytest.mark.parametrize("title", ("Train on questions of your own", "Train on two texts"))
def test_data_of_ones_own_is_written_trained_on_and_asked(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(block(title, "python"), {})
    training, asking = commands_of(block(title, "bash"))
    assert (training[0], asking[0]) == ("train.py", "main.py")
    printed = call(train, *training[1:], *SHRUNK).stdout
    assert "96 training" in printed and "WARNING: " not in printed  # of test questions that are in the training split
    assert call(demo, *asking[1:]).stdout.strip()


def test_the_loss_is_added_logged_validated_and_tested(tmp_path):
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "common", ROOT / "tests"]:
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / path.name)
    (tmp_path / "loss.patch").write_text(block("Add a loss", "diff"), encoding="utf-8")
    patch, test, control, training = block("Add a loss", "sh").splitlines()
    subprocess.run(patch.split(), cwd=tmp_path, check=True)
    run = "train.main(sys.argv[1:]); sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/test_losses.py']))"
    words = [*commands_of(training)[0][1:], *SHRUNK, "--no-final-eval"]
    command = [sys.executable, "-c", f"import sys, pytest; sys.path.insert(0, ''); import train; {run}", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    log = [json.loads(line) for line in (tmp_path / "out/smooth-l1/log.jsonl").read_text("utf-8").splitlines()]
    assert {"smooth_l1_loss", "val_smooth_l1_loss"} <= {name for line in log for name in line}
    assert "test_losses.py" in test and "smooth" not in control


def test_a_shared_model_is_loaded_from_another_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(block("Put a model on the Hub", "python").replace('"out/quick"', repr(str(run))), {})
    saved = {path.name for path in (tmp_path / "to-share").iterdir()}
    assert saved == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    code = block("Put a model on the Hub", "bash").replace("PYTHONPATH=$PWD", f"PYTHONPATH={ROOT}")
    code = code.replace("python ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-ec", code], env=environment(), capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
