"""Questions and answers as nanoJEPA reads them: two views of one thing, side by side in one sequence.

One batch of two examples, "Ana has 2, buys 3" -> "5" and "Sam lost 1 of 12" -> "11", token by token (a number is its
digits at their places, and words are whole here):

                       0      1      2      3      4      5      6      7      8      9     10
    tokens           Ana    has    2·1   buys    3·1 [PRED]  [ANS]    5·1  [EOS]  [PAD]  [PAD]
                     Sam   lost    1·1     of   1·10    2·1 [PRED]  [ANS]   1·10    1·1  [EOS]
    segment            0      0      0      0      0      0      1      1      1     -1     -1    a view is a segment
                       2      2      2      2      2      2      2      3      3      3      3    padding is -1
    position_ids       0      1      2      3      4      5      0      1      2      0      0    a view counts
                       0      1      2      3      4      5      6      0      1      2      3    from 0
    predicts         has    2·1   buys    3·1      -      -      -      -      -      -      -    [PRED], [EOS]:
                    lost    1·1     of   1·10    2·1      -      -      -      -      -      -    no target

    llm-jepa      Ana has 2·1 buys 3·1 [PRED] [ANS] 5·1 [EOS] | [ANS] 5·1 [EOS]      one view with the answer, one alone

    decode pass   z    5·1                 a latent stands where [ANS] stood
    predicts     5·1  [EOS]                the answer and its end

Shapes: B rows = N examples, T tokens a row, M longest answer in tokens, K positions that carry a target.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.batching import BatchMixin, ranges
from common.options import UserError
from common.programs import PLACEHOLDERS, number_placeholders, program_of
from common.sources import N_VAL, Example, load_folder, load_gsm8k, same_answer, without_annotations
from common.tokenizers import SPECIAL, Tokenizer
from common.word_problems import word_problems
from config import Config

N_TEST = 1000  # word problems of the test split


def load_splits(config: Config) -> dict[str, list[Example]]:
    """{"train", "val", "test"} of the data set that a configuration names."""
    if config.dataset == "pairs" and not config.data_dir:
        raise UserError("--dataset pairs needs --data-dir DIR, a folder with train.jsonl and test.jsonl")
    if config.dataset != "wordproblems":
        is_gsm8k = config.dataset == "gsm8k"
        splits = load_gsm8k(config.data_dir) if is_gsm8k else load_folder(config.data_dir, "pairs")
        return splits | {"train": splits["train"][: config.n_train or None]}
    if config.data_dir:
        raise UserError(f"--data-dir {config.data_dir}: --dataset wordproblems is generated and reads no folder")
    sizes = {"train": config.n_train or 50_000, "val": N_VAL, "test": N_TEST}
    return {split: word_problems(split, n, config.difficulty, config.seed, config.world) for split, n in sizes.items()}


# ---------------------------------------------------------------------------------------------- views


def question_view(question: str, answer_view: str) -> str:
    """What the model reads of a question: all of it; with its numbers as placeholders where programs are wanted."""
    return number_placeholders(question)[0] if answer_view == "program" else question


def answer_view_text(example: Example, answer_view: str) -> str | None:
    """What the answer view holds: the final answer, the worked solution, or the program (None: there is none)."""
    if answer_view == "program":
        return program_of(example)
    return example.answer if answer_view == "answer" else without_annotations(example.solution)


def is_correct(answer: str, example: Example, config: Config) -> bool:
    """Does an answer name the example's number? Under --dataset pairs: is it the very text?"""
    return answer == example.answer if config.dataset == "pairs" else same_answer(answer, example.answer)


def view_texts(examples: list[Example], answer_view: str) -> Iterator[str]:
    """All texts of both views: what a tokenizer is trained on."""
    for example in examples:
        yield question_view(example.question, answer_view)
        yield answer_view_text(example, answer_view) or ""


# --------------------------------------------------------------------------------------------- batches


@dataclass
class Batch(BatchMixin):
    """N examples, a row each; what the model needs and nothing else. Indices are int64; `*_at` index flat positions.

    tokens, segment, position_ids  (B, T)
    question_at, question_ids      (K,)   positions of `tokens` that predict a question token, and that token
    words_at                       (K'',) positions of the question's words, all but numbers and signs
    pred_at, eos_at                (N,)   positions of [PRED] and of [EOS]
    answer_at                      (K',)  positions of `tokens` that predict an answer token behind a question
    answer_tokens                  (N, M+2) answer views, [ANS] a1 … am [EOS]; the decode pass reads [latent] a1 … am
    decode_at, answer_ids          (K',)  positions of the (N, M+1) decode pass that predict an answer token or [EOS]
    mismatched                     (N,)   an example of the batch with another answer: each cosine's control; -1 if none
    loss_denominators              floats that summed losses are divided by: targets and examples of the whole step
    """

    tokens: Tensor
    segment: Tensor
    position_ids: Tensor
    question_at: Tensor
    question_ids: Tensor
    words_at: Tensor
    pred_at: Tensor
    eos_at: Tensor
    answer_at: Tensor
    answer_tokens: Tensor
    decode_at: Tensor
    answer_ids: Tensor
    mismatched: Tensor
    loss_denominators: dict[str, float]

    @property
    def n_tokens(self) -> int:
        """Real tokens: all but padding."""
        return int((self.segment >= 0).sum())


