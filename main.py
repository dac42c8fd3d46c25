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

from common.device import resolve_device
from common.options import UserError, opt, parse, run_main
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


def inputs(ask: str) -> list[str]:
    """--ask -> the text, or with - every line of standard input."""
    found = [line.strip() for line in sys.stdin if line.strip()] if ask == "-" else [ask]
    if not found:
        raise UserError("--ask - : no question on standard input")
    return found


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(DemoConfig, {}, __doc__.split("\n\n")[0], argv)
    os.environ["HF_DATASETS_OFFLINE"] = "1"  # GSM8K from the local cache or --data-dir; the demo downloads no data
    runs = {page.system_of(config.run): config.run} if config.run else page.newest_runs()
    device = resolve_device(config.device).device
    loaded = {}
    for system, run in runs.items():
        tab = page.tab_of(run)
        if len(runs) > 1:  # a frozen language model takes a while
            print(f"loading {run}", file=sys.stderr, flush=True)
        loaded[system] = tab.load(run, config.data_dir, device)
        if config.ask:
            for text in inputs(config.ask):
                print(tab.ask(loaded[system], text), flush=True)
            return
    if config.compare:
        if answer.SYSTEM not in loaded or page.system_of(config.compare) != answer.SYSTEM:
            raise UserError(f"--compare {config.compare}: needs two runs of nanoJEPA")
        loaded[answer.SYSTEM] = answer.compared(loaded[answer.SYSTEM], config.compare, config.data_dir, device)
    max_bytes = 4096 + 12 * max(tab.max_characters for tab in loaded.values())  # JSON: 12 bytes a character at most
    built = page.build(loaded)
    url = launch(built, config.host, config.port, page.css(), max_bytes)
    print(f"{', '.join(runs.values())} answer{'s' if len(runs) == 1 else ''} at {url} (Ctrl-C ends it)", flush=True)
    built.block_thread()


if __name__ == "__main__":
    run_main(main)
