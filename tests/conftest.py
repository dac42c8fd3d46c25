"""What all tests share: one thread, no network, the repository on the import path, real data, one trained run."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices: a second thread costs more than it brings
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # read when the libraries are imported

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """../shared/data beside the repository: real GSM8K and tiktoken's cache. Tests of these skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def gsm8k(shared_data) -> Path:
    """The folder of GSM8K's train.jsonl and test.jsonl."""
    if not (shared_data / "gsm8k" / "train.jsonl").is_file():
        pytest.skip("needs GSM8K's train.jsonl and test.jsonl")
    return shared_data / "gsm8k"


@pytest.fixture
def gpt2_cache(monkeypatch, request) -> None:
    """GPT-2's vocabulary without a network."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        folder = request.getfixturevalue("shared_data") / "tiktoken"
        if not folder.is_dir():
            pytest.skip("tiktoken's cache is neither in TIKTOKEN_CACHE_DIR nor in ../shared/data/tiktoken")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """The figures that are saved during a test, by file name, to look at what was drawn: `drawn["a.png"].axes`."""
    from matplotlib.figure import Figure

    figures, save = {}, Figure.savefig

    def savefig(figure, path, **options):
        name = Path(path).name  # a temporary one: a.png.123.tmp
        figures[f"{name.partition('.png')[0]}.png"] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> SimpleNamespace:
    """One complete run of nanoJEPA, 24 steps, for the tests that only look at it -> `run`, and what it printed."""
    from helpers import call
    from tiny import TINY

    import train

    run = tmp_path_factory.mktemp("trained") / "whole"
    return SimpleNamespace(run=run, **vars(call(train, *TINY, "--run", run)))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run, to be changed."""
    return shutil.copytree(trained.run, tmp_path / "run")
