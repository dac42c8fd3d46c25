"""One prompt followed through the chain: what each latent is nearest to, what is fed back, what the Talker says.

    prompt ──► r1 ──► r2 ──► r3 ──► r4 ≈ [EOS]                    undisturbed: each latent is the next input
    prompt ──► r1 ──► r2 ──► embedding of "4" ──► r4' ──► …       replace={3: "4"}: r1, r2 stay, what follows may not
    prompt ──► r1 + noise ──► r2' + noise ──► …                   noise=0.5: of half the latent's norm

The Talker reads the chain: the latents, with an embedding in the place of one that was replaced, and without the noise.

Shapes: R latents a chain, C width, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from common.losses import cosine
from common.options import UserError
from common.programs import compute, number_placeholders
from common.tokenizers import CHARACTERS, Tokenizer, without_halves
from reasoner.baselines import Coupled
from reasoner.model import Reasoner, ReasonerTalker
from reasoner.parts import add_noise
from reasoner.tasks import parse_tree


@dataclass(frozen=True)
class Step:
    """A latent of the chain, and what it became as the next input."""

    nearest: tuple  # (token, cosine) of the nearest embeddings, nearest first
    replaced: str = ""  # the token whose embedding took the latent's place
    noise: float = 0.0  # on what was fed back, as a multiple of its norm
    cos_fed_back: float | None = None  # of the latent to what was fed back; None: nothing was, the chain ends here

    @property
    def thought(self) -> str:
        """The latent as a token: the nearest, or the one that took its place."""
        return self.replaced or self.nearest[0][0]

    def fed_back(self) -> str:
        """What became of it, in words; "" for the last one."""
        if self.cos_fed_back is None:
            return ""
        if not self.replaced and not self.noise:
            return "itself" if self.cos_fed_back > 0.9999 else f"itself, sharpened, cos {self.cos_fed_back:.2f}"
        what = f"embedding of {self.replaced}" if self.replaced else "itself"
        return f"{what}{' with noise' if self.noise else ''}, cos {self.cos_fed_back:.2f}"


@dataclass(frozen=True)
class Trace:
    """A prompt's chain, step by step, and the Talker's words."""

    prompt: str
    steps: tuple
    words: str
    ended: bool  # with [EOS], and not at the longest chain
    latents: Tensor = field(compare=False, repr=False)  # (R, C), as predicted

    def lines(self) -> list[str]:
        """For a terminal; the words alone in the last one."""
        rows = []
        for k, step in enumerate(self.steps, 1):
            nearest = ", ".join(f"{token} {cos:.3f}" for token, cos in step.nearest)
            what = f"fed back: {step.fed_back()}" if step.fed_back() else self.end()
            rows.append(f"r{k:<9}{nearest:<36}{what}")
        return [f"{'prompt':<10}{self.prompt}", *rows, " ".join(self.words.split()) or "(none)"]

    def end(self) -> str:
        """Why the last latent is not fed back."""
        return "the end" if self.ended else "stopped: the longest chain"


# ---------------------------------------------------------------------------------------------- the prompt


def max_characters(model) -> int:
    """Of the longest prompt that is read at all."""
    return CHARACTERS * model.config.block_size


def read_prompt(model, prompt: str | None) -> tuple[str, list[int]]:
    """What somebody typed -> the prompt and its ids; a UserError reports why it cannot be answered."""
    most, t = model.config.block_size - 1 - model.config.n_thoughts, model.tokenizer  # one is left for the chain
    if len(prompt or "") > max_characters(model):
        raise UserError(
            f"this prompt is too long: {len(prompt):,} characters, the model reads {max_characters(model):,} at most"
        )
    prompt = without_halves(prompt).strip()
    if model.config.computes:
        prompt = number_placeholders(prompt)[0]
    ids = t.encode([prompt])[0]
    if not ids:
        raise UserError("there is no prompt yet: type one")
    if len(ids) > most:
        raise UserError(f"this prompt is too long: {len(ids):,} tokens, the model reads {most:,} at most")
    if model.config.dataset == "tree":
        parse_tree(prompt)
    return prompt, ids


def token_id(tokenizer: Tokenizer, word: str) -> int:
    """The id of a word that may take a latent's place."""
    ids = tokenizer.encode([word])[0]
    if len(ids) != 1:
        raise UserError(f"{word!r} cannot take a latent's place: it must be one token, and is {len(ids)}")
    return ids[0]


