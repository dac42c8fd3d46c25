"""One text through the stack: its idea, the test texts whose ideas are nearest, and what is generated from it alone.

Shapes: B texts, N test texts, D idea.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.options import UserError, one_line
from common.tokenizers import without_halves
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair, load_pairs

N_TEXTS = 300  # of the test split: MiniLM reads as many dialogues in about 10 s on a CPU core
NEAREST = 3  # test texts that are shown


def clean(text: str | None) -> str:
    """A text as it is read: line ends as \\n, and half an emoji, which is no text for a tokenizer, as "?"."""
    return "\n".join(without_halves(text).splitlines()).strip()


def shorten(text: str, n: int = 100) -> str:
    """The beginning of a text on one line, n characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= n else line[: n - 1].rstrip() + "…"


@torch.no_grad()
def ideas_of(model: LatentStack, texts: list[str]) -> Tensor:
    """B texts, none of them empty -> z_out (B, D) in fp32, on the CPU."""
    rows, _ = model.backbones.tokenize(texts)
    return model.think(model.encode_rows(rows)).float().cpu()


def is_truncated(model: LatentStack, text: str) -> bool:
    """Is a text longer than the encoder's window?"""
    return model.backbones.tokenize([text])[1] > 0


# ------------------------------------------------------------------------------------- the test split


@dataclass(frozen=True)
class TextIdeas:
    """Different texts of the test split, and z_out (N, D) of their inputs."""

    pairs: list[Pair]
    z: Tensor

    def cosines(self, z: Tensor) -> Tensor:
        """An idea (D,) -> its cosine to each (N,)."""
        return F.normalize(self.z, dim=-1) @ F.normalize(z, dim=-1)

    def nearest(self, text: str, z: Tensor, n: int = NEAREST) -> list[tuple[Pair, float]]:
        """A text and its idea -> the n nearest pairs, without that of the text itself, and their cosines."""
        cosines = self.cosines(z)
        order = [i for i in cosines.argsort(descending=True).tolist() if self.pairs[i].input != text]
        return [(self.pairs[i], float(cosines[i])) for i in order[:n]]

    def mean_cosine(self) -> float:
        """Between the ideas of different texts: the control of any cosine."""
        N, unit = len(self.z), F.normalize(self.z, dim=-1)
        return float((unit.sum(0).square().sum() - N) / (N * (N - 1)))  # |sum of unit vectors|² has all pairs


def ideas_at_hand(model: LatentStack, data_dir: str = "", limit: int = 0) -> tuple[TextIdeas | None, str]:
    """The first `limit` texts of the run's test split and their ideas; where it cannot be read, None and the reason.

    A `data_dir` that was asked for and cannot be read is a UserError.
    """
    config = replace(model.config, data_dir=data_dir or model.config.data_dir)
    try:
        pairs = [Pair(clean(p.input), clean(p.target)) for p in load_pairs(config)["test"]]
    except (UserError, ImportError, OSError) as error:  # no data, no `datasets`, a file that may not be read
        if data_dir:
            raise UserError(one_line(error)) from None
        return None, one_line(error)
    pairs = list({p.input: p for p in pairs}.values())[: limit or N_TEXTS]
    if len(pairs) < 2:
        return None, "there is one test text only"
    return TextIdeas(pairs, ideas_of(model, [p.input for p in pairs])), ""


# ------------------------------------------------------------------------------------------ one text


def report(model: LatentStack, text: str, test: TextIdeas | None, absent: str = "") -> str:
    """A text -> lines, of which the last is what is generated from its idea alone; `absent`: why there is no `test`."""
    text = clean(text)
    if not text:
        raise UserError("the text is empty: there is nothing to make an idea of")
    (z,) = ideas_of(model, [text])
    rows = [("text", shorten(text))]
    if is_truncated(model, text):
        rows.append(("truncated", f"the encoder reads {model.backbones.max_input} tokens, the rest is not read"))
    if test:
        found = test.nearest(text, z)
        rows += [("" if i else "nearest", f"{cos:.3f}  {shorten(p.input)}") for i, (p, cos) in enumerate(found)]
        rows.append(("control", f"{float(test.cosines(z).mean()):.3f}  mean cosine to {len(test.z):,} test texts"))
    else:
        rows.append(("nearest", f"not known: {absent}"))
    (generated,) = model.generate(z[None].to(model.device))
    return "\n".join([*(f"{label:<24}{value}" for label, value in rows), " ".join(generated.split())])
