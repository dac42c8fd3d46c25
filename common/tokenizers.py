"""Text <-> token ids: GPT-2's vocabulary, or words or a byte-level BPE of the training split.

"47 pears" under the trained ones: 4·10  7·1  " pears", a token for every digit *at its place*.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from common.checkpoint import atomic
from common.options import UserError

SPECIAL = ("[PRED]", "[ANS]", "[EOS]", "[PAD]")
UNKNOWN = "[UNK]"

CHARACTERS = 64  # a token has fewer on average: a longer text is refused before it is read


def without_halves(text: str | None) -> str:
    """What a person typed, without halves of characters (of an emoji, say), which a tokenizer does not take."""
    return (text or "").encode("utf-8", "replace").decode()


class Tokenizer:
    """`pred`, `ans`, `eos`, `pad` are the ids of the special tokens, which no text encodes to.

    `unk` is what an unknown or a dropped word is read as: [PAD], unless the vocabulary has an entry for it.
    `n_vocab` counts everything and is rounded up to a multiple of 64, which GPUs' matrix units like.
    """

    def __init__(self, n_text: int):
        self.pred, self.ans, self.eos, self.pad = range(n_text, n_text + len(SPECIAL))
        self.unk = self.pad
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
    NO_TEXT = "[\ud800-\ue04f]"  # these 80 characters in a text of somebody else's, and half an emoji

    def __init__(self, bpe: tokenizers.Tokenizer):
        self.bpe = bpe
        super().__init__(bpe.get_vocab_size())
        unk = bpe.token_to_id(UNKNOWN)
        self.of_words = unk is not None
        self.unk = unk if self.of_words else self.pad

    @classmethod
    def _mark(cls, text: str) -> str:
        """'47' -> the characters of 4 at place 1 and 7 at place 0. A text's own such characters are unknown."""

        def marked(run):
            digits = run[0]
            places = (min(place, cls.PLACES - 1) for place in range(len(digits) - 1, -1, -1))
            return "".join(chr(cls.FIRST + 10 * p + int(d)) for p, d in zip(places, digits, strict=True))

        return re.sub(r"[0-9]+", marked, re.sub(cls.NO_TEXT, "\ufffd", text))

    @classmethod
    def _unmark(cls, text: str) -> str:
        return "".join(str((ord(c) - cls.FIRST) % 10) if 0 <= ord(c) - cls.FIRST < 10 * cls.PLACES else c for c in text)

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int, keep_spaces: bool = False) -> "BPETokenizer":
        """Texts -> a tokenizer of `n_vocab` entries in all (fewer if the texts hold fewer merges).

        With `keep_spaces` a space before a number is a token of its own, and decoding gives back the very text.
        """
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = cls._pieces(r" ?\p{L}+| ?[^\s\p{L}]+|\s")
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab - len(SPECIAL) - 10 * cls.PLACES,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        return cls._train(bpe, trainer, texts, keep_spaces)

    @classmethod
    def train_words(cls, texts: Iterable[str], min_count: int, keep_spaces: bool = False) -> "BPETokenizer":
        """Texts -> a tokenizer of the words and signs that occur `min_count` times or more, in lower case.

        Any other word is one [UNK]: its embedding would be noise. Spaces are dropped, and stand between words again in
        decoded text.
        """
        words = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        words.normalizer = normalizers.Lowercase()
        no_spaces = pre_tokenizers.Split(tokenizers.Regex(r"\s+"), "removed")
        words.pre_tokenizer = pre_tokenizers.Sequence([no_spaces, cls._pieces(r"\p{L}+|[^\p{L}]")])
        trainer = trainers.WordLevelTrainer(
            vocab_size=2**31, min_frequency=min_count, show_progress=False, special_tokens=[UNKNOWN]
        )
        return cls._train(words, trainer, texts, keep_spaces)

    @staticmethod
    def _pieces(pattern: str):
        """Cut texts into the pieces that a regular expression matches, bytes as printable characters."""
        cut = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    @classmethod
    def _train(cls, model, trainer, texts: Iterable[str], keep_spaces: bool) -> "BPETokenizer":
        """Train on the texts without their digits, which are added."""
        model.decoder = decoders.ByteLevel()
        model.train_from_iterator((re.sub(f"[0-9]|{cls.NO_TEXT}", "", text) for text in texts), trainer)
        digits = [chr(cls.FIRST + i) for i in range(10 * cls.PLACES)]
        model.add_tokens([tokenizers.AddedToken(c, lstrip=not keep_spaces, normalized=False) for c in digits])
        return cls(model)

    def encode(self, texts):
        return [e.ids for e in self.bpe.encode_batch([self._mark(t) for t in texts])]

    def text(self, ids):
        """A number sticks to the word before it, since its space is not a token."""
        if not self.of_words:
            return self._unmark(self.bpe.decode(ids))
        words = " ".join(self.bpe.decode([i], skip_special_tokens=False) for i in ids)
        return self._unmark(re.sub(r"(?<![^\W\d_]) | (?![^\W\d_])", "", words))

    def save(self, folder):
        with atomic(Path(folder) / "tokenizer.json") as path:
            path.write_text(self.bpe.to_str(pretty=True), encoding="utf-8")  # whatever the path is made of


def train_tokenizer(name: str, texts: Iterable[str], keep_spaces: bool = False) -> Tokenizer:
    """`gpt2`, or `bpe:N` or `words:N` trained on the texts."""
    if name == "gpt2":
        return GPT2Tokenizer()
    kind, _, size = name.partition(":")
    n = int(size) if size.isdecimal() else 0
    if kind == "bpe" and n >= 340:
        return BPETokenizer.train(texts, n, keep_spaces)
    if kind == "words" and n >= 1:
        return BPETokenizer.train_words(texts, n, keep_spaces)
    raise UserError(
        f"--tokenizer {name}: must be gpt2, bpe:N with N >= 340 entries (256 bytes, 80 digits at their places, 4 "
        "special tokens), or words:N, the words that occur N times or more"
    )


def load_tokenizer(name: str, folder: str | Path) -> Tokenizer:
    """The tokenizer of the run in `folder`."""
    if name == "gpt2":
        return GPT2Tokenizer()
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: missing; the run in {folder} was trained with --tokenizer {name} and needs it")
    try:
        return BPETokenizer(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{path}: not a tokenizer ({error})") from None
