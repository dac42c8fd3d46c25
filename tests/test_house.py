"""The rules of the house, read from the code itself: who imports whom, how long things are, which options are read."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT, environment

SYSTEMS = ("nanojepa", "reasoner", "latent_stack")  # nanojepa's modules stand at the top level
FOLDERS = ("common", "reasoner", "latent_stack", "demo", "bench", "results", "tests")
MAY_IMPORT = {
    "common": {"common"},
    "nanojepa": {"common", "nanojepa"},
    "reasoner": {"common", "reasoner"},
    "latent_stack": {"common", "latent_stack"},
    "demo": {"common", *SYSTEMS, "demo"},
    "bench": {"common", *SYSTEMS, "demo", "bench"},
    "results": {"common", *SYSTEMS, "demo", "bench", "results"},
    "tests": {"common", *SYSTEMS, "demo", "bench", "results", "tests"},
}
OPTIONAL = (
    "matplotlib sklearn datasets transformers peft gguf nltk sacrebleu rouge_score gradio starlette trackio wandb "
    "tensorboard"
).split()
MAX_FILE, MAX_FUNCTION = 400, 70  # lines


@cache
def modules() -> dict[str, Path]:
    """Every module of the project, by the name that `import` gives it."""
    paths = [*ROOT.glob("*.py"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))]
    named = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def layer(module: str) -> str:
    """The part of the house in which a module stands."""
    folder = module.partition(".")[0]
    return "demo" if module == "main" else folder if folder in FOLDERS else "nanojepa"


def project_module(name: str, importer: str) -> str | None:
    """An imported name -> the project's module that it is or lies in; None if it is a library's."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        found = ".".join(parts[:n])
        beside = f"{importer.rpartition('.')[0]}.{found}"  # scripts of tests/ and results/ find their neighbours
        for candidate in (beside, found) if layer(importer) in ("tests", "results") else (found,):
            if candidate in modules():
                return candidate
    return None


def imported_names(node: ast.AST, importer: str) -> list[str]:
    """What one import statement may name: modules, and names inside them that may be modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = importer.split(".")[: -node.level]
        base = ".".join([*package, *filter(None, [node.module])])
    return [f"{base}.{alias.name}" for alias in node.names]


@cache
def project_imports(module: str) -> frozenset[str]:
    """The project's modules that a module imports, anywhere in it."""
    names = [name for node in ast.walk(tree(modules()[module])) for name in imported_names(node, module)]
    return frozenset(filter(None, (project_module(name, module) for name in names))) - {module}


def test_the_imports_are_read_at_all():
    """The tests below would pass on an empty graph."""
    assert {"common.options", "config", "data"} <= project_imports("train")
    assert "common.loop" in project_imports("reasoner.train") and "tests.tiny" in project_imports("tests.test_model")
    assert {layer(module) for module in modules()} == set(MAY_IMPORT)


def test_no_modules_import_each_other_in_a_circle():
    """train.py and eval_alignment.py once imported each other."""
    try:
        TopologicalSorter({module: project_imports(module) for module in modules()}).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_between_the_parts_of_the_house_run_down(part):
    upward = [
        f"{module} imports {other}"
        for module in modules()
        if layer(module) == part
        for other in project_imports(module)
        if layer(other) not in MAY_IMPORT[part]
    ]
    assert not upward


def functions(module: str) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree(modules()[module])) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_inside_functions_only_optional_libraries_are_imported():
    """A circle that hides inside a function is a circle; what everybody has belongs at the top."""
    hidden = [
        f"{module}.{function.name}: {name}"
        for module in modules()
        if layer(module) != "tests"  # which import a script where they run it
        for function in functions(module)
        for node in ast.walk(function)
        for name in imported_names(node, module)
        if name.removeprefix("torch.utils.").partition(".")[0] not in OPTIONAL
    ]
    assert not hidden


@pytest.mark.parametrize("folder", ("common", *FOLDERS[1:], "."))
def test_no_file_and_no_function_is_too_long(folder):
    too_long = []
    for module, path in modules().items():
        if path.parent.relative_to(ROOT).parts[:1] != ((folder,) if folder != "." else ()):
            continue
        lines = len(path.read_text(encoding="utf-8").splitlines())
        too_long += [f"{module}: {lines} lines"] if lines > MAX_FILE else []
        for function in functions(module):
            lines = function.end_lineno - function.lineno + 1
            too_long += [f"{module}.{function.name}: {lines} lines"] if lines > MAX_FUNCTION else []
    assert not too_long


