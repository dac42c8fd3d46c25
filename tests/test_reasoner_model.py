"""The Reasoner's chain and the Talker: losses as stated, fast paths equal to slow ones, nothing seen too early."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reasoner_tiny import PROMPTS, tiny_config, tiny_model, whole_batch

from reasoner.baselines import Coupled
from reasoner.config import PRESETS, ReasonerConfig
from reasoner.data import load_examples
from reasoner.model import TEMPERATURE, NearestDecoder, Reasoner, Talker
from reasoner.parts import add_noise


@torch.no_grad()
def slow_chain(reasoner: Reasoner, prompt: str, max_chain: int, feed_tokens=False, sharpen=0.0) -> torch.Tensor:
    """The definition: one prompt, a pass over everything for every latent -> (R, C)."""
    ids = torch.tensor(reasoner.tokenizer.encode([prompt]))
    x, latents = reasoner.inputs(ids), []
    for _ in range(max_chain):
        latents.append(reasoner.hidden_states(x)[0, -1])
        if reasoner.nearest(latents[-1]) == reasoner.tokenizer.eos:
            break
        fed_back = reasoner.inputs(reasoner.nearest(latents[-1])) if feed_tokens else latents[-1]
        if sharpen:
            weights = F.cosine_similarity(latents[-1], reasoner.target.weight, dim=-1).div(sharpen).softmax(0)
            fed_back = F.normalize(weights @ F.normalize(reasoner.embed.weight, dim=-1), dim=0)
        x = torch.cat((x, fed_back[None, None]), 1)
    return torch.stack(latents)


def sizes(config: ReasonerConfig) -> tuple[int, int]:
    """Parameters of (Reasoner, Talker), counted without memory for them."""
    with torch.device("meta"):
        return Reasoner(config).n_params(), Talker(config).n_params()


# --------------------------------------------------------------------------------------------- the chain


@pytest.mark.parametrize("feed_tokens,sharpen", [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_the_chain_with_a_cache_in_a_batch_is_the_chain_of_each_prompt_without(feed_tokens, sharpen):
    reasoner = tiny_model(Reasoner, trained="sst", sharpen=sharpen)
    found = reasoner.rollout(PROMPTS, feed_tokens=feed_tokens)
    for prompt, chain in zip(PROMPTS, found, strict=True):
        slow = slow_chain(reasoner, prompt, found.size(1), feed_tokens, sharpen)
        assert torch.allclose(chain[: len(slow)], slow, atol=1e-5) and not chain[len(slow) :].any()


def test_tokens_fed_back_are_another_chain_from_the_second_latent_on():
    reasoner = tiny_model(Reasoner, trained="sst")
    latents, fed = reasoner.rollout(PROMPTS), reasoner.rollout(PROMPTS, feed_tokens=True)
    assert torch.equal(latents[:, 0], fed[:, 0]) and not torch.allclose(latents[:, 1], fed[:, 1])
    assert NearestDecoder(reasoner, feed_tokens=True).answer(PROMPTS) == reasoner.nearest_text(fed)


def test_a_sharpened_latent_lies_between_the_nearest_embedding_and_the_mean():
    reasoner = tiny_model(Reasoner, trained="sst", sharpen=0.1)
    r, E = F.normalize(torch.randn(5, 32), dim=-1), F.normalize(reasoner.embed.weight, dim=-1)
    assert torch.allclose(reasoner.feed_back(r, 1e-4), E[reasoner.nearest(r)], atol=1e-4)
    assert torch.allclose(reasoner.feed_back(r, 1e4), F.normalize(E.mean(0), dim=-1).expand(5, -1), atol=1e-3)
    assert reasoner.feed_back(r, 0.0) is r and torch.equal(reasoner.feed_back(r), reasoner.feed_back(r, 0.1))
    assert torch.equal(reasoner.rollout(PROMPTS, feed_tokens=True), reasoner.rollout(PROMPTS, sharpen=1e-5))


@pytest.mark.parametrize(
    "trained,norm,is_unit",
    [("sst", "hybrid", True), ("sst", "l2", True), ("sst", "rms", False), ("pretrain", "hybrid", False)],
)
def test_hidden_states_have_unit_norm_after_pretraining_and_not_before(trained, norm, is_unit):
    reasoner = tiny_model(Reasoner, trained=trained, norm=norm)
    reasoner.norm_out.weight.data.uniform_(0.5, 2)  # norm weights that were learned
    norms = reasoner.hidden_states(reasoner.inputs(whole_batch(tiny_config()).tokens)).norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5) == is_unit


def test_a_chain_ends_with_the_latent_nearest_to_the_end_and_zeros_stand_behind():
    reasoner = tiny_model(Reasoner, trained="sst")
    r = reasoner.rollout(PROMPTS)
    assert torch.allclose(r[r.abs().sum(-1) > 0].norm(dim=-1), torch.ones(()), atol=1e-5)
    eos = reasoner.nearest(r[0, 1])  # declare what is nearest to some latent the end: the chain must stop there
    reasoner.tokenizer.eos = int(eos)
    stopped = reasoner.rollout(PROMPTS)
    first = (reasoner.nearest(r[0]) == eos).nonzero()[0, 0]
    assert torch.allclose(stopped[0, : first + 1], r[0, : first + 1], atol=1e-5)
    assert (stopped[0, first + 1 :] == 0).all()


def test_the_nearest_embeddings_of_a_chain_are_its_text_up_to_its_end():
    reasoner = tiny_model(Reasoner, trained="sst")
    t = reasoner.tokenizer
    rows = torch.tensor([[*t.encode(["4 2"])[0], t.eos, *t.encode(["7"])[0]], [*t.encode(["1 2 3"])[0], t.eos]])
    exact = F.normalize(reasoner.target(rows), dim=-1).detach()
    exact[1, 2:] = 0  # a chain that has ended without [EOS]
    assert reasoner.nearest_text(exact) == ["4 2", "1 2"]


def test_noise_has_the_wanted_norm():
    x = F.normalize(torch.randn(200, 64), dim=-1) * 3
    noise = add_noise(x, 0.5, torch.Generator().manual_seed(0)) - x
    assert noise.norm(dim=-1).mean() == pytest.approx(1.5, rel=0.02) and add_noise(x, 0.0, None) is x


def test_an_intervention_changes_what_is_thought_after_it_and_nothing_before():
    reasoner = tiny_model(Reasoner, trained="sst")
    reasoner.tokenizer.eos = -1
    tokens, length = reasoner.tokenize(PROMPTS)
    x = reasoner.inputs(tokens)
    wrong = reasoner.chain(x, length, 5, intervene=lambda step, r: r.flip(0) if step == 2 else r)
    clean = reasoner.chain(x, length, 5)
    assert torch.equal(wrong[:, :3], clean[:, :3]) and not torch.allclose(wrong[:, 3:], clean[:, 3:], atol=1e-4)


# ---------------------------------------------------------------------------------------------- training


def test_the_target_is_the_embeddings_moving_average_and_has_no_gradient():
    reasoner = tiny_model(Reasoner, trained="sst", ema_decay=0.9)
    before = reasoner.target.weight.clone()
    with torch.no_grad():
        reasoner.embed.weight += 1.0
    reasoner.update_target()
    assert torch.allclose(reasoner.target.weight, before + 0.1, atol=1e-6)
    loss, _ = reasoner.train()(whole_batch(tiny_config()))
    loss.backward()
    assert reasoner.target.weight.grad is None and reasoner.embed.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in reasoner.parameters() if p.requires_grad)


def test_self_supervised_loss_is_k_times_one_minus_cosine_on_the_chain_only():
    reasoner, batch = tiny_model(Reasoner, trained="sst", k=3.0), whole_batch(tiny_config())
    loss, metrics = reasoner(batch)
    h = reasoner.hidden_states(reasoner.inputs(batch.tokens)).flatten(0, 1)[batch.chain_at]
    cos = F.cosine_similarity(h, reasoner.target.weight[batch.chain_ids], dim=-1)
    assert torch.allclose(loss, 3 * (1 - cos).mean(), atol=1e-5)
    assert torch.allclose(metrics["cos_own"], cos.mean(), atol=1e-5)
    changed = replace(batch, all_ids=batch.all_ids.flip(0))  # the prompt's own tokens are no target
    assert torch.equal(reasoner(changed)[0], loss)


@pytest.mark.parametrize("where", ["all", "chain"])
def test_pretraining_loss_is_the_cross_entropy_of_the_next_token_under_the_tied_head(where):
    reasoner, batch = tiny_model(Reasoner, trained="pretrain", pretrain_on=where), whole_batch(tiny_config())
    logits = reasoner.hidden_states(reasoner.inputs(batch.tokens)) @ reasoner.embed.weight.T
    at = torch.arange(batch.tokens.size(1) - 1)
    real = (at < batch.length[:, None] - 1) & ((where == "all") | (at >= batch.start[:, None] - 1))
    wanted = F.cross_entropy(logits[:, :-1][real], batch.tokens[:, 1:][real])
    assert torch.allclose(reasoner(batch)[0], wanted, atol=1e-5)


def test_hard_targets_are_a_cross_entropy_over_all_embeddings():
    reasoner, batch = tiny_model(Reasoner, trained="sst", sst_loss="hard"), whole_batch(tiny_config())
    r = reasoner.teacher_forced(batch)[batch.chain >= 0]
    cosines = F.cosine_similarity(r[:, None], reasoner.target.weight[None], dim=-1)
    wanted = F.cross_entropy(cosines / TEMPERATURE, batch.chain[batch.chain >= 0])
    assert torch.allclose(reasoner(batch)[0], wanted, atol=1e-4)
    both, cosine_alone = (tiny_model(Reasoner, trained="sst", contrast=w)(batch)[0] for w in (0.5, 0.0))
    assert torch.allclose(both, cosine_alone + 0.5 * wanted, atol=1e-4)


def test_the_nth_rollout_pass_sees_exactly_what_a_free_running_chain_sees():
    """With as many passes as the chain has latents, the last pass is the rollout; one pass fewer is not."""
    reasoner = tiny_model(Reasoner, rollout=6, trained="sst")
    batch, seen, hidden_states = whole_batch(tiny_config()), [], reasoner.hidden_states
    reasoner.hidden_states = lambda *words, **more: seen.append(hidden_states(*words, **more)) or seen[-1]
    reasoner.self_supervised(batch)
    reasoner.hidden_states, R = hidden_states, batch.chain.size(1)
    reasoner.tokenizer.eos = -1  # never ends
    prompts = [row[:n].tolist() for row, n in zip(batch.tokens, batch.start, strict=True)]
    free = reasoner.rollout(prompts, max_chain=R)[batch.chain >= 0]  # (K, C)
    for h, equal in ((seen[R - 1], True), (seen[0], False)):
        assert torch.allclose(h.flatten(0, 1)[batch.chain_at], free, atol=1e-4) == equal


def seen_inputs(reasoner: Reasoner, batch) -> list[torch.Tensor]:
    """What each pass of self-supervised training reads: (B, T, C) each."""
    seen, hidden_states = [], reasoner.hidden_states
    reasoner.hidden_states = lambda x: seen.append(x) or hidden_states(x)
    reasoner.self_supervised(batch)
    reasoner.hidden_states = hidden_states
    return seen


def test_noise_in_training_is_on_the_chains_inputs_alone_and_never_in_validation():
    reasoner, batch = tiny_model(Reasoner, trained="sst", sst_noise=0.8), whole_batch(tiny_config())
    true, is_chain = reasoner.inputs(batch.tokens), batch.is_chain()
    assert torch.equal(seen_inputs(reasoner, batch)[0], true)
    norms = (seen_inputs(reasoner.train(), batch)[0] - true).norm(dim=-1)  # (B, T)
    assert not norms[~is_chain].any() and 0 < norms[is_chain].max() < 1.2
    of_rows = [row[real] for row, real in zip(norms, is_chain, strict=True)]
    assert max(x.mean() for x in of_rows) > 0.6 and min(x.mean() for x in of_rows) < 0.2  # drawn per row


@pytest.mark.parametrize("kind", ["coupled", "coupled-talker"])
def test_a_baselines_noise_in_training_is_on_the_chains_inputs_alone_and_never_in_validation(kind):
    model, batch = tiny_model(Coupled, model=kind, sst_noise=0.8), whole_batch(tiny_config())
    true, seen, hidden_states = model.embed(batch.tokens), [], model.hidden_states
    model.hidden_states = lambda x, position_ids: seen.append(x) or hidden_states(x, position_ids)
    model(batch)
    model.train()(batch)
    assert torch.equal(seen[0], true) and torch.equal((seen[1] != true).any(-1), batch.is_chain())


def test_sampled_inputs_are_own_latents_at_some_positions_and_true_tokens_at_the_others():
    reasoner, batch = tiny_model(Reasoner, trained="sst", rollout=1, sst_sampling=True), whole_batch(tiny_config())
    true, own = seen_inputs(reasoner, batch)  # validation: own latents everywhere
    is_own = (own != true).any(-1)
    assert torch.equal(is_own, batch.is_chain())
    mixed = seen_inputs(reasoner.train(), batch)[1]
    kept, replaced = (mixed == true).all(-1), torch.isclose(mixed, own, atol=1e-5).all(-1)
    assert (kept | replaced).all() and 0.2 < (kept & is_own).sum() / is_own.sum() < 0.8


def test_the_gradient_goes_through_what_is_fed_back_sharpened():
    reasoner, batch = tiny_model(Reasoner, trained="sst", rollout=1, sharpen=0.1), whole_batch(tiny_config())
    plain, own = seen_inputs(reasoner, batch)
    r = reasoner.hidden_states(plain).flatten(0, 1)[batch.chain_at]
    assert torch.allclose(own[batch.is_chain()], reasoner.feed_back(r), atol=1e-5)
    weight = reasoner.trunk.blocks[0].up.weight
    assert torch.autograd.grad((own * torch.randn_like(own)).sum(), weight)[0].abs().max() > 0


def overfit(model, batch, steps=100, lr=6e-3) -> dict[str, float]:
    """Metrics after training on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        loss, metrics = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(model, "update_target"):
            model.update_target()
    return {name: value.item() for name, value in metrics.items()}


