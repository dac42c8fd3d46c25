"""Latent stack: an encoder makes an idea of a text, a middle model another idea of it, a language model a text of that.

    text ─► encoder (frozen) ─► (B, L, H) ─► pooling ─► compression ─► z_in (B, D)
                                                                         │  middle model
    text ◄─ language model ◄────────── [prefix (B, P, E), BOS] ◄─ expansion ◄─ z_out (B, D)

With --pooling queries a text has K ideas (--ideas): learned queries among its hidden states, and its words as the
language model reads them, replace pooling and compression, the middle model works on the set, and each idea becomes P/K
of the soft tokens. To the outside the set is one flat vector
(B, K·D), in which all that is done with one idea (a cosine, a mean, a point between two) goes on.

The prefix is the only way from the input to the output. Trained are pooling, compression, middle model and expansion,
and LoRA in the backbones if asked for. A checkpoint holds those, and the mean and standard deviation of pooled training
texts, by which they are standardised before the compression.

    loss = cross-entropy of the target given the prefix + words_weight * bag-of-words loss of the prefix

Shapes: B texts, L tokens of the encoder, W of the language model, H encoder width, K ideas, D numbers of one, P prefix
length, E language-model width, T target tokens with BOS and EOS, V vocabulary of the language model.
"""

import os
from dataclasses import replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor

from common.checkpoint import read_config
from common.model_card import Card
from common.options import UserError
from common.pretrained import PretrainedMixin, load_checkpoint
from latent_stack.backbones import Backbones, Inputs, Row, moved_kv
from latent_stack.config import StackConfig
from latent_stack.data import Batch, TokenizedDataset
from latent_stack.layers import Middle, Pooling, Queries


