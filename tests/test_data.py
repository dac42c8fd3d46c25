"""data.py: the two views of an example, and batches of them.

What the fast code computes with index arithmetic is checked against loops over examples that are slow and obvious.
"""

import re

import numpy as np
import pytest
import torch
from tiny import TOKENIZER, tiny_config

import data
from common.batching import epoch_order, length_bucketed, make_batches
from common.options import UserError
from common.sources import Example
from common.tokenizers import Tokenizer
from common.word_problems import word_problems
from config import Config
from data import Batch, TokenizedDataset, answer_view_text, load_splits, mismatched, question_view, view_texts

APPLES = Example(
    "Ana has 12 apples and buys 8 boxes of 6 apples. Each costs $2.50. How many apples has she?",
    "60",
    "*+",
    "She buys 8*6=<<8*6=48>>48 apples.\nShe has 12+48=<<12+48=60>>60 apples.\n#### 60",
)
EXAMPLES = [
    *(e for level in (1, 2, 3, 4) for e in word_problems("train", 60, level)),
    Example("Why?", "-3.5"),
    Example("What is 1 + 1? " * 5, "2"),
    Example("", "0"),
]
N = len(EXAMPLES)


def tokenized(examples=EXAMPLES, where="data", **changes) -> TokenizedDataset:
    return TokenizedDataset(examples, TOKENIZER, tiny_config(**{"block_size": 160} | changes), where)


# ----------------------------------------------------------------------------------------------- splits


def test_the_word_problems_are_those_that_the_options_ask_for():
    splits = load_splits(Config(dataset="wordproblems", n_train=30, difficulty=3, seed=5))
    assert splits["train"] == word_problems("train", 30, 3, 5)
    assert splits["test"] == word_problems("test", 1000, 3) and splits["val"] == word_problems("val", 500, 3)


def test_n_train_takes_the_first_questions_of_a_folder_and_leaves_the_others(gsm8k):
    every, some = (load_splits(Config(data_dir=str(gsm8k), n_train=n)) for n in (0, 5))
    assert some["train"] == every["train"][:5] and len(every["train"]) > 5
    assert some["val"] == every["val"] and some["test"] == every["test"]


def test_a_data_folder_for_word_problems_is_an_error():
    """It was ignored: the run trained on something else than its command line said."""
    with pytest.raises(UserError, match="--data-dir DIR.*--dataset wordproblems"):
        load_splits(Config(dataset="wordproblems", data_dir="DIR"))


def test_pairs_without_a_data_folder_are_an_error():
    """They were read from the working directory, which is another one when the run is evaluated."""
    with pytest.raises(UserError, match="--dataset pairs needs --data-dir"):
        load_splits(Config(dataset="pairs"))


# ------------------------------------------------------------------------------------------------ views


@pytest.mark.parametrize(
    "view, text",
    (
        ("answer", "60"),
        ("solution", "She buys 8*6=48 apples.\nShe has 12+48=60 apples.\n#### 60"),
        ("program", "β*γ,α+a"),
    ),
)
def test_the_answer_view_holds_what_is_asked_for(view, text):
    assert answer_view_text(APPLES, view) == text


def test_a_question_shows_its_numbers_unless_programs_are_written_over_them():
    assert question_view(APPLES.question, "answer") == question_view(APPLES.question, "solution") == APPLES.question
    assert question_view(APPLES.question, "program").startswith("Ana has α apples and buys β boxes of γ apples.")


def test_a_tokenizer_is_trained_on_both_views():
    assert list(view_texts([APPLES], "answer")) == [APPLES.question, "60"]
    question, program = view_texts([APPLES], "program")
    assert "α" in question and program == "β*γ,α+a"


def test_examples_without_a_program_are_left_out_and_counted(capsys):
    broken = Example("1 and 2", "4", "", "<<1+2=3>>")
    found = tokenized([APPLES, broken, broken], "train", answer_view="program", mask="causal", block_size=300)
    assert found.examples == [APPLES]
    assert "train: left out 2 of 3 examples whose solution is no program" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs solutions with <<48/2=24>> annotations"):
        tokenized([broken], answer_view="program")


