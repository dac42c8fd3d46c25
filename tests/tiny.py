"""A tiny nanoJEPA and a few word problems: what most tests are made of."""

import torch

from config import Config
from data import Encoded, train_tokenizer, word_problems
from model import NanoJEPA

PROBLEMS = word_problems("train", 64)
TOKENIZER = train_tokenizer("bpe:400", PROBLEMS)


def tiny_config(**changes):
    values = dict(dataset="wordproblems", tokenizer="bpe:400", n_layer=2, n_head=2, n_embd=32, block_size=128,
                  dropout=0.0, vocab_size=TOKENIZER.n_vocab, batch_size=8, device="cpu")  # fmt: skip
    return Config(**values | changes)


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = NanoJEPA(tiny_config(**changes))
    model.tokenizer = TOKENIZER
    return model


def encoded(examples=PROBLEMS, **changes):
    config = tiny_config(**changes)
    return Encoded(examples, TOKENIZER, config.block_size, isolated=config.mask != "causal")