# what a system calls itself, measures, and writes
SYSTEM_WORDS = (
    "nanojepa reasoner latent_stack latent-stack talker jepa chain_accuracy route_accuracy exact_match cos_own "
    "cos_other retrieval rouge bleu alignment.json accuracy.json predictions.jsonl cluster.json noise.json"
).split()


@pytest.mark.parametrize("module", [m for m in modules() if layer(m) == "common"])
def test_common_names_no_system_and_none_of_its_measures_or_files(module):
    """`cls is Config`, `chain_accuracy` and `cluster.json` once stood in the loop that knows no system."""
    text = modules()[module].read_text(encoding="utf-8").lower()
    text = re.sub(r"lejepa", "", text)  # a paper, not a system
    assert not [word for word in SYSTEM_WORDS if word in text]


def text_files_without_encoding(module: str) -> list[str]:
    """Calls that read or write text in whatever encoding the machine prefers."""
    found = []
    for node in ast.walk(tree(modules()[module])):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:2])
        if name in ("read_text", "write_text") or (getattr(node.func, "id", "") == "open" and not binary):
            found.append(f"{module}:{node.lineno}")
    return found


def test_text_is_read_and_written_as_utf8_by_name():
    """ẑ in a log was unreadable where the machine's own encoding is another."""
    assert not [at for module in modules() if layer(module) != "tests" for at in text_files_without_encoding(module)]


def test_no_line_escapes_the_formatter_and_a_silenced_warning_says_why():
    skip = "fmt: " + "skip"
    for module, path in modules().items():
        for line in path.read_text(encoding="utf-8").splitlines():
            assert skip not in line, f"{module}: {line.strip()}"
            silenced = re.search(r"# no" + r"qa(: [A-Z]+\d+)?(.*)", line)
            assert not silenced or len(silenced[2].split()) > 2, f"{module}: {line.strip()}"


# ------------------------------------------------------------------------------------------- importing


def test_importing_every_module_prints_nothing_writes_nothing_and_loads_no_optional_library(tmp_path):
    """A script without a guard trains when it is imported; `quick` must not need what only figures or a demo need."""
    house = sorted(module for module in modules() if layer(module) in ("common", "demo", *SYSTEMS))
    above = sorted(module for module in modules() if layer(module) in ("bench", "results"))
    above.remove("results.tour")  # a notebook's script runs from top to bottom
    code = (
        f"import sys; sys.dont_write_bytecode = True; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'results')!r}]\n"
        f"import {', '.join(house)}\n"
        f"assert not (loaded := set({OPTIONAL}) & set(sys.modules)), loaded\n"
        f"import {', '.join(above)}"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_every_script_has_a_main_that_takes_a_command_line_and_a_guard():
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if "__main__" in text and layer(module) in ("nanojepa", "reasoner", "latent_stack"):
            assert "def main(argv: list[str] | None = None)" in text, module
            assert re.search(r'\nif __name__ == "__main__":\n    run_main\(main\)\n$', text), module


# --------------------------------------------------------------------------------------------- options


def options(module: str) -> list[tuple[str, str]]:
    """(class, field) of the command-line options that a module declares: `name: type = opt(…)`."""
    return [
        (node.name, field.target.id)
        for node in ast.walk(tree(modules()[module]))
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call)
        if getattr(field.value.func, "id", "") == "opt"
    ]


def read_from_configurations(parts: tuple) -> set[str]:
    """The attributes that modules of these parts read of something called config: `config.lr`, `self.config.lr`."""
    read = set()
    for module in modules():
        for node in ast.walk(tree(modules()[module])) if layer(module) in parts else ():
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = getattr(node.value, "id", "") or getattr(node.value, "attr", "")
                read |= {node.attr} if owner.endswith("config") else set()
    return read


@pytest.mark.parametrize("module", [m for m in modules() if layer(m) != "tests" and options(m)])
def test_every_option_is_read_somewhere(module):
    """An option that nothing reads is a promise that nothing keeps."""
    parts = SYSTEMS if layer(module) == "common" else (layer(module),)
    read = read_from_configurations(("common", *parts))
    assert not [f"{cls}.{name}" for cls, name in options(module) if name not in read]


def test_requirements_and_the_extras_of_pyproject_name_the_same_packages():
    """Two lists drift apart: requirements.txt is all of pyproject's, in the same ranges."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line.split("#")[0].strip() for line in lines} == {*project["dependencies"], *extras}
