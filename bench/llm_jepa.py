"""The peer: Hugging Face's GPT-2 trained as LLM-JEPA was first published, a pass for the text and one for each view.

LLM-JEPA (Huang, LeCun, Balestriero 2025, arXiv 2509.14252, section 3): cross-entropy on question and answer, plus
lambda * (1 - cos) between the last hidden states of [question, predictor token] and of the answer, each view encoded in
a forward pass of its own. Same depth, width, vocabulary and examples as ours; transformers' own model and loss.

Shapes: B examples, T tokens of the longest row, C width.
"""

import torch
import torch.nn as nn
from torch import Tensor

from common.batching import pad
from common.losses import cosine
from common.tokenizers import Tokenizer
from config import Config


class LLMJEPA(nn.Module):
    """GPT-2 of the configuration's size; `loss(pairs)` takes (question ids, answer ids) of B examples."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        size = GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=tokenizer.ans,
            eos_token_id=tokenizer.eos,
        )
        self.gpt2, self.tokenizer, self.lam = GPT2LMHeadModel(size), tokenizer, config.jepa_weight

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Lists of ids -> ids and attention mask (B, T), padded on the right."""
        ids = pad(rows, -1).to(self.gpt2.device)
        return ids.clamp(min=0), (ids >= 0).long()

    def _latent(self, rows: list[list[int]]) -> Tensor:
        """Lists of ids -> the last hidden state of each (B, C), in a forward pass of its own."""
        ids, mask = self._padded(rows)
        h = self.gpt2.transformer(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, C)
        return h[torch.arange(len(rows), device=h.device), mask.sum(1) - 1]

    def loss(self, pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (loss, its terms)."""
        t = self.tokenizer
        ids, mask = self._padded([[*q, t.ans, *a, t.eos] for q, a in pairs])
        labels = ids.masked_fill(mask == 0, -100)
        token_loss = self.gpt2(input_ids=ids, attention_mask=mask, labels=labels).loss
        z_hat, z = self._latent([[*q, t.pred] for q, _ in pairs]), self._latent([[*a, t.eos] for _, a in pairs])
        jepa_loss = (1 - cosine(z_hat, z)).mean()
        return token_loss + self.lam * jepa_loss, {"token_loss": token_loss, "jepa_loss": jepa_loss}
