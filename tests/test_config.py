"""config.py: the option parser, the device, atomic files, and what a user's mistake looks like."""

import ast
import errno
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

import config
from config import PRESETS, Config, LoopConfig, Preset, UserError, atomic, from_dict, opt, parse, resolve_device

ROOT = Path(config.__file__).resolve().parent
SOME = {"tiny": Preset("a laptop, a minute", {"n_layer": 2, "lr": 0.01, "final_eval": False})}
VISIBLE = [f for f in fields(Config) if not f.metadata.get("hidden")]


def refused(capsys, *argv, cls=Config):
    """The command line is refused with status 2 -> what stderr says."""
    with pytest.raises(SystemExit) as stop:
        parse(cls, SOME, "about", list(argv))
    assert stop.value.code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- options


def test_no_options_give_the_defaults():
    assert parse(Config, SOME, "about", []) == (Config(), frozenset())


def test_a_preset_changes_its_fields_and_no_other():
    found, given = parse(Config, SOME, "about", ["--preset", "tiny"])
    assert found == Config(n_layer=2, lr=0.01, final_eval=False)
    assert given == frozenset(), "a preset's fields are not set by hand"


@pytest.mark.parametrize("argv", (["--preset", "tiny", "--lr", "0.5"], ["--lr", "0.5", "--preset", "tiny"]))
def test_the_command_line_beats_the_preset_in_any_order(argv):
    found, given = parse(Config, SOME, "about", argv)
    assert (found.lr, found.n_layer, found.n_head) == (0.5, 2, Config.n_head)
    assert given == {"lr"}


def test_an_option_set_to_its_default_still_beats_the_preset():
    found, given = parse(Config, SOME, "about", ["--preset", "tiny", "--n-layer", str(Config.n_layer)])
    assert found.n_layer == Config.n_layer and given == {"n_layer"}


def test_a_switch_has_a_positive_and_a_negative_form():
    assert parse(Config, SOME, "about", ["--resume"])[0].resume is True
    assert parse(Config, SOME, "about", ["--no-final-eval"])[0].final_eval is False
    assert parse(Config, SOME, "about", ["--preset", "tiny", "--final-eval"])[0].final_eval is True


def test_values_get_the_type_of_their_field():
    found, _ = parse(Config, SOME, "about", ["--epochs", "3", "--lr", "1e-3", "--run", "x", "--difficulty", "4"])
    assert [type(v) for v in (found.epochs, found.lr, found.run, found.difficulty)] == [int, float, str, int]


def test_an_option_of_several_values_takes_them_all():
    @dataclass
    class Several:
        compare: tuple = opt((), "runs")
        limit: int = opt(0, "number")

    found, _ = parse(Several, {}, "about", ["--compare", "a", "b", "--limit", "3"])
    assert (list(found.compare), found.limit) == (["a", "b"], 3)
    assert parse(Several, {}, "about", [])[0].compare == ()


@pytest.mark.parametrize(
    "typed, meant",
    (
        ("--batchsize", "--batch-size"),
        ("--n-layers=3", "--n-layer"),
        ("--no-resumes", "--no-resume"),
        ("--ler", "--lr"),
    ),
)
def test_an_unknown_option_dies_and_names_the_nearest(capsys, typed, meant):
    said = refused(capsys, typed, "7")
    assert f"unknown option {typed.split('=')[0]}; did you mean {meant}?" in said


def test_an_unknown_option_like_no_other_points_to_help(capsys):
    assert "unknown option --zzzzzzzz; see --help" in refused(capsys, "--zzzzzzzz")


def test_a_shortened_option_dies(capsys):
    """An abbreviation that works today means another option once one is added."""
    assert "unknown option --warmup; did you mean --warmup-steps?" in refused(capsys, "--warmup", "7")


def test_a_value_outside_the_choices_dies_and_names_them(capsys):
    said = refused(capsys, "--mask", "jeppa")
    assert "--mask" in said and "jepa" in said and "causal" in said


@pytest.mark.parametrize(
    "argv", (("--epochs", "many"), ("--lr",), ("--preset", "huge"), ("stray",), ("--vocab-size", "9"))
)
def test_a_wrong_command_line_names_the_culprit(capsys, argv):
    assert argv[0].removeprefix("--") in refused(capsys, *argv).splitlines()[-1]


def test_help_tells_every_option_with_its_text_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit) as stop:
        parse(Config, SOME, "what it does", ["--help"])
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    assert stop.value.code == 0 and "what it does" in shown
    assert "tiny" in shown and SOME["tiny"].about in shown
    for f in VISIBLE:
        assert f"--{f.name.replace('_', '-')}" in shown
        assert f.metadata["help"], f"{f.name} has no help text"
        assert f"{' '.join(f.metadata['help'].split())} [{'none' if f.default == '' else f.default}]" in flat, f.name
    for f in set(fields(Config)) - set(VISIBLE):
        assert f"--{f.name.replace('_', '-')}" not in shown


def test_help_may_contain_a_percent_sign(capsys):
    """argparse expands % in help texts: one stray sign and --help is a traceback."""

    @dataclass
    class Percent:
        share: float = opt(0.1, "10% or 100%s")

    with pytest.raises(SystemExit) as stop:
        parse(Percent, {}, "about", ["--help"])
    assert stop.value.code == 0 and "10% or 100%s [0.1]" in capsys.readouterr().out


