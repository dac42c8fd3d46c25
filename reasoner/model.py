"""JEPA-Reasoner: a chain of latents on the unit sphere, and a Talker that puts the finished chain into words.

      prompt ──► embedding ──► Reasoner ──► r1 ──► r2 ──► … ──► rR          the chain never sees a token
                                 ▲           │
                                 └───────────┘  each latent is the next input
                                                 │
                             Talker (r1 … rR) ──► tokens                    the tokens never touch the chain

    pretrain  next-token cross-entropy, tied head, states after RMSNorm only
    sst       k (1 - cos(r_t, EMA embedding of token t)) on the chain; states are RMS-, then L2-normalised
    talker    cross-entropy of the tokens given the frozen Reasoner's latents

After "JEPA-Reasoner: Decoupling Latent Reasoning from Token Generation" (arXiv 2512.19171), of which no code was
published. What its text leaves open is this project's choice and named so in reasoner/README.md.

Shapes: B rows, T tokens a row, R latents a chain, C width, H heads, D = C/H, K positions with a target, V vocabulary.
"""

import hashlib
import os
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin

from config import UserError
from model import Block, Stored, Transformer, cosine, load_checkpoint, read_config, rotary, token_loss
from reasoner.config import ReasonerConfig
from reasoner.data import load_tokenizer

TEMPERATURE = 0.07  # of the cross-entropy under --sst-loss hard, where cosines are logits; CLIP's initial value


def rms_norm(C):
    """RMSNorm with a learned gain; latents have norm 1, so their mean square is 1/C: eps must stay far below."""
    return nn.RMSNorm(C, eps=1e-6)


def trunk_of(config, n_layer, ends):
    """Pre-norm RMS blocks with QK-Norm and rotary positions; `ends`: RMSNorm before and behind them."""
    return Transformer(n_layer, config.n_embd, config.n_head, config.dropout, rms_norm, qk_norm=True,
                       n_hidden=config.n_hidden, ends=ends)  # fmt: skip


class Tokenized(Stored):
    """A checkpoint with the tokenizer of its data."""

    def read_tokenizer(self, find):
        gpt2 = self.config.dataset in ("gsm8k", "text") and self.config.tokenizer == "gpt2"
        self.tokenizer = load_tokenizer(self.config, None if gpt2 else os.path.dirname(find("tokenizer.json")))

    def rows(self, prompts):
        """list of B str, or of lists of ids -> tokens (B, T), padded on the right, and lengths (B,)."""
        t, prompts = self.tokenizer, [prompts] if isinstance(prompts, str) else prompts
        ids = [p if isinstance(p, list) else t.encode([p])[0] or [t.ans] for p in prompts]
        length = torch.tensor([len(p) for p in ids], device=self.device)
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in ids], batch_first=True, padding_value=t.pad)
        return tokens.to(self.device), length


# -------------------------------------------------------------------------------------------- the Reasoner