# ----------------------------------------------------------------------------------------------- the chain


def nearest_tokens(reasoner: Reasoner, latents: Tensor, top: int) -> list[tuple]:
    """latents (R, C) -> for each the `top` nearest tokens with their cosines, nearest first.

    The vocabulary is rounded up; entries that stand for no token are left out unless they are the nearest.
    """
    t, found = reasoner.tokenizer, []
    cosines = F.normalize(latents, dim=-1) @ F.normalize(reasoner.target.weight, dim=-1).T  # (R, V)
    for row in cosines.clamp(-1, 1):
        order = row.argsort(descending=True).tolist()
        ids = [i for rank, i in enumerate(order) if rank == 0 or i < t.n_text or i == t.eos][:top]
        found.append(tuple(zip(t.pieces(ids), row[ids].tolist(), strict=True)))
    return found


@torch.no_grad()
def trace(
    model: ReasonerTalker,
    prompt: str,
    noise: float = 0.0,
    replace: dict[int, str] | None = None,
    seed: int = 0,
    top: int = 3,
) -> Trace:
    """Follow one prompt. Deterministic: the noise is drawn from `seed`. Without noise and replacements this is
    `model.answer`.

    noise     norm of Gaussian noise on what is fed back, as in `Reasoner.rollout`
    replace   {k: token}: the token's embedding takes the place of r_k, k = 1, 2, …
    """
    reasoner, (prompt, ids) = model.reasoner, read_prompt(model, prompt)
    new = {k: token_id(reasoner.tokenizer, word) for k, word in (replace or {}).items()}
    new = {k: reasoner.inputs(torch.tensor([i], device=reasoner.device)) for k, i in new.items()}  # (1, C) each
    tokens, length = reasoner.tokenize([ids])
    generator, inputs = torch.Generator().manual_seed(seed), []

    def intervene(step, r):
        inputs.append(add_noise(new.get(step + 1, r), noise, generator))
        return inputs[-1]

    latents = reasoner.chain(reasoner.inputs(tokens), length, intervene=intervene)[0]  # (R, C)
    if beyond := [k for k in new if not 1 <= k <= len(inputs)]:
        n = len(inputs)
        which = f"1 to {n}" if n else "none: the first one already ends the chain"
        raise UserError(f"r{beyond[0]} cannot be replaced: the latents that are fed back are {which}")
    chain = latents.clone()
    for k, embedding in new.items():
        chain[k - 1] = embedding[0]
    cosines = [cosine(r, fed[0]).item() for r, fed in zip(latents, inputs, strict=False)] + [None]
    steps = zip(nearest_tokens(reasoner, latents, top), cosines, strict=True)
    return Trace(
        prompt=prompt,
        steps=tuple(Step(nearest, (replace or {}).get(k, ""), noise, cos) for k, (nearest, cos) in enumerate(steps, 1)),
        words=model.talker.speak(chain[None])[0],
        ended=reasoner.nearest(latents[-1]).item() == reasoner.tokenizer.eos,
        latents=latents,
    )


def ask(model: ReasonerTalker | Coupled, prompt: str) -> str:
    """The chain in lines and the words in a last one; of a baseline, which has no chain of latents, the words.

    A program is computed with the prompt's numbers; of a chain of steps a line is what the Talker says of a latent.
    """
    if isinstance(model, ReasonerTalker) and not model.config.of_steps:
        lines = trace(model, prompt).lines()
    else:
        lines = [" ".join(model.answer([read_prompt(model, prompt)[1]])[0].split()) or "(none)"]
    if model.config.of_steps:
        lines = [*(f"r{k:<9}{step}" for k, step in enumerate(lines[0].split(","), 1)), *lines]
    if model.config.computes:
        lines[-1] += f" = {compute(lines[-1], number_placeholders(prompt)[1]) or '(nothing)'}"
    return "\n".join(lines)
