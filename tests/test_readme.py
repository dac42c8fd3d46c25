"""README promises commands, files and figures: every command runs, every file exists, every figure is in results/."""

import json
import re
import shlex

import pytest
from test_train import ROOT, TINY, script

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = sorted({line.split("#")[0].strip() for block in BLOCKS for line in block.replace(" && ", "\n").splitlines()
                   if re.match(r"\s*(python [a-z_]+\.py|python -m bench|torchrun)", line)})  # fmt: skip


def test_the_two_commands_stand_in_the_readme_as_written():
    assert "pip install -r requirements.txt && python train.py --preset quick" in README
    assert "pip install -r requirements.txt && python -m pytest" in README
    assert "python -m pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme") / "run"
    script("train.py", *TINY, "--run", folder)
    return folder


def tiny(command, run, folder):
    """A README command with its run replaced, and its training shrunk to seconds; later options win over earlier."""
    command = command.replace("torchrun --nproc_per_node=2 --", "python").replace("--data-dir DIR", "")
    words = shlex.split(command)[1:]
    if words[:2] == ["-m", "bench.jepa_overhead"]:
        return [*words, *TINY, "--pairs", "4", "--out", f"{folder}/speed.json"]
    if words[:2] == ["-m", "bench.eval_speed"]:
        words += ["--rounds", "1", "--sample", "3", "--out", f"{folder}/speed.json"]
    if words[0] == "train.py":
        return [*words, *TINY, "--epochs", "1", "--n-train", "48", "--block-size", "256", "--no-final-eval",
                "--no-compile", "--run", folder / "run", "--overwrite"]  # fmt: skip
    return [*(run if w.startswith("out/") else w for w in words), "--limit", "40"]


# main.py serves until it is stopped, and bench.train_speed takes half a minute: test_demo and test_bench run them
@pytest.mark.parametrize("command", [c for c in COMMANDS if "main.py" not in c and "train_speed" not in c])
def test_every_command_of_the_readme_runs(command, run, tmp_path):
    script(*tiny(command, run, tmp_path))


def test_every_preset_that_trains_is_named_in_the_readme():
    from config import PRESETS

    assert all(f"--preset {name}" in README for name in PRESETS)


def test_every_file_that_the_readme_links_exists():
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", README) if not x.startswith("http")]
    assert len(links) > 8
    assert not [x for x in links if not (ROOT / x).exists()]


def figures(value):
    """All ways in which README may round a number of results/, without its sign."""
    if isinstance(value, dict | list):
        return {text for v in (value.values() if isinstance(value, dict) else value) for text in figures(v)}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return set()
    shapes = ("{:.0f}", "{:.1f}", "{:.2f}", "{:.3f}", "{:.4f}", "{:,.0f}")
    return {s.format(abs(value)) for s in shapes} | {s.format(100 * abs(value)) for s in shapes[:3]}


def intervals(value):
    """All (figure, low, high) of a JSON value."""
    if isinstance(value, list):
        return [found for v in value for found in intervals(v)]
    if not isinstance(value, dict):
        return []
    found = [x for v in value.values() for x in intervals(v)]
    if {"median", "min", "max"} <= value.keys():
        found.append((value["median"], value["min"], value["max"]))
    for key, ci in value.items():
        if key.endswith("ci95") and isinstance(ci, list) and len(ci) == 2:
            numbers = [v for v in value.values() if isinstance(v, int | float)]
            of = value.get(key[:-5]) if key != "ci95" else value.get("mean", *numbers[:1])
            found += [(of, *ci)] if isinstance(of, int | float) else []
    return found


NUMBER = r"([+-]?\d+\.\d+)"


@pytest.mark.parametrize(
    "folder,names", [(".", "(?!reasoner|latent)"), ("reasoner", "reasoner"), ("latent_stack", "latent")]
)
def test_every_figure_of_the_result_tables_is_in_results(folder, names):
    """A figure that was typed instead of measured would stand here alone; with its interval it must be one result.

    In the siblings' pages, tables and text, it must stand in the file or folder of results/ that was named last before.
    """
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    paths = [p for p in (ROOT / "results").rglob("*.json") if re.match(names, str(p.relative_to(ROOT / "results")))]
    part, tables = re.search(r"\n## Results.*?(?=\n## |\Z)", text, re.S)[0], {}
    for line in part.splitlines():
        for name in re.findall(r"results/[\w.-]*\w", line)[-1:] if folder != "." else ():
            named = ROOT / name
            paths = [p for p in (named, *named.rglob("*.json")) if p.suffix == ".json" and p.is_file()] or paths
        cells = line.split("|")[2:] if line.startswith("|") else [re.sub("`[^`]*`", "", line)] if folder != "." else []
        tables.setdefault(tuple(paths), []).extend(cells)
    if folder == ".":
        tables[tuple(paths)] += re.findall(r"(?<![\w.@])\d+\.\d+", text.split("## Two commands")[0])
    count = 0
    for paths, cells in tables.items():
        results = [json.loads(p.read_text()) for p in paths]
        quoted = {x for cell in cells for x in re.findall(r"(?<![\w.@])\d[\d,]*\.\d+", cell)}
        count += len(quoted)
        assert not sorted(quoted - set().union(*map(figures, results))), paths
        measured = intervals(results)
        for cell in cells:
            for told in re.findall(rf"{NUMBER}%? \((?:95%: )?{NUMBER} to {NUMBER}\)", cell):
                shapes = [f"{{:.{len(x.partition('.')[2])}f}}" for x in told]
                wanted = [shape.format(float(x)) for shape, x in zip(shapes, told, strict=True)]
                assert any([shape.format(scale * v) for shape, v in zip(shapes, found, strict=True)] == wanted
                           for found in measured for scale in (1, 100)), (cell, paths)  # fmt: skip
    assert count > 10, "no figures found in the tables: this test reads nothing"


@pytest.mark.parametrize("system", ["reasoner", "latent_stack"])
def test_every_command_of_a_siblings_readme_is_one_that_its_scripts_take(system):
    from importlib import import_module

    from config import parse

    text = (ROOT / system / "README.md").read_text(encoding="utf-8")
    lines = [x.split("#")[0] for block in re.findall(r"```bash\n(.*?)```", text, re.S) for x in block.splitlines()]
    commands = [shlex.split(part)[2:] for x in lines for part in x.split("&&") if part.strip().startswith("python -m")]
    assert {c[0] for c in commands} == {f"{system}.train", f"{system}.evaluate"}
    presets = import_module(f"{system}.config").PRESETS
    for module, *words in commands:
        script = import_module(module)
        if module.endswith("train"):
            cls = next(v for k, v in vars(script).items() if k.endswith("Config"))
            parse(cls, presets, "", words)
        else:
            parse(script.EvalConfig, {}, "", words)
    assert all(f"--preset {name}" in text for name in presets)
