"""Copy what the READMEs quote out of the runs' folders, and average over seeds.

    python results/collect.py quick out/quick out/quick-seed1 out/quick-seed2
    python results/collect.py reasoner-quick out/reasoner-quick
    python results/collect.py reasoner-quick/coupled out/reasoner-coupled
    python results/collect.py latent-quick out/latent-quick

writes results/quick/: every JSON and PNG that training and evaluation left in the first run's folder, those of an
evaluation on other data (accuracy-NAME.json) included, and seeds.json with the mean and standard deviation (n - 1) of
every figure in summary.json over all of them. Texts of data sets and names of folders are left out. A result of the
first examples alone (cfg-first-250.json, which holds their number) is kept as cfg.json where it is the only one.
"""

import argparse
import re
import shutil
import statistics
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import read_json, write_json
from common.options import UserError, run_main

RESULTS = Path(__file__).resolve().parent
OF_THE_CHECKPOINT = ("config.json", "tokenizer.json")  # all other JSON of a run's folder is a result
PRIVATE = ("examples", "ways", "data_dir")  # somebody else's words, somebody's folder


def public(result: dict | list | float | str | None) -> dict | list | float | str | None:
    """A result without the texts of data sets and names of folders, however deep; "examples" may also be a number."""
    if isinstance(result, list):
        return [public(value) for value in result]
    if not isinstance(result, dict):
        return result
    return {name: public(value) for name, value in result.items() if name not in PRIVATE or isinstance(value, int)}


def copy_results(run: Path, folder: Path) -> None:
    """JSON and figures of a run -> the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {path: re.sub(r"-first-\d+(?=\.\w+$)", "", path.name) for path in run.glob("*.*")}
    times = Counter(whole.values())
    for path in sorted(whole):
        kept = folder / (whole[path] if times[whole[path]] == 1 else path.name)
        if path.suffix == ".json" and path.name not in OF_THE_CHECKPOINT:
            write_json(kept, public(read_json(path)))
        elif path.suffix == ".png":
            shutil.copyfile(path, kept)


def over_seeds(runs: list[Path]) -> dict:
    """{figure of summary.json: mean, standard deviation and the runs' values}."""
    found = [read_json(run / "summary.json") for run in runs]
    numbers = {name: [f[name] for f in found] for name, value in found[0].items() if isinstance(value, int | float)}
    return {
        name: {"mean": statistics.mean(values), "std": statistics.stdev(values), "runs": values}
        for name, values in numbers.items()
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", help="folder below results/")
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs; more than one: other seeds of the first")
    args = parser.parse_args(argv)
    unfinished = [str(run) for run in args.runs if not (run / "summary.json").is_file()]
    if unfinished:
        raise UserError(f"no summary.json in {', '.join(unfinished)}: train the run to its end first")
    copy_results(args.runs[0], RESULTS / args.name)
    if len(args.runs) > 1:
        write_json(RESULTS / args.name / "seeds.json", over_seeds(args.runs))


if __name__ == "__main__":
    run_main(main)
