"""The trained layers around an idea: pooling or queries, which read it off hidden states, and the middle model.

Shapes: B texts, L tokens of the encoder of width H, W of the language model of width E, K ideas, D numbers of one, P
prefix length.
"""

import torch
import torch.nn as nn
from torch import Tensor

from common.options import UserError
from common.transformer import Transformer, positions_of
from latent_stack.config import StackConfig


class Pooling(nn.Module):
    """Hidden states (B, L, H), attention_mask (B, L) bool -> (B, H).

    mean         over the tokens
    attention    learned weights
    cls          the first token, and an MLP
    """

    def __init__(self, kind: str, H: int):
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(H, H), nn.Tanh(), nn.Linear(H, 1, bias=False))
        if kind == "cls":
            self.mlp = nn.Sequential(nn.Linear(H, H), nn.GELU(), nn.Linear(H, H))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        if self.kind == "cls":
            return self.mlp(hidden_states[:, 0])
        if self.kind == "mean":
            weight = attention_mask.float() / attention_mask.sum(1, keepdim=True)  # (B, L)
        else:
            score = self.score(hidden_states)[..., 0].float()
            weight = score.masked_fill(~attention_mask, float("-inf")).softmax(-1)
        return (weight[:, None].to(hidden_states.dtype) @ hidden_states)[:, 0]  # (B, 1, L) @ (B, L, H)


class Queries(nn.Module):
    """Hidden states of the encoder and words of the language model -> ideas (B, K, D), read off by a learned query.

    The query stands at the numbers 0 … P-1 of the words that the soft tokens are to say, should the text be said back.
    It, projected hidden states and projected words are one sequence of a small Transformer in which all see all; states
    and words are numbered from 0 each. Each idea is P/K of the P outputs side by side, D·K/P numbers of each, zeros
    where the text has ended. The words are what the language model itself reads: an uncased encoder has no case, and
    its last layer hardly says which of two names it was.
    """

    def __init__(self, config: StackConfig, H: int, E: int):
        super().__init__()
        K, D, P = config.ideas, config.latent_dim, config.prefix_len
        if P % K or D % 8 or D % (P // K):
            raise UserError(
                f"--ideas {K} needs a multiple of {K} as --prefix-len, not {P}, and of 8 and of its {P // max(K, 1)} "
                f"soft tokens an idea as --latent-dim, not {D}"
            )
        self.reads, self.K = config.queries_read, K
        self.project_states = nn.Linear(H, D) if self.reads != "words" else None
        self.project_words = nn.Sequential(nn.LayerNorm(E), nn.Linear(E, D)) if self.reads != "encoder" else None
        self.query = nn.Parameter(torch.empty(D))
        self.reset_parameters()
        self.trunk = Transformer(2, D, 4, config.dropout)
        self.part = nn.Linear(D, D * K // P)
        self.register_buffer("position_ids", torch.arange(P), persistent=False)

    def reset_parameters(self) -> None:
        """The query's own; its parts have theirs."""
        nn.init.normal_(self.query, std=len(self.query) ** -0.5)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """(B, L, H), (B, L) bool, words (B, W, E), (B, W) bool -> (B, K, D)."""
        B, P = len(words), len(self.position_ids)
        x, positions = [self.query.expand(B, P, -1)], [self.position_ids.expand(B, -1)]
        seen = [attention_mask.new_ones(B, P)]
        if self.reads != "words":
            x.append(self.project_states(hidden_states))
            positions.append(positions_of(hidden_states))
            seen.append(attention_mask)
        if self.reads != "encoder":
            x.append(self.project_words(words))
            positions.append(positions_of(words))
            seen.append(is_word)
        seen = torch.cat(seen, 1)[:, None, None]  # (B, 1, 1, P + L + W)
        found = self.part(self.trunk(torch.cat(x, 1), torch.cat(positions, 1), seen)[:, :P])  # (B, P, D·K/P)
        inside = self.position_ids < is_word.sum(1, keepdim=True)  # (B, P)
        return (found * inside[..., None]).reshape(B, self.K, -1)


class Middle(nn.Module):
    """Idea to idea: z (B, D) -> (B, D); of K ideas (B, K, D) -> (B, K, D), each by itself but in the transformer.

    mlp          `middle_layers` layers, GELU between them
    residual     the idea plus what such an mlp makes of it
    transformer  the idea spread over memory slots that attend to each other, then averaged; K ideas are the slots
    gru          `middle_layers` steps, each reading the first idea again
    identity     nothing: the control
    """

    def __init__(self, config: StackConfig):
        super().__init__()
        D, n = config.latent_dim, config.middle_layers
        self.kind, self.n_steps = config.middle, n
        if self.kind in ("mlp", "residual"):
            sizes = [D, *[config.middle_hidden] * (n - 1), D]
            layers = []
            for size_in, size_out in zip(sizes, sizes[1:], strict=False):
                layers += [nn.Linear(size_in, size_out), nn.GELU()]
            self.mlp = nn.Sequential(nn.LayerNorm(D), *layers[:-1])
        elif self.kind == "transformer":
            if D % 8:
                raise UserError(f"--latent-dim {D}: --middle transformer has 4 heads and needs a multiple of 8")
            if config.ideas == 1:
                self.spread = nn.Linear(D, config.memory_slots * D)
            self.trunk = Transformer(n, D, 4)
        elif self.kind == "gru":
            self.cell = nn.GRUCell(D, D)

    def forward(self, z: Tensor) -> Tensor:
        if self.kind == "mlp":
            return self.mlp(z)
        if self.kind == "residual":
            return z + self.mlp(z)
        if self.kind == "transformer":
            x = z if z.dim() == 3 else self.spread(z).view(len(z), -1, z.size(-1))  # (B, slots, D)
            all_see_all = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=z.device)
            x = self.trunk(x, positions_of(x), all_see_all)
            return x if z.dim() == 3 else x.mean(1)
        rows = h = z.flatten(0, -2)
        for _ in range(self.n_steps if self.kind == "gru" else 0):
            h = self.cell(rows, h)
        return h.view_as(z)