class Reasoner(Tokenized, nn.Module, PyTorchModelHubMixin, library_name="nanojepa", tags=["jepa", "latent-reasoning"]):
    """`model(batch) -> (loss, metrics)`; `rollout(prompts) -> latents (B, R, C)`, the chain without a token.

    `config.trained` says which phase the weights come from; `latent` is whether states are put on the unit sphere: off
    in pretraining, on afterwards.
    """

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.config, self.tokenizer = config, None
        self.latent = config.trained in ("sst", "talker")
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)  # rows of norm 1, like the latents that follow
        nn.init.normal_(self.embed.weight, std=config.n_embd**-0.5)
        self.trunk, self.norm_out = trunk_of(config, config.n_layer, ends=False), rms_norm(config.n_embd)
        self.target = nn.Embedding(config.vocab_size, config.n_embd)  # EMA copy of `embed`
        self.target.weight = nn.Parameter(self.embed.weight.detach().clone(), requires_grad=False)

    # ---- states

    def inputs(self, tokens):
        """tokens (B, T) -> embeddings (B, T, C), of unit norm once the states are."""
        return self.onto_sphere(self.embed(tokens))

    def onto_sphere(self, x):
        """L2 norm, after pretraining and unless --norm rms leaves it out."""
        return F.normalize(x, dim=-1) if self.latent and self.config.norm != "rms" else x

    def states(self, x, position=None, mask=None, cache=None):
        """Inputs (B, T, C) -> (B, T, C): RMSNorm in pretraining, then the hybrid norm: RMS, and L2 after it.

        Under --norm l2 the RMS gain is skipped. Under --norm rms the sphere is; states are then divided by C^½, the
        norm that RMSNorm gives at first, so that what is fed back is as large as what was read in training.
        """
        if position is None:
            position = places(x)
        h = self.trunk(x * x.size(-1) ** 0.5, position, mask, cache)  # to unit mean square, as the blocks' own
        if not self.latent or self.config.norm != "l2":
            h = self.norm_out(h)
        if self.latent and self.config.norm == "rms":
            return h * h.size(-1) ** -0.5
        return self.onto_sphere(h)

    # ---- training

    def forward(self, batch):
        """Batch -> (loss, metrics), 0-d tensors, detached in `metrics`: sums over the batch over `batch.share`."""
        loss, metrics = self.self_supervised(batch) if self.latent else self.next_token(batch)
        return loss, {"loss": loss.detach(), **metrics}

    def next_token(self, batch):
        """Pretraining: cross-entropy under the tied head, on the whole row or on the chain."""
        h = self.states(self.inputs(batch.tokens)).flatten(0, 1)
        everywhere = self.config.pretrain_on == "all"
        at, ids = (batch.all_at, batch.all_ids) if everywhere else (batch.chain_at, batch.chain_ids)
        scale = torch.full((len(ids),), 1 / batch.share["all" if everywhere else "chain"], device=h.device)
        loss, nll = token_loss(h[at], self.embed.weight, ids, scale)
        return loss, {"token_loss": nll.sum() * scale[0]} | share_right(h[batch.chain_at], self.embed.weight, batch)

    def self_supervised(self, batch):
        """k (1 - cos) between each predicted latent and the EMA embedding of its token, on chain positions only.

        `rollout` further passes replace the chain's input embeddings by the model's own latents of the pass before, so
        that in pass i the first i inputs are exactly those of a free-running chain; all passes have the same weight.
        """
        config = self.config
        x = first = self.inputs(batch.tokens)
        T = x.size(1)
        column = torch.arange(T, device=x.device)
        of_chain = ((column >= batch.start[:, None]) & (column < batch.length[:, None]))[..., None]  # (B, T, 1)
        losses, metrics = [], {}
        for i in range(1 + config.rollout):
            h = self.states(x)
            r = h.flatten(0, 1)[batch.chain_at]  # (K, C)
            own = cosine(r, self.target(batch.chain_ids))
            if config.sst_loss == "hard":
                logits = F.normalize(r, dim=-1) @ F.normalize(self.target.weight, dim=-1).T
                wrong = F.cross_entropy(logits / TEMPERATURE, batch.chain_ids, reduction="none")
            else:
                wrong = config.k * (1 - own)
            losses.append(wrong.sum() / batch.share["chain"])
            if i == 0:
                metrics = self.measures(r.detach(), own.detach(), batch)
            x = torch.where(of_chain, F.pad(h[:, :-1], (0, 0, 1, 0)), first)
        if config.rollout:
            metrics["free_cos"] = own.detach().sum() / batch.share["chain"]
        return sum(losses) / len(losses), metrics

    @torch.no_grad()
    def measures(self, r, own, batch):
        """Latents (K, C), cosines to the own targets (K,) -> cosine, its control, and how often the own is nearest."""
        n, stranger = batch.share["chain"], batch.chain_ids.roll(len(r) // 2)  # of another row
        other = cosine(r, self.target(stranger)) * (batch.chain_ids != stranger)
        differs = (batch.chain_ids != stranger).float().mean().clamp(min=1e-9)
        return {"jepa_loss": (1 - own).sum() / n, "cos_own": own.sum() / n, "cos_other": other.sum() / n / differs,
                **share_right(r, F.normalize(self.target.weight, dim=-1), batch)}  # fmt: skip

    def nearest(self, latent):
        """latent (…, C) -> ids (…) of the nearest target embeddings."""
        return F.linear(F.normalize(latent, dim=-1), F.normalize(self.target.weight, dim=-1)).argmax(-1)

    @torch.no_grad()
    def update_target(self):
        """After an optimiser step: move the EMA embedding towards the trained one."""
        self.target.weight.lerp_(self.embed.weight, 1 - self.config.ema_decay)

    @torch.no_grad()
    def teacher_forced(self, batch):
        """Batch -> latents (B, R, C) with the chain's tokens as inputs; zeros behind a chain's end."""
        h = self.states(self.inputs(batch.tokens)).flatten(0, 1)[batch.chain_at]
        latents = h.new_zeros(batch.chain.numel(), h.size(-1)).index_copy(0, batch.slot_at, h)
        return latents.view(*batch.chain.shape, -1)

    # ---- use

    def read(self, latents):
        """latents (B, R, C), zero behind a chain's end -> list of B str: the nearest embeddings, without a Talker."""
        eos = self.tokenizer.eos
        rows = self.nearest(latents).masked_fill(latents.abs().sum(-1) == 0, eos).tolist()
        return [self.tokenizer.decode(row[: row.index(eos)] if eos in row else row) for row in rows]

    @torch.no_grad()
    def rollout(self, prompts, max_chain=None, noise=0.0, generator=None, cached=True, tokens=False):
        """list of B prompts (str, or lists of ids) -> latents (B, R, C), R <= max_chain, without writing a token.

        A chain ends with the latent whose nearest embedding is [EOS]; behind it stand zeros. `noise` is the norm of
        Gaussian noise added to each latent before it is fed back. `tokens`: not the latent is fed back but the nearest
        embedding, as an ordinary language model does. `cached=False` is the slow obvious way, for tests.
        """
        if not self.latent:
            raise UserError("a Reasoner from pretraining does not think in latents yet; load the one of phase sst")
        ids, length = self.rows(prompts)
        forced = (lambda step, latent: self.inputs(self.nearest(latent))) if tokens else None
        return self.chain(self.inputs(ids), length, max_chain, noise, generator, cached, forced)

    def chain(self, x, length, max_chain=None, noise=0.0, generator=None, cached=True, forced=None):
        """Input embeddings x (B, T, C), of which the first `length` (B,) count -> latents (B, R, C); see `rollout`.

        forced(step, latent (B, C)) -> latent (B, C): what is fed back instead, to see how a wrong thought spreads.
        """
        B, T, C = x.shape
        row, limit = torch.arange(B, device=x.device), max_chain or self.config.max_chain
        cache = [[] for _ in self.trunk.blocks] if cached else None
        valid = torch.arange(T, device=x.device) < length[:, None]
        h = self.states(x, cache=cache)[row, length - 1]  # causal: padding stands behind and is not seen
        latents, alive = [], torch.ones(B, dtype=torch.bool, device=x.device)
        for step in range(limit):
            latents.append(h * alive[:, None])
            alive = alive & (self.nearest(h) != self.tokenizer.eos)
            if step + 1 == limit or not alive.any():
                break
            if forced is not None:
                h = forced(step, h)
            h = disturbed(h, noise, generator)
            valid = F.pad(valid, (0, 1), value=True)
            position = (length + step)[:, None]
            if cached:
                h = self.states(h[:, None], position, valid[:, None, None, :], cache)[:, -1]
            else:
                x = torch.cat((x, h[:, None]), 1)
                where = torch.cat((torch.arange(T, device=x.device).expand(B, T),
                                   length[:, None] + torch.arange(step + 1, device=x.device)), 1)  # fmt: skip
                causal = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).tril()
                own = torch.eye(x.size(1), dtype=torch.bool, device=x.device)
                h = self.states(x, where, ((causal & valid[:, None]) | own)[:, None])[:, -1]
        return torch.stack(latents, 1)


