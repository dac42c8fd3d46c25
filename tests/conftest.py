"""What all tests share: the repository on the import path, and the optional folder of real data beside it."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def shared_data():
    """../shared/data beside the repository: real GSM8K and tiktoken's cache. Tests of these skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder
