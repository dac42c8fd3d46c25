"""JEPA-Reasoner: a chain of latents on the unit sphere, and a Talker that puts the finished chain into words.

      prompt ──► embedding ──► Reasoner ──► r1 ──► r2 ──► … ──► rR          the chain never sees a token
                                 ▲           │
                                 └───────────┘  each latent is the next input
                                                 │
                             Talker (r1 … rR) ──► tokens                    the tokens never touch the chain

    pretrain  next-token cross-entropy, tied head, hidden states after RMSNorm only
    sst       k (1 - cos(r_t, EMA embedding of token t)) on the chain; hidden states are RMS-, then L2-normalised
    talker    cross-entropy of the tokens given the frozen Reasoner's latents

After "JEPA-Reasoner: Decoupling Latent Reasoning from Token Generation" (arXiv 2512.19171), of which no code was
published. What its text leaves open is this project's choice and named so in reasoner/README.md.

Shapes: B rows, T tokens a row, R latents a chain, C width, H heads, D = C/H, K positions with a target, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from common.losses import cosine, cross_entropy
from common.options import UserError
from common.transformer import Block, init_block_weights, positions_of, rotary_cos_sin
from reasoner.config import ReasonerConfig
from reasoner.data import Batch
from reasoner.parts import HUB, Tokenized, add_noise, make_trunk, rms_norm, token_accuracy, with_chain_noise

TEMPERATURE = 0.07  # of the cross-entropy under --sst-loss hard, where cosines are logits; CLIP's initial value


# -------------------------------------------------------------------------------------------- the Reasoner


class Reasoner(Tokenized, nn.Module, PyTorchModelHubMixin, **HUB):
    """`model(batch) -> (loss, metrics)`; `rollout(prompts) -> latents (B, R, C)`, the chain without a token.

    `config.trained` is the phase that the weights come from; `latent`, whether hidden states are put on the unit
    sphere: off in pretraining, on afterwards.
    """

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.config, self.tokenizer = config, None
        self.latent = config.trained in ("sst", "talker")
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)  # rows of norm 1, like the latents that follow
        nn.init.normal_(self.embed.weight, std=config.n_embd**-0.5)
        self.trunk, self.norm_out = make_trunk(config, config.n_layer, ends=False), rms_norm(config.n_embd)
        self.target = nn.Embedding(config.vocab_size, config.n_embd)  # EMA copy of `embed`
        self.target.weight = nn.Parameter(self.embed.weight.detach().clone(), requires_grad=False)

    # ---- hidden states

    def onto_sphere(self, x: Tensor) -> Tensor:
        """L2 norm, after pretraining and unless --norm rms leaves it out."""
        return F.normalize(x, dim=-1) if self.latent and self.config.norm != "rms" else x

    def inputs(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> embeddings (B, T, C), of unit norm once the hidden states are."""
        return self.onto_sphere(self.embed(tokens))

    def hidden_states(self, x: Tensor, position_ids=None, mask=None, cache=None) -> Tensor:
        """Inputs (B, T, C) -> (B, T, C): RMSNorm in pretraining, then the hybrid norm: RMS, and L2 after it.

        Under --norm l2 the RMS norm is skipped. Under --norm rms the sphere is; hidden states are then divided by C^½,
        the norm that RMSNorm gives at first, so that what is fed back is as large as what was read in training.
        """
        position_ids = positions_of(x) if position_ids is None else position_ids
        h = self.trunk(x * x.size(-1) ** 0.5, position_ids, mask, cache)  # to unit mean square, as the blocks' own
        if not self.latent or self.config.norm != "l2":
            h = self.norm_out(h)
        if self.latent and self.config.norm == "rms":
            return h * h.size(-1) ** -0.5
        return self.onto_sphere(h)

    def cosines(self, latents: Tensor) -> Tensor:
        """latents (…, C) -> cosines to all target embeddings (…, V)."""
        return F.linear(F.normalize(latents, dim=-1), F.normalize(self.target.weight, dim=-1))

    def feed_back(self, r: Tensor, sharpen: float | None = None) -> Tensor:
        """Latents r (…, C) -> what is fed back (…, C): r itself, or at a temperature the mixture of embeddings E,
        `Σ softmax(cos(r, E) / temperature) E` on the sphere, whose limits are the nearest embedding and the mean.

        No token is read: it is a function of the latent alone. `sharpen` is the temperature, 0 for r itself, None as
        trained. As Soft Thinking (Zhang et al. 2025, arXiv 2505.15778) does with a language model's probabilities.
        """
        if not (temperature := self.config.sharpen if sharpen is None else sharpen):
            return r
        return self.onto_sphere((self.cosines(r) / temperature).softmax(-1) @ self.onto_sphere(self.embed.weight))

    # ---- training

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of the phase, summed over the batch over its denominators -> (loss, metrics), 0-d tensors.

        pretrain   -log p(x_t+1 | x_1 … x_t)          of tokens x
        sst        k (1 - cos(r_t, z_t))              of latents r; z_t: EMA embedding of the chain's token t
        """
        loss, metrics = self.self_supervised(batch) if self.latent else self.next_token(batch)
        return loss, {"loss": loss.detach(), **metrics}

    def next_token(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Pretraining: cross-entropy under the tied head, on the whole row or on the chain."""
        h = self.hidden_states(self.inputs(batch.tokens)).flatten(0, 1)  # (B * T, C)
        at, target = batch.targets(self.config.pretrain_on)
        denominator = batch.loss_denominators[self.config.pretrain_on]
        loss = cross_entropy(h[at], self.embed.weight, target) / denominator
        return loss, {"token_loss": loss.detach()} | token_accuracy(h[batch.chain_at], self.embed.weight, batch)

    def self_supervised(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """k (1 - cos) between each predicted latent and the EMA embedding of its token, on chain positions only.

        `rollout` further passes replace the chain's input embeddings by the model's own latents of the pass before, so
        that in pass i the first i inputs are exactly those of a free-running chain; all passes have the same weight.
        --sst-noise adds noise to the chain's inputs, in training alone.
        """
        true_tokens = self.inputs(batch.tokens)  # (B, T, C)
        denominator, r, losses, metrics = batch.loss_denominators["chain"], None, [], {}
        for i in range(1 + self.config.rollout):
            x = true_tokens if r is None else self.own_inputs(true_tokens, r, batch)
            if self.training and self.config.sst_noise:
                x = with_chain_noise(x, batch, self.config.sst_noise)
            r = self.hidden_states(x).flatten(0, 1)[batch.chain_at]  # (K, C)
            cos = cosine(r, self.target(batch.chain_ids))  # (K,)
            losses.append(self.latent_loss(r, cos, batch.chain_ids).sum() / denominator)
            if i == 0:
                metrics = self.latent_metrics(r.detach(), cos.detach(), batch)
        if self.config.rollout:
            metrics["free_cos"] = cos.detach().sum() / denominator
        return sum(losses) / len(losses), metrics

    def own_inputs(self, true_tokens: Tensor, r: Tensor, batch: Batch) -> Tensor:
        """Inputs (B, T, C) of a further pass: the latents r (K, C) in the place of the chain's true tokens.

        --sst-sampling: at random positions (parallel scheduled sampling, Duckworth et al. 2019, arXiv 1906.04331); the
        fraction is drawn per row instead of annealed, so that no step differs from another. In training alone.
        """
        x = true_tokens.flatten(0, 1).index_copy(0, batch.chain_at + 1, self.feed_back(r)).view_as(true_tokens)
        if not self.training or not self.config.sst_sampling:
            return x
        row, position = (x.new_empty(len(x), T, 1).uniform_() for T in (1, x.size(1)))
        return torch.where(position < row, x, true_tokens)

    def latent_loss(self, r: Tensor, cos: Tensor, target: Tensor) -> Tensor:
        """Latents (K, C), their cosines to the targets' embeddings (K,), target (K,) -> loss of each (K,)."""
        config, loss = self.config, self.config.k * (1 - cos)
        if config.sst_loss == "cosine" and not config.contrast:
            return loss
        contrastive = F.cross_entropy(self.cosines(r) / TEMPERATURE, target, reduction="none")
        return contrastive if config.sst_loss == "hard" else loss + config.contrast * contrastive

    @torch.no_grad()
    def latent_metrics(self, r: Tensor, cos: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Latents (K, C), matched cosines (K,) -> their mean, its mismatched control, how often the nearest embedding
        is the target's."""
        n, mismatched = batch.loss_denominators["chain"], batch.chain_ids.roll(len(r) // 2)  # of another row
        differs = (batch.chain_ids != mismatched).float()
        other = cosine(r, self.target(mismatched)) * differs
        return {
            "jepa_loss": (1 - cos).sum() / n,
            "cos_own": cos.sum() / n,
            "cos_other": other.sum() / n / differs.mean().clamp(min=1e-9),
            **token_accuracy(r, F.normalize(self.target.weight, dim=-1), batch),
        }

    @torch.no_grad()
    def update_target(self) -> None:
        """After an optimiser step: move the EMA embedding towards the trained one."""
        self.target.weight.lerp_(self.embed.weight, 1 - self.config.ema_decay)

    @torch.no_grad()
    def teacher_forced(self, batch: Batch) -> Tensor:
        """Batch -> latents (B, R, C) with the chain's tokens as inputs; zeros behind a chain's end."""
        h = self.hidden_states(self.inputs(batch.tokens)).flatten(0, 1)[batch.chain_at]  # (K, C)
        latents = h.new_zeros(batch.chain.numel(), h.size(-1)).index_copy(0, batch.latent_at, h)  # (B * R, C)
        return latents.view(*batch.chain.shape, -1)

    # ---- use

    @torch.no_grad()
    def rollout(
        self,
        prompts: str | list,
        max_chain: int = 0,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        feed_tokens: bool = False,
        sharpen: float | None = None,
    ) -> Tensor:
        """B prompts (str, or lists of ids) -> latents (B, R, C), R <= max_chain, without writing a token.

        A chain ends with the latent whose nearest embedding is [EOS]; behind it stand zeros. `noise` is the norm of
        Gaussian noise added to what is fed back. `feed_tokens`: not the latent is fed back but the nearest embedding,
        as an ordinary language model does; `sharpen`: see `feed_back`.
        """
        if not self.latent:
            raise UserError("a Reasoner from pretraining does not think in latents yet; load the one of phase sst")
        tokens, length = self.tokenize(prompts)
        intervene, sharpen = (lambda step, r: self.inputs(self.nearest(r)), 0.0) if feed_tokens else (None, sharpen)
        return self.chain(self.inputs(tokens), length, max_chain, noise, generator, intervene, sharpen)

    def chain(
        self,
        x: Tensor,
        length: Tensor,
        max_chain: int = 0,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        intervene: Callable[[int, Tensor], Tensor] | None = None,
        sharpen: float | None = None,
    ) -> Tensor:
        """Input embeddings x (B, T, C), of which the first `length` (B,) count -> latents (B, R, C); see `rollout`.

        intervene(step, what is fed back (B, C)) -> (B, C): fed back instead, to see how a wrong thought spreads.
        """
        B, limit = len(x), max_chain or self.config.max_chain
        cache, valid = [[] for _ in self.trunk.blocks], positions_of(x) < length[:, None]  # (B, T)
        h = self.hidden_states(x, cache=cache)  # causal: padding stands behind and is not seen
        r = h[torch.arange(B, device=x.device), length - 1]  # (B, C)
        latents, running = [], torch.ones(B, dtype=torch.bool, device=x.device)
        for step in range(limit):
            latents.append(r * running[:, None])
            running = running & ~self.ends(r)
            if step + 1 == limit or not running.any():
                break
            r = self.feed_back(r, sharpen)
            r = add_noise(r if intervene is None else intervene(step, r), noise, generator)
            valid = F.pad(valid, (0, 1), value=True)
            position_ids = (length + step)[:, None]  # (B, 1)
            r = self.hidden_states(r[:, None], position_ids, valid[:, None, None, :], cache)[:, -1]
        return torch.stack(latents, 1)

    def ends(self, latents: Tensor) -> Tensor:
        """latents (…, C) -> (…) bool: does a chain end with it?"""
        return self.nearest(latents) == self.tokenizer.eos

    def nearest(self, latents: Tensor) -> Tensor:
        """latents (…, C) -> ids (…) of the nearest target embeddings."""
        return self.cosines(latents).argmax(-1)

    def nearest_text(self, latents: Tensor) -> list[str]:
        """latents (B, R, C), zero behind a chain's end -> B texts: the nearest embeddings, without a Talker."""
        t = self.tokenizer
        ids = self.nearest(latents).masked_fill(~is_real(latents), t.eos).tolist()
        return [t.decode(t.until_eos(row)) for row in ids]


def is_real(latents: Tensor) -> Tensor:
    """latents (B, R, C), zero behind a chain's end -> (B, R) bool: not behind it."""
    return latents.abs().sum(-1) > 0


# ---------------------------------------------------------------------------------------------- the Talker


class CrossBlock(nn.Module):
    """A block that, between attention and feed-forward, attends to encoded latents (no positions in between)."""

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.block, self.norm = Block(C, self.n_head, config.dropout, rms_norm, True, config.n_hidden), rms_norm(C)
        self.q, self.kv, self.proj = (nn.Linear(C, n * C, bias=False) for n in (1, 2, 1))
        for layer, scale in ((self.q, 1), (self.kv, 1), (self.proj, (2 * config.talker_layer) ** -0.5)):
            nn.init.normal_(layer.weight, std=C**-0.5 * scale)

    def keys_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded latents (B, R, C) -> keys and values of the cross-attention (B, H, R, D): once for a whole chain."""
        B, R, _ = encoded.shape
        k, v = self.kv(encoded).view(B, R, 2, self.n_head, -1).permute(2, 0, 3, 1, 4)
        return F.rms_norm(k, k.shape[-1:]), v

    def forward(self, x: Tensor, cos_sin: Tensor, mask, keys_values: tuple, cross_mask: Tensor, cache=None) -> Tensor:
        """x (B, T, C), `keys_values` of the encoded chain, with mask (B, 1, T, R) -> (B, T, C)."""
        B, T, C = x.shape
        block = self.block
        x = x + block.dropout(block.attn(block.norm1(x), cos_sin, mask, cache))
        q = self.q(self.norm(x)).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        q = F.rms_norm(q, q.shape[-1:])
        y = F.scaled_dot_product_attention(q, *keys_values, attn_mask=cross_mask, scale=block.attn.scale)
        x = x + block.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C)))
        return x + block.dropout(block.feed_forward(x))


class Talker(Tokenized, nn.Module, PyTorchModelHubMixin, **HUB):
    """`model(batch) -> (loss, metrics)` on `batch.latents`; `speak(latents) -> B texts`.

    mono   blocks over the chain and a head: all tokens in one pass, no embedding
    dual   an encoder over the chain; a decoder that reads its own earlier tokens and attends to the encoded chain

    No token sees a later latent than its own: in training the next one has read that token, and in use it has not.
    """

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.config, self.tokenizer, C = config, None, config.n_embd
        self.encoder = make_trunk(config, config.talker_layer, ends=True)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=C**-0.5)
        if config.talker == "dual":
            self.blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.talker_layer))
            self.norm_out = rms_norm(C)
            for block in self.blocks:
                init_block_weights(block.block, C, config.talker_layer)

    def embed(self, tokens: Tensor) -> Tensor:
        """What dual's decoder reads: tokens (…) -> (…, C), tied to the head, scaled as the Reasoner's inputs are."""
        return F.embedding(tokens, self.head.weight) * self.config.n_embd**0.5

    def encode(self, latents: Tensor) -> Tensor:
        """latents (B, R, C), zero behind a chain's end -> encoded chain (B, R, C)."""
        return self.encoder(latents, positions_of(latents))

    def decode(self, x: Tensor, encoded: list[tuple], cache: list | None = None, begin: int = 0) -> Tensor:
        """The decoder of dual: embedded tokens x (B, T, C) from position `begin` on -> hidden states (B, T, C).

        `encoded`: each block's `keys_values` of the encoded chain.
        """
        position_ids, R = begin + positions_of(x), encoded[0][0].size(2)
        cos_sin = rotary_cos_sin(position_ids, self.encoder.head_dim)
        up_to_own = (torch.arange(R, device=x.device) <= position_ids[..., None])[:, None]  # (B, 1, T, R)
        mask = None if cache is None else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=x.device)
        for block, keys_values, seen in zip(self.blocks, encoded, cache or [None] * len(self.blocks), strict=True):
            x = block(x, cos_sin, mask, keys_values, up_to_own, seen)
        return self.norm_out(x)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch with latents (B, R, C) -> (loss, metrics): cross-entropy of the chain's tokens."""
        h = self.encode(batch.latents)  # (B, R, C)
        if self.config.talker == "dual":
            earlier = F.pad(batch.chain.clamp(min=0)[:, :-1], (1, 0), value=self.tokenizer.ans)  # (B, R)
            h = self.decode(self.embed(earlier), [block.keys_values(h) for block in self.blocks])
        h = h.flatten(0, 1)[batch.latent_at]  # (K, C)
        loss = cross_entropy(h, self.head.weight, batch.chain_ids) / batch.loss_denominators["chain"]
        metrics = {"loss": loss.detach(), "token_loss": loss.detach()}
        return loss, metrics | token_accuracy(h, self.head.weight, batch)

    @torch.no_grad()
    def generate(self, latents: Tensor) -> list[list[int]]:
        """latents (B, R, C), zero behind a chain's end, where nothing is generated -> B lists of ids without [EOS]."""
        write = self._write_mono if self.config.talker == "mono" else self._write_dual
        ids = write(self.encode(latents), ~is_real(latents))
        return [self.tokenizer.until_eos(row) for row in ids.tolist()]

    def _write_mono(self, encoded: Tensor, ended: Tensor) -> Tensor:
        """Encoded chain (B, R, C), ended (B, R) -> greedy ids (B, R)."""
        return self.head(encoded).argmax(-1).masked_fill(ended, self.tokenizer.eos)

    def _write_dual(self, encoded: Tensor, ended: Tensor) -> Tensor:
        """The same, token by token."""
        eos, (B, R) = self.tokenizer.eos, ended.shape
        keys_values, cache = [block.keys_values(encoded) for block in self.blocks], [[] for _ in self.blocks]
        token, ids = torch.full((B, 1), self.tokenizer.ans, device=encoded.device), []
        done = torch.zeros(B, dtype=torch.bool, device=encoded.device)
        for step in range(R):
            token = self.head(self.decode(self.embed(token), keys_values, cache, step)).argmax(-1)  # (B, 1)
            done |= (token[:, 0] == eos) | ended[:, step]
            ids.append(token[:, 0].masked_fill(done, eos))
            if done.all():
                break
        return torch.stack(ids, 1)

    def speak(self, latents: Tensor) -> list[str]:
        """latents (B, R, C) -> B texts."""
        return [self.tokenizer.decode(row) for row in self.generate(latents)]


# ------------------------------------------------------------------------------------------------ together


class ReasonerTalker:
    """A Reasoner and the Talker trained on it: `answer(prompts)` thinks first, then speaks."""

    def __init__(self, reasoner: Reasoner, talker: Talker):
        self.reasoner, self.talker, self.tokenizer = reasoner, talker, reasoner.tokenizer
        self.config, self.device = talker.config, reasoner.device

    def answer(self, prompts: list[str], max_chain: int = 0, noise: float = 0.0, generator=None) -> list[str]:
        """B prompts -> B texts; `noise` as in `Reasoner.rollout`."""
        return self.talker.speak(self.reasoner.rollout(prompts, max_chain, noise, generator))


class NearestDecoder:
    """A Reasoner read by its nearest embeddings: the control of a Talker.

    `feed_tokens`: and these are fed back, not the latents. The same weights without a chain of latents: its control.
    """

    def __init__(self, reasoner: Reasoner, feed_tokens: bool = False):
        self.reasoner, self.feed_tokens = reasoner, feed_tokens
        self.tokenizer, self.config = reasoner.tokenizer, reasoner.config

    def answer(self, prompts: list[str], max_chain: int = 0, noise: float = 0.0, generator=None) -> list[str]:
        """B prompts -> B texts; `noise` as in `Reasoner.rollout`."""
        return self.reasoner.nearest_text(self.reasoner.rollout(prompts, max_chain, noise, generator, self.feed_tokens))