def disturbed(x, noise, generator):
    """x (B, C) plus Gaussian noise whose norm is about `noise` times x's own."""
    if not noise:
        return x
    return x + torch.randn(x.shape, generator=generator).to(x) * (
        noise * x.size(-1) ** -0.5 * x.norm(dim=-1, keepdim=True)
    )


@torch.no_grad()
def share_right(h, weight, batch):
    """States that predict the chain (K, C), output layer (V, C) -> {"chain_accuracy"}; {} where logits are large."""
    if len(weight) > 10_000:
        return {}
    hit = F.linear(h, weight).argmax(-1) == batch.chain_ids
    return {"chain_accuracy": hit.float().sum() / batch.share["chain"]}


def places(x):
    """x (B, T, …) -> positions (B, T)."""
    return torch.arange(x.size(1), device=x.device).expand(x.shape[:2])


# ---------------------------------------------------------------------------------------------- the Talker


class CrossBlock(nn.Module):
    """A block that, between attention and feed-forward, attends to encoded latents (no positions in between)."""

    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.block, self.norm = Block(C, self.n_head, config.dropout, rms_norm, True, config.n_hidden), rms_norm(C)
        self.q, self.kv, self.proj = (nn.Linear(C, n * C, bias=False) for n in (1, 2, 1))
        for layer, scale in ((self.q, 1), (self.kv, 1), (self.proj, (2 * config.talker_layer) ** -0.5)):
            nn.init.normal_(layer.weight, std=C**-0.5 * scale)

    def read(self, encoded):
        """Encoded latents (B, R, C) -> keys and values of the cross-attention (B, H, R, D): once for a whole chain."""
        B, R, _ = encoded.shape
        k, v = self.kv(encoded).view(B, R, 2, self.n_head, -1).permute(2, 0, 3, 1, 4)
        return F.rms_norm(k, k.shape[-1:]), v

    def forward(self, x, turn, mask, memory, memory_mask, cache=None):
        """x (B, T, C), `memory`: what `read` gave, with mask (B, 1, T, R) -> (B, T, C)."""
        B, T, C = x.shape
        x = x + self.block.dropout(self.block.attn(self.block.norm1(x), turn, mask, cache))
        q = self.q(self.norm(x)).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        q, scale = F.rms_norm(q, q.shape[-1:]), self.block.attn.scale
        y = F.scaled_dot_product_attention(q, *memory, attn_mask=memory_mask, scale=scale)
        x = x + self.block.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C)))
        gate, value = self.block.up(self.block.norm2(x)).chunk(2, -1)
        return x + self.block.dropout(self.block.down(F.silu(gate) * value))


