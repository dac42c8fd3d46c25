"""A tiny Reasoner, Talker and baseline, a few trees, and one trained run: what the tests of reasoner/ are made of."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from helpers import call

from reasoner import train
from reasoner.config import ReasonerConfig
from reasoner.data import Batch, TokenizedDataset, load_examples, make_tokenizer
from reasoner.model import Reasoner

# a run of 6 steps in pretraining, 3 in each of the other phases
TINY = (
    "--n-layer 2 --n-head 2 --n-embd 32 --n-hidden 48 --talker-layer 1 --labels 12 --leaves 4 --depth 2 --n-train 96 "
    "--n-eval 12 --batch-size 32 --epochs 2 --log-every 2 --device cpu"
).split()

PROMPTS = ["3 4 ; 3 5 ; root 3 goal 5 :", "1 2 ; 1 7 ; 7 9 ; 7 8 ; root 1 goal 9 :", "0 6 ; 0 2 ; root 0 goal 2 :"]


def tiny_config(**changes) -> ReasonerConfig:
    values = dict(
        n_layer=2,
        n_head=2,
        n_embd=32,
        n_hidden=48,
        talker_layer=1,
        labels=12,
        leaves=4,
        depth=3,
        n_train=32,
        n_eval=16,
        batch_size=16,
        max_chain=6,
        device="cpu",
    )
    config = ReasonerConfig(**values | changes)
    return replace(config, vocab_size=make_tokenizer(config, ()).n_vocab)


def tiny_model(cls, seed: int = 0, **changes):
    """An untrained model in eval mode."""
    torch.manual_seed(seed)
    config = tiny_config(**changes)
    model = cls(config)
    model.tokenizer = make_tokenizer(config, ())
    return model.eval()


def whole_batch(config: ReasonerConfig, split: str = "train") -> Batch:
    """All examples of a split in one batch."""
    examples = load_examples(split, config)
    data = TokenizedDataset(examples, make_tokenizer(config, ()), config.block_size, n_thoughts=config.n_thoughts)
    return data.batch(range(len(data)))


def perfect_reasoner(examples: list) -> tuple[Reasoner, list[torch.Tensor]]:
    """A Reasoner, and for each example a chain (R, C) of exactly the correct embeddings."""
    reasoner = tiny_model(Reasoner, trained="sst")
    t = reasoner.tokenizer
    rows = [torch.tensor([*ids, t.eos]) for ids in t.encode([x.chain for x in examples])]
    return reasoner, [F.normalize(reasoner.target(row), dim=-1).detach() for row in rows]


@cache
def trained_run() -> SimpleNamespace:
    """One complete run of all phases, trained once for all tests that only look at it -> `run`, what it printed."""
    folder = tempfile.TemporaryDirectory(prefix="reasoner")
    run = Path(folder.name) / "whole"
    done = call(train, *TINY, "--run", run)
    return SimpleNamespace(run=run, stdout=done.stdout, folder=folder)  # removed when the tests end
