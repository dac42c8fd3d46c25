"""The Transformer of all three systems: pre-norm blocks, rotary positions, a SiLU-gated feed-forward network.

Shapes: B rows, T tokens a row, T' keys (T, or more with a cache), C width, H heads, D = C/H, L blocks.
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from common.options import UserError


def rotary_cos_sin(position_ids: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): position_ids (B, T) -> cosine and sine (B, 1, T, D/2, 2)."""
    frequency = base ** (-torch.arange(0, dim, 2, device=position_ids.device, dtype=torch.float32) / dim)
    angle = position_ids[:, None, :, None].float() * frequency  # (B, 1, T, D/2)
    return torch.stack((angle.cos(), angle.sin()), -1)


def apply_rotary_emb(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of x (B, H, T, D) by the angles of `cos_sin` (B, 1, T, D/2, 2)."""
    if x.device.type == "cpu":  # one fused complex product instead of six passes over memory
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, H, T, D/2)
        return torch.view_as_real(pairs * torch.view_as_complex(cos_sin)).flatten(-2).type_as(x)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_sin.unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


class Attention(nn.Module):
    """Multi-head attention with rotary positions; optionally QK-Norm without parameters.

    Under QK-Norm a logit is a cosine times a constant: 12, which Henry et al. 2020 (arXiv 2010.04245) begin with for
    about 64 tokens, log2(L² - L). With D^½ heads of 24 or 32 channels could not look at a single token.
    """

    def __init__(self, n_embd: int, n_head: int, qk_norm: bool):
        super().__init__()
        self.n_head, self.qk_norm = n_head, qk_norm
        self.scale = 12 * n_head / n_embd if qk_norm else None  # rms_norm leaves vectors of norm D^½
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, cos_sin: Tensor, mask: Tensor | None, cache: list | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 × (B, H, T, D)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        q, k = apply_rotary_emb(q, cos_sin), apply_rotary_emb(k, cos_sin)
        if cache is not None:  # earlier keys and values, (B, H, T' - T, D) each
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = k, v
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Pre-norm Transformer block with a SiLU-gated feed-forward network (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, n_embd, n_head, dropout, norm, qk_norm=False, n_hidden=None):
        super().__init__()
        hidden = n_hidden or -(-8 * n_embd // 3 // 32) * 32  # two thirds of 4C: a gate costs a third matrix
        self.norm1, self.norm2 = norm(n_embd), norm(n_embd)
        self.attn = Attention(n_embd, n_head, qk_norm)
        self.up = nn.Linear(n_embd, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, n_embd, bias=False)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.norm2(x)).chunk(2, -1)
        return self.down(F.silu(gate) * value)

    def forward(self, x: Tensor, cos_sin: Tensor, mask: Tensor | None, cache: list | None = None) -> Tensor:
        x = x + self.dropout(self.attn(self.norm1(x), cos_sin, mask, cache))
        return x + self.dropout(self.feed_forward(x))


def init_block_weights(module: nn.Module, n_embd: int, n_layer: int) -> None:
    """Normal weights of standard deviation C^-½; residual branches start small, so that depth does not grow the
    stream (GPT-2)."""
    for name, p in module.named_parameters():
        if p.dim() == 2:
            residual = name.endswith(("proj.weight", "down.weight"))
            nn.init.normal_(p, std=n_embd**-0.5 * ((2 * n_layer) ** -0.5 if residual else 1))


class Transformer(nn.Module):
    """(B, T, C) embeddings in, (B, T, C) normalised hidden states out.

    `norm` is LayerNorm without bias by default: on a CPU it is one fused kernel, RMSNorm is six. With `ends` off what
    comes in and what goes out is left as it is.
    """

    def __init__(
        self,
        n_layer: int,
        n_embd: int,
        n_head: int,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] | None = None,
        qk_norm: bool = False,
        n_hidden: int | None = None,
        ends: bool = True,
    ):
        super().__init__()
        if n_embd % (2 * n_head):
            raise UserError(f"--n-embd {n_embd} must be a multiple of twice --n-head {n_head}")
        norm = norm or (lambda c: nn.LayerNorm(c, bias=False))
        self.head_dim = n_embd // n_head
        self.dropout = nn.Dropout(dropout)
        self.norm_in, self.norm_out = (norm(n_embd) if ends else nn.Identity() for _ in range(2))
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout, norm, qk_norm, n_hidden) for _ in range(n_layer))
        init_block_weights(self, n_embd, n_layer)

    def forward(self, x: Tensor, position_ids: Tensor, mask: Tensor | None = None, cache: list | None = None) -> Tensor:
        """x (B, T, C), position_ids (B, T), mask (B, 1, T, T') bool or None for causal -> (B, T, C).

        `cache`, a list of L lists, receives and contributes the keys and values of earlier calls.
        """
        cos_sin = rotary_cos_sin(position_ids, self.head_dim)
        x = self.dropout(self.norm_in(x))
        for block, seen in zip(self.blocks, cache or [None] * len(self.blocks), strict=True):
            x = block(x, cos_sin, mask, seen)
        return self.norm_out(x)


def positions_of(x: Tensor) -> Tensor:
    """x (B, T, …) -> position_ids 0 … T-1 (B, T)."""
    return torch.arange(x.size(1), device=x.device).expand(x.shape[:2])
