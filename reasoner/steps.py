"""A latent for a whole step: one latent an equation, and a Talker that writes each step's tokens (--reasoning steps).

    prompt ──► Reasoner ──► r1 ──► r2 ──► r3 (the last: a linear stop)    the chain is as long as the solution has steps
                            │      │      │
                     Talker ▼      ▼      ▼
              "12+30=42,"  "42*2=84,"  "#### 84 [EOS]"                    all steps at once; nothing comes back

    pretrain  as ever: next-token cross-entropy on the equations
    sst       an auxiliary decoder makes each latent say its own step, and the last one is classified as the last. The
              chain reads its own latents in training as in use: no exposure gap. The decoder is not used afterwards:
              SIM-CoT (Wei et al. 2025, arXiv 2509.20317)
    talker    cross-entropy of each step's tokens given its frozen latent

A step ends with "," or [EOS].

Shapes: B rows, R chain tokens, S steps a chain, L tokens a step, M real steps of a batch, C width, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from common.losses import cross_entropy
from common.transformer import positions_of
from reasoner.config import ReasonerConfig
from reasoner.data import Batch
from reasoner.model import Reasoner, is_real
from reasoner.parts import HUB, Tokenized, make_trunk

MAX_STEP = 64  # tokens that are written of a step, at most; the longest equation of GSM8K has 59 characters


@dataclass
class Steps:
    """A batch's chains, cut into steps: `tokens` (B, S, L), -1 behind a step's end; `count` (B,) steps a chain."""

    tokens: Tensor
    count: Tensor

    @classmethod
    def of(cls, chain: Tensor, comma: int) -> "Steps":
        """Chains (B, R), -1 behind their [EOS] -> their steps."""
        real, column = chain >= 0, torch.arange(chain.size(1), device=chain.device)
        begins = F.pad(chain[:, :-1] == comma, (1, 0), value=True) & real  # (B, R)
        step = begins.cumsum(1) - 1  # (B, R): which step a token belongs to
        place = column - (begins * column).cummax(1).values  # (B, R): and where it stands in it
        row = torch.arange(len(chain), device=chain.device)[:, None].expand_as(chain)
        S, L = int(step.max()) + 1, int(place[real].max()) + 1
        tokens = chain.new_full((len(chain), S, L), -1)
        tokens[row[real], step[real], place[real]] = chain[real]
        return cls(tokens, step.max(1).values + 1)

    @cached_property
    def real(self) -> Tensor:
        """(B, S) bool: the steps that a chain has."""
        return self.tokens[..., 0] >= 0

    @property
    def last(self) -> Tensor:
        """(B, S) bool: the last one of each."""
        return torch.arange(self.real.size(1), device=self.count.device) == self.count[:, None] - 1


class StepDecoder(nn.Module):
    """A causal Transformer that begins with a latent and writes a step: [latent] t1 … tL → t1 … tL end."""

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.trunk = make_trunk(config, config.talker_layer, ends=True)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=config.n_embd**-0.5)

    def loss(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """latents (M, C), tokens (M, L), -1 behind a step's end -> (cross-entropy, correct tokens), summed, ()."""
        earlier = F.embedding(tokens[:, :-1].clamp(min=0), self.head.weight)  # (M, L - 1, C); the head is tied
        x = torch.cat((latents[:, None], earlier), 1)
        h = self.trunk(x, positions_of(x)).flatten(0, 1)[tokens.flatten() >= 0]  # (K, C)
        target = tokens[tokens >= 0]
        hits = (F.linear(h.detach(), self.head.weight.detach()).argmax(-1) == target).sum()
        return cross_entropy(h, self.head.weight, target), hits

    def write(self, latents: Tensor, ends: tuple) -> list[list[int]]:
        """latents (M, C) -> greedy ids of each step, with the token of `ends` that ended it."""
        cache, x, ids = [[] for _ in self.trunk.blocks], latents[:, None], []
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=x.device)
        done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for i in range(MAX_STEP):
            token = F.linear(self.trunk(x, positions_of(x) + i, mask, cache)[:, -1], self.head.weight).argmax(-1)
            ids.append(token.masked_fill(done, -1))
            done = done | torch.isin(token, torch.tensor(ends, device=x.device))
            if done.all():
                break
            x = F.embedding(token, self.head.weight)[:, None]
        return [[token for token in row if token >= 0] for row in torch.stack(ids, 1).tolist()]


