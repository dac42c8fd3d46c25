"""Tiny random backbones, a stack on them, and one trained run: what the tests of latent_stack/ are made of."""

import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from helpers import call
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from latent_stack import train
from latent_stack.config import StackConfig
from latent_stack.data import TokenizedDataset
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair, paraphrases

PAIRS = paraphrases("train", 48)
TEXTS = [p.input for p in PAIRS]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<bos>", "<eos>"]


def word_tokenizer() -> Tokenizer:
    """WordPiece of 300 entries, trained on the inputs of PAIRS."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    words.train_from_iterator(TEXTS, trainer)
    ends = [(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return words


@cache
def backbones() -> Path:
    """Folder of a tiny ModernBERT, encoder/, and a tiny GPT-2, lm/, with random weights and a tokenizer each."""
    folder = Path(_temporary("backbones"))
    words = word_tokenizer()
    n_vocab = words.get_vocab_size()
    special = dict(bos_token_id=4, eos_token_id=5)
    torch.manual_seed(0)
    encoder = transformers.ModernBertConfig(
        vocab_size=n_vocab,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        **special,
    )
    transformers.ModernBertModel(encoder).save_pretrained(folder / "encoder")
    lm = transformers.GPT2Config(
        vocab_size=n_vocab, n_embd=24, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3, **special
    )
    transformers.GPT2LMHeadModel(lm).save_pretrained(folder / "lm")

    fast = transformers.PreTrainedTokenizerFast
    names = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    fast(tokenizer_object=words, **names).save_pretrained(folder / "encoder")
    fast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder / "lm")
    return folder


_folders = []  # removed when the tests end


def _temporary(name: str) -> str:
    _folders.append(tempfile.TemporaryDirectory(prefix=name))
    return _folders[-1].name


def tiny_stack(seed: int = 0, folder: Path | None = None, **changes) -> LatentStack:
    """An untrained stack in eval mode; `folder`: another than that of `backbones()`."""
    folder = folder or backbones()
    values = dict(
        encoder=str(folder / "encoder"),
        decoder=str(folder / "lm"),
        latent_dim=16,
        middle_hidden=24,
        prefix_len=5,
        dropout=0.0,
        max_input=48,
        dataset="paraphrase",
        device="cpu",
    )
    torch.manual_seed(seed)
    return LatentStack(StackConfig(**values | changes)).eval()


def tokenized(pairs: list[Pair], model: LatentStack, where: str = "data") -> TokenizedDataset:
    return TokenizedDataset(pairs, model.backbones, model.config, where)


def options(run: Path | str) -> list[str]:
    """A command line that trains 12 steps on the tiny backbones."""
    folder = backbones()
    small = (
        "--latent-dim 16 --middle-hidden 24 --prefix-len 5 --max-input 48 --dataset paraphrase --n-train 48 "
        "--batch-size 8 --epochs 1 --n-eval 12 --max-new-tokens 8 --log-every 2 --device cpu --no-cache --reconstruct"
    ).split()
    return ["--encoder", str(folder / "encoder"), "--decoder", str(folder / "lm"), *small, "--run", str(run)]


@cache
def trained_run() -> SimpleNamespace:
    """One complete run, trained once for all tests that only look at it -> `run`, and what it printed."""
    run = Path(_temporary("latent")) / "whole"
    return SimpleNamespace(run=run, stdout=call(train, *options(run)).stdout)


# ------------------------------------------------------------------------------------ saying back

SEVERAL = dict(pooling="queries", ideas=4, prefix_len=8)


def texts_folder(folder: Path) -> Path:
    """Texts of two kinds, and a test file that repeats one of their sentences."""
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("\n".join(p.input for p in PAIRS), encoding="utf-8")
    (folder / "more" / "b.jsonl").write_text('{"question": "Is it late? It is."}\n{"none": 1}\n', encoding="utf-8")
    tested = [TEXTS[0], *(p.target for p in PAIRS[:20])]
    (folder / "more" / "test.txt").write_text("\n".join(tested), encoding="utf-8")
    return folder


def words_for(run: Path, folder: Path) -> list:
    small = "--pooling queries --ideas 4 --prefix-len 8 --dropout 0.1 --save-every 2"
    stages = "--pretrain-words 2 --pretrain-steps 4 --pretrain-tokens 12"
    return [*options(run), *small.split(), *stages.split(), "--pretrain", folder]


@cache
def said_back() -> Path:
    """A run with both stages before the task."""
    folder = Path(_temporary("said-back"))
    call(train, *words_for(folder / "run", texts_folder(folder / "texts")))
    return folder / "run"
