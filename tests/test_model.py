"""model.py: the objective is what it is written to be, and the fast paths equal the slow obvious ones."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from tiny import ANSWERS, PROBLEMS, QUESTIONS, TOKENIZER, tiny_data, tiny_model
from torch import Tensor

from common.losses import cosine
from common.options import UserError
from common.sources import Example
from config import Config
from data import Batch
from model import NanoJEPA

# ---------------------------------------------------------------- the objective, written out token by token


def view(model, ids: list[int], start: int = 0, first: Tensor | None = None) -> Tensor:
    """Hidden states (T, C) of one sequence by itself; `first` (C,) replaces the first embedding."""
    x = model.embed(torch.tensor([ids]))
    if first is not None:
        x = torch.cat((first[None, None], x[:, 1:]), 1)
    return model.trunk(x, torch.arange(start, start + len(ids))[None])[0]


def negative_log_likelihood(model, hidden: Tensor, ids: list[int]) -> Tensor:
    """Summed over the targets `ids`, each predicted by the hidden state in the same place."""
    logits = hidden[: len(ids)] @ model.embed.weight.T
    return -sum(F.log_softmax(logits[i], -1)[id] for i, id in enumerate(ids))


def reference_objective(model, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Without masks, batches or padding: every view is a sequence of its own -> (L_token, L_jepa)."""
    config, t = model.config, TOKENIZER
    sums, counts, l_jepa = dict.fromkeys(("question", "answer", "z", "z_hat"), 0.0), {"question": 0, "answer": 0}, 0.0
    for example in examples:
        q, a = t.encode([example.question, example.answer])
        if config.mask == "causal":
            h = view(model, [*q, t.pred, t.ans, *a, t.eos])
            question, answer = h[: len(q) + 1], h[len(q) + 1 :]
            sums["answer"] += negative_log_likelihood(model, answer, [*a, t.eos])
        else:
            question, answer = view(model, [*q, t.pred]), view(model, [t.ans, *a, t.eos])
        sums["question"] += negative_log_likelihood(model, question, q[1:])
        z_hat, z = question[-1], answer[-1]
        for name, latent in (("z", z), ("z_hat", z_hat)):
            first = model.prefix_proj(latent / latent.norm() * len(latent) ** 0.5)
            sums[name] += negative_log_likelihood(model, view(model, [t.ans, *a], first=first), [*a, t.eos])
        target = z.detach()
        l_jepa = l_jepa + 1 - z_hat @ target / (z_hat.norm() * target.norm())
        counts["question"] += len(q) - 1
        counts["answer"] += len(a) + 1
    l_token = config.question_weight * sums["question"] / counts["question"]
    l_token = l_token + sums["answer"] / counts["answer"]
    l_token = l_token + config.decode_weight * sums["z"] / counts["answer"]
    l_token = l_token + config.decode_pred_weight * sums["z_hat"] / counts["answer"]
    return l_token, l_jepa / len(examples)