class Talker(Tokenized, nn.Module, PyTorchModelHubMixin, library_name="nanojepa", tags=["jepa", "latent-reasoning"]):
    """`model(batch) -> (loss, metrics)` on `batch.latents`; `speak(latents) -> list of str`.

    mono   blocks over the chain and a head: all tokens in one pass, no embedding
    dual   an encoder over the chain; a decoder that reads its own earlier tokens and attends to the encoded chain

    No token sees a later latent than its own: in training the next one has read that token, and in use it has not.
    """

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.config, self.tokenizer, C = config, None, config.n_embd
        self.encoder = trunk_of(config, config.talker_layer, ends=True)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=C**-0.5)
        if config.talker == "dual":
            self.blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.talker_layer))
            self.norm_out = rms_norm(C)
            for block in self.blocks:
                for name, p in block.block.named_parameters():
                    if p.dim() == 2:
                        residual = name.endswith(("proj.weight", "down.weight"))
                        nn.init.normal_(p, std=C**-0.5 * ((2 * config.talker_layer) ** -0.5 if residual else 1))

    def embed(self, tokens):
        """What dual's decoder reads: tokens (…) -> (…, C), tied to the head, scaled as the Reasoner's inputs are."""
        return F.embedding(tokens, self.head.weight) * self.config.n_embd**0.5

    def encode(self, latents):
        """latents (B, R, C), zero behind a chain's end -> encoded chain (B, R, C)."""
        return self.encoder(latents, places(latents))

    def decode(self, x, memory, cache=None, begin=0):
        """The decoder of dual: embedded tokens x (B, T, C) from position `begin` on -> states (B, T, C).

        `memory`: each block's `read` of the encoded chain.
        """
        position, R = begin + places(x), memory[0][0].size(2)
        turn = rotary(position, self.config.n_embd // self.config.n_head)
        past = (torch.arange(R, device=x.device) <= position[..., None])[:, None]  # (B, 1, T, R)
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=x.device) if cache is not None else None
        for block, read, seen in zip(self.blocks, memory, cache or [None] * len(self.blocks), strict=True):
            x = block(x, turn, mask, read, past, seen)
        return self.norm_out(x)

    def forward(self, batch):
        """Batch with latents (B, R, C) -> (loss, metrics): cross-entropy of the chain's tokens."""
        y, R = self.encode(batch.latents), batch.chain.size(1)
        if self.config.talker == "dual":
            before = F.pad(batch.chain.clamp(min=0)[:, :-1], (1, 0), value=self.tokenizer.ans)
            y = self.decode(self.embed(before), [block.read(y) for block in self.blocks])
        h, ids = y[:, :R].flatten(0, 1)[batch.slot_at], batch.chain_ids
        scale = torch.full((len(ids),), 1 / batch.share["chain"], device=h.device)
        loss, nll = token_loss(h, self.head.weight, ids, scale)
        right = share_right(h, self.head.weight, batch)
        return loss, {"loss": loss.detach(), "token_loss": nll.sum() * scale[0]} | right

    @torch.no_grad()
    def tokens(self, latents):
        """latents (B, R, C), zero behind a chain's end, where nothing is said -> greedy ids, B lists without [EOS]."""
        eos, y, ended = self.tokenizer.eos, self.encode(latents), latents.abs().sum(-1) == 0
        if self.config.talker == "mono":
            ids = self.head(y).argmax(-1).masked_fill(ended, eos)
        else:
            memory, cache = [block.read(y) for block in self.blocks], [[] for _ in self.blocks]
            token = torch.full((len(y), 1), self.tokenizer.ans, device=y.device)
            ids, done = [], torch.zeros(len(y), dtype=torch.bool, device=y.device)
            for step in range(latents.size(1)):
                token = self.head(self.decode(self.embed(token), memory, cache, step)).argmax(-1)  # (B, 1)
                done |= (token[:, 0] == eos) | ended[:, step]
                ids.append(token[:, 0].masked_fill(done, eos))
                if done.all():
                    break
            ids = torch.stack(ids, 1)
        return [row[: row.index(eos)] if eos in row else row for row in ids.tolist()]

    def speak(self, latents):
        """latents (B, R, C) -> list of B str."""
        return [self.tokenizer.decode(row) for row in self.tokens(latents)]


