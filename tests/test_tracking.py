"""common/tracking.py: what log.jsonl gets goes to a tracker, which never changes a training and never ends it."""

import sys
from types import SimpleNamespace

import pytest
from helpers import same, weights
from loop_tiny import STEPS, toy_config, trained

from common import tracking
from common.log import append_log, read_lines
from common.tracking import Tracker, public_config, run_name
from config import Config


class Fake:
    """A wandb of a few lines, which keeps what it is given; `log` fails at its call number `fails`."""

    def __init__(self, fails: int = 0):
        self.fails, self.runs, self.lines, self.finished, self.id = fails, [], [], 0, "abc"

    def Settings(self, **settings):
        return settings

    def init(self, **about):
        self.runs.append(about)
        return self

    def define_metric(self, name, step_metric):
        self.step_metric = step_metric

    def log(self, values):
        self.lines.append(values)
        if len(self.lines) == self.fails:
            raise ConnectionError("no route\nto host")

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch) -> Fake:
    monkeypatch.setitem(sys.modules, "wandb", Fake())
    return sys.modules["wandb"]


def numbers(run) -> list[dict]:
    return [{k: v for k, v in line.items() if isinstance(v, int | float)} for line in read_lines(run)]


def test_every_line_of_the_log_goes_to_the_tracker_and_changes_nothing(fake, tmp_path):
    trained(tmp_path / "plain", validate=lambda model: {"loss": 1.0})
    trained(tmp_path / "run", validate=lambda model: {"loss": 1.0}, track="wandb")
    assert fake.lines == numbers(tmp_path / "run") and len(fake.lines) == 12 and fake.finished == 1
    assert fake.step_metric == "step" and fake.runs[0]["name"] == "run"
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "run"))


def test_what_was_logged_before_the_loop_goes_there_too_but_not_again_on_resume(fake, tmp_path):
    (tmp_path / "run").mkdir()
    append_log(tmp_path / "run", step=0, words_loss=1.0, text="no number")
    trained(tmp_path / "run", track="wandb", max_steps=STEPS)
    assert fake.lines[0] == {"step": 0, "words_loss": 1.0}
    fake.lines.clear()
    trained(tmp_path / "run", track="wandb", resume=True)
    assert [line["step"] for line in fake.lines] == [8, 10, 12, 14, 16, 18]


def test_a_resumed_training_continues_the_trackers_run_and_ends_with_the_same_weights(fake, tmp_path):
    trained(tmp_path / "plain")
    for words in (dict(max_steps=STEPS + 1), dict(resume=True)):
        trained(tmp_path / "run", track="wandb", **words)
    assert [run["id"] for run in fake.runs] == [None, "abc"] and {run["name"] for run in fake.runs} == {"run"}
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "run"))


def test_a_tracker_that_fails_in_mid_training_is_reported_once_and_the_training_goes_on(fake, tmp_path, capsys):
    fake.fails = 2
    trained(tmp_path / "plain")
    trained(tmp_path / "run", track="wandb")
    message = "--track wandb failed (no route\\nto host); the training goes on without it"
    assert capsys.readouterr().err.splitlines() == [message]
    assert len(fake.lines) == 2 and same(weights(tmp_path / "plain"), weights(tmp_path / "run"))


def test_a_tracker_that_cannot_be_started_or_ended_does_not_end_a_training(fake, tmp_path, capsys, monkeypatch):
    def refuse(**_):
        raise OSError("not logged in")

    monkeypatch.setattr(fake, "init", refuse)
    trained(tmp_path / "run", track="wandb")
    monkeypatch.setitem(tracking.OPEN, "wandb", lambda *_: (lambda *_: None, refuse))
    trained(tmp_path / "run2", track="wandb")
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("failed (not logged in)" in line for line in errors)


def test_of_several_processes_only_the_first_has_a_tracker(fake, tmp_path):
    config = toy_config(tmp_path / "run", track="wandb")
    with Tracker(config, 0, main=False) as tracker:
        tracker.log(1, loss=1.0)
    assert not fake.runs and not fake.lines


def test_no_path_of_this_machine_is_in_what_a_tracker_gets(tmp_path):
    config = Config(run=str(tmp_path / "quick"), data_dir=str(tmp_path / "gsm8k"), tokenizer="bpe:400")
    found = public_config(config)
    assert (found["run"], found["data_dir"], found["tokenizer"]) == ("quick", "gsm8k", "bpe:400")
    assert not [value for value in found.values() if isinstance(value, str) and str(tmp_path) in value]


def test_a_part_of_a_run_has_the_name_of_both(tmp_path):
    assert run_name(SimpleNamespace(run="out/quick/")) == "quick"
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert run_name(SimpleNamespace(run=str(tmp_path / "sst"))) == f"{tmp_path.name}/sst"


# ----------------------------------------------------------------------------------- the libraries themselves


def test_trackio_gets_every_line_under_the_name_of_the_run_also_when_it_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the library is imported
    pytest.importorskip("trackio", reason="pip install trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for words in (dict(max_steps=STEPS + 1), dict(resume=True)):
        trained(tmp_path / "run", track="trackio", **words)
    lines = [{k: v for k, v in line.items() if k != "timestamp"} for line in SQLiteStorage.get_logs("runs", "run")]
    wanted = numbers(tmp_path / "run")
    assert SQLiteStorage.get_runs("runs") == ["run"]
    assert sorted(line["step"] for line in lines) == [line["step"] for line in wanted]
    assert all(line in lines for line in wanted)
    assert SQLiteStorage.get_run_config("runs", "run")["lr"] == 0.1


def test_wandb_keeps_a_run_offline_in_the_folder_and_continues_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for words in (dict(max_steps=STEPS), dict(resume=True)):
        trained(tmp_path / "run", track="wandb", **words)
    names = sorted(path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(names) == 2 and len({name.rpartition("-")[2] for name in names}) == 1
    records = b"".join(path.read_bytes() for path in (tmp_path / "run" / "wandb").glob("*/run-*.wandb"))
    assert b"grad_norm" in records and str(tmp_path).encode() not in records


def test_tensorboard_hides_what_was_logged_after_the_checkpoint_that_is_resumed(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    trained(run, track="tensorboard", max_steps=STEPS)
    with Tracker(toy_config(run, track="tensorboard", resume=True), STEPS) as tracker:
        tracker.log(STEPS + 2, loss=9.0)  # then it was killed
    trained(run, track="tensorboard", resume=True)
    found = EventAccumulator(str(run)).Reload().Scalars("loss")
    wanted = [line for line in read_lines(run) if "loss" in line]
    assert [(x.step, pytest.approx(x.value)) for x in found] == [(line["step"], line["loss"]) for line in wanted]
