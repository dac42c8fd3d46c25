"""Model cards: figures from the run's own JSON, and a snippet that runs as it stands."""

import json
import re
from pathlib import Path

import latent_tiny
import pytest
import reasoner_tiny
from helpers import call, script
from tiny import TINY, tiny_model

import train
from latent_stack.model import LatentStack
from model import NanoJEPA
from reasoner.model import Reasoner


@pytest.fixture(scope="module")
def nanojepa_run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    call(train, *TINY, "--epochs", "1", "--run", run)
    return run


@pytest.mark.parametrize("system", ("nanojepa", "reasoner", "latent stack"))
def test_a_saved_model_has_a_card_whose_snippet_runs_and_whose_figures_are_the_runs(tmp_path, nanojepa_run, system):
    cls, run, key = {
        "nanojepa": (NanoJEPA, nanojepa_run, "exact_match"),
        "reasoner": (Reasoner, reasoner_tiny.trained_run().run / "sst", "val_chain_accuracy"),
        "latent stack": (LatentStack, latent_tiny.trained_run().run, "rougeL"),
    }[system]
    cls.from_pretrained(run).save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert f"| {summary[key]:.3f}" in card and "license: mit" in card and "## Limits" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert str(tmp_path / "saved") in snippet and script("-c", snippet).stdout.strip()


def test_a_card_without_a_run_has_no_figures(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert "No figures: " in (tmp_path / "README.md").read_text(encoding="utf-8")