class TokenizedDataset:
    """A split as one contiguous array of token ids; batches are cut from it without a Python loop over examples."""

    def __init__(self, examples: list[Example], tokenizer: Tokenizer, config: Config, where: str = "data"):
        """Examples longer than --block-size, or without a program where one is wanted, are left out and counted."""
        self.tokenizer, self.config = tokenizer, config
        self.copies = 1 + (config.mask == "llm-jepa")  # of an answer in its row
        answers = [answer_view_text(e, config.answer_view) for e in examples]
        questions = tokenizer.encode([question_view(e.question, config.answer_view) for e in examples])
        answer_ids = tokenizer.encode([text or "" for text in answers])
        kept = self._fitting(questions, answer_ids, answers, where)

        self.examples = [examples[i] for i in kept]
        self.n = np.array([len(questions[i]) for i in kept])  # question tokens
        self.m = np.array([len(answer_ids[i]) for i in kept])  # answer tokens
        self.length = self._length(self.n, self.m)
        self.start = np.concatenate([[0], np.cumsum(self.length)[:-1]])
        t = tokenizer
        pred = [t.pred] * config.n_pred
        rows = ((*questions[i], *pred, *self.copies * (t.ans, *answer_ids[i], t.eos)) for i in kept)
        self.tokens = np.fromiter((token for row in rows for token in row), np.int64)
        self.is_word = np.array([is_word(piece) for piece in tokenizer.pieces(range(tokenizer.n_vocab))])
        self.answer_id = np.unique([answers[i] for i in kept], return_inverse=True)[1]

    def _length(self, n, m):
        """Tokens of a row: a question of n, [PRED], and one or two times [ANS], an answer of m, [EOS]."""
        return n + self.config.n_pred + self.copies * (m + 2)

    def _fitting(self, questions, answer_ids, answers, where: str) -> list[int]:
        """The examples that can be trained on; what is left out is printed."""
        without = answers.count(None)
        if without:
            print(f"{where}: left out {without} of {len(answers)} examples whose solution is no program")
        size = [self._length(len(q), len(a)) for q, a in zip(questions, answer_ids, strict=True)]
        block_size = self.config.block_size
        there = [i for i, text in enumerate(answers) if text is not None]
        if not there:
            raise UserError(
                f"{where}: --answer-view program needs solutions with <<48/2=24>> annotations, as GSM8K's; "
                "none has a usable one"
            )
        kept = [i for i in there if size[i] <= block_size]
        if len(kept) < len(there):
            longest = max(size[i] for i in there)
            print(
                f"{where}: left out {len(there) - len(kept)} of {len(there)} examples longer than --block-size "
                f"{block_size} tokens (the longest needs {longest})"
            )
        if not kept:
            raise UserError(f"{where}: no example fits --block-size {block_size}")
        return kept

    def __len__(self) -> int:
        return len(self.n)

    def loss_denominators(self, index) -> dict[str, float]:
        """What summed losses over these examples are divided by to be means."""
        n, m = self.n[index], self.m[index]
        return {
            "question": float(max(1, np.maximum(n - 1, 0).sum())),
            "answer": float((m + 1).sum()),
            "examples": float(len(n)),
        }

    def batch(self, index, denominators: dict[str, float] | None = None) -> Batch:
        """Examples `index` (N,) -> Batch."""
        index = np.asarray(index)
        n, m, length = self.n[index], self.m[index], self.length[index]
        N, T, M = len(index), int(length.max()), int(m.max())

        # where each example stands in the flat (B * T,) rows, and what stands there
        begin = np.arange(N) * T
        at = ranges(begin, length)
        tokens = np.full(N * T, self.tokenizer.pad)
        tokens[at] = self.tokens[ranges(self.start[index], length)]

        # two views an example: q1 … qn [PRED], then [ANS] a1 … am [EOS]
        views = np.stack([length - m - 2, m + 2], 1).ravel()
        counted = length if self.config.mask == "causal" else views
        segment, position_ids = np.full(N * T, -1), np.zeros(N * T, np.int64)
        segment[at] = np.repeat(np.arange(2 * N), views)
        position_ids[at] = ranges(np.zeros(len(counted), np.int64), counted)

        # who predicts what
        question_at, all_at = ranges(begin, np.maximum(n - 1, 0)), ranges(begin, n)
        ans_at = begin + n + self.config.n_pred
        answer_at = ranges(ans_at, m + 1)  # [ANS] a1 … am predict a1 … am [EOS]
        answer_tokens = np.full((N, M + 2), self.tokenizer.pad)
        answer_tokens[np.arange(M + 2) < m[:, None] + 2] = tokens[ranges(ans_at, m + 2)]
        arrays = dict(
            tokens=tokens.reshape(N, T),
            segment=segment.reshape(N, T),
            position_ids=position_ids.reshape(N, T),
            question_at=question_at,
            question_ids=tokens[question_at + 1],
            words_at=all_at[self.is_word[tokens[all_at]]],
            pred_at=ans_at - 1,
            eos_at=begin + length - 1,
            answer_at=answer_at,
            answer_tokens=answer_tokens,
            decode_at=ranges(np.arange(N) * (M + 1), m + 1),
            answer_ids=tokens[answer_at + 1],
            mismatched=mismatched(self.answer_id[index]),
        )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(**tensors, loss_denominators=denominators or self.loss_denominators(index))


def is_word(piece: str) -> bool:
    """Does a token hold letters, and is it no placeholder of a number and no special token?"""
    return piece not in SPECIAL and any(c.isalpha() and c not in PLACEHOLDERS for c in piece)


def mismatched(labels: np.ndarray) -> np.ndarray:
    """labels (N,) -> for each item the position of an item with another label, or -1: the nearest one after it."""
    N = len(labels)
    other = np.full(N, -1)
    for shift in range(1, N):
        todo = other < 0
        if not todo.any():
            break
        candidate = (np.arange(N) + shift) % N
        other = np.where(todo & (labels[candidate] != labels), candidate, other)
    return other
