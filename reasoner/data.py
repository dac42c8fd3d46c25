"""Prompts and chains as rows of token ids, and batches of them.

    one row  p1 p2 … pn c1 c2 … cR [EOS] (padding)        the chain's latents are predicted at pn, c1, … cR

One batch of two strings of a toy grammar, token by token:

    column            0      1      2      3      4      5      6      7
    tokens            a      c      b      :     S1     A2  [EOS]  [PAD]     start 4, length 7
                      b      a      :     S2     C1     A1     B2  [EOS]     start 3, length 8
    all_ids           c      b      :     S1     A2  [EOS]      -      -     what a column predicts; columns: all_at
                      a      :     S2     C1     A1     B2  [EOS]      -
    chain_ids         -      -      -     S1     A2  [EOS]      -      -     of these the chain's; columns: chain_at
                      -      -     S2     C1     A1     B2  [EOS]      -

    chain            S1     A2  [EOS]     -1     -1                          (B, R)
                     S2     C1     A1     B2  [EOS]
    latents          r1     r2     r3      0      0                          (B, R, C): r1 is the prediction at ":"
                     r1     r2     r3     r4     r5

Under --model coconut thought positions, [PRED], stand between ":" and the chain; they are no targets.

Shapes: B rows, T tokens a row, R chain tokens with [EOS], N examples, K positions that predict a chain token.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import tokenizers
from common.batching import BatchMixin
from common.checkpoint import write_json
from common.options import UserError
from common.tokenizers import Tokenizer
from reasoner.config import QUESTIONS, ReasonerConfig
from reasoner.corpus import Passages, passages, tokenized_on_disk
from reasoner.routes import routes
from reasoner.tasks import TERMINALS, Example, clues, derivations, grammar, solutions, trees

BPE_EXAMPLES = 100_000  # a BPE is trained on so many at most


def load_examples(split: str, config: ReasonerConfig) -> list[Example] | Passages:
    """The examples of one split; of text its passages, not yet read."""
    if config.data_dir and config.dataset not in ("gsm8k", "mwp", "text"):
        raise UserError(f"--data-dir {config.data_dir}: --dataset {config.dataset} is generated and reads no folder")
    if config.dataset == "text":
        return passages(split, config)
    if config.dataset in QUESTIONS:
        return solutions(split, config)
    generate = {"tree": trees, "clue": clues, "routes": routes, "cfg": derivations}[config.dataset]
    return generate(split, config.n_train if split == "train" else config.n_eval, config)


# ------------------------------------------------------------------------------------------- tokenizers


class WordTokenizer(Tokenizer):
    """One token a word, words being what a tree or a string consists of."""

    def __init__(self, words: Iterable[str]):
        self.words = list(words)
        self.id_of = {word: i for i, word in enumerate(self.words)}
        super().__init__(len(self.words))

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Texts -> ids; a UserError names a word that is none."""
        try:
            return [[self.id_of[word] for word in text.split()] for text in texts]
        except KeyError as error:
            first, last = " ".join(self.words[:4]), " ".join(self.words[-4:])
            raise UserError(f"{error.args[0]!r} is not a word of this model; its words are {first} … {last}") from None

    def text(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / "tokenizer.json", {"words": self.words})


def make_tokenizer(config: ReasonerConfig, examples: Iterable[Example]) -> Tokenizer:
    """The data's tokenizer: one word a token for trees and strings, a trained BPE or GPT-2's for text."""
    if config.dataset in ("tree", "clue", "routes"):
        return WordTokenizer([*map(str, range(config.labels)), ";", "root", "goal", ":"])
    if config.dataset == "cfg":
        return WordTokenizer([*TERMINALS, *(f"{x}{i}" for x in grammar(config.levels) for i in (1, 2)), ":"])
    some = islice(examples, BPE_EXAMPLES)
    return tokenizers.train_tokenizer(config.tokenizer, (text for x in some for text in (x.prompt, x.chain) if text))


def load_tokenizer(config: ReasonerConfig, folder: str | Path) -> Tokenizer:
    """The tokenizer of the checkpoint in `folder`."""
    if config.dataset in (*QUESTIONS, "text"):
        return tokenizers.load_tokenizer(config.tokenizer, folder)
    path = Path(folder) / "tokenizer.json"
    try:
        return WordTokenizer(json.loads(path.read_text(encoding="utf-8"))["words"])
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{path}: not the list of words this checkpoint was trained with ({error})") from None


# ---------------------------------------------------------------------------------------------- batches


