"""Texts generated from ideas on the straight line from one text's idea to another's.

ROUGE-L to the target of the first text, of the last, and of a third (control), with the paired differences to the
third. The three texts of a path are drawn at random and differ in their targets.

Shapes: n paths, S points on a path, D idea.
"""

import random
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from common.options import UserError
from common.stats import bootstrap_mean, paired_difference, signed
from latent_stack.config import EvalConfig
from latent_stack.experiments.measures import rouge_of
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair

N_PATHS, N_POINTS = 400, 5


def draw_paths(pairs: list[Pair], seed: int) -> list[list[Pair]]:
    """(first, last, third) of each path: at most N_PATHS, no more than there are different targets."""
    different = list({p.target: p for p in pairs}.values())
    if len(different) < 3:
        raise UserError(f"{len(different)} different targets: interpolation needs 3 or more")
    rng = random.Random(seed)
    return [rng.sample(different, 3) for _ in range(min(N_PATHS, len(different)))]


def points_between(z: Tensor) -> Tensor:
    """Ideas of first and last texts (n, 2, D) -> S points on each straight line (n, S, D), the ends among them."""
    t = torch.linspace(0, 1, N_POINTS, device=z.device)[:, None]  # (S, 1)
    return (1 - t) * z[:, :1] + t * z[:, 1:]


@torch.no_grad()
def generate_along(model: LatentStack, paths: list[list[Pair]]) -> list[list[str]]:
    """n paths -> S texts each."""
    n, S = len(paths), N_POINTS
    z = model.think(model.encode([p.input for first, last, _ in paths for p in (first, last)])).view(n, 2, -1)
    texts = model.generate(points_between(z).flatten(0, 1))
    return [texts[i * S : (i + 1) * S] for i in range(n)]


def rouge_along(texts: list[list[str]], pairs: Iterable[Pair]) -> np.ndarray:
    """n times S texts, n pairs -> ROUGE-L to the pair's target (n, S)."""
    return np.array([rouge_of(row, [p.target] * N_POINTS)["rougeL"] for row, p in zip(texts, pairs, strict=True)])


def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    paths = draw_paths(pairs, config.seed)
    texts = generate_along(model, paths)
    first, last, third = (rouge_along(texts, column) for column in zip(*paths, strict=True))
    scores = {"first": first, "last": last, "third": third}
    table = {name: [bootstrap_mean(column, config.seed) for column in x.T] for name, x in scores.items()}
    differences = {
        name: [paired_difference(a, b, config.seed) for a, b in zip(scores[name].T, third.T, strict=True)]
        for name in ("first", "last")
    }
    ways = [{"from": path[0].target, "to": path[1].target, "said": row} for row, path in zip(texts, paths, strict=True)]
    _print(ways, table, differences)
    return {"n": len(paths), "rougeL": table, "rougeL_less_third": differences, "ways": ways[:10]}


def _print(ways: list[dict], table: dict, differences: dict) -> None:
    for way in ways[:3]:
        print(f"\nfrom  {way['from']}\nto    {way['to']}")
        for k, text in enumerate(way["said"]):
            print(f"  {k / (N_POINTS - 1):.2f}  {text}".rstrip())
    print(
        f"\nROUGE-L over {len(ways)} paths to the targets of the first, the last and a third text (control);\n"
        "paired differences to the third with 95% intervals\n\n"
        f"{'fraction':<12}first   last    third   {'first - third':<30}last - third"
    )
    for k in range(N_POINTS):
        means = "  ".join(f"{column[k]['mean']:.4f}" for column in table.values())
        paired = "  ".join(signed(column[k]) for column in differences.values())
        print(f"{k / (N_POINTS - 1):<12.2f}{means}  {paired}")
