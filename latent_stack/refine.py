"""Say it better: what was said is read again, and the ideas are moved against what was lost.

After vec2text (Morris et al. 2023, arXiv 2310.06816), without a trained corrector: the ideas of what was said stand for
what these ideas really say, and the difference to the text's own is added. Of all rounds a text keeps what it said
whose ideas are the nearest to its own; the text itself is not looked at.

Shapes: B texts, K ideas of D numbers, R rounds.
"""

import torch
from torch import Tensor

from latent_stack.model import LatentStack

STEP = 0.5  # of the difference that a round adds: with all of it what is said jumps about


@torch.no_grad()
def distances(model: LatentStack, texts: list[str], z_in: Tensor) -> tuple[Tensor, Tensor]:
    """B texts, ideas (B, K·D) -> the texts' ideas (B, K·D), zeros for ""; distances to the given ones (B,)."""
    z, said = torch.zeros_like(z_in), [i for i, text in enumerate(texts) if text.strip()]
    if said:
        z[said] = model.encode_rows(model.backbones.tokenize([texts[i] for i in said])[0]).to(z.dtype)
    return z, (z - z_in).norm(dim=-1) / z_in.norm(dim=-1)


@torch.no_grad()
def refined(model: LatentStack, z_in: Tensor, rounds: int) -> tuple[list[list[str]], Tensor]:
    """Ideas z_in (B, K·D) -> what is said after 0 … R rounds, B texts each; the distances of their ideas (R + 1, B)."""
    moved, kept, nearest = z_in, [""] * len(z_in), torch.full((len(z_in),), torch.inf, device=z_in.device)
    texts, found = [], []
    for _ in range(rounds + 1):
        said = model.generate(model.think(moved))
        again, distance = distances(model, said, z_in)
        better = distance < nearest
        kept = [new if is_better else old for new, old, is_better in zip(said, kept, better.tolist(), strict=True)]
        nearest = torch.where(better, distance, nearest)
        texts.append(kept)
        found.append(nearest)
        moved = moved + STEP * (z_in - again)
    return texts, torch.stack(found)
