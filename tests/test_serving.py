"""The server of the page: it answers what the page asks, and nothing else."""

import json
import os
import urllib.request
from urllib.error import HTTPError

import pytest
from tiny import tiny_model

from bench.demo_load import Client
from common import serving
from demo import answer
from demo.page import build, css
from demo.thought import Knowledge, candidates_of, think

QUESTION = "Tom has 12 pears. Ana gives Tom 7 more. How many pears are there now?"


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_new_tokens=3, block_size=64).eval()


@pytest.fixture(scope="module")
def knowledge(model):
    return Knowledge(candidates_of(model, [str(i) for i in range(40)], "the whole numbers to 39"))


@pytest.fixture
def address(model, knowledge, monkeypatch):
    """The page of the tiny model, served on a free port."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "NO_PROXY", "no_proxy", "GRADIO_ANALYTICS_CACHE_FREQUENCY"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # what launching switches is undone after the test
    page = build({"nanojepa": answer.tab_of("out/run", model, knowledge)})
    yield serving.launch(page, "127.0.0.1", 0, css(), max_bytes=4096).rstrip("/")
    page.close(verbose=False)


def status_of(url: str, body: bytes | None = None) -> tuple[int, str]:
    """A request -> its status and, if it is refused, the reason."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as found:
            return found.status, ""
    except HTTPError as error:
        return error.code, json.load(error)["detail"]


def test_the_server_answers_the_page_and_takes_and_gives_no_files(address, model, knowledge, tmp_path):
    """gradio takes a file from anybody and serves it again."""
    tab, thought = answer.tab_of("out/run", model, knowledge), think(model, knowledge, QUESTION)
    assert Client(address).ask(QUESTION)[0] == answer.show(tab, thought, QUESTION)
    assert [status_of(f"{address}{path}")[0] for path in ("/", "/config", "/theme.css")] == [200] * 3
    for path in ("upload", "component_server", "run/ask", "call/ask", "process_recording", "vibe-edit", "stream/1"):
        assert status_of(f"{address}/gradio_api/{path}", b"{}") == (404, "This server answers questions only.")
    for path in (f"file={tmp_path}", f"file/{tmp_path}", "proxy=http://127.0.0.1", "custom_component/1/a/b/c", "runs"):
        assert status_of(f"{address}/gradio_api/{path}")[0] == 404


def test_a_request_that_is_too_large_and_one_too_many_get_a_reason(address):
    code, reason = status_of(f"{address}/gradio_api/queue/join", b"x" * 10**6)
    assert code == 413 and "too long" in reason
    client = Client(address)
    body = json.dumps({"data": [QUESTION], "fn_index": client.event, "session_hash": "nobody"}).encode()
    join = urllib.request.Request(f"{address}/gradio_api/queue/join", body, {"Content-Type": "application/json"})
    with pytest.raises(HTTPError) as full:
        for _ in range(10 * serving.QUEUE):
            urllib.request.urlopen(join, timeout=20).close()
    assert full.value.code == 503 and "Queue is full" in json.load(full.value)["detail"]