# ------------------------------------------------------------------------------------------- the baselines


class Coupled(Tokenized, nn.Module, PyTorchModelHubMixin, library_name="nanojepa"):
    """The baselines, in which each token that is written is read again.

    coupled         an ordinary Transformer language model as large as Reasoner and Talker together
    coupled-talker  Reasoner and a causal Talker trained as one: cross-entropy and k (1 - cos) together, token feedback
    coconut         as coupled, but `thoughts` latents stand between prompt and answer, each fed back as the next input
                    (Hao et al. 2024, arXiv 2412.06769), trained through the feedback, without its curriculum
    """

    def __init__(self, config: ReasonerConfig):
        super().__init__()
        self.config, self.tokenizer = config, None
        joint, C = config.model == "coupled-talker", config.n_embd
        block = 4 * C * C + 3 * C * config.n_hidden  # parameters; a dual Talker's decoder has cross-attention besides
        extra = config.talker_layer * (1 if config.talker == "mono" else 2 + 4 * C * C / block)
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        nn.init.normal_(self.embed.weight, std=config.n_embd**-0.5)
        n_layer = config.n_layer + (0 if joint else round(extra))
        self.trunk, self.norm_out = trunk_of(config, n_layer, ends=False), rms_norm(config.n_embd)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=C**-0.5)
        if joint:
            self.talker = trunk_of(config, round(extra), ends=True)
            self.target = nn.Embedding(config.vocab_size, config.n_embd)
            self.target.weight = nn.Parameter(self.embed.weight.detach().clone(), requires_grad=False)

    def states(self, x, position, mask=None, cache=None):
        """Inputs (B, T, C) -> (latents, states that the output layer reads), both (B, T, C)."""
        n = len(self.trunk.blocks)
        h = self.norm_out(self.trunk(x * x.size(-1) ** 0.5, position, mask, cache and cache[:n]))
        if self.config.model != "coupled-talker":
            return h, h
        r = F.normalize(h, dim=-1)
        return r, self.talker(r, position, mask, cache and cache[n:])

    def forward(self, batch):
        """Batch -> (loss, metrics). coconut: gradients go through the thoughts, too."""
        config, x = self.config, self.embed(batch.tokens)
        position = places(x)
        if config.model == "coconut" and config.thoughts:
            r = h = self.thinking(x, batch)
        else:
            r, h = self.states(x, position)
        r, h = r.flatten(0, 1), h.flatten(0, 1)
        everywhere = config.pretrain_on == "all"
        at, ids = (batch.all_at, batch.all_ids) if everywhere else (batch.chain_at, batch.chain_ids)
        scale = torch.full((len(ids),), 1 / batch.share["all" if everywhere else "chain"], device=h.device)
        loss, nll = token_loss(h[at], self.head.weight, ids, scale)
        metrics = {"token_loss": nll.sum() * scale[0]} | share_right(h[batch.chain_at], self.head.weight, batch)
        if config.model == "coupled-talker":
            own = cosine(r[batch.chain_at], self.target(batch.chain_ids))
            jepa = (1 - own).sum() / batch.share["chain"]
            loss, metrics["jepa_loss"] = loss + config.k * jepa, jepa.detach()
        return loss, {"loss": loss.detach(), **metrics}

    def thinking(self, x, batch):
        """Rows (B, T, C) of prompt, places of thoughts and chain -> states (B, T, C); a thought is the state before it.

        One pass over the prompts, a position a thought, one pass over the chains; keys and values are kept, with their
        gradients. What stands in the places of thoughts is never read, nor are the states there but the last.
        """
        B, T, n = *x.shape[:2], batch.start - self.config.thoughts  # n (B,): tokens of a prompt
        row, R = torch.arange(B, device=x.device)[:, None], batch.chain.size(1) - 1  # [EOS] is only predicted
        column, cache = torch.arange(T + R, device=x.device), [[] for _ in self.trunk.blocks]
        position = column[: batch.prompt].expand(B, batch.prompt)
        seen = position < n[:, None]
        states = self.states(x[:, : batch.prompt], position, cache=cache)[1]
        # (B, T + R, C): the places behind T are for what stands behind shorter chains, and are cut off in the end
        states = F.pad(states, (0, 0, 0, T + R - batch.prompt))
        h = states[row[:, 0], n - 1]  # (B, C)
        for i in range(self.config.thoughts):
            seen = F.pad(seen, (0, 1), value=True)
            h = F.normalize(h, dim=-1)[:, None]  # (B, 1, C)
            h = self.states(h, (n + i)[:, None], seen[:, None, None, :], cache)[1][:, 0]
        states = states.index_put((row[:, 0], batch.start - 1), h)
        if R:
            place = batch.start[:, None] + column[:R]  # (B, R)
            causal = torch.ones(R, R, dtype=torch.bool, device=x.device).tril().expand(B, R, R)
            # (B, 1, R, prompt + thoughts + R): who of a chain sees whom
            mask = torch.cat((seen[:, None].expand(B, R, seen.size(1)), causal), -1)[:, None]
            h = self.states(x[row, place.clamp(max=T - 1)], place, mask, cache)[1]
            states = states.index_put((row, place), h)
        return states[:, :T]

    @torch.no_grad()
    def update_target(self):
        """After an optimiser step: move the EMA embedding, if there is one, towards the trained one."""
        if self.config.model == "coupled-talker":
            self.target.weight.lerp_(self.embed.weight, 1 - self.config.ema_decay)

    @torch.no_grad()
    def tokens(self, prompts, max_chain=None, forced=None, noise=0.0, generator=None):
        """list of B prompts -> greedy ids, B lists without [EOS]. Every token written is the next input.

        forced(step, ids (B,)) -> ids (B,): what is fed back instead, to see how a wrong token spreads. `noise`: norm of
        Gaussian noise on what is fed back, thoughts and token embeddings alike.
        """
        config, t = self.config, self.tokenizer
        tokens, length = self.rows(prompts)
        B, T = tokens.shape
        row, position = torch.arange(B, device=tokens.device), torch.arange(T, device=tokens.device).expand(B, T)
        cache = [[] for _ in (*self.trunk.blocks, *(self.talker.blocks if config.model == "coupled-talker" else ()))]
        valid = position < length[:, None]
        _, h = self.states(self.embed(tokens), position, cache=cache)
        h, at = h[row, length - 1], length

        def step(x):
            nonlocal valid, at, h
            x = disturbed(x, noise, generator)
            valid = F.pad(valid, (0, 1), value=True)
            h = self.states(x[:, None], at[:, None], valid[:, None, None, :], cache)[1][:, -1]
            at = at + 1

        for _ in range(config.thoughts if config.model == "coconut" else 0):
            step(F.normalize(h, dim=-1))
        ids, done = [], torch.zeros(B, dtype=torch.bool, device=tokens.device)
        limit = max_chain or config.max_chain
        for i in range(limit):
            token = self.head(h).argmax(-1)
            if forced is not None:
                token = forced(i, token)
            done |= token == t.eos
            ids.append(token.masked_fill(done, t.eos))
            if done.all() or i + 1 == limit:
                break
            step(self.embed(token))
        return [r[: r.index(t.eos)] if t.eos in r else r for r in torch.stack(ids, 1).tolist()]

    def answer(self, prompts, max_chain=None):
        """list of B str -> list of B str."""
        return [self.tokenizer.decode(row) for row in self.tokens(prompts, max_chain)]


