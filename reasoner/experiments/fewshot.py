"""GSM8K with solved training examples before the question."""

import random
from dataclasses import replace
from statistics import mean

from common.options import UserError
from common.stats import paired_difference, wilson
from reasoner.config import EvalConfig, ReasonerConfig
from reasoner.data import load_examples
from reasoner.experiments.measures import generate, percent
from reasoner.tasks import Example, is_correct

SHOTS = (0, 1, 5, 8)


def training_examples(model_config: ReasonerConfig, data_dir: str) -> list[Example]:
    """What is shown: GSM8K's training questions, of --data-dir or of what the run was trained on."""
    own = model_config.data_dir if model_config.dataset == "gsm8k" else ""
    train = load_examples("train", replace(model_config, dataset="gsm8k", data_dir=data_dir or own))
    if len(train) < max(SHOTS):
        raise UserError(f"{len(train)} training questions are too few to show {max(SHOTS)} of them")
    return train


def with_shots(examples: list[Example], train: list[Example], n: int, between: str, rng) -> list[Example]:
    """n solved training examples, drawn anew for each question, before it; `between`: question and solution."""
    shown = ["".join(f"{x.prompt}{between}{x.chain}\n\n" for x in rng.sample(train, n)) for _ in examples]
    return [Example(before + x.prompt + between, x.chain) for before, x in zip(shown, examples, strict=True)]


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """Exact match with n = 0, 1, 5, 8 solved training examples, drawn for each question, before it.

    `less_none`: the paired difference to none over questions. Also the fraction of prompts longer than --block-size,
    and than any question with its answer that the model was trained on.
    """
    result = {}
    for name, model in models.items():
        train, rng = training_examples(model.config, config.data_dir), random.Random(config.seed)
        longest = max(map(len, model.tokenizer.encode([x.prompt + x.chain for x in train])))
        between = "" if model.config.dataset == "gsm8k" else "\n"  # as in the rows it was trained on
        result[name], none = {}, None
        for n in SHOTS:
            asked = with_shots(examples, train, n, between, rng)
            length = [len(ids) for ids in model.tokenizer.encode([x.prompt for x in asked])]
            generated = generate(model, asked, max(1, config.batch_size // (8 if n else 1)))
            # a model of text goes on with problems of its own: what stands behind an empty line is none of this one
            answers = [text.split("\n\n")[0] for text in generated]
            hits = [is_correct("gsm8k", x, text) for x, text in zip(examples, answers, strict=True)]
            none = none or hits  # of the first n, 0
            row = result[name][str(n)] = {
                "exact_match": mean(hits),
                "ci95": wilson(sum(hits), len(hits)),
                "n": len(hits),
                "less_none": paired_difference(hits, none, config.seed),
                "longer_than_block_size": mean(k > model.config.block_size for k in length),
                "longer_than_any_row": mean(k > longest for k in length),
            }
            note = f"; {row['longer_than_block_size']:.0%} of the prompts are longer than --block-size"
            print(f"{name}: {n}-shot exact match {percent(row['exact_match'], row['ci95'])}{note}")
    return result
