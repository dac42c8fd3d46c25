"""Copy what the READMEs quote out of the runs' folders, and average over seeds.

    python results/collect.py quick out/quick out/quick-seed1 out/quick-seed2
    python results/collect.py reasoner-quick out/reasoner-quick
    python results/collect.py reasoner-quick/coupled out/reasoner-coupled
    python results/collect.py reasoner-cfg out/reasoner-cfg
    python results/collect.py reasoner-gsm8k out/reasoner-gsm8k
    python results/collect.py latent-quick out/latent-quick

writes results/quick/: the JSON and figures of the first run, and seeds.json with the mean and standard deviation
(n - 1) of every figure in summary.json over all of them. Texts of data sets are left out.
"""

import json
import shutil
import statistics
import sys
from pathlib import Path

KEPT = ("summary.json", "alignment.json", "accuracy.json", "token_loss_curve.png", "jepa_loss_curve.png",
        "alignment_cosines.png", "alignment_map.png", "alignment_over_training.png",
        "tree.json", "talker.json", "containment.json", "cfg.json", "noise.png", "trajectory.json", "fewshot.json",
        "summaries.json", "interpolate.json", "neighbours.json", "cluster.json", "middle.json", "map.png",
        "loss_curve.png", "chain_*.png")  # fmt: skip
PRIVATE = ("examples", "ways", "data_dir")  # somebody else's words, somebody's folder


def main():
    name, *runs = sys.argv[1:] or [""]
    missing = [run for run in runs if not (Path(run) / "summary.json").is_file()]
    if not runs or missing:
        sys.exit(f"error: wants a name and finished runs; no summary.json in {', '.join(missing) or 'nothing'}")
    folder = Path(__file__).resolve().parent / name
    folder.mkdir(parents=True, exist_ok=True)
    for source in (path for pattern in KEPT for path in sorted(Path(runs[0]).glob(pattern))):
        if source.suffix == ".png":
            shutil.copyfile(source, folder / source.name)
        else:
            found = json.loads(source.read_text())
            # "examples" may also be their number
            found = {k: v for k, v in found.items() if k not in PRIVATE or isinstance(v, int)}
            (folder / source.name).write_text(json.dumps(found, indent=2) + "\n")
    if len(runs) > 1:
        found = [json.loads((Path(run) / "summary.json").read_text()) for run in runs]
        numbers = {key: [f[key] for f in found] for key, value in found[0].items() if isinstance(value, int | float)}
        table = {key: {"mean": statistics.mean(v), "std": statistics.stdev(v), "runs": v} for key, v in numbers.items()}
        (folder / "seeds.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
