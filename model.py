"""nanoJEPA: a decoder-only Transformer whose [PRED] latent predicts the latent of an answer it cannot see.

                 attends to →   question  [PRED]  answer view
    question                    causal      no        no
    [PRED]                      all       itself      NO
    answer view                 NO          no      causal

    pass 1   question [PRED] | [ANS] answer [EOS]      z_hat = h[PRED],  z = h[EOS]
    pass 2   latent answer                             the answer is decoded from one latent alone

    L_jepa  = 1 - cos(z_hat, stop_gradient(z))
    L_token = next token of the question + answer decoded from z (+ from z_hat, if asked)
    L_total = L_token + lambda * L_jepa

Neither [PRED] nor [EOS] carries a next-token target, so the language-model head pulls neither of them anywhere.

Shapes: B rows, T tokens a row, C width, H heads, D = C/H, L layers, N examples, M longest answer, V vocabulary.
"""

import copy
import json
import os
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_model

from config import Config, UserError, from_dict, keep_freed_memory
from data import compute, load_tokenizer, question_text, slots

# --------------------------------------------------------------------------------------------- the mask


def jepa_mask(segment, mask="jepa"):
    """Who may attend to whom. segment (B, T) int, a view per value, -1 padding -> (B, 1, T, T) bool, True = may attend.

    jepa    causal, inside one's own view (segments 2k and 2k+1 are question and answer view of one example)
    causal  causal, inside one's own example: an ordinary language model, the answer sees the question
    none    anything inside one's own example, both ways: the answer is visible to whoever predicts it
    Padding attends to itself only, so that no row of the softmax is empty.
    """
    T = segment.size(-1)
    view = segment if mask == "jepa" else segment.div(2, rounding_mode="floor")  # -1 stays -1
    allowed = (view[:, :, None] == view[:, None, :]) & (view >= 0)[:, :, None]
    if mask != "none":
        allowed &= torch.ones(T, T, dtype=torch.bool, device=segment.device).tril()
    return (allowed | torch.eye(T, dtype=torch.bool, device=segment.device))[:, None]


# -------------------------------------------------------------------------------------------- the trunk


