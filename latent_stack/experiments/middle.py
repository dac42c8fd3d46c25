"""Does the middle model matter? What is generated with the trained one, with none, and with a random one."""

import numpy as np
import torch

from common.options import UserError
from common.stats import bootstrap_mean
from latent_stack.config import EvalConfig
from latent_stack.experiments.measures import rouge_of
from latent_stack.layers import Middle
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair


@torch.no_grad()
def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    if model.config.middle == "identity":
        raise UserError(f"{config.run} was trained with --middle identity: there is no middle model to compare")
    print(
        "the expansion was trained behind this middle model: that any other breaks the text does not show that\n"
        "one is needed; for that, train a second run with --middle identity and compare the two\n"
    )
    references, z_in = [p.target for p in pairs], model.encode([p.input for p in pairs])
    torch.manual_seed(config.seed)
    random_middle = Middle(model.config).to(z_in.device).eval()
    ideas = {"trained": model.think(z_in), "identity": z_in, "random": model.think(z_in, random_middle)}

    result, texts = {"n": len(pairs)}, {}
    for name, z_out in ideas.items():
        texts[name] = model.generate(z_out)
        same = [a == b for a, b in zip(texts[name], texts["trained"], strict=True)]
        rouge = rouge_of(texts[name], references)
        result[name] = {measure: bootstrap_mean(values, config.seed) for measure, values in rouge.items()}
        result[name]["same_as_trained"] = float(np.mean(same))
        mean, (low, high) = result[name]["rougeL"]["mean"], result[name]["rougeL"]["ci95"]
        print(
            f"{name:<10} middle model: ROUGE-L {mean:.4f} ({low:.4f} to {high:.4f}), "
            f"{np.mean(same):.0%} of texts as with the trained one"
        )
    rows = [
        {"target": reference, **{name: found[i] for name, found in texts.items()}}
        for i, reference in enumerate(references[:10])
    ]
    for row in rows[:3]:
        print("\n" + "\n".join(f"  {name:<10}{text}".rstrip() for name, text in row.items()))
    return result | {"examples": rows}
