"""What the model promises, each as a property. Most of all: nothing that predicts an answer can see it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import PROBLEMS, TOKENIZER, encoded, tiny_model

from config import UserError
from data import Example
from model import (
    NanoJEPA,
    Transformer,
    cosine,
    covariance_loss,
    jepa_mask,
    load_run,
    rotary,
    rotate,
    sigreg_loss,
    token_loss,
    variance_loss,
)
from train import save_model

# ------------------------------------------------------------------------------------------- the leak


def states(model, batch, tokens=None):
    with torch.no_grad():
        return model.states(batch.tokens if tokens is None else tokens, batch.segment, batch.position)


def leaks(mask, changed_view, watched_view):
    """Does changing every token of one view change a state of the other? Compared bit for bit."""
    model, batch = tiny_model(mask=mask).eval(), encoded(PROBLEMS[:8], mask=mask).batch(range(8))
    view = torch.where(batch.segment < 0, -1, batch.segment % 2)
    changed = torch.where(view == changed_view, (batch.tokens + 7) % 300, batch.tokens)
    return not torch.equal(
        states(model, batch)[view == watched_view], states(model, batch, changed)[view == watched_view]
    )


QUESTION, ANSWER = 0, 1


def test_changing_the_answer_leaves_every_question_and_pred_state_bit_equal():
    """The bug this repository exists for: an earlier implementation built this mask and never applied it."""
    assert not leaks("jepa", ANSWER, QUESTION)


def test_changing_the_question_leaves_every_answer_state_bit_equal():
    assert not leaks("jepa", QUESTION, ANSWER)


def test_without_the_mask_the_same_tests_see_the_leak():
    assert leaks("none", ANSWER, QUESTION) and leaks("none", QUESTION, ANSWER)


def test_the_causal_mask_shows_the_question_to_the_answer_and_not_the_reverse():
    assert leaks("causal", QUESTION, ANSWER) and not leaks("causal", ANSWER, QUESTION)


@pytest.mark.parametrize("mask,sees", [("jepa", False), ("causal", False), ("none", True)])
def test_a_later_token_moves_no_earlier_state_unless_there_is_no_mask(mask, sees):
    model, batch = tiny_model(mask=mask).eval(), encoded(PROBLEMS[:1], mask=mask).batch([0])
    before = states(model, batch)
    for t in range(1, batch.tokens.size(1)):
        changed = batch.tokens.clone()
        changed[0, t] = (changed[0, t] + 7) % 300
        assert torch.equal(before[0, :t], states(model, batch, changed)[0, :t]) != sees


@pytest.mark.parametrize("mask,zero", [("jepa", True), ("none", False)])
def test_the_gradient_of_the_prediction_to_the_answer_embeddings_is_exactly_zero(mask, zero):
    model, batch, read = tiny_model(mask=mask), encoded(PROBLEMS[:8], mask=mask).batch(range(8)), []
    model.embed.register_forward_hook(lambda module, args, x: read.append(x.detach().requires_grad_()) or read[-1])
    h = model.states(batch.tokens, batch.segment, batch.position).flatten(0, 1)
    h[batch.pred_at].square().sum().backward()
    (x,), answer_view = read, batch.segment % 2 == 1
    assert (x.grad[answer_view] == 0).all() == zero
    assert x.grad[batch.segment % 2 == 0].abs().sum() > 0


def test_one_packed_example_never_moves_another():
    model, data = tiny_model().eval(), encoded(PROBLEMS[:4])
    batch = data.batch(range(4), packed=True)
    assert batch.tokens.size(0) < 4, "the examples do not share a row: this would test nothing"
    before = states(model, batch)
    for k in range(4):
        mine = (batch.segment == 2 * k) | (batch.segment == 2 * k + 1)
        after = states(model, batch, torch.where(mine, (batch.tokens + 7) % 300, batch.tokens))
        others = (batch.segment >= 0) & ~mine
        assert torch.equal(before[others], after[others]) and not torch.equal(before[mine], after[mine])


def test_the_mask_is_what_the_design_draws():
    segment = torch.tensor([[0, 0, 0, 1, 1, -1]])  # q1 q2 [PRED] [ANS] [EOS] padding
    drawn = {"jepa": "100000 110000 111000 000100 000110 000001", "causal": "100000 110000 111000 111100 111110 000001",
             "none": "111110 111110 111110 111110 111110 000001"}  # fmt: skip
    for name, rows in drawn.items():
        assert jepa_mask(segment, name)[0, 0].int().tolist() == [[int(c) for c in row] for row in rows.split()]


def test_every_row_of_the_mask_attends_to_something():
    batch = encoded(PROBLEMS[:16]).batch(range(16), packed=True)
    assert all(jepa_mask(batch.segment, mask).any(-1).all() for mask in ("jepa", "causal", "none"))


# ------------------------------------------------------------------- fast paths equal the slow obvious ones


def losses(model, batches):
    """Losses, metrics and gradients of micro-batches added up."""
    model.zero_grad()
    total = {}
    for batch in batches:
        loss, metrics = model(batch)
        loss.backward()
        total = {name: total.get(name, 0) + value for name, value in metrics.items()}
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(a, b):
    for name in a[0]:
        if name != "cos_other":  # its control partner depends on who else is in the batch
            torch.testing.assert_close(a[0][name], b[0][name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mask", ["jepa", "causal"])
def test_padding_and_packing_change_neither_losses_nor_gradients(mask):
    model, data = tiny_model(mask=mask, decode_pred_weight=0.5), encoded(PROBLEMS[:12], mask=mask)
    share = data.totals(range(12))
    alone = losses(model, [data.batch([i], share) for i in range(12)])
    assert_same(alone, losses(model, [data.batch(range(12))]))
    assert_same(alone, losses(model, [data.batch(range(12), packed=True)]))


def test_micro_batches_add_up_to_the_large_batch():
    model, data = tiny_model(decode_pred_weight=0.5), encoded(PROBLEMS[:12])
    share = data.totals(range(12))
    assert_same(
        losses(model, [data.batch(range(12))]),
        losses(model, [data.batch(range(5), share), data.batch(range(5, 12), share)]),
    )


def slow_losses(model, example):
    """The objective of one example, written out token by token, one view at a time, without any batching."""
    t, head = TOKENIZER, model.embed.weight
    q, a = t.encode([example.question, example.answer])
    view = lambda ids: model.trunk(model.embed(torch.tensor([ids])), torch.arange(len(ids))[None])[0]  # noqa: E731
    question, answer = view([*q, t.pred]), view([t.ans, *a, t.eos])
    l_question = -sum(F.log_softmax(question[i] @ head.T, -1)[q[i + 1]] for i in range(len(q) - 1)) / (len(q) - 1)
    first = model.latent_in(F.normalize(answer[-1], dim=-1) * len(answer[-1]) ** 0.5)
    x = torch.cat([first[None], model.embed(torch.tensor(a))])
    y = model.trunk(x[None], torch.arange(len(x))[None])[0]
    l_decode = -sum(F.log_softmax(y[i] @ head.T, -1)[id] for i, id in enumerate([*a, t.eos])) / (len(a) + 1)
    z_hat, z = question[-1], answer[-1]
    return l_question, l_decode, 1 - z_hat @ z / (z_hat.norm() * z.norm())


def test_the_batched_loss_is_the_objective_written_out():
    model, data = tiny_model(jepa_weight=0.7).eval(), encoded(PROBLEMS[:6])
    for i in range(6):
        loss, metrics = model(data.batch([i]))
        l_question, l_decode, l_jepa = slow_losses(model, PROBLEMS[i])
        torch.testing.assert_close(loss, l_question + l_decode + 0.7 * l_jepa)
        torch.testing.assert_close(metrics["jepa_loss"], l_jepa.detach())


@torch.no_grad()
def slow_greedy(model, x, limit):
    """Greedy decoding that runs the whole sequence anew for each token: embeddings x (1, T, C) -> ids."""
    ids = []
    while len(ids) < limit:
        h = model.trunk(x, torch.arange(x.size(1))[None])
        ids.append(int((h[0, -1] @ model.embed.weight[: TOKENIZER.n_vocab].T).argmax()))
        if ids[-1] == TOKENIZER.eos:
            return ids[:-1]
        x = torch.cat([x, model.embed(torch.tensor([[ids[-1]]]))], 1)
    return ids


def briefly_trained(**changes):
    """A model that no longer repeats its last input, as tied embeddings make an untrained one do."""
    model, batch = tiny_model(**changes), encoded(mask=changes.get("mask", "jepa")).batch(range(64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
    return model.eval()


def test_cached_batched_decoding_equals_one_by_one_without_a_cache():
    model = briefly_trained()
    questions = [e.question for e in PROBLEMS[:10]]
    z_hat = model.predict(questions)
    slow = [TOKENIZER.decode(slow_greedy(model, model.first_slot(z[None])[:, None], 6)) for z in z_hat]
    assert model.decode(z_hat, 6) == slow
    assert len(set(slow)) > 1 and any(slow)


def test_the_language_model_baseline_decodes_as_if_each_question_were_alone():
    model = briefly_trained(mask="causal")
    questions = [e.question for e in PROBLEMS[:10]]
    slow = []
    for q in TOKENIZER.encode(questions):
        x = model.embed(torch.tensor([[*q, TOKENIZER.pred, TOKENIZER.ans]]))
        slow.append(TOKENIZER.decode(slow_greedy(model, x, 6)))
    assert model.answer(questions, 6) == slow
    assert len(set(slow)) > 1


def test_predict_and_encode_give_the_latents_that_training_aligns():
    model, data = tiny_model().eval(), encoded(PROBLEMS[:8])
    batch = data.batch(range(8), packed=True)
    h = states(model, batch).flatten(0, 1)
    torch.testing.assert_close(model.predict([e.question for e in PROBLEMS[:8]]), h[batch.pred_at])
    torch.testing.assert_close(model.encode([e.answer for e in PROBLEMS[:8]]), h[batch.eos_at])


def test_the_complex_rotation_equals_the_real_one():
    """The CPU multiplies complex numbers; other devices take the four real products."""
    x, position = torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 9]])
    turn = rotary(position, 8)
    a, b = x[..., 0::2], x[..., 1::2]
    angle = position[:, None, :, None] * 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    real = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)
    torch.testing.assert_close(rotate(x, turn), real)


def test_the_compiled_trunk_equals_the_eager_one_and_compiles_once_for_all_batches():
    """Captured by torch.compile and run without code generation: a minute of C++ compilation proves no more."""
    model, compiled = tiny_model(), tiny_model()
    compiled.trunk.compile(backend="aot_eager", dynamic=True)
    data = encoded()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for size in (8, 5, 12, 20, 3):
        batch = data.batch(range(size, 2 * size))
        assert_same(losses(model, [batch]), losses(compiled, [batch]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "one with a mask, one causal"


# ---------------------------------------------------------------------------------- objective and options


def test_neither_pred_nor_eos_carries_a_token_target():
    for mask in ("jepa", "causal"):
        batch = encoded(PROBLEMS[:8], mask=mask).batch(range(8))
        predicting = set(batch.question_at.tolist()) | set(batch.answer_at.tolist())
        assert not predicting & (set(batch.pred_at.tolist()) | set(batch.eos_at.tolist()))


def gradient_of_jepa(**changes):
    """Gradients of L_jepa alone at h[PRED] and h[EOS]: is anything pulling on the target?"""
    model, batch = tiny_model(**changes), encoded(PROBLEMS[:8]).batch(range(8))
    h = model.states(batch.tokens, batch.segment, batch.position).flatten(0, 1).detach().requires_grad_()
    (1 - cosine(h[batch.pred_at], model.targets(batch, h[batch.eos_at]))).sum().backward()
    return h.grad[batch.pred_at].abs().sum() > 0, h.grad[batch.eos_at].abs().sum() > 0


@pytest.mark.parametrize("target,pulled", [("stopgrad", False), ("ema", False), ("grad", True)])
def test_only_target_grad_lets_l_jepa_pull_on_the_answer_latent(target, pulled):
    assert gradient_of_jepa(target=target) == (True, pulled)


@pytest.mark.parametrize("weight,reached", [(0.0, False), (1.0, True)])
def test_token_losses_reach_the_prediction_only_if_it_is_decoded(weight, reached):
    """The claim 'reasoning is learned through L_jepa alone' stands or falls with this."""
    model, batch, seen = (
        tiny_model(jepa_weight=0.0, decode_pred_weight=weight),
        encoded(PROBLEMS[:8]).batch(range(8)),
        [],
    )
    model.trunk.register_forward_hook(lambda module, args, h: (h.retain_grad(), seen.append(h)) and None)
    model(batch)[0].backward()
    gradient = seen[0].grad.flatten(0, 1)
    assert (gradient[batch.pred_at] != 0).any() == reached and (gradient[batch.eos_at] != 0).any()


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


def test_one_batch_can_be_learned_by_heart():
    """Overfitting eight examples: if this fails the gradient of some term is cut or points the wrong way."""
    torch.manual_seed(0)
    model, data = tiny_model(decode_pred_weight=0.0), encoded(PROBLEMS[:8])
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=3e-3), data.batch(range(8))
    for _ in range(250):
        optimizer.zero_grad()
        loss, metrics = model(batch)
        loss.backward()
        optimizer.step()
    assert metrics["cos_own"] > 0.95 > metrics["cos_other"] + 0.1
    assert model.eval().answer([e.question for e in PROBLEMS[:8]]) == [e.answer for e in PROBLEMS[:8]]


def test_the_founding_configuration_has_45_million_parameters():
    from config import Config

    with torch.device("meta"):
        model = NanoJEPA(Config(vocab_size=50304))
    assert 44e6 < model.n_params() < 46e6


OBJECTIVE = [("vicreg_var", 1.0), ("vicreg_cov", 1.0), ("sigreg", 1.0), ("predictor", "mlp"), ("decode_noise", 0.5),
             ("decode_pred_weight", 1.0), ("decode_weight", 0.0)]  # fmt: skip


@pytest.mark.parametrize("name,value", OBJECTIVE)
def test_every_option_of_the_objective_changes_the_loss(name, value):
    batch = encoded(PROBLEMS[:8]).batch(range(8))
    torch.manual_seed(0)
    plain = tiny_model()(batch)[0]
    torch.manual_seed(0)
    loss = tiny_model(**{name: value})(batch)[0]
    assert loss.isfinite() and not torch.isclose(loss, plain)


def test_mixed_precision_trains_every_term_in_fp32_where_it_matters():
    """bf16 here stands for what GPUs do: sums over a vocabulary or a batch must come out in fp32 and finite."""
    model = tiny_model(
        target="ema",
        predictor="mlp",
        decode_pred_weight=1.0,
        **dict.fromkeys(("vicreg_var", "vicreg_cov", "sigreg"), 0.1),
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = model(encoded(PROBLEMS[:8]).batch(range(8)))
    loss.backward()
    assert all(value.dtype is torch.float32 and value.isfinite() for value in metrics.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ---------------------------------------------------------------------------------------------- the losses


def test_the_variance_hinge_is_zero_for_spread_latents_and_large_for_collapsed_ones():
    torch.manual_seed(0)
    spread = 3 * torch.randn(512, 16)
    assert variance_loss(spread) == 0 and variance_loss(torch.ones(512, 16)) > 0.9


def test_the_covariance_term_sees_correlated_dimensions():
    torch.manual_seed(0)
    z = torch.randn(4096, 8)
    assert covariance_loss(z) < 0.02 < 1 < covariance_loss(torch.cat([z[:, :4]] * 2, 1))


def test_sigreg_is_least_for_a_gaussian():
    torch.manual_seed(0)
    gauss = torch.randn(1024, 16)
    least = sigreg_loss(gauss)
    for other in (torch.zeros(1024, 16), 3 * gauss, gauss + 2, gauss.sign() * torch.randn(1024, 1)):
        assert sigreg_loss(other) > 2 * least


@pytest.mark.parametrize("chunk", [1, 22, 10**9])
def test_the_chunked_token_loss_equals_cross_entropy_in_value_and_gradients(chunk, monkeypatch):
    monkeypatch.setattr("model.CHUNK_LOGITS", chunk)
    h, w = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    target, scale = torch.tensor([0, 3, 10, 3, 5]), torch.rand(5)
    loss, nll = token_loss(h, w, target, scale)
    (3 * loss).backward()
    fast, h.grad, w.grad = (h.grad, w.grad), None, None
    slow = F.cross_entropy(h @ w.T, target, reduction="none")
    (3 * (slow * scale).sum()).backward()
    torch.testing.assert_close(nll, slow.detach())
    torch.testing.assert_close(loss, (slow * scale).sum())
    torch.testing.assert_close(fast, (h.grad, w.grad))
    with torch.no_grad():
        assert torch.equal(token_loss(h, w, target, scale)[0], loss)


def test_the_token_loss_in_half_precision_keeps_small_gradients():
    """The gradient is computed before any loss scale is known: 1/targets must not meet fp16's smallest number."""
    h, w = torch.randn(40, 16), torch.randn(300, 16)
    target, scale = torch.randint(0, 300, (40,)), torch.full((40,), 1e-5)
    found = []
    for dtype in (None, torch.bfloat16):
        a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            token_loss(a, b, target, scale)[0].backward()
        found.append((a.grad, b.grad))
    for exact, half in zip(*found, strict=True):
        assert (exact - half).norm() < 0.02 * exact.norm() and exact.norm() > 0