def rotary(position, dim, base=10_000.0):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): position (B, T) -> cosine and sine (B, 1, T, D/2, 2)."""
    frequency = base ** (-torch.arange(0, dim, 2, device=position.device, dtype=torch.float32) / dim)
    angle = position[:, None, :, None].float() * frequency
    return torch.stack((angle.cos(), angle.sin()), -1)


def rotate(x, turn):
    """Turn neighbouring pairs of channels of x (B, H, T, D) by the angles of `turn` (B, 1, T, D/2, 2)."""
    if x.device.type == "cpu":  # one fused complex product instead of six passes over memory
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.view_as_complex(turn)).flatten(-2).type_as(x)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turn.unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


class Attention(nn.Module):
    """Multi-head attention with rotary positions; optionally QK-Norm without parameters.

    Under QK-Norm a logit is a cosine times a constant: 12, which Henry et al. 2020 (arXiv 2010.04245) begin with for
    about 64 tokens, log2(L² - L). With D^½ heads of 24 or 32 channels could not look at a single token.
    """

    def __init__(self, n_embd, n_head, qk_norm):
        super().__init__()
        self.n_head, self.qk_norm = n_head, qk_norm
        self.scale = 12 * n_head / n_embd if qk_norm else None  # rms_norm leaves vectors of norm D^½
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x, turn, mask, cache=None):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:  # earlier keys and values, (B, H, T', D)
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = k, v
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Pre-norm Transformer block with a SiLU-gated feed-forward network (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, n_embd, n_head, dropout, norm, qk_norm, n_hidden=None):
        super().__init__()
        hidden = n_hidden or -(-8 * n_embd // 3 // 32) * 32  # two thirds of 4C: a gate costs a third matrix
        self.norm1, self.norm2 = norm(n_embd), norm(n_embd)
        self.attn = Attention(n_embd, n_head, qk_norm)
        self.up = nn.Linear(n_embd, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, n_embd, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, turn, mask, cache=None):
        x = x + self.dropout(self.attn(self.norm1(x), turn, mask, cache))
        gate, value = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.dropout(self.down(F.silu(gate) * value))


class Transformer(nn.Module):
    """The trunk all three systems share: (B, T, C) embeddings in, (B, T, C) normalised states out.

    `norm` is LayerNorm without bias by default: on a CPU it is one fused kernel, RMSNorm is six. With `ends` off what
    comes in and what goes out is left as it is.
    """

    def __init__(self, n_layer, n_embd, n_head, dropout=0.0, norm=None, qk_norm=False, n_hidden=None, ends=True):
        super().__init__()
        if n_embd % (2 * n_head):
            raise UserError(f"--n-embd {n_embd} must be a multiple of twice --n-head {n_head}")
        norm = norm or (lambda c: nn.LayerNorm(c, bias=False))
        self.dim = n_embd // n_head
        self.dropout = nn.Dropout(dropout)
        self.norm_in, self.norm_out = (norm(n_embd) if ends else nn.Identity() for _ in range(2))
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout, norm, qk_norm, n_hidden) for _ in range(n_layer))
        for name, p in self.named_parameters():
            if p.dim() == 2:  # GPT-2: residual branches start small, so that depth does not grow the stream
                residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=n_embd**-0.5 * ((2 * n_layer) ** -0.5 if residual else 1))

    def forward(self, x, position, mask=None, cache=None):
        """x (B, T, C), position (B, T), mask (B, 1, T, T') bool or None for causal -> (B, T, C).

        `cache`, a list of L lists, receives and contributes the keys and values of earlier calls, T' = T'' + T.
        """
        turn = rotary(position, self.dim)
        x = self.dropout(self.norm_in(x))
        for block, seen in zip(self.blocks, cache or [None] * len(self.blocks), strict=True):
            x = block(x, turn, mask, seen)
        return self.norm_out(x)


# -------------------------------------------------------------------------------------------- the losses


def cosine(a, b):
    """Cosine of rows: (N, C), (N, C) -> (N,) in -1…1, in fp32."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


CHUNK_LOGITS = 2**25  # logits that exist at a time: 128 MiB in fp32, 667 positions of GPT-2's vocabulary


class _TokenLoss(torch.autograd.Function):
    """Softmax and its gradient are taken while a chunk's logits exist; backward has nothing left to compute.

    Three matrix products a position and no tensor of K x V, as in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx, h, weight, target, scale, wants_grad):
        kind, K, rows = h.device.type, len(h), max(1, CHUNK_LOGITS // len(weight))
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype
        x, w = h.to(dtype), weight.to(dtype)
        nll = torch.empty(K, device=h.device)
        ctx.grads = (torch.empty_like(h), torch.zeros_like(weight)) if wants_grad else None
        # products in half precision must see numbers near 1, not 1/targets; the factor returns in backward, in fp32
        ctx.top = scale.max().clamp(min=1e-30) if K else scale.new_ones(())
        for start in range(0, K, rows):
            part = slice(start, start + rows)
            logp = F.log_softmax((x[part] @ w.T).float(), -1)  # (k, V)
            own = target[part, None]
            nll[part] = -logp.gather(1, own)[:, 0]
            if wants_grad:  # d nll / d logits = softmax - one-hot; `scale` multiplies the small side of each product
                error = logp.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=logp.dtype)).to(dtype)
                h_grad, weight_grad = ctx.grads
                h_grad[part] = (error @ w) * scale[part, None]
                scaled = (x[part] * (scale[part, None] / ctx.top)).to(dtype)
                if dtype == weight_grad.dtype:
                    weight_grad.addmm_(error.T, scaled)
                else:  # accumulate in the weight's own precision
                    weight_grad += error.T @ scaled
        ctx.mark_non_differentiable(nll)
        return (nll * scale).sum(), nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, _):
        h_grad, weight_grad = ctx.grads
        del ctx.grads  # scaled in place: a second backward must fail, not lie
        return h_grad.mul_(gradient), weight_grad.mul_(gradient * ctx.top), None, None, None


@torch.compiler.disable  # the number of chunks depends on the batch: compiled, each number would be another program
def token_loss(h, weight, target, scale):
    """Next-token cross-entropy of positions h (K, C) under the head `weight` (V, C), target (K,) int64, scale (K,).

    -> (sum of scale * nll, (); nll in nats, (K,) fp32, without gradient).
    """
    return _TokenLoss.apply(h, weight, target, scale, torch.is_grad_enabled())


def variance_loss(z, eps=1e-4):
    """VICReg's variance hinge (Bardes et al. 2022, arXiv 2105.04906, eq. 1): z (N, C) -> (), 0 once every
    dimension has standard deviation 1 over the batch."""
    return F.relu(1 - (z.float().var(0) + eps).sqrt()).mean()


def covariance_loss(z):
    """VICReg's covariance term (ibid., eq. 3): z (N, C) -> (), the squared off-diagonal covariances, summed, over C."""
    z = z.float() - z.float().mean(0)
    cov = z.T @ z / (len(z) - 1)
    return (cov.square().sum() - cov.diagonal().square().sum()) / z.size(1)


def sigreg_loss(z, directions=256, knots=17):
    """SIGReg of LeJEPA (Balestriero & LeCun 2025, arXiv 2511.08544): z (N, C) -> (), 0 for an isotropic Gaussian.

    The Epps-Pulley statistic, N * integral |phi_hat(t) - exp(-t²/2)|² exp(-t²/2) dt over t in -5…5, of the batch's
    empirical characteristic function phi_hat along random directions, averaged; the trapezoidal rule on `knots`.
    """
    A = F.normalize(torch.randn(z.size(1), directions, device=z.device), dim=0)
    t = torch.linspace(-5, 5, knots, device=z.device)
    gauss = torch.exp(-t.square() / 2)
    angle = (z.float() @ A)[..., None] * t  # (N, directions, knots)
    error = (angle.cos().mean(0) - gauss).square() + angle.sin().mean(0).square()
    return len(z) * torch.trapezoid(error * gauss, t, dim=-1).mean()


# ---------------------------------------------------------------------------------------- checkpoints


class Stored:
    """What the models of all three systems share: a device, a count, and `from_pretrained` of a folder or the Hub."""

    tokenizer = None

    @property
    def device(self):
        return next(self.parameters()).device

    def n_params(self):
        """Trained parameters; a tied embedding and head count once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def read_tokenizer(self, find):
        """Set `tokenizer` from the checkpoint, where there is one; find(name) -> path of one of its files."""

    def _save_pretrained(self, folder):
        super()._save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    @classmethod
    def _from_pretrained(cls, *, model_id, config, map_location="cpu", **hub):
        """Called by the mixin's `from_pretrained`: a run's folder or a repository on the Hub -> model, in eval mode."""
        hub = {k: hub[k] for k in ("revision", "cache_dir", "force_download", "token", "local_files_only") if k in hub}

        def find(name):
            return os.path.join(model_id, name) if os.path.isdir(model_id) else hf_hub_download(model_id, name, **hub)

        model = cls(config)
        try:
            load_model(model, find("model.safetensors"), device=str(map_location))
        except (RuntimeError, SafetensorError) as error:  # names or shapes that differ, or a damaged file
            raise UserError(
                f"{model_id}: model.safetensors does not fit config.json: {' '.join(str(error).split())[:300]}"
            ) from None
        model.read_tokenizer(find)
        return model.to(map_location).eval()


def read_config(folder, cls, how, needed=("config.json", "model.safetensors")):
    """Folder of a checkpoint -> its configuration, a `cls`; a UserError says what is missing or differs.

    `how` is the command that trains what is missing.
    """
    folder = Path(folder)
    for name in needed:
        if not (folder / name).is_file():
            raise UserError(f"no checkpoint in {folder} ({name} is missing); train one with: {how}")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{folder}/config.json:{error.lineno}: not valid JSON ({error.msg})") from None
    if values.get("system") != cls.system:
        raise UserError(f"{folder}: a checkpoint of system {values.get('system')!r}, not of {cls.system}")
    return from_dict(cls, values, folder / "config.json")


def load_checkpoint(cls, folder, device):
    """The model `cls` of a folder, in eval mode."""
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    return cls.from_pretrained(folder, map_location=str(device))


# --------------------------------------------------------------------------------------------- nanoJEPA


class NanoJEPA(Stored, nn.Module, PyTorchModelHubMixin, library_name="nanojepa", tags=["jepa", "latent-reasoning"]):
    """`model(batch) -> (loss, metrics)` for training; `predict`, `encode`, `decode` and `answer` for use.

    NanoJEPA.from_pretrained("out/quick").answer(["Tom has 2 pears. He buys 3 more. How many are there?"])
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.tokenizer = config, None
        C = config.n_embd
        self.embed = nn.Embedding(config.vocab_size, C)  # also the language-model head
        self.trunk = Transformer(config.n_layer, C, config.n_head, config.dropout)
        self.latent_in = nn.Linear(C, C, bias=False)  # latent -> first slot of the decode pass
        nn.init.normal_(self.embed.weight, std=C**-0.5)  # unit logits; 0.02 learns to decode latents far more slowly
        self.predictor = nn.Identity()
        if config.predictor == "mlp":
            self.predictor = nn.Sequential(nn.Linear(C, 2 * C), nn.SiLU(), nn.Linear(2 * C, C))
        if config.target == "ema":
            self.target = nn.ModuleDict({"embed": copy.deepcopy(self.embed), "trunk": copy.deepcopy(self.trunk)})
            self.target.requires_grad_(False)

    # ---- training

    def states(self, tokens, segment, position, network=None):
        """tokens, segment, position (B, T) -> states (B, T, C), through the model's mask."""
        network = network or self
        return network.trunk(network.embed(tokens), position, jepa_mask(segment, self.config.mask))

    def first_slot(self, latent):
        """latent (N, C) -> (N, C), what stands in [ANS]'s place in the decode pass. Only the direction is read."""
        unit, C = F.normalize(latent.float(), dim=-1), latent.size(-1)
        if self.training and self.config.decode_noise:
            unit = unit + torch.randn_like(unit) * (self.config.decode_noise * C**-0.5)
        return self.latent_in(unit * C**0.5)

    def decode_states(self, latent, tokens):
        """latent (N, C), answer tokens (N, M) -> states (N, M+1, C). Only the latent's direction is read."""
        x = torch.cat((self.first_slot(latent)[:, None], self.embed(tokens)), 1)
        return self.trunk(x, torch.arange(x.size(1), device=x.device).expand(len(x), -1))

    def targets(self, batch, z):
        """The z of L_jepa (N, C): h[EOS] with its gradient stopped, an EMA network's h[EOS], or h[EOS] as it is."""
        if self.config.target == "grad":
            return z
        if self.config.target == "stopgrad":
            return z.detach()
        with torch.no_grad():
            h = self.states(batch.tokens, batch.segment, batch.position, self.target)
            return h.flatten(0, 1)[batch.eos_at]

    def forward(self, batch):
        """Batch -> (loss, metrics), 0-d tensors, detached in `metrics`: sums over the batch over `batch.share`."""
        config, share, head = self.config, batch.share, self.embed.weight
        h = self.states(batch.tokens, batch.segment, batch.position).flatten(0, 1)  # (B*T, C)
        z_hat, z = self.predictor(h[batch.pred_at]), h[batch.eos_at]  # (N, C)
        target = self.targets(batch, z)

        # every position that the head must read, in one product: (weight in L_token, states (K, C), targets (K,))
        read = {"question_loss": (config.question_weight, h[batch.question_at], batch.question_ids)}
        if config.mask == "causal":  # the answer view continues the question, as in an ordinary language model
            read["answer_loss"] = (1.0, h[batch.answer_at], batch.answer_ids)
        for name, weight, latent in (
            ("decode_loss", config.decode_weight, z),
            ("decode_pred_loss", config.decode_pred_weight, z_hat),
        ):
            if weight:
                y = self.decode_states(latent, batch.decode_tokens).flatten(0, 1)[batch.decode_at]  # (K', C)
                read[name] = (weight, y, batch.answer_ids)
        weights, states, targets = zip(*read.values(), strict=True)
        count = [share["question" if name == "question_loss" else "answer"] for name in read]
        sizes = [len(ids) for ids in targets]
        scale = torch.cat(
            [h.new_full((k,), w / c, dtype=torch.float32) for k, w, c in zip(sizes, weights, count, strict=True)]
        )
        l_token, nll = token_loss(torch.cat(states), head, torch.cat(targets), scale)
        terms = {name: part.sum() / c for name, part, c in zip(read, nll.split(sizes), count, strict=True)}

        n = share["examples"]
        own = cosine(z_hat, target)
        l_jepa = (1 - own).sum() / n
        loss = l_token + config.jepa_weight * l_jepa
        for name, weight, term in (("variance_loss", config.vicreg_var, variance_loss),
                                   ("covariance_loss", config.vicreg_cov, covariance_loss),
                                   ("sigreg_loss", config.sigreg, sigreg_loss)):  # fmt: skip
            if weight:
                with torch.autocast(z.device.type, enabled=False):  # sums of squares over a batch want fp32
                    value = term(z.float()) + term(z_hat.float()) if len(z) > 1 else 0 * z.sum()
                terms[name] = value * (len(z) / n)
                loss = loss + weight * terms[name]

        with torch.no_grad():
            has_other = (batch.other >= 0).float()
            other = cosine(z_hat, target[batch.other]) * has_other
            control = other.sum() / has_other.sum().clamp(min=1) * (len(z) / n)
        metrics = {
            "loss": loss,
            "token_loss": l_token,
            "jepa_loss": l_jepa,
            "cos_own": own.sum() / n,
            "cos_other": control,
        }
        metrics |= terms
        return loss, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def update_target(self):
        """After an optimiser step: move the EMA target network towards the trained one."""
        if self.config.target == "ema":
            online = [*self.embed.parameters(), *self.trunk.parameters()]
            torch._foreach_lerp_(list(self.target.parameters()), online, 1 - self.config.ema_decay)

    # ---- use

    def _rows(self, rows):
        """Lists of ids -> tokens and segment (B, T), padded on the right; segment 0, padding -1."""
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=-1)
        segment = torch.where(tokens < 0, -1, 0)
        return tokens.clamp(min=0).to(self.device), segment.to(self.device)

    def _last_states(self, rows, network=None):
        """Lists of ids -> the state of each list's last token (B, C), each list a view of its own."""
        if max(map(len, rows)) > self.config.block_size:
            raise UserError(
                f"a text of {max(map(len, rows))} tokens is longer than the context of {self.config.block_size}"
            )
        tokens, segment = self._rows(rows)
        position = torch.arange(tokens.size(1), device=self.device).expand_as(tokens)
        h = self.states(tokens, segment, position, network)
        return h[torch.arange(len(rows), device=self.device), (segment >= 0).sum(1) - 1]

    def read(self, questions):
        """list of B str -> B lists of the ids that the model reads of them, without [PRED]."""
        return self.tokenizer.encode([question_text(q, self.config.answer_view) for q in questions])

    @torch.no_grad()
    def predict(self, questions):
        """list of B str -> z_hat (B, C), the latents of the answers the model expects."""
        rows = [[*q, self.tokenizer.pred] for q in self.read(questions)]
        return self.predictor(self._last_states(rows)).float()

    @torch.no_grad()
    def encode(self, answers):
        """list of B str -> z (B, C), the latents of these answers: what `predict` aims at."""
        t = self.tokenizer
        network = self.target if self.config.target == "ema" else None
        return self._last_states([[t.ans, *a, t.eos] for a in t.encode(answers)], network).float()

    @torch.no_grad()
    def decode(self, latent, max_new_tokens=None):
        """latent (B, C) -> list of B str: greedy, deterministic, at most `max_new_tokens` tokens (without [EOS])."""
        position = torch.zeros(len(latent), 1, dtype=torch.long, device=self.device)
        return self._generate(self.first_slot(latent)[:, None], position, None, None, max_new_tokens)

    @torch.no_grad()
    def answer(self, questions, max_new_tokens=None, temperature=0.0):
        """list of B str -> list of B str. Under --mask causal the ordinary way, token by token after the question; a
        program is followed by what it computes. Greedy, unless the language model is given a temperature."""
        if self.config.mask != "causal":
            return self.decode(self.predict(questions), max_new_tokens)
        t = self.tokenizer
        tokens, segment = self._rows([[*q, t.pred, t.ans] for q in self.read(questions)])
        position = torch.arange(tokens.size(1), device=self.device).expand_as(tokens)
        last = (segment >= 0).sum(1) - 1
        texts = self._generate(self.embed(tokens), position, segment, last, max_new_tokens, temperature)
        if self.config.answer_view == "program":
            return [f"{p} #### {compute(p, slots(q)[1])}" for p, q in zip(texts, questions, strict=True)]
        return texts

    def _generate(self, x, position, segment, last, max_new_tokens, temperature=0.0):
        """Embeddings x (B, T, C) -> the continuation of each row, greedy or sampled, with a key/value cache.

        Rows end at column `last` (B,), padding behind it is never attended to; None: rows have no padding.
        """
        B, T, _ = x.shape
        limit = max_new_tokens or self.config.max_new_tokens
        cache = [[] for _ in self.trunk.blocks]
        valid = torch.ones(B, T, dtype=torch.bool, device=x.device) if segment is None else segment >= 0
        last = torch.full((B,), T - 1, device=x.device) if last is None else last
        mask = jepa_mask(torch.where(valid, 0, -1), "causal")
        h = self.trunk(x, position, mask, cache)[torch.arange(B, device=x.device), last]  # (B, C)
        ids, done = [], torch.zeros(B, dtype=torch.bool, device=x.device)
        for step in range(1, limit + 1):
            logits = F.linear(h, self.embed.weight)  # (B, V)
            token = (logits / temperature).softmax(-1).multinomial(1)[:, 0] if temperature else logits.argmax(-1)
            done |= token == self.tokenizer.eos
            ids.append(token.masked_fill(done, self.tokenizer.eos))
            if done.all() or step == limit:
                break
            valid = F.pad(valid, (0, 1), value=True)
            h = self.trunk(self.embed(token)[:, None], (last + step)[:, None], valid[:, None, None, :], cache)[:, -1]
        return [self.tokenizer.decode(row[: row.index(self.tokenizer.eos)] if self.tokenizer.eos in row else row)
                for row in torch.stack(ids, 1).tolist()]  # fmt: skip

    # ---- files

    def read_tokenizer(self, find):
        folder = None if self.config.tokenizer == "gpt2" else os.path.dirname(find("tokenizer.json"))
        self.tokenizer = load_tokenizer(self.config.tokenizer, folder)


def load_run(run, device="cpu"):
    """The trained model of a run's folder, in eval mode; a UserError says what is missing or differs."""
    read_config(run, Config, f"python train.py --run {run}")
    return load_checkpoint(NanoJEPA, run, device)
