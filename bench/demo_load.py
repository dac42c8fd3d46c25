"""The demo under load: many browsers ask at once; is every answer the one that the same question gets alone?

    python -m bench.demo_load --run out/quick --clients 64 --seconds 60

main.py runs in a process of its own. A client joins the queue and reads the answer from the event stream, as the page
does, and asks again; every tenth question has a megabyte and must be refused. Printed as JSON:

    answers, wrong       as if asked alone, and not so
    refused, errors      the queue was full or the question too long; anything else
    seconds_median, _max from asking to the answer
    rss_before, _after   most MiB that the server held, before the load and after it (Linux)
"""

import json
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

from common.options import UserError, opt, parse, run_main
from common.word_problems import word_problems

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = [e.question for e in word_problems("test", 40, 5)]
TOO_LONG = "How many pears? " * 2**16  # a megabyte
TIMEOUT = 120  # seconds that a client waits for anything


@dataclass
class LoadConfig:
    """What the load test reads."""

    run: str = opt("out/quick", "folder of the trained run")
    clients: int = opt(64, "browsers that ask at the same time", low=1)
    seconds: int = opt(60, "how long they ask", low=1)


@contextmanager
def server(run: str):
    """main.py on a free port, in a process of its own that ends with the context -> (process id, address)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, ROOT / "main.py", "--run", run, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if "answers at" in line:
                break
        else:
            raise UserError(f"main.py did not start: {line.strip()}")
        yield process.pid, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()


def peak_rss(pid: int) -> int:
    """Most MiB that a process held so far."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))[1]) // 1024


class Client:
    """One open page."""

    def __init__(self, address: str):
        self.address, self.session = address, uuid.uuid4().hex
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        events = json.load(self.opener.open(f"{address}/config", timeout=TIMEOUT))["dependencies"]
        self.event = next(e["id"] for e in events if e["api_name"] == "ask")

    def ask(self, question: str) -> list:
        """Question -> what the page shows; HTTPError 503 where the queue is full, 413 if the question is too long."""
        body = {"data": [question], "fn_index": self.event, "session_hash": self.session}
        headers = {"Content-Type": "application/json"}
        join = urllib.request.Request(f"{self.address}/gradio_api/queue/join", json.dumps(body).encode(), headers)
        self.opener.open(join, timeout=TIMEOUT).close()
        stream = f"{self.address}/gradio_api/queue/data?session_hash={self.session}"
        with self.opener.open(stream, timeout=TIMEOUT) as lines:
            for line in lines:
                message = json.loads(line.removeprefix(b"data:")) if line.strip() else {}
                if message.get("msg") == "process_completed":
                    return message["output"]["data"]
        raise EOFError


def ask_until(end: float, client: Client, alone: dict[str, list], offset: int) -> tuple[Counter, list[float]]:
    """Ask one question after the other -> counts, and the seconds of each answer."""
    found, seconds = Counter(), []
    while (began := time.monotonic()) < end:
        n = offset + found.total()
        question = TOO_LONG if n % 10 == 9 else QUESTIONS[n % len(QUESTIONS)]
        try:
            shown = client.ask(question)
        except HTTPError as error:
            found["refused" if error.code in (413, 503) else "errors"] += 1
        except (OSError, EOFError, KeyError, ValueError):
            found["errors"] += 1
        else:
            seconds.append(time.monotonic() - began)
            found["answers" if shown == alone.get(question) else "wrong"] += 1
    return found, seconds


def measure(run: str, clients: int, seconds: float) -> dict:
    """A trained run, asked by so many clients for so long -> counts, seconds an answer, MiB."""
    with server(run) as (pid, address), ThreadPoolExecutor(clients) as pool:
        pages = [Client(address) for _ in range(clients)]
        alone = {question: pages[0].ask(question) for question in QUESTIONS}
        before, end = peak_rss(pid), time.monotonic() + seconds
        found = list(pool.map(lambda i: ask_until(end, pages[i], alone, 7 * i), range(clients)))
        after = peak_rss(pid)
    counts = sum((counted for counted, _ in found), Counter())
    times = sorted(s for _, taken in found for s in taken)
    return {
        **{name: counts[name] for name in ("answers", "wrong", "refused", "errors")},
        "seconds_median": round(statistics.median(times), 3) if times else None,
        "seconds_max": round(times[-1], 3) if times else None,
        "rss_before": before,
        "rss_after": after,
    }


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(LoadConfig, {}, __doc__.split("\n\n")[0], argv)
    print(json.dumps(measure(config.run, config.clients, config.seconds)))


if __name__ == "__main__":
    run_main(main)