def test_a_token_loss_of_weight_zero_has_no_gradient():
    h, w = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    token_loss(h, w, torch.arange(5), torch.zeros(5))[0].backward()
    assert not h.grad.any() and not w.grad.any()


def test_the_token_loss_of_no_position_is_zero():
    h, w = torch.randn(0, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    loss, _ = token_loss(h, w, torch.empty(0, dtype=torch.int64), torch.empty(0))
    loss.backward()
    assert loss == 0 and not w.grad.any()


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="--n-embd 30"):
        Transformer(1, 30, 4)


# ---------------------------------------------------------------------------------------------- checkpoints


def test_a_saved_model_answers_the_same_from_its_folder_alone(tmp_path):
    model = tiny_model(target="ema", predictor="mlp").eval()
    save_model(model, model.config, tmp_path)
    again, questions = NanoJEPA.from_pretrained(str(tmp_path)), [e.question for e in PROBLEMS[:5]]
    assert not again.training and again.config == model.config
    assert torch.equal(model.predict(questions), again.predict(questions))
    assert model.answer(questions) == again.answer(questions)
    model.save_pretrained(tmp_path / "mixin")
    assert torch.equal(NanoJEPA.from_pretrained(tmp_path / "mixin").predict(questions), model.predict(questions))


def test_a_missing_foreign_or_misshapen_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*train.py"):
        load_run(tmp_path / "nowhere")
    model = tiny_model()
    save_model(model, model.config, tmp_path)
    save_model(model, replace(model.config, n_embd=64), tmp_path / "shape")
    with pytest.raises(UserError, match="does not fit.*shape"):
        load_run(tmp_path / "shape")
    save_model(model, replace(model.config, system="reasoner"), tmp_path / "system")
    with pytest.raises(UserError, match="'reasoner', not of nanojepa"):
        load_run(tmp_path / "system")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="does not fit"):
        load_run(tmp_path)


def test_a_question_of_one_token_trains():
    """`K` may be zero for a term; a mean over nothing must not be a NaN."""
    data = encoded([Example("7", "7"), Example("8", "9")])
    loss, metrics = tiny_model()(data.batch([0, 1]))
    loss.backward()
    assert loss.isfinite() and all(torch.as_tensor(v).isfinite() for v in metrics.values())
