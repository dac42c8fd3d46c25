"""What a trained JEPA-Reasoner does, beside its baselines and controls.

    python -m reasoner.evaluate --what tree --run out/reasoner-quick          routes, mixed latents, the exposure gap
    python -m reasoner.evaluate --what cfg --run out/reasoner-cfg --baseline out/cfg-coupled     token and latent noise
    python -m reasoner.evaluate --what containment --run out/reasoner-quick --baseline out/coupled
    python -m reasoner.evaluate --what talker --run out/reasoner-quick        Gaussian latents, another prompt's latents
    python -m reasoner.evaluate --what trajectory --run out/reasoner-gsm8k    GSM8K: how good is the way to the answer?
    python -m reasoner.evaluate --what fewshot --run out/reasoner-gsm8k --data-dir DIR      n solved examples before it
    python -m reasoner.evaluate --what dial --run out/reasoner-quick          latents fed back, sharpened, made tokens
    python -m reasoner.evaluate --what posterior --run out/reasoner-routes    weights of several routes
    python -m reasoner.evaluate --what clue --run out/reasoner-clue           a goal that arrives in the chain

    python -m reasoner.evaluate --run out/reasoner-quick --ask "5 9 ; 5 2 ; 2 4 ; 2 8 ; root 5 goal 8 :"
    python -m reasoner.evaluate --run out/reasoner-quick --ask - < prompts.txt              one a line

--ask prints the chain of one prompt: for every latent the nearest embeddings with their cosines and what was fed back,
and on the last line what the Talker says, alone. A baseline has no chain of latents and prints the answer.

Writes <what>.json and, for some, a figure into the run's folder, under --limit N as <what>-first-N. Beside
JEPA-Reasoner, tree, cfg and trajectory measure the same Reasoner read without the Talker, and the same with tokens fed
back instead of latents.
"""

from dataclasses import replace
from functools import partial

import torch

from common.checkpoint import write_json
from common.device import resolve_device
from common.options import UserError, ask_each, flag, parse, run_main
from reasoner.config import DATA, QUESTIONS, EvalConfig, ReasonerConfig
from reasoner.data import load_examples
from reasoner.experiments import cfg, clue, containment, dial, fewshot, posterior, talker, trajectory, tree
from reasoner.model import NearestDecoder, ReasonerTalker
from reasoner.phases import load_run
from reasoner.tasks import Example
from reasoner.trace import ask

MODULES = {
    "tree": tree,
    "cfg": cfg,
    "containment": containment,
    "talker": talker,
    "trajectory": trajectory,
    "fewshot": fewshot,
    "dial": dial,
    "posterior": posterior,
    "clue": clue,
}
# experiments that need one of these
DATASET = {"tree": ("tree",), "cfg": ("cfg",), "trajectory": QUESTIONS, "posterior": ("routes",), "clue": ("clue",)}
WITH_CONTROLS = ("tree", "cfg", "trajectory")  # measured with the nearest embedding and tokens fed back beside each run


def check_run(run: str, model, what: str, sharpen: bool) -> None:
    """Can the experiment be made with this run?"""
    config, needed = model.config, DATASET.get(what)
    if needed and config.dataset not in needed:
        raise UserError(f"{run} was trained on {config.dataset}; --what {what} needs {' or '.join(needed)}")
    if config.of_steps and sharpen:
        raise UserError(
            f"--sharpen: {run} was trained with --reasoning steps, whose latents are near no token's embedding"
        )
    if config.of_steps and what != "trajectory":
        raise UserError(f"{run} was trained with --reasoning steps, of which --what {what} knows nothing")
    if what == "trajectory" and config.reasoning not in ("equations", "steps"):
        raise UserError(f"{run} was trained with --reasoning {config.reasoning}; --what trajectory reads equations")
    if what in ("containment", "talker", "dial") and config.dataset == "text":
        raise UserError(f"{run} was trained on text, where there is no correct answer")
    if what == "fewshot" and config.dataset not in ("gsm8k", "text"):
        raise UserError(f"{run} was trained on {config.dataset} and cannot read questions")


def check_same_test(models: dict, first: str) -> None:
    """Can all runs be measured on the examples of the first?"""
    reference = models[first].config
    for run, model in models.items():
        for name in DATA:
            if getattr(model.config, name) != getattr(reference, name):
                raise UserError(
                    f"{run} was trained with {name} = {getattr(model.config, name)}, {first} with "
                    f"{getattr(reference, name)}: they cannot be measured on the same examples"
                )


def load_models(config: EvalConfig) -> dict:
    """{folder: model} of --run and --baseline, checked."""
    device = resolve_device(config.device).device
    models = {run: load_run(run, device) for run in (config.run, *config.baseline)}
    for run, model in models.items():
        check_run(run, model, config.what, config.sharpen >= 0)
        if config.sharpen >= 0 and isinstance(model, ReasonerTalker):
            model.reasoner.config.sharpen = config.sharpen
    if config.what != "fewshot":  # any checkpoint that reads text may be asked questions
        check_same_test(models, config.run)
    has_chain = any(isinstance(model, ReasonerTalker) for model in models.values())
    if config.what in ("talker", "dial") and not has_chain:
        raise UserError(f"--what {config.what}: a baseline has no Talker of its own and no chain of latents")
    if config.sharpen >= 0 and not has_chain:
        raise UserError("--sharpen: a baseline has no chain of latents to sharpen")
    if config.what == "dial" and config.sharpen >= 0:
        raise UserError("--what dial measures at many temperatures; leave --sharpen out")
    return models


def test_examples(config: EvalConfig, trained: ReasonerConfig) -> list[Example]:
    """The test split of the first run, or of --data-dir."""
    if config.what == "fewshot" and trained.dataset == "text":
        source = replace(trained, dataset="gsm8k", data_dir=config.data_dir)
    else:
        source = replace(trained, data_dir=config.data_dir or trained.data_dir)
    return load_examples("test", source)[: config.limit or None]


def with_controls(models: dict) -> dict:
    """The models, and each Reasoner without its Talker: its latents read by the nearest embedding, and fed tokens."""
    controls = {}
    for run, model in models.items():
        if isinstance(model, ReasonerTalker) and not model.config.of_steps:
            controls[f"{run}, by the nearest embedding"] = NearestDecoder(model.reasoner)
            controls[f"{run}, tokens fed back"] = NearestDecoder(model.reasoner, feed_tokens=True)
    return models | controls


def ask_run(config: EvalConfig, given: frozenset) -> None:
    """--ask: print what one prompt, or with - every line of standard input, leads to."""
    if unused := given - {"ask", "run", "device"}:
        raise UserError(f"--ask asks the model of --run and measures nothing; leave {flag(min(unused))} out")
    model = load_run(config.run, resolve_device(config.device).device)
    ask_each(config.ask, partial(ask, model))


def main(argv: list[str] | None = None) -> None:
    config, given = parse(EvalConfig, {}, __doc__.split("\n\n")[0], argv)
    if "ask" in given:
        return ask_run(config, given)
    models = load_models(config)
    examples = test_examples(config, models[config.run].config)
    if config.what in WITH_CONTROLS:
        models = with_controls(models)
    with torch.no_grad():
        result = MODULES[config.what].measure(models, examples, config)
    sharpened = {"sharpen": config.sharpen} if config.sharpen >= 0 else {}
    path = config.path(f"{config.what}.json")
    write_json(path, {"runs": result, "examples": len(examples), "seed": config.seed, **sharpened})
    print(f"\nwrote {path}")


if __name__ == "__main__":
    run_main(main)
