"""What a training split holds, and what of a new question it does not: words, numbers, how many of them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from common.programs import number_placeholders
from common.sources import Example
from common.tokenizers import Tokenizer

OPERATIONS = {"+": "sums", "-": "differences", "*": "products", "/": "quotients"}


def words_of(question: str) -> list[str]:
    """The different words of a question, in lower case, in order."""
    return list(dict.fromkeys(re.findall(r"[^\W\d_]+", question.lower())))


@dataclass(frozen=True)
class KnownWorld:
    """Of the training questions: words, token ids, values, how many numbers one has, and the solutions' operations.

    `unknown` is the largest rate of new words among the different words of a validation question.
    """

    words: frozenset[str]
    tokens: frozenset[int]
    numbers: frozenset[float]
    n_numbers: tuple[int, int]
    operations: dict[str, int]
    unknown: float

    def strange_tokens(self, ids: list[int], unk: int) -> list[bool]:
        """ids (T,) -> whether each stands for nothing that training questions hold."""
        return [i == unk or i not in self.tokens for i in ids]

    def strange_words(self, question: str) -> list[str]:
        """The words of a question that no training question has."""
        return [word for word in words_of(question) if word not in self.words]

    def strange_numbers(self, question: str) -> list[float]:
        """The numbers of a question that no training question has."""
        return [x for x in number_placeholders(question)[1].values() if x not in self.numbers]

    def objection(self, question: str, any_number: bool) -> str:
        """Why a question is unlike those of training, "" if it is not. `any_number`: numbers are placeholders."""
        n, (low, high) = len(number_placeholders(question)[1]), self.n_numbers
        if not low <= n <= high:
            return f"it has {n or 'no'} number{'s' * (n != 1)}, a training question {low} to {high}"
        strange = [] if any_number else self.strange_numbers(question)
        if strange:
            return f"no training question has the number {strange[0]:g}"
        words = self.strange_words(question)
        if len(words) > self.unknown * len(words_of(question)):
            return f"too many of its words are unknown: {', '.join(words)}"
        return ""

    def summary(self) -> str:
        """In words: 'sums and differences; numbers from 2 to 99; 2 to 4 of them a question'."""
        kinds = [f"{name} ({self.operations[op]:,})" for op, name in OPERATIONS.items() if self.operations.get(op)]
        low, high = self.n_numbers
        numbers = f"numbers from {min(self.numbers):g} to {max(self.numbers):g}" if self.numbers else "no numbers"
        return "; ".join([", ".join(kinds) or "any texts", numbers, f"{low} to {high} of them a question"])


def known_world(train: Iterable[Example], val: list[Example], tokenizer: Tokenizer, tokenize) -> KnownWorld:
    """Training and validation examples -> KnownWorld; `tokenize(questions)` gives the ids that a model reads."""
    train = list(train)
    ids = tokenize([e.question for e in train])
    values = [number_placeholders(e.question)[1].values() for e in train]
    counts = [len(x) for x in values]
    tokens = frozenset(i for row in ids for i in row) - {tokenizer.unk}
    known = frozenset(word for e in train for word in words_of(e.question))
    rates = [np.mean([word not in known for word in words_of(e.question)] or [0]) for e in val]
    return KnownWorld(
        known,
        tokens,
        frozenset(x for row in values for x in row),
        (min(counts, default=0), max(counts, default=0)),
        Counter(op for e in train for op in e.ops),
        float(max(rates, default=0.0)),
    )