def gradient(model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "changes",
    (
        {"jepa_weight": 0.7},
        {"question_weight": 0.3, "decode_weight": 2.0, "decode_pred_weight": 0.5},
        {"question_weight": 0.0, "decode_weight": 0.0, "jepa_weight": 1.0},
        {"mask": "causal", "jepa_weight": 0.2},
        {"mask": "causal", "jepa_weight": 0.0, "decode_weight": 0.0},
    ),
)
def test_the_batched_loss_and_its_gradient_are_those_of_the_objective_written_out(changes):
    model, examples = tiny_model(**changes), PROBLEMS[:6]
    loss, metrics = model(tiny_data(examples, **changes).batch(range(6)))
    fast = gradient(model, loss)
    l_token, l_jepa = reference_objective(model, examples)
    total = l_token + model.config.jepa_weight * l_jepa
    slow = gradient(model, total)
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(metrics["token_loss"], l_token.detach())
    torch.testing.assert_close(metrics["jepa_loss"], l_jepa.detach())
    for name, value in slow.items():
        torch.testing.assert_close(fast.get(name, torch.zeros_like(value)), value, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------- the same losses however examples are batched


def losses(model, batches: list[Batch]) -> tuple[dict, Tensor]:
    """Losses, metrics and gradients of micro-batches added up."""
    model.zero_grad()
    total = {}
    for batch in batches:
        loss, metrics = model(batch)
        loss.backward()
        total = {name: total.get(name, 0) + value for name, value in metrics.items()}
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(a: tuple, b: tuple) -> None:
    for name in a[0]:
        if name != "cos_other":  # its control partner depends on who else is in the batch
            torch.testing.assert_close(a[0][name], b[0][name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mask", ("jepa", "causal", "none"))
def test_padding_changes_neither_losses_nor_gradients(mask):
    model, data = tiny_model(mask=mask, decode_pred_weight=0.5), tiny_data(PROBLEMS[:12], mask=mask)
    alone = [data.batch([i], data.loss_denominators(range(12))) for i in range(12)]
    assert_same(losses(model, alone), losses(model, [data.batch(range(12))]))


def test_micro_batches_add_up_to_the_large_batch():
    model, data = tiny_model(decode_pred_weight=0.5), tiny_data(PROBLEMS[:12])
    whole = data.loss_denominators(range(12))
    micro = [data.batch(range(5), whole), data.batch(range(5, 12), whole)]
    assert_same(losses(model, [data.batch(range(12))]), losses(model, micro))


def test_a_question_of_one_token_trains():
    """No position may have a target for a term; a mean over nothing must not be a NaN."""
    data = tiny_data([Example("7", "7"), Example("8", "9")])
    loss, metrics = tiny_model()(data.batch([0, 1]))
    loss.backward()
    assert loss.isfinite() and all(torch.as_tensor(v).isfinite() for v in metrics.values())


# ---------------------------------------------------------------------------------------------- decoding


@torch.no_grad()
def slow_greedy(model, x: Tensor, limit: int) -> str:
    """Greedy decoding that runs the whole sequence anew for each token: embeddings x (1, T, C) -> text."""
    ids = []
    while len(ids) < limit:
        h = model.trunk(x, torch.arange(x.size(1))[None])
        ids.append(int((h[0, -1] @ model.embed.weight.T).argmax()))
        if ids[-1] == TOKENIZER.eos:
            return TOKENIZER.decode(ids[:-1])
        x = torch.cat([x, model.embed(torch.tensor([[ids[-1]]]))], 1)
    return TOKENIZER.decode(ids)


@cache
def briefly_trained(mask: str = "jepa") -> NanoJEPA:
    """A model that no longer repeats its last input, as tied embeddings make an untrained one do."""
    model, data = tiny_model(mask=mask), tiny_data(mask=mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(40):
        optimizer.zero_grad()
        model(data.batch(range(32 * (step % 2), 32 * (step % 2) + 32)))[0].backward()
        optimizer.step()
    return model.eval()


def test_cached_batched_decoding_equals_one_by_one_without_a_cache():
    model = briefly_trained()
    z_hat = model.predict(QUESTIONS[:10])
    slow = [slow_greedy(model, model.latent_prefix(z[None])[:, None], 6) for z in z_hat]
    assert model.decode(z_hat, 6) == slow
    assert len(set(slow)) > 1 and any(slow)


def test_the_language_model_baseline_decodes_as_if_each_question_were_alone():
    model, t = briefly_trained(mask="causal"), TOKENIZER
    slow = [slow_greedy(model, model.embed(torch.tensor([[*q, t.pred, t.ans]])), 6) for q in t.encode(QUESTIONS[:10])]
    assert model.answer(QUESTIONS[:10], 6) == slow
    assert len(set(slow)) > 1


def test_a_language_model_chooses_each_token_as_it_is_asked_to():
    model, shapes = briefly_trained(mask="causal"), []

    def second_best(logits: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        return logits.topk(2).indices[:, 1]

    assert model.answer(QUESTIONS[:4], 3, second_best) != model.answer(QUESTIONS[:4], 3)
    assert shapes == [(4, model.config.vocab_size)] * 3


def test_a_program_is_followed_by_what_it_computes(monkeypatch):
    model = tiny_model(mask="causal", answer_view="program").eval()
    monkeypatch.setattr(model, "_generate", lambda *_: ["α*2,a+β", "nonsense"])
    assert model.answer(["3 pens and 4 pens", "?"]) == ["α*2,a+β #### 10", "nonsense #### "]


def test_what_is_asked_is_what_was_trained_on():
    """Under programs the numbers are placeholders in both: a question asked with its numbers was never seen."""
    question = "Ana has 3 pens and 4 books."
    example = Example(question, "7", "+", "<<3+4=7>>7 #### 7")
    for view_name in ("answer", "program"):
        model = tiny_model(mask="causal", answer_view=view_name)
        data = tiny_data([example], mask="causal", answer_view=view_name)
        assert data.tokens[: data.n[0]].tolist() == model.tokenize([question])[0]


def test_predict_and_encode_give_the_latents_that_training_aligns():
    model, batch = tiny_model(predictor="mlp").eval(), tiny_data().batch(range(8))
    with torch.no_grad():
        h = model.hidden_states(batch.tokens, batch.segment, batch.position_ids).flatten(0, 1)
    torch.testing.assert_close(model.predict(QUESTIONS[:8]), model.predictor(h[batch.pred_at]).detach())
    torch.testing.assert_close(model.encode(ANSWERS[:8]), h[batch.eos_at])


def test_under_an_ema_target_answers_are_encoded_by_the_target_network():
    model = tiny_model(target="ema").eval()
    before = model.encode(ANSWERS[:4])
    with torch.no_grad():
        for p in [*model.embed.parameters(), *model.trunk.parameters()]:
            p.add_(torch.randn_like(p))
    assert torch.equal(model.encode(ANSWERS[:4]), before)


def test_a_question_longer_than_the_context_is_refused():
    model = tiny_model(block_size=16).eval()
    with pytest.raises(UserError, match="longer than the context of 16"):
        model.predict(["How many? " * 20])


# ------------------------------------------------------------------------------------------- its options


@pytest.mark.parametrize("target, pulled", (("stopgrad", False), ("ema", False), ("grad", True)))
def test_only_target_grad_lets_l_jepa_pull_on_the_answers_latent(target, pulled):
    model, batch = tiny_model(target=target), tiny_data().batch(range(8))
    h = model.hidden_states(batch.tokens, batch.segment, batch.position_ids).flatten(0, 1).detach().requires_grad_()
    (1 - cosine(h[batch.pred_at], model.target_latents(batch, h[batch.eos_at]))).sum().backward()
    assert (h.grad[batch.pred_at] != 0).any() and (h.grad[batch.eos_at] != 0).any() == pulled


def test_an_ema_targets_answers_are_encoded_alone_as_they_are_beside_their_questions():
    model, batch = tiny_model(target="ema").eval(), tiny_data().batch(range(8))
    h = model.hidden_states(batch.tokens, batch.segment, batch.position_ids, model.target).flatten(0, 1)
    torch.testing.assert_close(model.target_latents(batch, h[batch.eos_at]), h[batch.eos_at].detach())


def test_word_dropout_hides_words_of_questions_in_training_only():
    model, batch = tiny_model(word_dropout=0.5).train(), tiny_data().batch(range(32))
    changed = (model.drop_words(batch) != batch.tokens).flatten()
    assert not changed[[i for i in range(len(changed)) if i not in set(batch.words_at.tolist())]].any()
    assert 0.4 < changed[batch.words_at].float().mean() < 0.6
    assert torch.equal(model.eval().drop_words(batch), batch.tokens)


def test_an_ema_target_is_not_dropped_out():
    """In train mode two passes of the target network differed, and both from what `encode` gives."""
    model, batch = tiny_model(target="ema", dropout=0.5).train(), tiny_data().batch(range(4))
    z = model.hidden_states(batch.tokens, batch.segment, batch.position_ids).flatten(0, 1)[batch.eos_at]
    first, second = (model.target_latents(batch, z) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, z)


@pytest.mark.parametrize("weight, reached", ((0.0, False), (1.0, True)))
def test_token_losses_reach_the_prediction_only_if_it_is_decoded(weight, reached):
    """The claim 'reasoning is learned through L_jepa alone' stands or falls with this."""
    model, batch, seen = tiny_model(jepa_weight=0.0, decode_pred_weight=weight), tiny_data().batch(range(8)), []
    model.trunk.register_forward_hook(lambda module, args, h: (h.retain_grad(), seen.append(h)) and None)
    model(batch)[0].backward()
    pulled = seen[0].grad.flatten(0, 1)
    assert (pulled[batch.pred_at] != 0).any() == reached and (pulled[batch.eos_at] != 0).any()


def test_the_ema_target_follows_the_trunk_by_its_decay():
    model = tiny_model(target="ema", ema_decay=0.75)
    old = [p.clone() for p in model.target.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1.0)
    model.update_target()
    for was, now in zip(old, model.target.parameters(), strict=True):
        torch.testing.assert_close(now, was + 0.25)


OBJECTIVE = (
    ("regulariser", "vicreg"),
    ("regulariser", "sigreg"),
    ("predictor", "mlp"),
    ("decode_noise", 0.5),
    ("decode_pred_weight", 1.0),
    ("decode_weight", 0.0),
    ("question_weight", 0.5),
    ("jepa_weight", 0.5),
)


@pytest.mark.parametrize("name, value", OBJECTIVE)
def test_every_option_of_the_objective_changes_the_loss(name, value):
    batch = tiny_data().batch(range(8))
    plain, changed = tiny_model()(batch)[0], tiny_model(**{name: value})(batch)[0]
    assert changed.isfinite() and not torch.isclose(changed, plain)


@pytest.mark.parametrize("regulariser", ("vicreg", "sigreg"))
def test_a_regulariser_counts_by_its_weight_and_is_logged_without_it(regulariser):
    batch, found = tiny_data().batch(range(8)), []
    for weight in (0.0, 2.0):
        model = tiny_model(regulariser=regulariser, regulariser_weight=weight)
        torch.manual_seed(0)
        found.append(model(batch))
    (plain, logged), (weighted, again) = found
    assert logged["regulariser_loss"] == again["regulariser_loss"] > 0
    torch.testing.assert_close(weighted, plain + 2 * logged["regulariser_loss"])


def test_noise_is_added_to_latents_in_training_alone():
    batch, model = tiny_data().batch(range(8)), tiny_model(decode_noise=0.5)
    assert model(batch)[0] != model(batch)[0]
    model.eval()
    assert model(batch)[0] == model(batch)[0] == tiny_model().eval()(batch)[0]


def test_only_the_direction_of_a_latent_is_decoded():
    model, z = tiny_model().eval(), torch.randn(3, 32)
    torch.testing.assert_close(model.latent_prefix(100 * z), model.latent_prefix(z))


# ------------------------------------------------------------------------------------------ mixed precision


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_mixed_precision_trains_every_term_in_fp32_where_it_matters(dtype):
    """Half precision here stands for what GPUs do: sums over a vocabulary or a batch must come out in fp32."""
    options = {"target": "ema", "predictor": "mlp", "decode_pred_weight": 1.0, "regulariser_weight": 0.1}
    for regulariser in ("vicreg", "sigreg"):
        model = tiny_model(regulariser=regulariser, **options)
        with torch.autocast("cpu", dtype):
            loss, metrics = model(tiny_data().batch(range(8)))
        loss.backward()
        assert all(value.dtype is torch.float32 and value.isfinite() for value in metrics.values())
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_in_half_precision_the_gradients_of_a_large_step_do_not_vanish(dtype):
    """1 / (targets of the step) lies below fp16's smallest number; the loss scaler must be able to save it."""
    data, scale = tiny_data(), 2.0**16
    denominators = {name: 1e4 * n for name, n in data.loss_denominators(range(16)).items()}
    batch, found = data.batch(range(16), denominators), []
    for enabled in (False, True):
        model = tiny_model(decode_pred_weight=1.0)
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = model(batch)[0]
        found.append(gradient(model, scale * loss))
    exact, half = found
    for name, value in exact.items():
        assert value.norm() > 0 and (half[name] - value).norm() < 0.05 * value.norm(), name


# ---------------------------------------------------------------------------------------------- the whole


def test_one_batch_can_be_learned_by_heart():
    """Overfitting eight examples: if this fails the gradient of some term is cut or points the wrong way."""
    torch.manual_seed(0)
    model, batch = tiny_model(), tiny_data().batch(range(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        loss, metrics = model(batch)
        loss.backward()
        optimizer.step()
    assert metrics["cos_own"] > 0.95 > metrics["cos_other"] + 0.1
    assert model.eval().answer(QUESTIONS[:8]) == ANSWERS[:8]


def test_the_reference_configuration_has_45_million_parameters():
    with torch.device("meta"):
        model = NanoJEPA(Config(vocab_size=50304))
    assert 44e6 < model.n_params() < 46e6
