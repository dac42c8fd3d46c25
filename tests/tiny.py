"""A tiny nanoJEPA and a few word problems: what most tests are made of."""

import torch

from common.sources import Example
from common.tokenizers import train_tokenizer
from common.word_problems import word_problems
from config import Config
from data import TokenizedDataset, view_texts
from model import NanoJEPA

PROBLEMS = word_problems("train", 64)
QUESTIONS, ANSWERS = [e.question for e in PROBLEMS], [e.answer for e in PROBLEMS]
TOKENIZER = train_tokenizer("bpe:400", view_texts(PROBLEMS, "answer"))

# train.py's options for a run of 24 steps and two epochs
TINY = (
    "--dataset wordproblems --tokenizer bpe:400 --n-layer 2 --n-head 2 --n-embd 16 --dropout 0.1 "
    "--n-train 192 --batch-size 16 --epochs 2 --log-every 4 --device cpu"
).split()


def tiny_config(**changes) -> Config:
    values = dict(
        dataset="wordproblems",
        tokenizer="bpe:400",
        vocab_size=TOKENIZER.n_vocab,
        n_layer=2,
        n_head=2,
        n_embd=32,
        block_size=128,
        dropout=0.0,
        batch_size=8,
        device="cpu",
    )
    return Config(**values | changes)


def tiny_model(seed: int = 0, **changes) -> NanoJEPA:
    torch.manual_seed(seed)
    model = NanoJEPA(tiny_config(**changes))
    model.tokenizer = TOKENIZER
    return model


def tiny_data(examples: list[Example] = PROBLEMS, **changes) -> TokenizedDataset:
    return TokenizedDataset(examples, TOKENIZER, tiny_config(**changes))
