"""Ask trained models in a web page, a tab a system, or in the terminal.

    python main.py                                        the newest run of each system below out/, at 127.0.0.1:7860
    python main.py --run out/quick                        one run only
    python main.py --run out/quick --compare out/quick-lm the same question to a second run, side by side
    python main.py --run out/nanojepa --data-dir DIR      candidates are the answers of DIR/test.jsonl
    python main.py --run out/quick --host 0.0.0.0         other machines may ask, too
    python main.py --run out/quick --ask "Tom has 12 pears. Ana gives Tom 30 more pears. How many pears does Tom have?"
    python main.py --run out/quick --ask - < questions.txt         one a line

One input, one greedy answer, of bounded length. The same input always gets the same answer: nothing is sampled, nothing
is remembered, no other model is asked. Neither the server nor the page sends anything to another machine.
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from common.device import resolve_device
from common.options import UserError, ask_each, opt, parse, run_main
from common.serving import launch
from demo import answer, page


@dataclass
class DemoConfig:
    """What the demo reads."""

    run: str = opt("", "folder of the trained run; RUN/best is one too; none: the newest of each system under out/")
    compare: str = opt("", "a second run of nanoJEPA, which gets the same questions")
    ask: str = opt("", "answer one question in the terminal and end; - reads one a line from standard input")
    data_dir: str = opt("", "the run's data, where it has moved: DIR/train.jsonl and DIR/test.jsonl")
    host: str = opt("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines ask, too")
    port: int = opt(0, "port to listen on (0: the first free one from 7860)")
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")


def load(runs: dict[str, str], config: DemoConfig) -> dict[str, Any]:
    """{system: run} -> {system: its loaded tab}. A run that was not asked for by name and cannot be loaded is left out
    and reported."""
    device, loaded = resolve_device(config.device).device, {}
    for system, run in runs.items():
        if len(runs) > 1:  # a frozen language model takes a while
            print(f"loading {run}", file=sys.stderr, flush=True)
        try:
            loaded[system] = page.tab_of(run).load(run, config.data_dir, device)
        except UserError as error:
            if config.run:
                raise
            print(f"{run} is left out: {error}", file=sys.stderr)
    if not loaded:
        raise UserError("none of the runs under out/ could be loaded")
    if config.compare:
        loaded[answer.SYSTEM] = answer.compared(loaded[answer.SYSTEM], config.compare, config.data_dir, device)
    return loaded


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(DemoConfig, {}, __doc__, argv)
    os.environ["HF_DATASETS_OFFLINE"] = "1"  # GSM8K from the local cache or --data-dir; the demo downloads no data
    runs = {page.system_of(config.run): config.run} if config.run else page.newest_runs()
    if config.data_dir and not config.run:
        raise UserError("--data-dir is the data of one run; name it with --run")
    if config.compare and (config.ask or answer.SYSTEM not in runs or page.system_of(config.compare) != answer.SYSTEM):
        raise UserError(f"--compare {config.compare} is for the page, and for two runs of nanoJEPA")
    if config.ask:
        first = dict(list(runs.items())[:1])
        ((system, tab),) = load(first, config).items()
        return ask_each(config.ask, partial(page.tab_of(first[system]).ask, tab))
    loaded = load(runs, config)
    max_bytes = 4096 + 12 * max(tab.max_characters for tab in loaded.values())  # JSON: 12 bytes a character at most
    built = page.build(loaded)
    url = launch(built, config.host, config.port, page.css(), max_bytes)
    names = [tab.run for tab in loaded.values()]
    print(f"{', '.join(names)} answer{'s' if len(names) == 1 else ''} at {url} (Ctrl-C ends it)", flush=True)
    built.block_thread()


if __name__ == "__main__":
    run_main(main)
