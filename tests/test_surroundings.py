"""Whatever the console, the locale and the test split: a training ends with its summary, nothing is a traceback."""

import json
import signal
from pathlib import Path

import latent_tiny
import pytest
import reasoner_tiny
from helpers import call, script
from tiny import TINY

import train
from common.checkpoint import read_json

SMALL = [*TINY, "--n-train", "96", "--epochs", "1", "--world", "narrow"]
NO_UTF8 = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="")

# ------------------------------------------------------------------------------------ consoles, locales


def test_a_console_of_windows_gets_replacements_and_no_traceback(tmp_path):
    """`python train.py > log.txt` on Windows is cp1252: it ended at the first ■ of the mask."""
    done = script("train.py", *SMALL, "--no-final-eval", "--run", tmp_path / "run", PYTHONIOENCODING="cp1252")
    assert "trained 6 steps" in done.stdout and "?" in done.stdout


def test_nanojepa_works_in_a_folder_of_any_name_under_any_locale(tmp_path):
    run = tmp_path / "é"
    script("train.py", *SMALL, "--no-final-eval", "--run", run, **NO_UTF8)
    scripts = "import sys, train, eval_alignment, evaluate_accuracy, main; run = ['--run', sys.argv[1]]; "
    scripts += "train.main([*run, '--resume', '--epochs', '2']); eval_alignment.main(run); "
    scripts += "evaluate_accuracy.main(run); main.main([*run, '--ask', 'Ana has 2 pears.'])"
    done = script("-c", f"from common.options import run_main; run_main(lambda: exec({scripts!r}))", run, **NO_UTF8)
    assert done.stdout.splitlines()[-1]
    assert {"summary.json", "alignment.json", "accuracy.json"} <= {path.name for path in run.iterdir()}


def test_the_siblings_work_in_a_folder_of_any_name_under_any_locale(tmp_path):
    script("-m", "reasoner.train", *reasoner_tiny.TINY, "--max-steps", "2", "--run", tmp_path / "é", **NO_UTF8)
    script("-m", "reasoner.evaluate", "--run", tmp_path / "é", **NO_UTF8)
    script("-m", "latent_stack.train", *latent_tiny.options(tmp_path / "ö"), "--max-steps", "2", **NO_UTF8)
    for name in ("é", "ö"):
        assert read_json(tmp_path / name / "summary.json")["n"]


# ------------------------------------------------------------------------------------------ evaluations


def folder_of(path: Path, **splits: list[tuple[str, str]]) -> Path:
    path.mkdir()
    for name, rows in splits.items():
        lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows]
        (path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return path


MANY = [(f"How much is {i} and {i}?", f"#### {2 * i}") for i in range(60)]
LONG = [("word " * 300 + f"{i}", f"#### {i}") for i in range(3)]
SPLITS = {
    "one answer": ([(q, "#### 7") for q, _ in MANY[:5]], {"alignment"}),
    "none that fits": (LONG, {"alignment"}),
    "one question": (MANY[:1], {"alignment"}),
    "an answer that does not fit": ([*MANY[:5], ("How much?", "#### " + "7" * 300)], set()),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_finished_training_leaves_its_summary_whatever_the_test_split(tmp_path, name):
    """It ended with an error, and without summary.json."""
    test, missing = SPLITS[name]
    data = folder_of(tmp_path / "data", train=MANY, test=test)
    words = [*TINY, "--dataset", "gsm8k", "--data-dir", data, "--epochs", "1", "--run", tmp_path / "run"]
    done = call(train, *words)
    summary = read_json(tmp_path / "run" / "summary.json")
    assert set(summary.get("not_measured", ())) == missing and summary["steps"] == 3
    assert 0 <= summary["exact_match"] <= 1 and (summary["cos_own"] is None) == bool(missing)
    assert ("alignment was not measured: " in done.stdout) == bool(missing)


def test_an_interruption_of_the_final_evaluation_leaves_the_summary_of_the_training(tmp_path, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "accuracy", interrupt)
    done = call(train, *SMALL, "--run", tmp_path / "run", check=False)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert read_json(tmp_path / "run" / "summary.json")["steps"] == 6