@dataclass
class Batch(BatchMixin):
    """B rows of prompt, chain and [EOS]. Indices are int64; `chain_at`, `all_at` index flat positions of `tokens`.

    tokens              (B, T)
    start               (B,)    column of the chain's first token
    length              (B,)    length of the row
    chain_at, chain_ids (K,)    positions that predict a chain token or [EOS], and that token
    all_at, all_ids     (K',)   positions that predict any next token, and that token
    chain               (B, R)  the chain's tokens with [EOS], -1 behind it
    latent_at           (K,)    flat positions of `chain`, and so of latents (B, R, C), where `chain_ids` stand
    prompt_width        int     length of the longest prompt, without thought positions
    loss_denominators   floats  chain tokens ("chain") and all tokens ("all") of the whole optimiser step
    latents             (B, R, C) or None: the Reasoner's, where a Talker is trained
    """

    tokens: Tensor
    start: Tensor
    length: Tensor
    chain_at: Tensor
    chain_ids: Tensor
    all_at: Tensor
    all_ids: Tensor
    chain: Tensor
    latent_at: Tensor
    prompt_width: int
    loss_denominators: dict[str, float]
    latents: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Real tokens: all but padding."""
        return int(self.length.sum())

    def targets(self, which: str) -> tuple[Tensor, Tensor]:
        """ "all" or "chain" -> the positions of that kind, and the tokens that they predict."""
        return (self.all_at, self.all_ids) if which == "all" else (self.chain_at, self.chain_ids)

    def is_chain(self) -> Tensor:
        """(B, T) bool: the columns in which a chain token or its [EOS] stands."""
        column = torch.arange(self.tokens.size(1), device=self.tokens.device)
        return (column >= self.start[:, None]) & (column < self.length[:, None])


class TokenizedDataset:
    """A split as arrays of token ids; `length` (N,) and `chain_length` (N,), with [EOS], count tokens."""

    def __init__(
        self, examples: list[Example], tokenizer: Tokenizer, block_size: int, where: str = "data", n_thoughts: int = 0
    ):
        """Examples that do not fit `block_size` are left out, counted and reported."""
        self.tokenizer, self.n_thoughts = tokenizer, n_thoughts
        thoughts = [tokenizer.pred] * n_thoughts
        prompts = [[*(ids or [tokenizer.ans]), *thoughts] for ids in tokenizer.encode([x.prompt for x in examples])]
        chains = [[*ids, tokenizer.eos] for ids in tokenizer.encode([x.chain for x in examples])]
        total = np.array([len(p) + len(c) for p, c in zip(prompts, chains, strict=True)])
        kept = np.flatnonzero(total <= block_size)
        if len(kept) < len(total):
            print(
                f"{where}: left out {len(total) - len(kept)} of {len(total)} examples longer than --block-size "
                f"{block_size} tokens (the longest needs {total.max()})"
            )
        if not len(kept):
            raise UserError(f"{where}: no example fits --block-size {block_size}")

        self.length = total[kept]
        self.chain_length = np.array([len(chains[i]) for i in kept])
        self.start = np.cumsum(self.length) - self.length
        self.tokens = np.fromiter((token for i in kept for token in (*prompts[i], *chains[i])), np.int64)

    def __len__(self) -> int:
        return len(self.length)

    def rows(self, index) -> Iterator[np.ndarray]:
        """Token ids of examples `index`, an array each."""
        return (self.tokens[self.start[i] : self.start[i] + self.length[i]] for i in index)

    def loss_denominators(self, index) -> dict[str, float]:
        """What summed losses over examples `index` are divided by to be means."""
        return {
            "chain": float(self.chain_length[index].sum()),
            "all": float((self.length[index] - 1 - self.n_thoughts).sum()),
        }

    def batch(self, index, denominators: dict[str, float] | None = None) -> Batch:
        """Examples `index` (B,) -> Batch; without `denominators` its losses are means over itself."""
        length, chain_length = self.length[index], self.chain_length[index]
        start = length - chain_length
        tokens = np.full((len(index), length.max()), self.tokenizer.pad)  # (B, T)
        for row, ids in zip(tokens, self.rows(index), strict=True):
            row[: len(ids)] = ids
        column = np.arange(tokens.shape[1])  # (T,)

        has_next = column < length[:, None] - 1  # (B, T)
        before_chain = column < start[:, None] - 1
        before_thought = before_chain & (column >= start[:, None] - 1 - self.n_thoughts)
        chain_at, all_at = np.flatnonzero(has_next & ~before_chain), np.flatnonzero(has_next & ~before_thought)
        chain_ids, all_ids = tokens.ravel()[chain_at + 1], tokens.ravel()[all_at + 1]

        is_chain = np.arange(chain_length.max()) < chain_length[:, None]  # (B, R)
        chain = np.full(is_chain.shape, -1)
        chain[is_chain] = chain_ids
        arrays = dict(
            tokens=tokens,
            start=start,
            length=length,
            chain_at=chain_at,
            chain_ids=chain_ids,
            all_at=all_at,
            all_ids=all_ids,
            chain=chain,
            latent_at=np.flatnonzero(is_chain),
        )
        return Batch(
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            prompt_width=int(start.max()) - self.n_thoughts,
            loss_denominators=denominators or self.loss_denominators(index),
        )


class TokenizedPassages(TokenizedDataset):
    """Passages as token ids in an Arrow file on disk: tokenized as they stream in, never in memory whole."""

    def __init__(
        self, passages: Passages, tokenizer: Tokenizer, block_size: int, where: str = "data", n_thoughts: int = 0
    ):
        """Passages are cut off at `block_size`, counted and reported."""
        self.tokenizer, self.n_thoughts = tokenizer, n_thoughts
        self.stored = tokenized_on_disk(passages, tokenizer, block_size, n_thoughts)
        self.length = self.stored["length"][:].astype(np.int64)
        self.chain_length = self.length - 1 - n_thoughts
        print(
            f"{where}: {len(self):,} passages, {self.length.sum():,} tokens; {self.stored['cut'][:].sum():,} passages "
            f"cut off at --block-size {block_size}"
        )

    def rows(self, index):
        return self.stored[index]["tokens"]
