"""Can the Talker reason by itself? What it generates from the Reasoner's latents, and from three others.

    another prompt's   it sees nothing of the prompt: what it generates should be the other's answer, and the prompt's
                       own by accident alone
    first matched      the prompt's own first latent, the rest another's: the own answer would be the Talker's own work
    Gaussian           random directions: does it generate something that makes sense?

Beside it, the same latents read without a Talker, by the nearest embedding.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from common.stats import wilson
from reasoner.config import EvalConfig
from reasoner.experiments.measures import by_length, percent
from reasoner.model import ReasonerTalker, is_real
from reasoner.tasks import Example, is_correct, is_valid

MEASURED = {  # key in talker.json -> in words
    "own": "matched latents: correct",
    "own_valid": "matched latents: a possible answer",
    "nearest": "the same, read by the nearest embedding",
    "other_says_own": "another prompt's latents: this prompt's answer",
    "other_says_other": "another prompt's latents: that prompt's answer",
    "first": "first latent matched, the rest another's: correct",
    "gauss_right": "Gaussian latents: correct",
    "gauss_valid": "Gaussian latents: a possible answer",
}


def generate_from(model: ReasonerTalker, latents: Tensor, generator: torch.Generator) -> dict[str, list[str]]:
    """Latents of B prompts (B, R, C) -> texts of the Talker from these and from the others; and of no Talker."""
    gauss = F.normalize(torch.randn(latents.shape, generator=generator), dim=-1).to(latents)
    gauss = gauss * is_real(latents)[..., None]
    mismatched = latents.roll(-1, 0)
    first_matched = torch.cat((latents[:, :1], mismatched[:, 1:]), 1)
    return {
        "own": model.talker.speak(latents),
        "nearest": model.reasoner.nearest_text(latents),
        "other": model.talker.speak(mismatched),
        "first": model.talker.speak(first_matched),
        "gauss": model.talker.speak(gauss),
    }


def count_batch(model: ReasonerTalker, examples: list[Example], texts: dict[str, list[str]]) -> Counter:
    """How many of a batch are what MEASURED lists."""
    count, config = Counter(), model.config
    for i, example in enumerate(examples):
        other = examples[(i + 1) % len(examples)]  # whose latents `roll` put here
        text = {kind: found[i] for kind, found in texts.items()}
        count["own"] += is_correct(config.dataset, example, text["own"])
        count["own_valid"] += is_valid(config, example, text["own"])
        count["nearest"] += is_correct(config.dataset, example, text["nearest"])
        count["other_says_own"] += is_correct(config.dataset, example, text["other"])
        count["other_says_other"] += is_correct(config.dataset, other, text["other"])
        count["first"] += is_correct(config.dataset, example, text["first"])
        count["gauss_right"] += is_correct(config.dataset, example, text["gauss"])
        count["gauss_valid"] += is_valid(config, example, text["gauss"])
    return count


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """Rates of what MEASURED lists, of each run that has a Talker."""
    result = {}
    for name, model in models.items():
        if not isinstance(model, ReasonerTalker):
            continue
        count, generator, sample = Counter(), torch.Generator().manual_seed(config.seed), []
        for index in by_length(examples, config.batch_size):
            part = [examples[i] for i in index]
            texts = generate_from(model, model.reasoner.rollout([x.prompt for x in part]), generator)
            count += count_batch(model, part, texts)
            sample = sample or texts["gauss"][:5]
        n = len(examples)
        result[name] = {"n": n, "gaussian_sample": sample}
        for key, words in MEASURED.items():
            row = result[name][key] = {"share": count[key] / n, "ci95": wilson(count[key], n)}
            print(f"{name}: {words:<50}{percent(row['share'], row['ci95'])}")
        print(f"{name}: generated from Gaussian latents: {' | '.join(sample)}")
    return result
