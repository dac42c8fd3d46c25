"""common/checkpoint.py: files that are whole or not there, a run's folder, checkpoints that load from it alone."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT, same, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import ANSWERS, QUESTIONS, tiny_model

from common.checkpoint import (
    atomic,
    clear_run,
    open_run,
    read_config,
    read_json,
    read_weights,
    save_model,
    weights_hash,
    write_json,
)
from common.options import LoopConfig, UserError, internal
from config import Config
from model import NanoJEPA, load_run

# ----------------------------------------------------------------------------------------------- files


def test_a_written_file_appears_whole_and_alone(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists(), "half a file was visible"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "new"


def test_who_reads_the_old_file_meanwhile_sees_all_of_it(tmp_path):
    """Replaced, not overwritten: a crash between two bytes leaves one file or the other."""
    (tmp_path / "a.txt").write_text("old")
    with open(tmp_path / "a.txt") as reader:
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert reader.read() == "old" and (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", (ValueError("x"), KeyboardInterrupt(), RuntimeError("x")))
def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of the n")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "error, reason",
    (
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed: file write failed"), "space"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ),
)
def test_a_full_or_locked_disk_is_one_line(tmp_path, error, reason):
    """torch.save and safetensors report a full disk by errors of their own."""
    (tmp_path / "state.pt").write_text("old")
    with pytest.raises(UserError, match=reason) as caught, atomic(tmp_path / "state.pt") as temporary:
        temporary.write_text("half")
        raise error
    assert "state.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"] and (tmp_path / "state.pt").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_harms_nothing(tmp_path):
    """The checkpoint's temporary file is a link to /dev/full, where every write fails as on a full disk."""
    (tmp_path / "state.pt").write_text("old")
    (tmp_path / f"state.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no space left.*intact"), atomic(tmp_path / "state.pt") as path:
        torch.save({"x": torch.zeros(100_000)}, path)
    assert (tmp_path / "state.pt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_json_is_utf8_whatever_the_locale_and_stays_when_the_disk_fills_up(tmp_path, monkeypatch):
    def half(path, text, **_):
        path.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "a.json", {"ẑ": 1.5})
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UserError, match="a.json: no space left"):
        write_json(tmp_path / "a.json", {"ẑ": 2.5})
    assert (tmp_path / "a.json").read_bytes().decode("utf-8") == '{\n  "ẑ": 1.5\n}\n'
    assert len(list(tmp_path.iterdir())) == 1 and read_json(tmp_path / "a.json") == {"ẑ": 1.5}