def test_every_phase_learns_one_batch_by_heart():
    config = tiny_config()
    batch, chains = whole_batch(config), [x.chain for x in load_examples("train", config)]
    pretrained = tiny_model(Reasoner, trained="pretrain", pretrain_on="chain").train()
    assert overfit(pretrained, batch)["chain_accuracy"] > 0.99
    reasoner = tiny_model(Reasoner, trained="sst").train()
    reasoner.load_state_dict(pretrained.state_dict())
    reasoner.target.weight.data.copy_(reasoner.embed.weight)
    found = overfit(reasoner, batch)
    assert found["chain_accuracy"] > 0.99 and found["cos_own"] > 0.9 > found["cos_other"] + 0.3
    latents = reasoner.eval().teacher_forced(batch)
    for talker in ("mono", "dual"):
        model = tiny_model(Talker, trained="talker", talker=talker).train()
        assert overfit(model, replace(batch, latents=latents), 60)["chain_accuracy"] > 0.99
        hits = [a == b for a, b in zip(model.eval().speak(latents), chains, strict=True)]
        assert sum(hits) >= len(chains) - 1


@pytest.mark.parametrize("kind", ["coupled", "coupled-talker", "coconut"])
def test_every_baseline_learns_one_batch_by_heart(kind):
    changes = dict(model=kind, thoughts=2, pretrain_on="chain")
    config = tiny_config(**changes)
    model, examples = tiny_model(Coupled, **changes).train(), load_examples("train", config)
    assert overfit(model, whole_batch(config))["chain_accuracy"] > 0.99
    answers = model.eval().answer([x.prompt for x in examples])
    assert sum(a == x.chain for a, x in zip(answers, examples, strict=True)) >= len(examples) - 1


