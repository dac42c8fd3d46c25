"""The baselines, in which each token that is written is read again.

    coupled         an ordinary Transformer language model as large as Reasoner and Talker together
    coupled-talker  Reasoner and a causal Talker trained as one: cross-entropy and k (1 - cos) together, token feedback
    coconut         as coupled, but `thoughts` latents stand between prompt and answer, each fed back as the next input
                    (Hao et al. 2024, arXiv 2412.06769), trained through the feedback, without its curriculum

    coconut's row   p1 p2 … pn [PRED] [PRED] [PRED] c1 … cR [EOS]       h(pn) takes the place of the first [PRED], …

Shapes: B rows, T tokens a row, R chain tokens, P the longest prompt, C width.
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from common.losses import cosine, cross_entropy
from common.transformer import positions_of
from reasoner.config import ReasonerConfig
from reasoner.data import Batch
from reasoner.parts import HUB, Tokenized, add_noise, make_trunk, rms_norm, token_accuracy, with_chain_noise


def talker_blocks(config: ReasonerConfig) -> int:
    """Blocks as large as the Talker, rounded: a dual Talker's decoder has cross-attention besides."""
    C = config.n_embd
    block = 4 * C * C + 3 * C * config.n_hidden  # parameters
    return round(config.talker_layer * (1 if config.talker == "mono" else 2 + 4 * C * C / block))