def test_what_is_no_json_is_named_with_its_line(tmp_path):
    (tmp_path / "a.json").write_text('{\n  "x": 1,\n  oops\n}')
    with pytest.raises(UserError, match="a.json:3: not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b'{"x": "\xff"}')
    for name in ("b.json", "absent.json"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            read_json(tmp_path / name)


# ----------------------------------------------------------------------------------------- run folders


@dataclass
class OtherConfig(LoopConfig):
    """Another system's configuration."""

    system: str = internal("other")


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def filled(run: Path, *further: str) -> Path:
    """A folder with what training and evaluation leave in it, and `further` files."""
    written = "state.pt log.jsonl summary.json model.safetensors tokenizer.json alignment_map.png predictions.jsonl"
    for name in (*written.split(), "best/config.json", "best/model.safetensors", *further):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    write_json(run / "config.json", {"system": "nanojepa"})
    return run


def test_a_cleared_run_has_nothing_of_what_runs_write(tmp_path):
    """--overwrite once left the old run's alignment figures beside the new run's curves."""
    clear_run(filled(tmp_path))
    assert not names(tmp_path)


def test_clearing_a_run_leaves_what_no_run_writes_and_runs_inside_it(tmp_path):
    """`--run out --overwrite` would have removed out/quick."""
    kept = {"notes.txt", "data", "data/train.jsonl", "pretrain", "pretrain/config.json"}
    filled(tmp_path, "notes.txt", "data/train.jsonl", "pretrain/config.json")
    clear_run(tmp_path)
    assert names(tmp_path) == kept


def test_clearing_a_folder_that_is_no_run_removes_a_stray_log_alone(tmp_path):
    """A run that ended before its first checkpoint leaves a log only; a folder of pictures is not a run."""
    for name in ("log.jsonl", "photo.png", "train.jsonl"):
        (tmp_path / name).write_text("x")
    clear_run(tmp_path)
    assert names(tmp_path) == {"photo.png", "train.jsonl"}


def test_a_run_is_refused_where_something_else_has_its_config_json(tmp_path):
    """Any model of the Hub is a folder with config.json and model.safetensors: it was cleared as if it were a run."""
    write_json(tmp_path / "config.json", {"architectures": ["GPT2LMHeadModel"]})
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not a run.*--run"):
            open_run(Config(run=str(tmp_path), overwrite=overwrite))


def test_a_run_that_is_there_is_neither_overwritten_nor_mixed_up_without_being_asked(tmp_path):
    filled(tmp_path)
    with pytest.raises(UserError, match="already holds a run; --resume .*--overwrite .*--run"):
        open_run(Config(run=str(tmp_path)))
    assert open_run(Config(run=str(tmp_path), overwrite=True)).overwrite
    assert (tmp_path / "state.pt").exists(), "cleared before all else was ready"


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*no state.pt.*leave --resume out"):
        open_run(Config(run=str(tmp_path), resume=True))
    (tmp_path / "state.pt").touch()
    with pytest.raises(UserError, match="config.json is missing.*without --resume"):
        open_run(Config(run=str(tmp_path), resume=True))


def test_resume_takes_the_saved_configuration_and_the_command_line_over_it(tmp_path):
    filled(tmp_path)
    saved = Config(run="elsewhere", lr=0.25, vocab_size=640)
    write_json(tmp_path / "config.json", vars(saved))
    config = Config(run=str(tmp_path), resume=True, epochs=9)
    found = open_run(config, frozenset({"run", "resume", "epochs"}))
    assert found == replace(saved, run=str(tmp_path), resume=True, epochs=9)
    with pytest.raises(UserError, match="lr = 0.25, not 0.5"):
        open_run(replace(config, lr=0.5), frozenset({"lr"}))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        open_run(Config(run=str(tmp_path / "file" / "run")))


def test_a_configuration_of_another_system_or_another_version_is_refused(tmp_path):
    how = "python train.py"
    with pytest.raises(UserError, match=f"no checkpoint in .*config.json is missing.*{how}"):
        read_config(tmp_path, Config, how)
    write_json(tmp_path / "config.json", vars(OtherConfig()))
    with pytest.raises(UserError, match="model.safetensors is missing"):
        read_config(tmp_path, OtherConfig, how)
    (tmp_path / "model.safetensors").write_text("")
    assert read_config(tmp_path, OtherConfig, how) == OtherConfig()
    with pytest.raises(UserError, match="of system 'other', not of nanojepa"):
        read_config(tmp_path, Config, how)
    write_json(tmp_path / "config.json", vars(Config()) | {"n_experts": 4, "more_experts": 4})
    with pytest.raises(UserError, match="config.json is of another version: unknown more_experts, n_experts"):
        read_config(tmp_path, Config, how)


WRONG = {"n_layer": ("6", 0, 1.5, None, True, 10**9), "lr": ("x", -1, [1]), "mask": ("jeepa", 3), "resume": (1,)}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_configuration_of_wrong_types_or_out_of_range_is_refused(tmp_path, name, value):
    """A layer count of 10^9 was allocated until the memory was full."""
    write_json(tmp_path / "config.json", vars(Config()) | {name: value})
    with pytest.raises(UserError, match=f"config.json: {name} is .* and must be "):
        read_config(tmp_path, Config, "", needed=("config.json",))


def test_options_that_are_gone_and_paths_that_are_no_utf8_are_read(tmp_path):
    write_json(tmp_path / "config.json", vars(Config(run=os.fsdecode(b"a\xff"))) | {"compile": False})
    assert read_config(tmp_path, Config, "", needed=("config.json",)).run == os.fsdecode(b"a\xff")


def test_a_disk_without_locks_is_trained_on_with_a_warning(tmp_path, monkeypatch, capsys):
    def acquire(lock):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("common.checkpoint.FileLock.acquire", acquire)
    open_run(Config(run=str(tmp_path)))
    assert "no locks" in capsys.readouterr().err


def test_what_is_no_configuration_at_all_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="holds no configuration"):
        read_config(tmp_path, Config, "", needed=("config.json",))


def test_a_run_has_one_writer_and_a_killed_one_leaves_no_lock_and_no_half_files(tmp_path):
    """Two trainings in one folder ended well, with files of both."""
    holding = "import sys, time, pathlib, common.checkpoint as c; c.lock_run(pathlib.Path(sys.argv[1])); "
    holding += "print(flush=True); time.sleep(60)"
    words = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="is being written by another training"):
            open_run(Config(run=str(tmp_path)))
        other.kill()
    (tmp_path / "best").mkdir()
    for name in ("state.pt.123.tmp", "best/model.safetensors.7.tmp", "mine.tmp"):
        (tmp_path / name).touch()
    open_run(Config(run=str(tmp_path)))
    assert names(tmp_path) == {".lock", "best", "mine.tmp", "log.jsonl"}