# ------------------------------------------------------------------------------------------------- loading


def sha_of(folder):
    """Fingerprint of a checkpoint's weights."""
    with open(Path(folder) / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_phase(folder, phase):
    """The configuration of a phase's checkpoint; a UserError says what is missing or differs."""
    folder = Path(folder)
    how = "--model coupled" if phase == "coupled" else f"--phase {phase}"
    config = read_config(folder, ReasonerConfig, f"python -m reasoner.train {how} --run {folder.parent}")
    if config.trained != phase:
        raise UserError(
            f"{folder}: a checkpoint of phase {config.trained or 'none'!r}; wanted is one of phase {phase!r}"
        )
    return config


def load_phase(cls, folder, phase, device="cpu"):
    """The checkpoint of a phase -> model, in eval mode; a UserError says what is missing or differs."""
    read_phase(folder, phase)
    return load_checkpoint(cls, Path(folder), device)


class Pair:
    """A Reasoner and the Talker trained on it: `answer(prompts)` thinks first, then speaks."""

    def __init__(self, reasoner, talker):
        self.reasoner, self.talker, self.tokenizer = reasoner, talker, reasoner.tokenizer
        self.config = talker.config

    def answer(self, prompts, max_chain=None):
        """list of B str -> list of B str."""
        return self.talker.speak(self.reasoner.rollout(prompts, max_chain))


class Nearest:
    """A Reasoner read by its nearest embeddings: what a Talker is to be held against.

    `tokens`: and these are fed back, not the latents. The same weights without a chain of latents, so the control.
    """

    def __init__(self, reasoner, tokens=False):
        self.reasoner, self.tokens = reasoner, tokens
        self.tokenizer, self.config = reasoner.tokenizer, reasoner.config

    def answer(self, prompts, max_chain=None, noise=0.0, generator=None):
        """list of B str -> list of B str."""
        latents = self.reasoner.rollout(prompts, max_chain, noise, generator, tokens=self.tokens)
        return self.reasoner.read(latents)


def load(run, device="cpu"):
    """The folder of a complete run -> Pair, or Coupled for a baseline: both have `answer(prompts)`."""
    run = Path(run)
    config = read_config(run, ReasonerConfig, f"python -m reasoner.train --run {run}", needed=("config.json",))
    if config.model != "decoupled":
        return load_phase(Coupled, run / "coupled", "coupled", device)
    began_from = config.init if config.phase == "talker" else ""
    earlier = Path(began_from or run / "sst")
    reasoner = load_phase(Reasoner, earlier, "sst", device)
    talker = load_phase(Talker, run / "talker", "talker", device)
    if talker.config.init_sha != sha_of(earlier):
        raise UserError(f"{run / 'talker'} was trained on other latents than those now in {earlier}; --phase talker "
                        "--overwrite trains it anew")  # fmt: skip
    return Pair(reasoner, talker)


def sizes(config):
    """Parameters of (Reasoner, Talker), counted without memory for them."""
    with torch.device("meta"):
        return Reasoner(config).n_params(), Talker(config).n_params()