# -------------------------------------------------------------------------------------------- the Talker


def test_a_dual_talker_with_a_cache_generates_what_it_does_without():
    talker, latents = tiny_model(Talker, talker="dual"), tiny_model(Reasoner, trained="sst").rollout(PROMPTS)
    encoded = talker.encode(latents)
    written = torch.full((3, 1), talker.tokenizer.ans)
    for _ in range(latents.size(1)):
        keys_values = [block.keys_values(encoded) for block in talker.blocks]
        token = talker.head(talker.decode(talker.embed(written), keys_values)[:, -1]).argmax(-1, keepdim=True)
        written = torch.cat((written, token), 1)
    assert talker.generate(latents) == [talker.tokenizer.until_eos(row) for row in written[:, 1:].tolist()]


@pytest.mark.parametrize("talker", ["mono", "dual"])
def test_what_stands_behind_a_chains_end_is_not_read(talker):
    model, latents = tiny_model(Talker, talker=talker), tiny_model(Reasoner, trained="sst").rollout(PROMPTS)
    padded = F.pad(latents, (0, 0, 0, 3))
    assert torch.allclose(model.encode(latents), model.encode(padded)[:, : latents.size(1)], atol=1e-5)
    assert model.generate(latents) == model.generate(padded)
    shorter = latents.clone()
    shorter[0, 2:] = 0
    assert len(model.generate(shorter)[0]) <= 2