def test_defaults_are_among_their_choices():
    for f in VISIBLE:
        assert f.metadata["choices"] is None or f.default in f.metadata["choices"], f.name


def test_every_preset_parses_and_keeps_to_the_fields_and_choices_there_are():
    choices = {f.name: f.metadata["choices"] for f in VISIBLE}
    for name, preset in PRESETS.items():
        parse(Config, PRESETS, "about", ["--preset", name])
        assert preset.about, f"preset {name} says neither hardware nor minutes"
        for key, value in preset.values.items():
            assert type(value) is type(getattr(Config, key)), f"preset {name}, {key}"
            assert choices[key] is None or value in choices[key], f"preset {name}, {key}"


def test_every_option_is_read_somewhere():
    """An option that nothing reads is a promise that nothing keeps."""
    read = set()
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
                read |= {node.attr} if owner == "config" else set()
    assert not (unread := {f.name for f in VISIBLE} - read), f"nothing reads {sorted(unread)}"
    assert {f.name for f in fields(LoopConfig)} <= {f.name for f in VISIBLE}


def test_from_dict_names_the_keys_that_it_does_not_know():
    assert from_dict(Config, {"lr": 1.0}, "here") == Config(lr=1.0)
    with pytest.raises(UserError, match="out/x/config.json.*unknown more_experts, n_experts"):
        from_dict(Config, {"n_experts": 4, "lr": 1.0, "more_experts": 4}, "out/x/config.json")


# ---------------------------------------------------------------------------------------------- device


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_without_an_accelerator_auto_is_the_cpu_in_fp32_and_says_so(only_cpu):
    found = resolve_device()
    assert (found.device.type, found.dtype) == ("cpu", torch.float32)
    assert "cpu" in found.why and "fp32" in found.why


@pytest.mark.parametrize("name", ("cuda", "cuda:0", "mps", "tpu", "meta", "", "cuda:x"))
def test_a_device_that_is_not_there_is_refused_with_those_that_are(only_cpu, name):
    with pytest.raises(UserError, match=f"--device {name}.*: .*present: cpu$"):
        resolve_device(name)


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_half_precision_on_a_cpu_is_refused(only_cpu, precision):
    """Emulated bf16 matrix products on a CPU are a hundred times slower and look like a hang."""
    with pytest.raises(UserError, match=f"--precision {precision}"):
        resolve_device("cpu", precision)


# ----------------------------------------------------------------------------------------------- files


def test_a_written_file_appears_whole_and_alone(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists(), "half a file was visible"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", (ValueError("x"), KeyboardInterrupt(), RuntimeError("x")))
def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of the n")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "error, told",
    (
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (
            RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed: file write failed"),
            "no space",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ),
)
def test_a_full_or_locked_disk_is_told_in_one_line(tmp_path, error, told):
    """torch.save and safetensors report a full disk by errors of their own."""
    (tmp_path / "state.pt").write_text("old")
    with pytest.raises(UserError, match=told) as caught, atomic(tmp_path / "state.pt") as temporary:
        temporary.write_text("half")
        raise error
    assert "state.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"] and (tmp_path / "state.pt").read_text() == "old"


def test_write_json_leaves_the_old_file_when_the_disk_fills_up(tmp_path, monkeypatch):
    def half(path, text, **_):
        path.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    config.write_json(tmp_path / "a.json", {"ẑ": 1.5})
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UserError, match="a.json: no space left"):
        config.write_json(tmp_path / "a.json", {"ẑ": 2.5})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ẑ": 1.5\n}\n'
    assert len(list(tmp_path.iterdir())) == 1


def test_a_users_mistake_is_one_line_and_status_1():
    def main():
        raise UserError("what, where, what next")

    with pytest.raises(SystemExit) as stop:
        config.run_main(main)
    assert stop.value.code == "error: what, where, what next"  # python prints it on stderr and exits with 1


def test_importing_a_module_does_nothing_visible(tmp_path):
    """A script without a guard starts training when a test or a sibling imports it."""
    names = sorted(path.stem for path in ROOT.glob("*.py"))
    assert {"config", "data", "model", "train", "eval_alignment", "evaluate_accuracy"} <= set(names)
    code = f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(ROOT)!r})\nimport {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", ("--log-every 0", "--n-head 0", "--lr nan", "--dropout 1.5", "--epochs 0", "--seed -1")
)
def test_a_number_out_of_range_dies_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as died:
        parse(Config, {}, "", words.split())
    told = capsys.readouterr().err
    assert died.value.code == 2 and words in told and "wants at least" in told and told.count("\n") == 1


def test_cuda_by_name_takes_this_process_own_gpu(monkeypatch):
    """`torch.cuda.set_device` refuses a device without an index: `--device cuda` once failed on every GPU machine."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for capability, dtype in (((8, 6), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert resolve_device("cuda").dtype is dtype and resolve_device("auto").device == torch.device("cuda:1")
    assert set(chosen) == {1}
    torch.set_float32_matmul_precision("highest")
