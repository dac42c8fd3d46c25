"""results/tour.ipynb: it is its script, it runs from top to bottom, and what it shows came of the whole of it."""

import json
import os
import re
import subprocess
import sys

import jupytext
import pytest
from helpers import ROOT, environment

SCRIPT, NOTEBOOK = ROOT / "results" / "tour.py", ROOT / "results" / "tour.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_the_notebook_has_the_cells_of_its_script():
    made, kept = (jupytext.read(path) for path in (SCRIPT, NOTEBOOK))
    assert [(x.cell_type, x.source) for x in kept.cells] == [(x.cell_type, x.source) for x in made.cells]


def test_the_notebook_was_executed_once_from_top_to_bottom_in_its_long_form(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 5
    n_train = int(re.search(r'"TOUR_N_TRAIN", ([\d_]+)', SCRIPT.read_text(encoding="utf-8"))[1])
    assert NOTEBOOK.read_text(encoding="utf-8").count(f": {n_train:,} training, ") == 2


def test_the_notebook_is_small_and_names_no_folder_of_the_machine_it_ran_on(notebook):
    assert NOTEBOOK.stat().st_size < 400_000
    outputs = json.dumps([cell.get("outputs") for cell in notebook["cells"]], ensure_ascii=False)
    assert not re.findall(r"[\"\s(]/\w+/[^\"\s]*", re.sub(r'"image/png": "[^"]*"', "", outputs))


def test_the_notebook_runs_in_its_short_form_and_writes_where_it_is(tmp_path):
    """As a script: the kernel that a notebook needs would be the heaviest of the development packages."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    changed = environment(TOUR_N_TRAIN="200", MPLBACKEND="Agg", PYTHONPATH=path)
    command = [sys.executable, SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=changed, capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    moves = re.findall(r"ẑ moves by (\S+)", done.stdout)
    assert float(moves[0]) == 0 < float(moves[1]), "with the mask, and without it"
