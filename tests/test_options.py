"""common/options.py: a dataclass as a command line, presets, `--help`, and what a user's mistake looks like."""

import math
import re
from dataclasses import dataclass, fields, replace
from importlib import import_module

import pytest
import torch
from helpers import call
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny import TINY

import latent_stack.config
import latent_stack.train
import reasoner.config
import reasoner.train
import train
from common.options import LARGEST, LoopConfig, Preset, UserError, internal, opt, parse, resumed, run_main
from config import PRESETS, Config, EvalConfig
from eval_alignment import AlignmentConfig
from main import DemoConfig

SOME = {"tiny": Preset("a laptop, a minute", {"n_layer": 2, "lr": 0.01, "final_eval": False})}
VISIBLE = [f for f in fields(Config) if f.metadata["help"] is not None]


def refused(capsys, *argv, cls=Config, presets=SOME) -> str:
    """The command line is refused with status 2 and one line -> that line."""
    with pytest.raises(SystemExit) as stop:
        parse(cls, presets, "about", list(argv))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    return message


def help_text(capsys, monkeypatch, *argv, cls=Config, presets=SOME, docstring="what it does", columns=250) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        parse(cls, presets, docstring, argv or ["--help-all"])
    assert stop.value.code == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- values


def test_no_options_give_the_defaults():
    assert parse(Config, SOME, "about", []) == (Config(), frozenset())


def test_a_preset_changes_its_fields_and_no_other():
    found, given = parse(Config, SOME, "about", ["--preset", "tiny"])
    assert found == Config(n_layer=2, lr=0.01, final_eval=False)
    assert given == frozenset(), "a preset's fields are not set by hand"


@pytest.mark.parametrize("argv", ("--preset tiny --lr 0.5", "--lr 0.5 --preset tiny", "--lr=0.5 --preset=tiny"))
def test_the_command_line_beats_the_preset_in_any_order(argv):
    found, given = parse(Config, SOME, "about", argv.split())
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


# -------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "typed, meant",
    (
        ("--batchsize", "--batch-size"),
        ("--n-layers=3", "--n-layer"),
        ("--ler", "--lr"),
        ("--jepa-wieght", "--jepa-weight"),
        ("--warmup", "--warmup-steps"),  # an abbreviation that works today means another option once one is added
        ("--batch_size", "--batch-size"),
    ),
)
def test_an_unknown_option_dies_and_names_the_nearest(capsys, typed, meant):
    assert f"unknown option {typed.split('=')[0]}; did you mean {meant}?" in refused(capsys, typed, "7")


@pytest.mark.parametrize("typed, meant", (("--lambda", "--jepa-weight"), ("--learning-rate", "--lr")))
def test_a_name_that_the_field_uses_leads_to_the_option_whose_help_has_it(capsys, typed, meant):
    """By its letters alone --lambda was taken for --n-embd."""
    assert f"did you mean {meant}?" in refused(capsys, typed, "7")


def test_an_unknown_option_like_no_other_points_to_help(capsys):
    assert "unknown option --zzzzzzzz; see --help-all" in refused(capsys, "--zzzzzzzz")


def test_a_value_outside_the_choices_dies_and_names_them(capsys):
    message = refused(capsys, "--mask", "jeppa")
    assert all(word in message for word in ("--mask", "jepa", "causal", "none"))


@pytest.mark.parametrize(
    "argv", (("--epochs", "many"), ("--lr",), ("--preset", "huge"), ("--preset",), ("stray",), ("--vocab-size", "9"))
)
def test_a_wrong_command_line_names_the_culprit(capsys, argv):
    assert argv[0].removeprefix("--") in refused(capsys, *argv)


@pytest.mark.parametrize(
    "words",
    "--log-every 0,--n-head 0,--lr nan,--jepa-weight inf,--dropout 1.5,--epochs -1,--seed -1,--seed 2147483648".split(
        ","
    ),
)
def test_a_number_out_of_range_is_refused_with_the_range(words, capsys):
    message = refused(capsys, *words.split(), presets={})
    assert words in message and "must be at least" in message


