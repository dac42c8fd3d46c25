"""Text <-> token ids: GPT-2's vocabulary, or a byte-level BPE trained on the training split.

"47 pears" under the trained BPE: 4·10  7·1  " pears", a token for every digit *at its place*.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from common.checkpoint import atomic
from common.options import UserError

SPECIAL = ("[PRED]", "[ANS]", "[EOS]", "[PAD]")


class Tokenizer:
    """`pred`, `ans`, `eos`, `pad` are the ids of the special tokens, which no text encodes to.

    `n_vocab` counts everything and is rounded up to a multiple of 64, which GPUs' matrix units like.
    """

    def __init__(self, n_text: int):
        self.pred, self.ans, self.eos, self.pad = range(n_text, n_text + len(SPECIAL))
        self.n_text, self.n_vocab = n_text, -(-(n_text + len(SPECIAL)) // 64) * 64

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Texts -> ids; text that spells a special token stays plain text."""
        raise NotImplementedError

    def text(self, ids: list[int]) -> str:
        """ids, none special -> text."""
        raise NotImplementedError

    def piece(self, id: int) -> str:
        """An id that is not special -> a readable string."""
        return self.text([id])

    def pieces(self, ids: list[int]) -> list[str]:
        """ids -> one readable string a token."""
        return [self.piece(i) if i < self.n_text else SPECIAL[min(i - self.n_text, len(SPECIAL) - 1)] for i in ids]

    def decode(self, ids: list[int]) -> str:
        """ids -> text; special tokens, which no answer should hold, stay visible as [PRED] and the like."""
        return self.text(ids) if all(i < self.n_text for i in ids) else "".join(self.pieces(ids))

    def until_eos(self, ids: list[int]) -> list[int]:
        """ids up to the first [EOS], without it."""
        return ids[: ids.index(self.eos)] if self.eos in ids else ids

    def save(self, folder: str | Path) -> None:
        """Write what loading needs and no package already has."""


class GPT2Tokenizer(Tokenizer):
    """GPT-2's 50,257 byte-pair tokens, by tiktoken."""

    def __init__(self):
        try:
            self.encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # whatever the HTTP stack raises when there is no network
            raise UserError(
                f"could not download the gpt2 vocabulary ({type(error).__name__}). Without a network: --tokenizer "
                "bpe:4096, or TIKTOKEN_CACHE_DIR at a folder where tiktoken has cached it"
            ) from error
        super().__init__(self.encoding.n_vocab)

    def encode(self, texts):
        return self.encoding.encode_ordinary_batch(texts)

    def text(self, ids):
        return self.encoding.decode(ids)

    def piece(self, id):
        return self.encoding.decode_single_token_bytes(id).decode("utf-8", "replace")


class BPETokenizer(Tokenizer):
    """A byte-level BPE whose numbers are digits at their places: ten digits at up to eight places, 80 tokens.

    A model that must first count how many digits follow learns arithmetic late or not at all (Nogueira et al. 2021,
    arXiv 2102.13019, compare ways of writing a number; place markers do best).
    """

    PLACES = 8
    FIRST = 0xE000  # digit d at place p is the private-use character FIRST + 10 p + d while the BPE sees the text

    def __init__(self, bpe: tokenizers.Tokenizer):
        self.bpe = bpe
        super().__init__(bpe.get_vocab_size())

    @classmethod
    def _mark(cls, text: str) -> str:
        """'47' -> the characters of 4 at place 1 and 7 at place 0."""

        def marked(run):
            digits = run[0]
            places = (min(place, cls.PLACES - 1) for place in range(len(digits) - 1, -1, -1))
            return "".join(chr(cls.FIRST + 10 * p + int(d)) for p, d in zip(places, digits, strict=True))

        return re.sub(r"[0-9]+", marked, text)

    @classmethod
    def _unmark(cls, text: str) -> str:
        return "".join(str((ord(c) - cls.FIRST) % 10) if 0 <= ord(c) - cls.FIRST < 10 * cls.PLACES else c for c in text)

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int, keep_spaces: bool = False) -> "BPETokenizer":
        """Texts -> a tokenizer of `n_vocab` entries in all (fewer if the texts hold fewer merges).

        With `keep_spaces` a space before a number is a token of its own, and decoding gives back the very text.
        """
        bpe = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.Split(tokenizers.Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s"), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
        bpe.decoder = decoders.ByteLevel()
        digits = [chr(cls.FIRST + i) for i in range(10 * cls.PLACES)]
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab - len(SPECIAL) - len(digits),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        bpe.train_from_iterator((re.sub("[0-9]", "", text) for text in texts), trainer)
        bpe.add_tokens([tokenizers.AddedToken(c, lstrip=not keep_spaces, normalized=False) for c in digits])
        return cls(bpe)

    def encode(self, texts):
        return [e.ids for e in self.bpe.encode_batch([self._mark(t) for t in texts])]

    def text(self, ids):
        """A number sticks to the word before it, since its space is not a token."""
        return self._unmark(self.bpe.decode(ids))

    def save(self, folder):
        with atomic(Path(folder) / "tokenizer.json") as path:
            self.bpe.save(str(path))


def train_tokenizer(name: str, texts: Iterable[str], keep_spaces: bool = False) -> Tokenizer:
    """`gpt2`, or `bpe:N` trained on the texts."""
    if name == "gpt2":
        return GPT2Tokenizer()
    kind, _, size = name.partition(":")
    if kind != "bpe" or not size.isdecimal() or int(size) < 340:
        raise UserError(
            f"--tokenizer {name}: must be gpt2, or bpe:N with N >= 340 "
            "(256 bytes, 80 digits at their places, 4 special tokens)"
        )
    return BPETokenizer.train(texts, int(size), keep_spaces)


def load_tokenizer(name: str, folder: str | Path) -> Tokenizer:
    """The tokenizer of the run in `folder`."""
    if name == "gpt2":
        return GPT2Tokenizer()
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: missing; the run in {folder} was trained with --tokenizer {name} and needs it")
    try:
        return BPETokenizer(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{path}: not a tokenizer ({error})") from None