def comma_of(tokenizer) -> int:
    """The token that ends a step."""
    return tokenizer.encode([","])[0][0]


class StepReasoner(Reasoner):
    """A Reasoner whose latents stand for steps; `rollout` is a Reasoner's."""

    def __init__(self, config: ReasonerConfig):
        super().__init__(config)
        self.decoder, self.stop = StepDecoder(config), nn.Linear(config.n_embd, 1)  # the decoder for training alone

    def n_params(self) -> int:
        """Without the auxiliary decoder, which is of no use after training."""
        return super().n_params() - sum(p.numel() for p in self.decoder.parameters())

    def ends(self, latents: Tensor) -> Tensor:
        return self.stop(latents)[..., 0] > 0

    def think(self, batch: Batch, n: int) -> Tensor:
        """Batch -> the first n latents of each chain (B, n, C), each the next input, gradients and all."""
        P = int(batch.start.max())
        x, cache = self.inputs(batch.tokens[:, :P]), [[] for _ in self.trunk.blocks]
        valid = positions_of(x) < batch.start[:, None]  # (B, P)
        h = self.hidden_states(x, cache=cache)
        latents = [h[torch.arange(len(h), device=h.device), batch.start - 1]]
        for i in range(n - 1):
            valid = F.pad(valid, (0, 1), value=True)
            position_ids = (batch.start + i)[:, None]  # (B, 1)
            r = self.feed_back(latents[-1])[:, None]
            latents.append(self.hidden_states(r, position_ids, valid[:, None, None, :], cache)[:, -1])
        return torch.stack(latents, 1)

    def self_supervised(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of each step's tokens given its latent, and of whether it is the last."""
        steps, n = Steps.of(batch.chain, comma_of(self.tokenizer)), batch.loss_denominators["chain"]
        r = self.think(batch, steps.real.size(1))[steps.real]  # (M, C)
        loss, hits = self.decoder.loss(r, steps.tokens[steps.real])
        stop = F.binary_cross_entropy_with_logits(self.stop(r)[:, 0], steps.last[steps.real].to(r), reduction="sum")
        metrics = {"token_loss": loss.detach() / n, "chain_accuracy": hits / n}
        return (loss + stop) / n, metrics

    @torch.no_grad()
    def teacher_forced(self, batch: Batch) -> Tensor:
        """Batch -> latents (B, S, C), zeros behind a chain's end: own ones, as in use."""
        steps = Steps.of(batch.chain, comma_of(self.tokenizer))
        return self.think(batch, steps.real.size(1)) * steps.real[..., None]


class StepTalker(Tokenized, nn.Module, PyTorchModelHubMixin, **HUB):
    """`model(batch) -> (loss, metrics)` on `batch.latents`; `speak(latents) -> B texts`."""

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.config, self.tokenizer, self.decoder = config, None, StepDecoder(config)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch with latents (B, S, C) -> (loss, metrics): cross-entropy of the chain's tokens."""
        steps, n = Steps.of(batch.chain, comma_of(self.tokenizer)), batch.loss_denominators["chain"]
        loss, hits = self.decoder.loss(batch.latents[steps.real], steps.tokens[steps.real])
        metrics = {"loss": loss.detach() / n, "token_loss": loss.detach() / n, "chain_accuracy": hits / n}
        return loss / n, metrics

    @torch.no_grad()
    def generate(self, latents: Tensor) -> list[list[int]]:
        """latents (B, S, C), zero behind a chain's end -> B lists of ids, up to the first [EOS]."""
        real, t = is_real(latents), self.tokenizer
        written = iter(self.decoder.write(latents[real], (comma_of(t), t.eos)))
        return [t.until_eos([token for _ in range(n) for token in next(written)]) for n in real.sum(1).tolist()]

    def speak(self, latents: Tensor) -> list[str]:
        """latents (B, S, C) -> B texts."""
        return [self.tokenizer.decode(row) for row in self.generate(latents)]