def test_examples_too_long_are_left_out_and_counted(capsys):
    size = [len(q) + len(a) for q, a in map(expected, EXAMPLES)]
    limit = sorted(size)[len(size) // 2]
    found, kept = tokenized(where="val", block_size=limit), [i for i, n in enumerate(size) if n <= limit]
    assert found.examples == [EXAMPLES[i] for i in kept] and len(found) == len(kept)
    assert found.length.tolist() == [size[i] for i in kept] and max(found.length) == limit
    printed = capsys.readouterr().out
    assert f"val: left out {len(size) - len(kept)} of {len(size)}" in printed
    assert f"--block-size {limit}" in printed and str(max(size)) in printed


def test_nothing_is_printed_when_all_fits(capsys):
    tokenized()
    assert capsys.readouterr().out == ""


def test_a_block_size_that_nothing_fits_is_refused():
    with pytest.raises(UserError, match="train: no example fits --block-size 4"):
        tokenized(EXAMPLES[:9], "train", block_size=4)


# --------------------------------------------------------------------------------------------- batches


def views(batch: Batch) -> list[list[list[int]]]:
    """For each example its question view and its answer view, as flat positions in order."""
    segment = batch.segment.flatten()
    return [[(segment == s).nonzero()[:, 0].tolist() for s in (2 * k, 2 * k + 1)] for k in range(len(batch.pred_at))]


def contents(batch: Batch) -> list[tuple]:
    """Sorted (question view, answer view) as token ids: what is in a batch, wherever it stands."""
    tokens = batch.tokens.flatten()
    return sorted((tokens[q].tolist(), tokens[a].tolist()) for q, a in views(batch))


def expected(example: Example) -> tuple[list[int], list[int]]:
    """The two views of an example as token ids, the obvious way."""
    t = TOKENIZER
    question, answer = t.encode([example.question, example.answer])
    return [*question, t.pred], [t.ans, *answer, t.eos]


def some(seed: int, n: int) -> np.ndarray:
    """Indices of n examples, the three odd ones among them."""
    index = np.random.default_rng(seed).permutation(N - 3)[:n]
    index[:3] = range(N - 3, N)
    return index


@pytest.mark.parametrize("mask", ("jepa", "causal", "none"))
def test_a_batch_holds_each_example_once_and_in_order(mask):
    index = some(1, 64)
    batch = tokenized(mask=mask).batch(index)
    B, T = batch.tokens.shape
    assert batch.segment.shape == batch.position_ids.shape == (B, T) and B == 64
    tokens, position_ids = batch.tokens.flatten(), batch.position_ids.flatten()
    for row, (i, (q, a)) in enumerate(zip(index, views(batch), strict=True)):
        assert (tokens[q].tolist(), tokens[a].tolist()) == expected(EXAMPLES[i])
        assert q + a == list(range(row * T, row * T + len(q + a))), "an example is torn, or not in its row"
        again = range(len(q), len(q + a)) if mask == "causal" else range(len(a))  # isolated views count from 0
        assert position_ids[q + a].tolist() == [*range(len(q)), *again]
    padding = batch.segment.flatten() < 0
    assert batch.n_tokens == int((~padding).sum()) == sum(len(q + a) for q, a in views(batch))
    assert (tokens[padding] == TOKENIZER.pad).all() and not (tokens[~padding] == TOKENIZER.pad).any()


def test_words_that_may_be_dropped_are_those_of_questions_without_numbers_and_signs():
    example = Example("Bo has 5 pears, buys 12?", "17", "+", "<<5+12=17>> #### 17")
    data = tokenized([example] * 2, answer_view="program")
    batch = data.batch([0, 1])
    pieces = TOKENIZER.pieces(batch.tokens.flatten()[batch.words_at].tolist())
    assert "".join(pieces) == "Bo has pears buys" * 2
    assert (batch.segment.flatten()[batch.words_at] % 2 == 0).all()


def test_the_indices_of_a_batch_point_at_what_they_name():
    index = some(2, 40)
    batch = tokenized().batch(index)
    tokens = batch.tokens.flatten().tolist()
    question, answer, decode = [], [], []  # (position, token to predict)
    for k, (q, a) in enumerate(views(batch)):
        assert (batch.pred_at[k], batch.eos_at[k]) == (q[-1], a[-1])
        assert tokens[q[-1]] == TOKENIZER.pred and tokens[a[-1]] == TOKENIZER.eos
        question += [(at, tokens[at + 1]) for at in q[:-2]]  # the last token of the question and [PRED] predict nothing
        answer += [(at, tokens[at + 1]) for at in a[:-1]]  # [EOS] predicts nothing
        ids = [tokens[at] for at in a[1:-1]]
        padding = [TOKENIZER.pad] * (batch.answer_tokens.shape[1] - len(a))
        assert batch.answer_tokens[k].tolist() == [tokens[at] for at in a] + padding
        decode += [(k * (batch.answer_tokens.shape[1] - 1) + j, token) for j, token in enumerate([*ids, TOKENIZER.eos])]
    assert list(zip(batch.question_at.tolist(), batch.question_ids.tolist(), strict=True)) == question
    assert list(zip(batch.answer_at.tolist(), batch.answer_ids.tolist(), strict=True)) == answer
    assert list(zip(batch.decode_at.tolist(), batch.answer_ids.tolist(), strict=True)) == decode
    assert batch.answer_tokens.shape[0] == 40
    assert batch.loss_denominators == {"question": len(question), "answer": len(answer), "examples": 40}


def test_neither_pred_nor_eos_carries_a_token_target():
    """Such a target would pull both latents towards a common direction, whatever the answer."""
    for mask in ("jepa", "causal", "none"):
        batch = tokenized(mask=mask).batch(range(8))
        predicting = {*batch.question_at.tolist(), *batch.answer_at.tolist()}
        assert not predicting & {*batch.pred_at.tolist(), *batch.eos_at.tolist()}


def test_the_control_of_an_example_has_another_answer():
    """A control with the own answer would have cosine 1 and hide what it is there to show."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        labels = rng.integers(0, rng.integers(1, 5), rng.integers(1, 12))
        for k, other in enumerate(mismatched(labels)):
            assert labels[other] != labels[k] if other >= 0 else len(set(labels)) == 1


def test_a_batch_knows_the_control_of_each_of_its_examples():
    examples = [Example("What?", answer) for answer in ("7", "7", "8", "9")]
    batch = tokenized(examples).batch([3, 0, 1])
    assert batch.mismatched.tolist() == [1, 0, 0]


@pytest.mark.parametrize("level", (1, 2, 3, 4))
def test_little_of_a_batch_is_padding(level):
    problems = tokenized(word_problems("train", 3000, level), block_size=256)
    batches = [problems.batch(index) for index in epoch_order(problems.length, 32, 0, 0)]
    padding = 1 - sum(b.n_tokens for b in batches) / sum(b.tokens.numel() for b in batches)
    assert padding < 0.1, f"{padding:.1%} padding"


def test_micro_batches_together_are_the_step_and_know_its_size():
    found, config = tokenized(), tiny_config(batch_size=32, grad_accum=3)
    _, batches = make_batches(found, config)
    whole, parts = found.batch(epoch_order(found.length, 32, config.seed, 1)[0]), list(batches(1, 0))
    assert sorted(sum(map(contents, parts), [])) == contents(whole)
    assert all(part.loss_denominators == whole.loss_denominators for part in parts)
    for name, at in (("question", "question_at"), ("answer", "answer_at"), ("examples", "pred_at")):
        assert sum(len(getattr(part, at)) for part in parts) == whole.loss_denominators[name]


def test_a_split_is_measured_on_every_example_once():
    batches = list(length_bucketed(tokenized(), 50))
    assert sorted(sum(map(contents, batches), [])) == sorted(map(expected, EXAMPLES))
    assert all(batch.loss_denominators["examples"] == N for batch in batches)


# ---------------------------------------------------------------------------------- the docstring's batch


class Words(Tokenizer):
    """The tokenizer of data.py's drawing: a word is a token, a number its digits at their places."""

    def __init__(self):
        super().__init__(100)
        self.words = []

    def tokens_of(self, text: str) -> list[str]:
        found = []
        for word in re.findall(r"[A-Za-z]+|\d+", text):
            places = range(len(word) - 1, -1, -1)
            found += [f"{d}·{10**p}" for d, p in zip(word, places, strict=True)] if word.isdigit() else [word]
        return found

    def encode(self, texts):
        rows = [self.tokens_of(text) for text in texts]
        self.words += [word for row in rows for word in row]
        return [[self.words.index(word) for word in row] for row in rows]

    def text(self, ids):
        return self.words[ids[0]] if ids[0] < len(self.words) else "-"


def drawn_rows(label: str, n: int) -> list[list[str]]:
    """The n cells of each row of the drawing under a label."""
    rows, found, inside = data.__doc__.splitlines(), [], False
    for row in rows:
        inside = row.startswith(f"    {label} ") or (inside and row.startswith(" " * 20))
        if inside:
            found.append(row.replace(f"    {label} ", " ", 1).split()[:n])
    return found


def test_the_batch_that_the_docstring_draws_is_the_one_that_is_made():
    examples = [Example("Ana has 2, buys 3", "5"), Example("Sam lost 1 of 12", "11")]
    words = Words()
    batch = TokenizedDataset(examples, words, tiny_config()).batch([0, 1])
    T = batch.tokens.size(1)
    assert drawn_rows("tokens", T) == [words.pieces(row) for row in batch.tokens.tolist()]
    assert drawn_rows("segment", T) == [list(map(str, row)) for row in batch.segment.tolist()]
    assert drawn_rows("position_ids", T) == [list(map(str, row)) for row in batch.position_ids.tolist()]

    target = torch.full((2 * T,), -1)
    target[batch.question_at] = batch.question_ids
    shown = [words.pieces([i])[0] if i >= 0 else "-" for i in target.tolist()]
    assert drawn_rows("predicts", T)[:2] == [shown[:T], shown[T:]]

    drawing = data.__doc__.partition("decode pass")[2].split()
    decoded = words.pieces(batch.answer_tokens[0].tolist())[1]
    assert drawing[:2] == ["z", decoded] and words.pieces(batch.answer_ids[:2].tolist()) == [decoded, "[EOS]"]