@pytest.mark.parametrize("talker", ["mono", "dual"])
def test_no_token_sees_a_latent_that_has_read_it(talker):
    """The latents that a Talker is trained on have read the chain: the one behind a token would give it away."""
    model, reasoner = tiny_model(Talker, talker=talker), tiny_model(Reasoner, trained="sst")
    batch = whole_batch(tiny_config())
    latents = reasoner.teacher_forced(batch).requires_grad_()
    h = model.encode(latents)
    if talker == "dual":
        keys_values = [block.keys_values(h) for block in model.blocks]
        h = model.decode(model.embed(batch.chain.clamp(min=0)), keys_values)
    for t in range(latents.size(1)):
        read = torch.autograd.grad(h[:, t].sum(), latents, retain_graph=True)[0].abs().sum((0, 2))
        assert read[: t + 1].min() > 0 and not read[t + 1 :].any()


# ------------------------------------------------------------------------------------------ the baselines


def test_thoughts_with_a_cache_are_those_of_a_whole_pass_each_and_so_are_their_gradients():
    """The definition, a pass over everything for every thought, beside the cached way; prompts of several lengths."""
    changes = dict(model="coconut", thoughts=2)
    model, batch = tiny_model(Coupled, **changes).train(), whole_batch(tiny_config(**changes))
    assert batch.start.unique().numel() > 1 and (batch.length - batch.start).unique().numel() > 1
    x = whole = model.embed(batch.tokens)
    position_ids = torch.arange(x.size(1)).expand(x.shape[:2])
    row = torch.arange(len(x))
    for i in range(2):
        at = batch.start - 2 + i
        h = model.hidden_states(whole, position_ids)[1]
        whole = whole.index_put((row, at), F.normalize(h[row, at - 1], dim=-1))
    wanted, found = model.hidden_states(whole, position_ids)[1], model.think(x, batch)
    for at in (batch.all_at, batch.chain_at):
        assert torch.allclose(found.flatten(0, 1)[at], wanted.flatten(0, 1)[at], atol=1e-5)

    weight = torch.randn_like(wanted.flatten(0, 1)[batch.all_at])
    one, two = (
        torch.autograd.grad(
            (h.flatten(0, 1)[batch.all_at] * weight).sum(), [*model.trunk.parameters()], retain_graph=True
        )
        for h in (wanted, found)
    )
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("preset,most", [("quick", 0.12), ("cfg-small", 0.06), ("gsm8k-small", 0.05), ("0.9b", 0.05)])
@pytest.mark.parametrize("talker", ["mono", "dual"])
def test_baselines_are_as_large_as_reasoner_and_talker_together(preset, most, talker):
    """`most`: a baseline has whole blocks, which is coarse in small models."""
    values = PRESETS[preset].values | dict(talker=talker, vocab_size=50_304 if preset == "0.9b" else 64)
    for kind in ("coupled", "coupled-talker"):  # coconut has coupled's layers
        config = ReasonerConfig(**values | dict(model=kind, sharpen=0.0))
        with torch.device("meta"):
            assert abs(Coupled(config).n_params() / sum(sizes(config)) - 1) < most, kind


def test_the_presets_have_the_sizes_that_the_paper_states():
    reasoner, talker = sizes(ReasonerConfig(**PRESETS["0.9b"].values | dict(vocab_size=50_304)))
    assert abs(reasoner / 694e6 - 1) < 0.01 and abs(talker / 198e6 - 1) < 0.01
    reasoner, _ = sizes(ReasonerConfig(**PRESETS["tree-42m"].values | dict(vocab_size=192)))
    assert abs(reasoner / 42e6 - 1) < 0.02
