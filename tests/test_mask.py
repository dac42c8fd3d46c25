"""The proofs that nothing which predicts an answer can see it. Under --mask none the same tests see the leak."""

import pytest
import torch
from tiny import tiny_data, tiny_model
from torch import Tensor

from model import jepa_mask

QUESTION, ANSWER = 0, 1


def hidden_states(model, batch, tokens: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.hidden_states(batch.tokens if tokens is None else tokens, batch.segment, batch.position_ids)


def other_tokens(tokens: Tensor) -> Tensor:
    return (tokens + 7) % 300


def leaks(mask: str, changed_view: int, watched_view: int) -> bool:
    """Does changing every token of one view change a hidden state of the other? Compared bit for bit."""
    model, batch = tiny_model(mask=mask).eval(), tiny_data(mask=mask).batch(range(8))
    view = torch.where(batch.segment < 0, -1, batch.segment % 2)
    changed = torch.where(view == changed_view, other_tokens(batch.tokens), batch.tokens)
    before, after = hidden_states(model, batch), hidden_states(model, batch, changed)
    return not torch.equal(before[view == watched_view], after[view == watched_view])


# -------------------------------------------------------------------------------------- between the views


def test_under_llm_jepa_one_pass_holds_the_language_model_and_both_isolated_views():
    """The same weights in two passes, --mask causal and --mask jepa, give the same losses and latents."""
    both, language_model, isolated = (
        (tiny_model(mask=mask), tiny_data(mask=mask).batch(range(8))) for mask in ("llm-jepa", "causal", "jepa")
    )
    found, expected = both[0](both[1])[1], language_model[0](language_model[1])[1]
    for name in ("question_loss", "answer_loss"):
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(found["cos_own"], isolated[0](isolated[1])[1]["cos_own"])
    for at in ("pred_at", "eos_at"):
        latents = [hidden_states(*pair).flatten(0, 1)[getattr(pair[1], at)] for pair in (both, isolated)]
        torch.testing.assert_close(*latents)


def test_under_llm_jepa_nothing_that_predicts_sees_the_answer_and_the_answer_alone_sees_no_question():
    assert not leaks("llm-jepa", ANSWER, QUESTION) and not leaks("llm-jepa", QUESTION, ANSWER)
    model, batch = tiny_model(mask="llm-jepa").eval(), tiny_data(mask="llm-jepa").batch(range(8))
    changed = batch.tokens.flatten().clone()
    changed[batch.answer_at] = other_tokens(changed[batch.answer_at])  # the answer that continues the question
    before, after = hidden_states(model, batch), hidden_states(model, batch, changed.view_as(batch.tokens))
    assert torch.equal(before.flatten(0, 1)[batch.pred_at], after.flatten(0, 1)[batch.pred_at])


def test_changing_the_answer_leaves_every_hidden_state_of_question_and_pred_bit_equal():
    """The bug this repository exists for: an earlier implementation built this mask and never applied it."""
    assert not leaks("jepa", ANSWER, QUESTION)


def test_changing_the_question_leaves_every_hidden_state_of_the_answer_bit_equal():
    assert not leaks("jepa", QUESTION, ANSWER)


def test_without_the_mask_the_same_tests_see_the_leak():
    assert leaks("none", ANSWER, QUESTION) and leaks("none", QUESTION, ANSWER)


def test_the_causal_mask_shows_the_question_to_the_answer_and_not_the_reverse():
    assert leaks("causal", QUESTION, ANSWER) and not leaks("causal", ANSWER, QUESTION)


@pytest.mark.parametrize("mask, sees", (("jepa", False), ("causal", False), ("none", True)))
def test_a_later_token_moves_no_earlier_hidden_state_unless_there_is_no_mask(mask, sees):
    model, batch = tiny_model(mask=mask).eval(), tiny_data(mask=mask).batch([0])
    before = hidden_states(model, batch)
    for t in range(1, batch.tokens.size(1)):
        changed = batch.tokens.clone()
        changed[0, t] = other_tokens(changed[0, t])
        assert torch.equal(before[0, :t], hidden_states(model, batch, changed)[0, :t]) != sees


@pytest.mark.parametrize("mask, zero", (("jepa", True), ("causal", True), ("none", False)))
def test_the_gradient_of_the_prediction_to_the_answers_embeddings_is_exactly_zero(mask, zero):
    model, batch, read = tiny_model(mask=mask), tiny_data(mask=mask).batch(range(8)), []
    model.embed.register_forward_hook(lambda module, args, x: read.append(x.detach().requires_grad_()) or read[-1])
    h = model.hidden_states(batch.tokens, batch.segment, batch.position_ids).flatten(0, 1)
    h[batch.pred_at].square().sum().backward()
    (x,), answer_view = read, batch.segment % 2 == 1
    assert (x.grad[answer_view] == 0).all() == zero
    assert x.grad[batch.segment % 2 == 0].abs().sum() > 0


def test_what_the_model_predicts_from_is_what_stands_at_pred():
    """The proofs are about h[PRED] in a batch; `predict` must use the same state, and no other."""
    model, batch = tiny_model().eval(), tiny_data().batch(range(8))
    questions = [tiny_data().examples[i].question for i in range(8)]
    h = hidden_states(model, batch).flatten(0, 1)
    torch.testing.assert_close(model.predict(questions), h[batch.pred_at])


# ----------------------------------------------------------------------------------- between the examples


def in_one_row(n: int, mask: str = "jepa") -> tuple[Tensor, Tensor, Tensor]:
    """n examples behind one another, segments written by hand -> tokens, segment, position_ids (1, T)."""
    tokens, segment, position_ids = [], [], []
    for k in range(n):
        alone = tiny_data(mask=mask).batch([k])
        tokens += alone.tokens[0].tolist()
        segment += [2 * k + s for s in alone.segment[0].tolist()]
        position_ids += alone.position_ids[0].tolist()
    return tuple(torch.tensor([x]) for x in (tokens, segment, position_ids))


@pytest.mark.parametrize("mask", ("jepa", "causal", "none"))
def test_examples_in_one_row_never_move_each_other(mask):
    model, (tokens, segment, position_ids) = tiny_model(mask=mask).eval(), in_one_row(4, mask)
    with torch.no_grad():
        before = model.hidden_states(tokens, segment, position_ids)
        for k in range(4):
            example = (segment == 2 * k) | (segment == 2 * k + 1)
            changed = torch.where(example, other_tokens(tokens), tokens)
            after = model.hidden_states(changed, segment, position_ids)
            assert torch.equal(before[~example], after[~example])
            assert not torch.equal(before[example], after[example])


@pytest.mark.parametrize("mask", ("jepa", "causal", "none"))
def test_an_example_has_the_same_hidden_states_alone_and_behind_others(mask):
    model, (tokens, segment, position_ids) = tiny_model(mask=mask).eval(), in_one_row(4, mask)
    with torch.no_grad():
        together = model.hidden_states(tokens, segment, position_ids)[0]
    alone = [hidden_states(model, tiny_data(mask=mask).batch([k]))[0] for k in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


# ---------------------------------------------------------------------------------------- the mask itself


@pytest.mark.parametrize(
    "mask, rows",
    (
        ("jepa", "100000 110000 111000 000100 000110 000001"),
        ("causal", "100000 110000 111000 111100 111110 000001"),
        ("none", "111110 111110 111110 111110 111110 000001"),
    ),
)
def test_the_mask_is_what_the_docstring_draws(mask, rows):
    segment = torch.tensor([[0, 0, 0, 1, 1, -1]])  # q1 q2 [PRED] [ANS] [EOS] padding
    drawn = [[int(c) for c in row] for row in rows.split()]
    assert jepa_mask(segment, mask)[0, 0].int().tolist() == drawn


@pytest.mark.parametrize("mask", ("jepa", "causal", "none"))
def test_every_row_of_the_mask_attends_to_something(mask):
    """A row of the softmax over nothing is not a number."""
    batch = tiny_data(mask=mask).batch(range(16))
    assert (batch.segment < 0).any() and jepa_mask(batch.segment, mask).any(-1).all()


@pytest.mark.parametrize("mask", ("jepa", "causal", "none"))
def test_padding_is_seen_by_nobody_but_itself(mask):
    segment = tiny_data(mask=mask).batch(range(16)).segment
    allowed, padding = jepa_mask(segment, mask)[:, 0], segment < 0
    T = segment.size(1)
    others = ~torch.eye(T, dtype=torch.bool)
    assert not (allowed & others & padding[:, None, :]).any() and not (allowed & others & padding[:, :, None]).any()