# ---------------------------------------------------------------------------------------- checkpoints


def test_a_saved_model_answers_the_same_from_its_folder_alone(tmp_path):
    model = tiny_model(target="ema", predictor="mlp").eval()
    save_model(model, model.config, tmp_path)
    again = NanoJEPA.from_pretrained(str(tmp_path))
    assert not again.training and again.config == model.config
    assert torch.equal(model.predict(QUESTIONS), again.predict(QUESTIONS))
    assert torch.equal(model.encode(ANSWERS), again.encode(ANSWERS))
    assert model.answer(QUESTIONS[:5]) == again.answer(QUESTIONS[:5])


def test_the_hubs_way_of_saving_gives_the_same_model_and_no_path_of_this_machine(tmp_path):
    model = tiny_model(run=str(tmp_path / "run"), data_dir=str(tmp_path / "data")).eval()
    model.save_pretrained(tmp_path)
    assert str(tmp_path) not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert torch.equal(NanoJEPA.from_pretrained(tmp_path).predict(QUESTIONS), model.predict(QUESTIONS))


def test_a_tied_embedding_is_counted_and_saved_once(tmp_path):
    model = tiny_model()
    save_model(model, model.config, tmp_path)
    assert model.n_params() == sum(tensor.numel() for tensor in weights(tmp_path).values())
    assert tiny_model(target="ema").n_params() == model.n_params(), "the target network is not trained"


def test_a_missing_foreign_misshapen_or_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*train.py"):
        load_run(tmp_path / "nowhere")
    model = tiny_model()
    save_model(model, model.config, tmp_path)
    save_model(model, replace(model.config, n_embd=64), tmp_path / "shape")
    with pytest.raises(UserError, match="does not fit.*shape"):
        load_run(tmp_path / "shape")
    save_model(model, replace(model.config, system="reasoner"), tmp_path / "system")
    with pytest.raises(UserError, match="'reasoner', not of nanojepa"):
        load_run(tmp_path / "system")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        load_run(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    model = tiny_model()
    save_model(model, model.config, tmp_path_factory.mktemp("saved"))
    return tmp_path_factory.getbasetemp() / "saved0"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_no_flipped_byte_of_the_weights_goes_unnoticed(saved, where, mask):
    """Half a mantissa is a number, too: the model answered with it."""
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[int(where * len(data))] ^= mask
    (saved / "flipped.safetensors").write_bytes(data)
    with contextlib.suppress(UserError):
        found = read_weights(saved / "flipped.safetensors", "cpu")
        assert same(found, weights(saved)), "unnoticed"


def test_a_configuration_that_asks_for_more_than_there_is_allocates_nothing(saved, tmp_path):
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(saved / name, tmp_path)
    write_json(tmp_path / "config.json", read_json(saved / "config.json") | {"n_embd": 2**20, "vocab_size": 2**30})
    with pytest.raises(UserError, match="does not fit config.json"):
        load_run(tmp_path)


def test_a_fingerprint_is_of_the_weights_alone(tmp_path):
    for folder, seed, lr in (("a", 0, 0.1), ("b", 0, 0.2), ("c", 1, 0.1)):
        model = tiny_model(seed=seed)
        save_model(model, replace(model.config, lr=lr), tmp_path / folder)
    a, b, c = (weights_hash(tmp_path / folder) for folder in "abc")
    assert a == b != c and same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert json.loads((tmp_path / "b" / "config.json").read_text())["lr"] == 0.2