def test_the_largest_seed_fits_the_generator():
    """--seed of 20 digits was a traceback after the data had been read."""
    torch.manual_seed((LARGEST * 1_000_003 + LARGEST) * 1009 + LARGEST)  # as `fit` seeds a step


@pytest.mark.parametrize("option", ("run", "device", "tokenizer"))
def test_an_empty_text_is_refused_where_it_means_nothing(capsys, option):
    """--run '' wrote the run into the working directory."""
    assert f"--{option} : must be given" in refused(capsys, f"--{option}", "")


CONFIGS = {
    "train": (Config, PRESETS),
    "evaluate_accuracy": (EvalConfig, {}),
    "eval_alignment": (AlignmentConfig, {}),
    "main": (DemoConfig, {}),
    "reasoner.train": (reasoner.config.ReasonerConfig, reasoner.config.PRESETS),
    "reasoner.evaluate": (reasoner.config.EvalConfig, {}),
    "latent_stack.train": (latent_stack.config.StackConfig, latent_stack.config.PRESETS),
    "latent_stack.evaluate": (latent_stack.config.EvalConfig, {}),
}
TEXTS = st.text(st.characters(), max_size=20) | st.integers().map(str) | st.floats().map(str) | st.just("9" * 5000)


@pytest.mark.parametrize("script", CONFIGS)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_text_as_the_value_of_any_option_is_parsed_or_refused_in_one_line(script, capsys, data):
    """A line break in a mistyped option made two lines; an infinite weight was a number like any other."""
    cls, presets = CONFIGS[script]
    names = [f.name.replace("_", "-") for f in fields(cls) if f.metadata["help"] is not None]
    option, value = f"--{data.draw(st.sampled_from(names))}", data.draw(TEXTS)
    assume(value not in ("-h", "--help", "--help-all"))
    try:
        config, _ = parse(cls, presets, "about", data.draw(st.sampled_from(([f"{option}={value}"], [option, value]))))
    except SystemExit as stop:
        message = capsys.readouterr().err
        assert stop.code == 2 and len(message.splitlines()) == 1 and len(message) < 1500
        return
    numbers = [x for x in vars(config).values() if isinstance(x, int | float)]
    assert all(abs(x) <= LARGEST if isinstance(x, int) else math.isfinite(x) for x in numbers)


