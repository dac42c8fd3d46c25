"""What a latent stack generates, beside what is generated without the idea.

    python -m latent_stack.evaluate --run out/latent-quick --what summaries       ROUGE and its controls
    python -m latent_stack.evaluate --run out/latent-quick --what interpolate     from one idea to another
    python -m latent_stack.evaluate --run out/latent-quick --what neighbours      do similar texts get similar ideas?
    python -m latent_stack.evaluate --run out/latent-quick --what cluster         k-means, centroids as text
    python -m latent_stack.evaluate --run out/latent-quick --what map             PCA and t-SNE
    python -m latent_stack.evaluate --run out/latent-quick --what middle          trained, identity, random
    python -m latent_stack.evaluate --run out/latent-quick --what capacity        what could an idea hold?
    python -m latent_stack.evaluate --run RUN/pretrain --what sayback             is a sentence said back exactly?
    python -m latent_stack.evaluate --run RUN/pretrain --what thinking            can a middle model think in ideas?
    python -m latent_stack.evaluate --run out/latent-quick --text "Ana: hi! …"    a text given by hand
    cat chat.txt | python -m latent_stack.evaluate --run out/latent-quick --text -    or on stdin

Writes <what>.json, and figures, into the run's folder; for other data than the run's own, <what>-NAME.json. For --text
it prints the test texts whose ideas are nearest, and on the last line what is generated from the text's idea alone.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from common.checkpoint import write_json
from common.device import resolve_device
from common.options import UserError, flag, parse, run_main
from latent_stack.config import EvalConfig, evaluated_on, output_name
from latent_stack.experiments import capacity, cluster, interpolate, middle, neighbours, sayback, summaries, thinking
from latent_stack.experiments import map as idea_map
from latent_stack.model import load_run
from latent_stack.pairs import load_pairs
from latent_stack.trace import ideas_at_hand, report

RUN = {
    "summaries": summaries.run,
    "interpolate": interpolate.run,
    "neighbours": neighbours.run,
    "cluster": cluster.run,
    "map": idea_map.run,
    "middle": middle.run,
    "capacity": capacity.run,
    "sayback": sayback.run,
    "thinking": thinking.run,
}
# options of some experiments only
READ_BY = {"refine": ("sayback",), "clusters": ("cluster", "map"), "steps": ("capacity",)}


def main(argv: list[str] | None = None) -> None:
    config, given = parse(EvalConfig, {}, __doc__.split("\n\n")[0], argv)
    text = sys.stdin.read() if config.text == "-" else config.text
    if "text" in given and not text.strip():
        raise UserError("--text: the text is empty")
    idle = {"what", "dataset"} if text else set()
    idle |= {name for name, readers in READ_BY.items() if text or config.what not in readers}
    if unused := given & idle:
        raise UserError(f"{flag(min(unused))} has no effect here; leave it out")
    model = load_run(config.run, resolve_device(config.device).device)
    if text:
        os.environ["HF_DATASETS_OFFLINE"] = "1"  # the run's data if it is at hand; nothing is downloaded for a text
        print(report(model, text, *ideas_at_hand(model, config.data_dir, config.limit)))
        return

    path = Path(config.run) / output_name(config, model.config)
    config, model.config = replace(config, output=str(path)), evaluated_on(config, model.config)
    pairs = load_pairs(model.config)["test"][: config.limit or None]
    if len(pairs) < 10:
        raise UserError(f"{len(pairs)} test texts: an experiment needs 10 or more")
    about = {"dataset": model.config.dataset, "data_dir": model.config.data_dir}
    path = f"{path}.json"
    write_json(path, about | RUN[config.what](model, pairs, config))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    run_main(main)