class LatentStack(
    PretrainedMixin,
    nn.Module,
    PyTorchModelHubMixin,
    library_name="nanojepa",
    license="mit",
    tags=["latent-reasoning"],
):
    """`model(batch) -> (loss, metrics)`; `encode(texts) -> z_in`, `think(z_in) -> z_out`, `generate(z_out) -> texts`.

    The backbones are no submodules: they move with the model, stay in eval mode, and are not in its state_dict.
    """

    on_meta = False  # backbones are read from files
    card = Card(
        about="The latent stack: a frozen encoder reads a text into one idea vector, a middle model thinks, soft "
        "tokens make a frozen language model write it down. Only what was trained is in the file.",
        figures=(("rougeL", "ROUGE-L F1 of the test split", "rougeL_shuffled", "given another text's idea"),),
        limits="One idea holds the topic of a text and few of its names and numbers; many hold its first words.",
        use="from latent_stack.model import LatentStack\n\n"
        "stack = LatentStack.from_pretrained({where!r})\n"
        'z = stack.encode(["Ana: Shall we have lunch at noon? Tom: Yes, see you there!"])\n'
        "print(stack.generate(stack.think(z)))",
    )

    def __init__(self, config: StackConfig, backbones: tuple | None = None):
        """`backbones`: ((encoder, tokenizer), (language model, tokenizer)), instead of loading what config names.

        `self.config` is a copy of `config` with the backbones' revisions, widths and hashes filled in.
        """
        super().__init__()
        self.config = self._hub_mixin_config = config = replace(config)
        self.backbones = Backbones(config, backbones)
        H, E = self.backbones.encoder_dim, self.backbones.lm_dim
        # soft tokens are measured in the standard deviation of real ones, and begin at about a fifth of it; a constant
        # of the backbone, so no part of the checkpoint
        self.prefix_scale = float(self.backbones.lm.get_input_embeddings().weight.float().std())
        D, self.has_queries = config.latent_dim, config.pooling == "queries"
        self.pooling = Queries(config, H, E) if self.has_queries else Pooling(config.pooling, H)

        self.register_buffer("origin", torch.zeros(H))  # mean of pooled training texts; for queries, of tokens
        self.register_buffer("unit", torch.ones(H))  # their standard deviation
        compress = (
            nn.LayerNorm(H),
            nn.Linear(H, config.middle_hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.middle_hidden, D),
        )
        self.compress = nn.Identity() if self.has_queries else nn.Sequential(*compress)
        self.middle = Middle(config)
        expand = (
            nn.LayerNorm(D),
            nn.Dropout(config.dropout),
            nn.Linear(D, config.middle_hidden),
            nn.GELU(),
            nn.Linear(config.middle_hidden, config.prefix_len // config.ideas * E),
        )
        self.expand = nn.Sequential(*expand)
        self.kv = None  # or idea (D,) -> what is added to the keys and values of its soft tokens in every layer
        if config.prefix_kv:
            self.kv = nn.Linear(D, config.prefix_len // config.ideas * self.backbones.kv_dim())
            nn.init.zeros_(self.kv.weight), nn.init.zeros_(self.kv.bias)
        self.lora = nn.ParameterDict(self.backbones.add_lora(config.lora_encoder, config.lora_decoder))
        self.bag_of_words = None  # a BagOfWords while it is trained with one

    # ---- the backbones

    def _apply(self, fn, recurse=True):
        """`to`, `half` and the like: the backbones move along."""
        for backbone in self.backbones.modules():
            backbone._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True):
        """The trained pieces; the backbones stay in eval mode."""
        for backbone in self.backbones.modules():
            backbone.eval()
        return super().train(mode)

    # ---- from texts to ideas to soft tokens

    def standardised(self, x: Tensor) -> Tensor:
        """Pooled texts (B, H) or hidden states (B, L, H), less what all texts have in common."""
        return (x - self.origin) / self.unit

    def idea(self, inputs: Inputs, by: tuple | None = None) -> Tensor:
        """Inputs of B texts -> z_in (B, K·D): hidden states pooled, standardised, compressed, or read off by queries.

        `by`: another (pooling, compression) than the trained one.
        """
        pooling, compress = by or (self.pooling, self.compress)
        hidden_states, mask = self.backbones.hidden_states(inputs), inputs.attention_mask
        if not self.has_queries:
            return compress(self.standardised(pooling(hidden_states, mask)))
        words = self.backbones.embed(inputs.lm_ids.clamp(min=0))  # (B, W, E)
        return pooling(self.standardised(hidden_states), mask, words, inputs.lm_ids >= 0).flatten(1)

    def one_by_one(self, z: Tensor) -> Tensor:
        """(B, K·D) -> the single ideas (B, K, D), where there are several; of short texts the first ones will do."""
        return z.view(len(z), -1, self.config.latent_dim) if self.config.ideas > 1 else z

    def think(self, z_in: Tensor, middle: nn.Module | None = None) -> Tensor:
        """z_in (B, K·D) -> z_out (B, K·D), by the middle model or another one."""
        return (middle or self.middle)(self.one_by_one(z_in)).flatten(1)

    def prefix(self, z_out: Tensor) -> Tensor:
        """Ideas (B, K·D) -> soft tokens (B, P, E) as the language model reads them; `with_kv` may add to them."""
        return self.with_kv(self.sharpened(self.soft_tokens(z_out)), z_out)

    def soft_tokens(self, z_out: Tensor) -> Tensor:
        """Ideas (B, K·D) -> (B, P, E), not yet sharpened; those of ideas read off by queries are as long as tokens."""
        soft_tokens = self.expand(self.one_by_one(z_out)).view(len(z_out), -1, self.config.decoder_dim)
        if self.has_queries:
            soft_tokens = F.normalize(soft_tokens, dim=-1) * soft_tokens.size(-1) ** 0.5
        return soft_tokens * self.prefix_scale

    def sharpened(self, soft_tokens: Tensor) -> Tensor:
        """Soft tokens (B, P, E) -> Σ softmax(cos / τ) embedding over the vocabulary, τ = --sharpen; 0: as they are.

        What follows the first that is nearest to EOS is EOS.
        """
        if not self.config.sharpen:
            return soft_tokens
        words, rows = self.backbones.lm.get_input_embeddings().weight, []
        directions = F.normalize(words.float(), dim=-1)  # (V, E)
        for row in soft_tokens:  # one text at a time: (P, V)
            cosine = F.normalize(row.float(), dim=-1) @ directions.T
            ended = (cosine.argmax(-1) == self.backbones.eos).cumsum(0) > 0
            sharp = (cosine / self.config.sharpen).softmax(-1).to(words.dtype) @ words
            rows.append(torch.where(ended[:, None], words[self.backbones.eos], sharp))
        return torch.stack(rows)

    def without_end(self, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix (B, P, …) -> (B, P', …), of a sharpened one without what follows EOS; what is read of it (B, P') bool.

        Rows end together; a shorter one begins later.
        """
        B, P = prefix.shape[:2]
        if not self.config.sharpen:
            return prefix, prefix.new_ones(B, P, dtype=torch.bool)
        eos = self.backbones.lm.get_input_embeddings().weight[self.backbones.eos]
        is_eos = (prefix[..., : len(eos)] == eos).all(-1)
        length = (P + 1 - is_eos.sum(1)).clamp(max=P)  # to the first EOS, itself among them
        index = torch.arange(int(length.max()), device=prefix.device) + (length - length.max())[:, None]
        return prefix[torch.arange(B, device=prefix.device)[:, None], index.clamp(min=0)], index >= 0

    def with_kv(self, soft_tokens: Tensor, z_out: Tensor) -> Tensor:
        """(B, P, E), (B, K·D) -> (B, P, E), with --prefix-kv (B, P, E + kv_dim): what moves keys and values follows."""
        if self.kv is None:
            return soft_tokens
        return torch.cat((soft_tokens, self.kv(self.one_by_one(z_out)).view(*soft_tokens.shape[:2], -1)), -1)

    def prefix_of(self, batch: Batch) -> Tensor:
        """Batch -> its prefix; in the stage that trains soft tokens alone those, not yet sharpened (B, P, E)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and batch.trains != "decoder"):
            z_out = self.think(self.idea(batch.inputs))
            soft_tokens = self.soft_tokens(z_out)
            if batch.trains == "soft tokens":
                return soft_tokens
            soft_tokens = self.sharpened(soft_tokens)
        return self.with_kv(soft_tokens, z_out)

    @torch.no_grad()
    def words_as_prefix(self, texts: list[str]) -> Tensor:
        """B texts -> (B, P, E): their first P words themselves, EOS behind the last, the control of ideas that say
        them."""
        eos = [self.backbones.eos] * self.config.prefix_len
        ids = [(row.lm + eos)[: len(eos)] for row in self.backbones.tokenize(texts)[0]]
        return self.backbones.embed(torch.tensor(ids, device=self.device))

    @torch.no_grad()
    def standardise(self, data: TokenizedDataset, among: int | None = None, n: int = 512, batch_size: int = 32) -> None:
        """Before training: mean and standard deviation of pooled texts, or tokens, become `origin` and `unit`.

        Measured on at most n of the first `among` texts of a split, with the pooling as it is before training. Texts of
        a kind share most of their encoding (Mu & Viswanath 2018, arXiv 1702.01417); left in, the common part makes all
        ideas alike, and a language model that can do without ideas learns to ignore them.
        """
        among = among or len(data)
        index, pooled = range(0, among, -(-among // n)), []
        for i in range(0, len(index), batch_size):
            inputs = data.batch(index[i : i + batch_size]).inputs.to(self.device)
            hidden_states, mask = self.backbones.hidden_states(inputs), inputs.attention_mask
            pooled.append((hidden_states[mask] if self.has_queries else self.pooling(hidden_states, mask)).float())
        pooled = torch.cat(pooled)  # (n, H)
        self.origin.copy_(pooled.mean(0))
        self.unit.copy_(pooled.std(0).clamp(min=1e-3) if len(pooled) > 1 else torch.ones_like(self.unit))

    # ---- training

    def logits(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """Prefix (B, P, …), BOS y1 … without EOS (B, T-1) -> logits (B, T-1, V) of the token after each."""
        embedded, lm = self.backbones.embed(tokens), self.backbones.lm
        prefix, seen = self.without_end(prefix)
        soft_tokens, moves = prefix.tensor_split((embedded.size(-1),), -1)  # (B, P, E), (B, P, kv_dim or 0)
        x = torch.cat((soft_tokens.to(embedded.dtype), embedded), 1)  # under autocast the prefix is in half precision
        seen = F.pad(seen.long(), (0, tokens.size(1)), value=1)
        masked = {}  # as fast as can be where all of it is read
        if not seen.all():
            masked = {"attention_mask": seen, "position_ids": (seen.cumsum(1) - 1).clamp(min=0)}
        with moved_kv(lm, moves):
            return lm(inputs_embeds=x, use_cache=False, logits_to_keep=tokens.size(1), **masked).logits

    def target_losses(self, prefix: Tensor, batch: Batch) -> Tensor:
        """Prefix (B, P, …), Batch -> cross-entropy of each target given them, in nats, over its tokens: (B,)."""
        given, target = batch.tokens[:, :-1].clamp(min=0), batch.tokens[:, 1:]  # padding is behind, and causal
        logits = self.logits(prefix, given).float()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="none")
        return loss.view(target.shape).sum(1)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch -> (loss, metrics): cross-entropy of the target given the prefix only, per target token.

        In training the bag-of-words loss, per token, is added with its weight; metrics have the two separately.
        """
        n = batch.loss_denominators["targets"]
        prefix = self.prefix_of(batch)
        if batch.trains == "soft tokens":
            words = self.bag_of_words(prefix, batch.tokens) / n
            return words, {"loss": words.detach()}
        loss = self.target_losses(prefix, batch).sum() / n
        metrics = {"loss": loss.detach()}
        if self.training and self.bag_of_words is not None and batch.trains == "all":
            words = self.bag_of_words(prefix, batch.tokens) / n
            loss, metrics["words"] = loss + self.config.words_weight * words, words.detach()
        return loss, metrics

    # ---- use

    @torch.no_grad()
    def encode(self, texts: list[str], batch_size: int = 32) -> Tensor:
        """B texts -> z_in (B, K·D). One beyond the encoder's window is truncated and reported; an empty one refused."""
        if isinstance(texts, str) or not len(texts):
            raise UserError("encode needs a list of texts, one or more")
        for i, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise UserError(f"text {i} of {len(texts)} is no text but a {type(text).__name__}")
            if not text.strip():
                raise UserError(f"text {i} of {len(texts)} is empty: there is nothing to make an idea of")
        rows, n_truncated = self.backbones.tokenize(list(texts))
        if n_truncated:
            print(
                f"{n_truncated} of {len(texts)} texts are longer than {self.backbones.max_input} tokens; "
                "their rest is not read"
            )
        return self.encode_rows(rows, batch_size)

    @torch.no_grad()
    def encode_rows(self, rows: list[Row], batch_size: int = 32) -> Tensor:
        """B texts as both tokenizers' ids -> z_in (B, K·D)."""
        order, z = np.argsort([len(row.encoder) for row in rows], kind="stable"), []
        for i in range(0, len(order), batch_size):  # like lengths together
            z.append(self.idea(self.backbones.pad([rows[j] for j in order[i : i + batch_size]]).to(self.device)))
        return torch.cat(z)[torch.from_numpy(np.argsort(order))]

    @torch.no_grad()
    def generate(self, z_out: Tensor, max_new_tokens: int | None = None) -> list[str]:
        """z_out (B, K·D) -> B texts, greedy and deterministic."""
        return self.generate_from_prefix(self.prefix(z_out), max_new_tokens)

    @torch.no_grad()
    def generate_from_prefix(
        self, prefix: Tensor, max_new_tokens: int | None = None, batch_size: int = 128, lora: bool = True
    ) -> list[str]:
        """Prefix (B, P, …) -> B texts: the language model, with its LoRA or without, continues it and BOS."""
        bos = self.backbones.embed(torch.tensor([[self.backbones.bos]], device=prefix.device))  # (1, 1, E)
        texts, limit = [], max_new_tokens or self.config.max_new_tokens
        with self.backbones.generating_lm(lora) as lm:
            for part in prefix.split(batch_size):
                part, seen = self.without_end(part)
                soft_tokens, moves = part.tensor_split((bos.size(-1),), -1)
                x = torch.cat((soft_tokens.to(bos.dtype), bos.expand(len(part), -1, -1)), 1)
                seen = F.pad(seen.long(), (0, 1), value=1)
                with moved_kv(lm, moves):
                    texts += self.backbones.generate(lm, limit, inputs_embeds=x, attention_mask=seen)
        return texts

    def rewrite(self, texts: list[str]) -> list[str]:
        """B texts -> B texts: encode, think, generate."""
        return self.generate(self.think(self.encode(texts)))

    # ---- files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options):
        """A run's folder or a repository on the Hub -> stack in eval mode; a UserError names what was tried.

        `options`: map_location, and those of the Hub: revision, cache_dir, force_download, token, local_files_only.
        """
        name = str(pretrained_model_name_or_path)
        is_folder = os.path.isdir(name)
        if is_folder:
            read_config(name, StackConfig, f"python -m latent_stack.train --run {name}")
        try:
            if not is_folder:  # the mixin goes on without a configuration where the Hub has none
                hub = {k: v for k, v in options.items() if k not in ("map_location", "config")}
                hf_hub_download(name, "config.json", **hub)
            return super().from_pretrained(name, **options)
        except UserError:
            raise
        except Exception as error:  # a dozen types: no network, no such name, a file missing, no name of a repository
            reason = " ".join(str(error).split())[:200]
            tried = f"{name} as a folder" + ("" if is_folder else ", then the Hugging Face Hub")
            raise UserError(f"{name} cannot be loaded ({type(error).__name__}: {reason}). Tried: {tried}") from error


def load_run(run: str, device: torch.device | str = "cpu") -> LatentStack:
    """The trained stack of a run's folder, in eval mode; a UserError reports what is missing or differs."""
    read_config(run, StackConfig, f"python -m latent_stack.train --run {run}")
    return load_checkpoint(LatentStack, run, device)