@pytest.mark.parametrize("run", ("a" * 300, "file", "file/inside"))
@pytest.mark.parametrize("words", ((), ("--resume",)))
def test_a_run_that_cannot_be_a_folder_is_one_line_and_status_1(run, words, tmp_path):
    """A name that is too long for the file system was a traceback."""
    (tmp_path / "file").touch()
    done = call(train, *TINY, "--run", tmp_path / run, *words, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "\n" not in done.stderr


def test_a_path_that_a_run_remembers_is_absolute_and_any_other_text_is_left_alone(tmp_path, monkeypatch):
    """A run trained with --data-dir data could be evaluated in one working directory only."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["--encoder", "data", "--decoder", "gpt2", "--data-dir", "data/", "--run", "data"]
    found, _ = parse(latent_stack.config.StackConfig, {}, "about", words)
    assert (found.encoder, found.decoder, found.run) == (str(tmp_path / "data"), "gpt2", "data")
    for cls in (Config, reasoner.config.ReasonerConfig, latent_stack.config.StackConfig):
        assert parse(cls, {}, "about", ["--data-dir", "data/"])[0].data_dir == str(tmp_path / "data")


def test_a_users_mistake_is_one_line_and_status_1():
    def main():
        raise UserError("what, where, what next")

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == "error: what, where, what next"  # python prints it on stderr and exits with 1


@pytest.mark.parametrize("refuse", (lambda: open("a" * 5000, "rb"), lambda: b"\xff".decode()))
def test_what_the_system_refuses_is_one_line_and_status_1(refuse):
    """A path that is too long, and a byte on standard input that is no UTF-8, were tracebacks."""
    with pytest.raises(SystemExit) as stop:
        run_main(refuse)
    assert stop.value.code.startswith("error: ") and len(stop.value.code.splitlines()) == 1


def test_ctrl_c_outside_the_training_loop_is_one_word_and_status_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_an_optional_library_that_is_not_installed_is_one_line_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("common.options.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track wandb: not installed; pip install wandb"):
        parse(Config, SOME, "about", ["--track", "wandb"])
    assert parse(Config, SOME, "about", ["--track", "none"])[0].track == "none"


# ------------------------------------------------------------------------------------------------ help


def option_lines(shown: str) -> dict[str, str]:
    """--help-all -> {option: what stands behind it}, however it is broken into lines."""
    entries = re.split(r"\n  (?=--)", shown)[1:]
    found = {}
    for entry in entries:
        flags, _, text = " ".join(entry.split("\n\n")[0].split()).partition(" ")
        found[flags.replace("[no-]", "")] = text
    return found


def test_help_has_every_option_with_its_text_and_default(capsys, monkeypatch):
    shown = help_text(capsys, monkeypatch)
    lines = option_lines(shown)
    assert "what it does" in shown
    for f in VISIBLE:
        text, default = " ".join(f.metadata["help"].split()), "none" if f.default == "" else f.default
        expected = text if default is False else f"{text} [{default}]"
        assert text and lines[f"--{f.name.replace('_', '-')}"].endswith(expected), f.name
    for f in set(fields(Config)) - set(VISIBLE):
        assert f"--{f.name.replace('_', '-')}" not in shown


def test_help_of_a_preset_shows_the_presets_defaults(capsys, monkeypatch):
    lines = option_lines(help_text(capsys, monkeypatch, "--preset", "quick", "--help-all", presets=PRESETS))
    for name, value in PRESETS["quick"].values.items():
        assert lines[f"--{name.replace('_', '-')}"].endswith(f"[{value}]"), name
    assert lines["--n-layer"].endswith(f"[{Config.n_layer}]"), "what the preset leaves alone keeps its default"


SCRIPTS = (train, reasoner.train, latent_stack.train)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_short_help_of_a_training_fits_a_screen_and_leads_to_the_whole(script, capsys, monkeypatch):
    """133 lines scrolled away the presets, which a newcomer looks for."""
    cls, presets = CONFIGS[script.__name__]
    shown = help_text(capsys, monkeypatch, "--help", cls=cls, presets=presets, docstring=script.__doc__, columns=100)
    assert len(shown.splitlines()) <= 40 and "--help-all" in shown
    options = set(re.findall(r"^  --(?:\[no-\])?([\w-]+)", shown, re.M)) - {"help-all", "preset"}
    assert options == {name.replace("_", "-") for name in cls.COMMON}
    commands = shown.split("examples:\n")[1].splitlines()
    assert len(commands) == 2 and all(line.startswith("  python ") for line in commands)
    of_preset = help_text(capsys, monkeypatch, "--preset", "quick", "--help", cls=cls, presets=presets)
    assert f"[{presets['quick'].values['run']}]" in of_preset


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("columns", (80, 100))
def test_no_line_of_any_help_is_longer_than_the_terminal(name, columns, capsys, monkeypatch):
    docstring, (cls, presets) = import_module(name).__doc__, CONFIGS[name]
    docstring = docstring if presets else docstring.split("\n\n")[0]
    for word in ("--help", "--help-all") if presets else ("--help",):
        shown = help_text(capsys, monkeypatch, word, cls=cls, presets=presets, docstring=docstring, columns=columns)
        assert max(map(len, shown.splitlines())) <= columns


def test_a_script_of_few_options_has_one_help(capsys):
    assert "unknown option --help-all" in refused(capsys, "--help-all", cls=EvalConfig, presets={})


def test_help_lists_the_presets_first_and_then_the_options_in_groups(capsys, monkeypatch):
    shown = help_text(capsys, monkeypatch, presets=PRESETS)
    groups = [f.metadata["group"] for f in VISIBLE if f.metadata["group"]]
    presets = [shown.index(f"  {name} ") for name in PRESETS]
    headings = [re.search(rf"^{group}:$", shown, re.M).start() for group in groups]
    assert len(groups) > 4 and presets + headings == sorted(presets + headings)
    assert max(presets) < shown.index("\n  --run ")
    assert all(preset.about in " ".join(shown.split()) for preset in PRESETS.values())


def test_an_option_stands_under_its_groups_heading(capsys, monkeypatch):
    @dataclass
    class Grouped:
        a: int = opt(1, "first", group="numbers")
        b: int = opt(2, "second")
        c: str = opt("x", "third", group="texts")

    shown = help_text(capsys, monkeypatch, "--help", cls=Grouped, presets={})
    places = [shown.index(word) for word in ("numbers:", "--a", "--b", "texts:", "--c")]
    assert places == sorted(places)


def test_help_may_contain_a_percent_sign(capsys, monkeypatch):
    """argparse expands % in help texts: one stray sign and --help is a traceback."""

    @dataclass
    class Percent:
        rate: float = opt(0.1, "10% or 100%s")

    assert "10% or 100%s [0.1]" in help_text(capsys, monkeypatch, "--help", cls=Percent, presets={})


# ------------------------------------------------------------------------------- the declared options


def test_defaults_are_among_their_choices():
    for f in VISIBLE:
        assert f.metadata["choices"] is None or f.default in f.metadata["choices"], f.name


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_to_the_fields_types_and_choices_there_are_and_names_its_hardware_and_minutes(name):
    preset, known = PRESETS[name], {f.name: f for f in VISIBLE}
    config, _ = parse(Config, PRESETS, "about", ["--preset", name])
    for key, value in preset.values.items():
        assert getattr(config, key) == value and type(value) is type(known[key].default), key
        assert known[key].metadata["choices"] is None or value in known[key].metadata["choices"], key
    assert "min" in preset.about and any(word in preset.about for word in ("CPU", "GPU", "RTX"))


def test_every_training_script_has_the_options_that_all_share():
    promised = "run data_dir seed device max_steps epochs batch_size lr resume overwrite".split()
    assert set(promised) <= {f.name for f in VISIBLE}
    assert {f.name for f in fields(LoopConfig)} <= {f.name for f in fields(Config)}


# ---------------------------------------------------------------------------------------------- resume

SAVED = Config(run="out/was", n_layer=3, lr=0.25, epochs=7, vocab_size=640)


def resume(words: str, saved=SAVED):
    return resumed(*parse(Config, PRESETS, "about", ["--resume", *words.split()]), saved)


def test_resume_reads_the_command_line_over_the_saved_configuration():
    found = resume("--run out/is --epochs 9 --log-every 3")
    assert found == replace(SAVED, run="out/is", epochs=9, log_every=3, resume=True)


def test_on_resume_a_preset_changes_nothing():
    """Its values were in the saved configuration, or they were overruled when the run began."""
    assert resume("--preset quick --run out/was") == replace(SAVED, resume=True)


def test_an_option_repeated_on_resume_is_no_mistake():
    assert resume("--run out/was --lr 0.25 --n-layer 3") == replace(SAVED, resume=True)


@pytest.mark.parametrize("words, what", (("--lr 0.5", "lr = 0.25, not 0.5"), ("--n-layer 6", "n_layer = 3, not 6")))
def test_what_would_change_the_run_is_refused_even_if_it_is_the_default(words, what):
    with pytest.raises(UserError, match=what):
        resume(f"--run out/was {words}")


def test_what_resume_may_change_are_options_that_there_are():
    assert {f.name for f in fields(Config)} >= Config.RESUMABLE


def test_an_internal_field_is_not_on_the_command_line(capsys):
    @dataclass
    class Hidden:
        seen: int = opt(0, "seen")
        filled_in: int = internal(5)

    assert parse(Hidden, {}, "about", [])[0].filled_in == 5
    assert "unknown option --filled-in" in refused(capsys, "--filled-in", "7", cls=Hidden, presets={})
