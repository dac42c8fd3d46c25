"""What Reasoner, Talker and the baselines have in common: norm and trunk, the loss on tokens, noise, a tokenizer.

Shapes: B rows, T tokens a row, C width, K positions with a target, V vocabulary.
"""

import os

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from common.batching import pad
from common.model_card import Card
from common.pretrained import PretrainedMixin
from common.transformer import Transformer
from reasoner.config import QUESTIONS, ReasonerConfig
from reasoner.data import Batch, load_tokenizer

HUB = dict(library_name="nanojepa", license="mit", tags=["jepa", "latent-reasoning"])
MOST_LOGITS = 10_000  # entries of an output layer beyond which training does not measure its accuracy


def rms_norm(C: int) -> nn.RMSNorm:
    """RMSNorm with norm weights; latents have norm 1, so their mean square is 1/C: eps must stay far below."""
    return nn.RMSNorm(C, eps=1e-6)


def make_trunk(config: ReasonerConfig, n_layer: int, ends: bool) -> Transformer:
    """Pre-norm RMS blocks with QK-Norm and rotary positions; `ends`: RMSNorm before and behind them."""
    return Transformer(
        n_layer,
        config.n_embd,
        config.n_head,
        config.dropout,
        rms_norm,
        qk_norm=True,
        n_hidden=config.n_hidden,
        ends=ends,
    )


@torch.no_grad()
def token_accuracy(hidden: Tensor, head: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Hidden states at the chain (K, C), head (V, C) -> {"chain_accuracy"}; {} where logits are large."""
    if len(head) > MOST_LOGITS:
        return {}
    hits = F.linear(hidden, head).argmax(-1) == batch.chain_ids
    return {"chain_accuracy": hits.float().sum() / batch.loss_denominators["chain"]}


def add_noise(x: Tensor, norm: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """x (…, C) plus Gaussian noise whose norm is about `norm` (a number, or of a shape that x broadcasts) times x's."""
    if isinstance(norm, int | float) and not norm:
        return x
    noise = torch.randn(x.shape, generator=generator, device=generator.device if generator else x.device).to(x)
    return x + noise * (norm * x.size(-1) ** -0.5 * x.norm(dim=-1, keepdim=True))


def with_chain_noise(x: Tensor, batch: Batch, norm: float) -> Tensor:
    """Inputs x (B, T, C) with Gaussian noise on the chain's, its norm drawn per row from 0 to `norm` times theirs."""
    return add_noise(x, batch.is_chain()[..., None] * norm * x.new_empty(len(x), 1, 1).uniform_())


class Tokenized(PretrainedMixin):
    """A checkpoint with the tokenizer of its data."""

    card = Card(
        about="A part of JEPA-Reasoner (after arXiv 2512.19171): a Reasoner thinks in a chain of latents, a Talker "
        "puts it into words, and a coupled baseline does both with tokens.",
        figures=(
            ("val_chain_accuracy", "tokens of the chain correct, with the true ones before them (validation)", "", ""),
            ("val_cos_own", "cosine to the next token's latent", "val_cos_other", "to another token's"),
        ),
        limits="It answers prompts of the task it was trained on. How well it does free-running is in the summary.json "
        "of the whole run, one folder up.",
        use="from reasoner.model import Reasoner, Talker\nfrom reasoner.baselines import Coupled\n\n"
        "model = {name}.from_pretrained({where!r})\nprint(model.config.dataset, model.n_params())",
    )

    def read_tokenizer(self, find) -> None:
        gpt2 = self.config.dataset in (*QUESTIONS, "text") and self.config.tokenizer == "gpt2"
        self.tokenizer = load_tokenizer(self.config, "" if gpt2 else os.path.dirname(find("tokenizer.json")))

    def tokenize(self, prompts: str | list) -> tuple[Tensor, Tensor]:
        """B prompts, str or lists of ids -> tokens (B, T), padded on the right, and lengths (B,)."""
        t, prompts = self.tokenizer, [prompts] if isinstance(prompts, str) else prompts
        rows = [p if isinstance(p, list) else t.encode([p])[0] or [t.ans] for p in prompts]
        return pad(rows, t.pad).to(self.device), torch.tensor([len(row) for row in rows], device=self.device)
