"""Copy what README quotes out of the runs' folders, and average over seeds.

    python results/collect.py quick out/quick out/quick-seed1 out/quick-seed2

writes results/quick/: the JSON and figures of the first run, and seeds.json with the mean and standard deviation
(n - 1) of every figure in summary.json over all of them.
"""

import json
import shutil
import statistics
import sys
from pathlib import Path

KEPT = ("summary.json", "alignment.json", "accuracy.json", "token_loss_curve.png", "jepa_loss_curve.png",
        "alignment_cosines.png", "alignment_map.png", "alignment_over_training.png")  # fmt: skip


def main():
    name, *runs = sys.argv[1:]
    folder = Path(__file__).resolve().parent / name
    folder.mkdir(exist_ok=True)
    for file in KEPT:
        if (Path(runs[0]) / file).is_file():
            shutil.copyfile(Path(runs[0]) / file, folder / file)
    if len(runs) > 1:
        found = [json.loads((Path(run) / "summary.json").read_text()) for run in runs]
        numbers = {key: [f[key] for f in found] for key, value in found[0].items() if isinstance(value, int | float)}
        table = {key: {"mean": statistics.mean(v), "std": statistics.stdev(v), "runs": v} for key, v in numbers.items()}
        (folder / "seeds.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