class Coupled(Tokenized, nn.Module, PyTorchModelHubMixin, **HUB):
    """`model(batch) -> (loss, metrics)`; `answer(prompts) -> B texts`. `config.model` names the baseline."""

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.config, self.tokenizer, C = config, None, config.n_embd
        self.joint = config.model == "coupled-talker"
        self.embed = nn.Embedding(config.vocab_size, C)
        nn.init.normal_(self.embed.weight, std=C**-0.5)
        n_layer = config.n_layer + (0 if self.joint else talker_blocks(config))
        self.trunk, self.norm_out = make_trunk(config, n_layer, ends=False), rms_norm(C)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=C**-0.5)
        if self.joint:
            self.talker = make_trunk(config, talker_blocks(config), ends=True)
            self.target = nn.Embedding(config.vocab_size, C)  # EMA copy of `embed`
            self.target.weight = nn.Parameter(self.embed.weight.detach().clone(), requires_grad=False)

    def new_cache(self) -> list[list]:
        """A list a block, for keys and values."""
        return [[] for _ in (*self.trunk.blocks, *(self.talker.blocks if self.joint else ()))]

    def hidden_states(self, x: Tensor, position_ids: Tensor, mask=None, cache=None) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, C) -> (latents, hidden states that the output layer reads), both (B, T, C)."""
        n = len(self.trunk.blocks)
        h = self.norm_out(self.trunk(x * x.size(-1) ** 0.5, position_ids, mask, cache and cache[:n]))
        if not self.joint:
            return h, h
        r = F.normalize(h, dim=-1)
        return r, self.talker(r, position_ids, mask, cache and cache[n:])

    # ---- training

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch -> (loss, metrics): next-token cross-entropy; coupled-talker adds k (1 - cos) on its latents."""
        config, x = self.config, self.embed(batch.tokens)
        if self.training and config.sst_noise:
            x = with_chain_noise(x, batch, config.sst_noise)
        if config.n_thoughts:
            r = h = self.think(x, batch)
        else:
            r, h = self.hidden_states(x, positions_of(x))
        r, h = r.flatten(0, 1), h.flatten(0, 1)  # (B * T, C)
        at, target = batch.targets(config.pretrain_on)
        loss = cross_entropy(h[at], self.head.weight, target) / batch.loss_denominators[config.pretrain_on]
        metrics = {"token_loss": loss.detach()} | token_accuracy(h[batch.chain_at], self.head.weight, batch)
        if self.joint:
            cos = cosine(r[batch.chain_at], self.target(batch.chain_ids))
            jepa_loss = (1 - cos).sum() / batch.loss_denominators["chain"]
            loss, metrics["jepa_loss"] = loss + config.k * jepa_loss, jepa_loss.detach()
        return loss, {"loss": loss.detach(), **metrics}

    def think(self, x: Tensor, batch: Batch) -> Tensor:
        """Rows x (B, T, C) of prompt, thought positions and chain -> hidden states (B, T, C).

        A thought is the hidden state before it; gradients go through the thoughts, too. One pass over the prompts, one
        position a thought, one pass over the chains; keys and values are kept, with their gradients. What stands in
        the thought positions is never read, nor are the hidden states there but the last.
        """
        (B, T, _), P, R = x.shape, batch.prompt_width, batch.chain.size(1) - 1  # [EOS] is only predicted
        n, row, column = batch.start - self.config.thoughts, torch.arange(B, device=x.device), positions_of(x)
        cache, valid = self.new_cache(), column[:, :P] < n[:, None]  # (B, P)
        h = self.hidden_states(x[:, :P], column[:, :P], cache=cache)[1]  # (B, P, C)
        # (B, T + R, C): the columns behind T are for what stands behind shorter chains, and are cut off in the end
        states = F.pad(h, (0, 0, 0, T + R - P))
        h = states[row, n - 1]  # (B, C)
        for i in range(self.config.thoughts):
            valid = F.pad(valid, (0, 1), value=True)
            thought = F.normalize(h, dim=-1)[:, None]  # (B, 1, C)
            h = self.hidden_states(thought, (n + i)[:, None], valid[:, None, None, :], cache)[1][:, 0]
        states = states.index_put((row, batch.start - 1), h)
        if R:
            at = batch.start[:, None] + torch.arange(R, device=x.device)  # (B, R): columns of the chains
            causal = torch.ones(R, R, dtype=torch.bool, device=x.device).tril().expand(B, R, R)
            # (B, 1, R, P + thoughts + R): a chain token sees prompt, thoughts and the chain up to itself
            mask = torch.cat((valid[:, None].expand(B, R, valid.size(1)), causal), -1)[:, None]
            h = self.hidden_states(x[row[:, None], at.clamp(max=T - 1)], at, mask, cache)[1]  # (B, R, C)
            states = states.index_put((row[:, None], at), h)
        return states[:, :T]

    @torch.no_grad()
    def update_target(self) -> None:
        """After an optimiser step: move the EMA embedding, if there is one, towards the trained one."""
        if self.joint:
            self.target.weight.lerp_(self.embed.weight, 1 - self.config.ema_decay)

    # ---- use

    @torch.no_grad()
    def generate(
        self,
        prompts: list[str],
        max_chain: int = 0,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        intervene: Callable[[int, Tensor], Tensor] | None = None,
    ) -> list[list[int]]:
        """B prompts -> greedy ids, B lists without [EOS]. Every token written is the next input.

        intervene(step, ids (B,)) -> ids (B,): what is fed back instead, to see how a wrong token spreads. `noise`: norm
        of Gaussian noise on what is fed back, thoughts and token embeddings alike.
        """
        tokens, length = self.tokenize(prompts)
        eos, n_thoughts, limit = self.tokenizer.eos, self.config.n_thoughts, max_chain or self.config.max_chain
        cache, position_ids = self.new_cache(), positions_of(tokens)
        valid = position_ids < length[:, None]  # (B, T)
        _, h = self.hidden_states(self.embed(tokens), position_ids, cache=cache)
        h = h[torch.arange(len(h), device=h.device), length - 1]  # (B, C)

        def feed_back(x, i):
            """The i-th input behind the prompts (B, C) -> its hidden states (B, C)."""
            x, mask = add_noise(x, noise, generator), F.pad(valid, (0, i + 1), value=True)
            return self.hidden_states(x[:, None], (length + i)[:, None], mask[:, None, None, :], cache)[1][:, -1]

        for i in range(n_thoughts):
            h = feed_back(F.normalize(h, dim=-1), i)
        ids, done = [], torch.zeros(len(h), dtype=torch.bool, device=h.device)
        for step in range(limit):
            token = self.head(h).argmax(-1)
            token = token if intervene is None else intervene(step, token)
            done |= token == eos
            ids.append(token.masked_fill(done, eos))
            if done.all() or step + 1 == limit:
                break
            h = feed_back(self.embed(token), n_thoughts + step)
        return [self.tokenizer.until_eos(row) for row in torch.stack(ids, 1).tolist()]

    def answer(self, prompts: list[str], max_chain: int = 0, noise: float = 0.0, generator=None) -> list[str]:
        """B prompts -> B texts."""
        return [self.tokenizer.decode(row) for row in self.generate(prompts, max_chain, noise, generator)]
