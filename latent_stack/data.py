"""Pairs of texts as the stack reads them: the input for the encoder, the target for the language model.

One batch of two pairs, "Ana has two coins" -> "There are two" and "Ben lost one" -> "One is gone now", words as tokens:

    input_ids        [CLS]   Ana   has   two coins [SEP]      the encoder reads
                     [CLS]   Ben  lost   one [SEP] [PAD]
    attention_mask       1     1     1     1     1     1      the pooling counts
                         1     1     1     1     1     0

    tokens           <bos> There   are   two <eos>    -1      -1: behind the end
                     <bos>   One    is  gone   now <eos>

    reads   s1 … sP  <bos> There   are   two                  the language model, after P soft tokens made of the idea
    predicts         There   are   two <eos>

A target that is truncated at --max-target has no <eos>: it does not end where it was cut.

Shapes: B pairs, L input tokens, T target tokens with BOS and EOS, H encoder width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.batching import BatchMixin, pad
from latent_stack.backbones import Backbones, Inputs
from latent_stack.cache import CACHE, cached_hidden_states
from latent_stack.config import StackConfig
from latent_stack.pairs import Pair


@dataclass
class Batch(BatchMixin):
    """B pairs.

    inputs             Inputs of B texts
    tokens             (B, T) int64: BOS y1 … EOS, -1 behind it
    loss_denominators  {"targets": predicted tokens of the whole optimiser step}, what summed losses are divided by
    trains             "soft tokens" without the language model, "decoder": its LoRA given fixed soft tokens, or "all"
    """

    inputs: Inputs
    tokens: Tensor
    loss_denominators: dict[str, float]
    trains: str = "all"

    @property
    def n_tokens(self) -> int:
        """Tokens of inputs and targets, without padding."""
        return int(self.inputs.attention_mask.sum() + (self.tokens >= 0).sum())


class TokenizedDataset:
    """A split as token ids; what is truncated is counted and printed."""

    def __init__(self, pairs: list[Pair], backbones: Backbones, config: StackConfig, where: str = "data"):
        self.pairs, self.backbones, self.config, self.where = pairs, backbones, config, where
        self.inputs, n_truncated = backbones.tokenize([p.input for p in pairs])
        self._report(n_truncated, "inputs", "max-input", backbones.max_input)

        found = backbones.lm_tokenizer([p.target for p in pairs], add_special_tokens=False)["input_ids"]
        limit = config.max_target
        option = "pretrain-tokens" if where == "sentences" else "max-target"
        self._report(sum(len(ids) > limit for ids in found), "targets", option, limit)
        self.targets = [
            [backbones.bos, *ids, backbones.eos] if len(ids) <= limit else [backbones.bos, *ids[:limit]]
            for ids in found
        ]
        self.length = np.array([len(ids) for ids in self.targets])
        self.cached = None  # hidden states, where `cache` was called

    def _report(self, n: int, what: str, option: str, limit: int) -> None:
        if n:
            print(f"{self.where}: {n} of {len(self.pairs)} {what} truncated at --{option} {limit} tokens")

    def __len__(self) -> int:
        return len(self.pairs)

    def cache(self, folder: str | Path = CACHE) -> "TokenizedDataset":
        """Read the frozen encoder's hidden states from the cache on disk, into which they are written if need be."""
        self.cached = cached_hidden_states(self.backbones, self.inputs, self.config.encoder_hash, folder, self.where)
        return self

    def loss_denominators(self, index: Sequence[int] | slice) -> dict[str, float]:
        """Target tokens that are predicted: all but BOS."""
        return {"targets": float((self.length[index] - 1).sum())}

    def batch(self, index: Sequence[int], denominators: dict[str, float] | None = None) -> Batch:
        """Pairs `index` (B,) -> Batch; `denominators`: those of the optimiser step, where it is more than these."""
        inputs = self.backbones.pad([self.inputs[i] for i in index])
        if self.cached is not None:
            inputs.hidden_states = pad_sequence([self.cached[i] for i in index], batch_first=True)
        tokens = pad([self.targets[i] for i in index], -1)
        return Batch(inputs, tokens, denominators or self.loss_denominators(index))
