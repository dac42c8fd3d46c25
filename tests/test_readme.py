"""What the READMEs promise: every command is one that its script takes, README's run, every link leads somewhere."""

import re
import shlex
from importlib import import_module

import pytest
from helpers import ROOT, call
from tiny import TINY

import eval_alignment
import evaluate_accuracy
import main as demo
import train
from common.options import parse
from config import PRESETS, Config, EvalConfig
from results import tables

READMES = (*tables.READMES, "CONTRIBUTING.md")
SCRIPTS = {"train.py": train, "eval_alignment.py": eval_alignment, "evaluate_accuracy.py": evaluate_accuracy}
CLASSES = {
    "train.py": (Config, PRESETS),
    "eval_alignment.py": (eval_alignment.AlignmentConfig, {}),
    "evaluate_accuracy.py": (EvalConfig, {}),
    "main.py": (demo.DemoConfig, {}),
}


def text_of(readme: str) -> str:
    return (ROOT / readme).read_text(encoding="utf-8")


def commands(readme: str) -> list[list[str]]:
    """The words behind `python` of every command in a README's code: ['train.py', '--preset', 'quick']."""
    text = text_of(readme)
    fenced = [
        code for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if language in ("", "bash")
    ]
    return commands_of("\n".join(fenced + re.findall(r"^    ( *\S.*)$", text, re.M)))


def commands_of(code: str) -> list[list[str]]:
    """The words behind `python` of every command of a shell's code."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.split("#")[0].split("&&"):
            part = re.sub(r"torchrun .*? -- ", "python ", part.strip())
            part = part.replace("python reasoner", "python -m reasoner").replace(
                "python latent_stack", "python -m latent_stack"
            )
            if part.startswith("python ") and not part.startswith("python -c "):  # no script of this project
                found.append(shlex.split(part)[1:])
    return found


def test_the_two_commands_stand_in_the_readme_as_ci_runs_them():
    assert "pip install -r requirements.txt && python train.py --preset quick" in text_of("README.md")
    assert "pip install -r requirements.txt && python -m pytest" in text_of("README.md")
    assert "python -m pytest" in text_of(".ci/run")


def shrunk(words: list[str], run, folder) -> list:
    """A command of README with its run replaced, and its training shrunk to seconds; later options win over earlier."""
    if "--data-dir" in words:
        at = words.index("--data-dir")
        words = words[:at] + words[at + 2 :]
    if words[0] == "train.py":
        small = ["--epochs", "1", "--n-train", "48", "--block-size", "256", "--no-final-eval"]
        return [*words[1:], *TINY, *small, "--run", folder / "run", "--overwrite"]
    return [*(run if w.startswith("out/") else w for w in words[1:]), "--limit", "40"]


@pytest.mark.parametrize("words", [c for c in commands("README.md") if c[0] in SCRIPTS], ids=" ".join)
def test_every_command_of_the_readme_runs(words, run, tmp_path):
    call(SCRIPTS[words[0]], *shrunk(words, run, tmp_path))


@pytest.mark.parametrize("readme", READMES)
def test_every_command_of_a_readme_is_one_that_its_script_takes(readme):
    """An option that was renamed would stand in a README for ever."""
    parsed = 0
    for words in commands(readme):
        if words[0] in CLASSES:
            cls, presets = CLASSES[words[0]]
            parse(cls, presets, "", words[1:])
        elif words[0] == "-m" and words[1].split(".")[0] in ("reasoner", "latent_stack"):
            script = import_module(words[1])
            configs = import_module(words[1].split(".")[0] + ".config")
            training = words[1].endswith("train")
            names = [n for n in vars(script) if n.endswith("Config") and (n == "EvalConfig") != training]
            cls = next(vars(script)[n] for n in names if n != "LoopConfig")
            parse(cls, configs.PRESETS if training else {}, "", words[2:])
        elif words[0] == "-m":
            assert words[1] == "pytest" or (ROOT / f"{words[1].replace('.', '/')}.py").is_file(), words
            continue
        else:
            assert (ROOT / words[0]).is_file(), words
            continue
        parsed += 1
    assert parsed > 3, "no commands found: this test reads nothing"


@pytest.mark.parametrize(
    "system, readme",
    [("config", "README.md")] + [(f"{x}.config", f"{x}/README.md") for x in ("reasoner", "latent_stack")],
)
def test_every_preset_is_named_in_its_readme(system, readme):
    text = text_of(readme)
    assert not [name for name in import_module(system).PRESETS if name not in text]


@pytest.mark.parametrize("readme", READMES)
def test_every_file_that_a_readme_links_exists(readme):
    folder = (ROOT / readme).parent
    links = [x for x in re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(readme)) if not x.startswith("http")]
    assert not [x for x in links if not (folder / x).exists()]
