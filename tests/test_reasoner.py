"""JEPA-Reasoner: a chain that no token can touch, three phases that hand over to each other, data that cannot leak."""

import json
import random
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_train import script, torchrun, weights

import model as nano
from config import UserError, parse
from reasoner.config import PRESETS, ReasonerConfig
from reasoner.data import (
    Encoded,
    EncodedPassages,
    Item,
    Words,
    _passages_of,
    derivations,
    derived,
    encoded,
    grammar,
    load_items,
    make_tokenizer,
    noisy,
    split_of,
    trees,
)
from reasoner.evaluate import (
    EvalConfig,
    clustered,
    containment,
    draw_chain,
    equations,
    exposure,
    fewshot,
    mixed_latents,
    mixture,
    noise,
    ratio,
    spread,
    trajectory,
    valid,
)
from reasoner.evaluate import main as evaluate_main
from reasoner.evaluate import talker as of_talkers
from reasoner.model import TEMPERATURE, Coupled, Nearest, Pair, Reasoner, Talker, disturbed, load, load_phase, sizes
from reasoner.train import chain_accuracy
from reasoner.train import main as train_main
from results import reasoner_ablations as ablations

TINY = ["--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--n-hidden", "48", "--talker-layer", "1",
        "--labels", "12", "--leaves", "4", "--depth", "2", "--n-train", "96", "--n-eval", "12", "--batch-size", "32",
        "--epochs", "2", "--log-every", "2", "--device", "cpu"]  # fmt: skip


def tiny(**changes):
    values = dict(n_layer=2, n_head=2, n_embd=32, n_hidden=48, talker_layer=1, labels=12, leaves=4, depth=3, n_train=32,
                  n_eval=16, batch_size=16, max_chain=6, device="cpu")  # fmt: skip
    config = ReasonerConfig(**values | changes)
    return replace(config, vocab_size=make_tokenizer(config, ()).n_vocab)


def made(cls, seed=0, **changes):
    torch.manual_seed(seed)
    config = tiny(**changes)
    model = cls(config)
    model.tokenizer = make_tokenizer(config, ())
    return model.eval()


def batch_of(config, slots=0, split="train"):
    data = Encoded(load_items(split, config), make_tokenizer(config, ()), config.block_size, slots=slots)
    return data.batch(list(range(len(data))))


PROMPTS = ["3 4 ; 3 5 ; root 3 goal 5 :", "1 2 ; 1 7 ; 7 9 ; 7 8 ; root 1 goal 9 :", "0 6 ; 0 2 ; root 0 goal 2 :"]


# -------------------------------------------------------------------------------------------------- data


def test_a_route_leads_along_the_edges_from_the_root_to_the_goal():
    for item in trees("train", 200, tiny()):
        words = item.prompt.split()
        edges = {(words[i], words[i + 1]) for i in range(0, len(words) - 5, 3)}
        root, goal, route = words[-4], words[-2], item.chain.split()
        assert route[0] == root and route[-1] == goal and set(zip(route, route[1:], strict=False)) <= edges
        assert not any(parent == goal for parent, _ in edges)  # a leaf
        for parent, child, sibling in zip(route, route[1:], item.sibling[1:], strict=False):
            assert (parent, sibling) in edges and sibling != child


def test_no_labelled_tree_and_no_string_is_in_two_splits_under_any_seed():
    def name(item):
        words = item.prompt.split()
        return str(sorted((int(words[i]), int(words[i + 1])) for i in range(0, len(words) - 5, 3)))

    few = tiny(leaves=3, labels=5)  # 60 trees in all: without the rule they would meet
    found = {split: {name(x) for x in trees(split, n, replace(few, seed=seed))} for split, n, seed in
             (("train", 150, 1), ("train", 150, 2), ("val", 12, 1), ("test", 12, 1))}  # fmt: skip
    assert not found["train"] & found["test"] and not found["train"] & found["val"] and not found["val"] & found["test"]
    assert all(split_of(x) == split for split, names in found.items() for x in names)
    config = tiny(dataset="cfg", levels=3)
    strings = {split: {x.prompt for x in derivations(split, 100, config)} for split in ("train", "val", "test")}
    assert not strings["train"] & strings["test"] and not strings["train"] & strings["val"]


def test_the_data_is_a_function_of_its_seed_and_test_of_nothing():
    for config in (tiny(), tiny(dataset="cfg")):
        assert load_items("train", config) == load_items("train", config)
        assert load_items("train", config) != load_items("train", replace(config, seed=1))
        assert load_items("test", config) == load_items("test", replace(config, seed=1))


def test_the_grammar_is_unambiguous_so_that_a_derivation_is_a_function_of_its_string():
    rules = grammar(3)

    def all_strings(symbols):
        if not symbols:
            return [()]
        first = [(symbols[0],)] if symbols[0] not in rules else [s for r in rules[symbols[0]] for s in all_strings(r)]
        return [a + b for a in first for b in all_strings(symbols[1:])]

    strings = all_strings(("S",))
    assert len(strings) == len(set(strings)) == 1872
    low = sorted(s for x in "ABC" for s in all_strings((x,)))  # what the symbols of level 4's lowest three derive
    assert not any(b[: len(a)] == a for a, b in zip(low, low[1:], strict=False)), "none begins another: four levels too"
    for levels in (3, 4):
        for item in derivations("train", 50, tiny(dataset="cfg", levels=levels)):
            assert derived(item.chain, levels) == item.prompt.removesuffix(" :")
    assert derived("S1 A1", 4) is None and derived("A1", 4) is None


def test_noise_touches_the_asked_share_of_the_prompt_and_leaves_its_end():
    prompt = " ".join(["a"] * 4000 + [":"])
    for kind, length in (("drop", 3200), ("replace", 4000), ("insert", 4800)):
        words = noisy(prompt, kind, 0.2, random.Random(0), ["b"]).split()
        assert words[-1] == ":" and abs(len(words) - 1 - length) < 120
        assert abs(words.count("b") - (0 if kind == "drop" else 800)) < 120
    assert noisy(prompt, "drop", 0.0, random.Random(0), ["b"]) == prompt


def test_more_examples_than_there_are_or_a_tree_that_cannot_be_are_refused():
    for changes, words in (
        (dict(leaves=2, labels=3, n_train=500), "hardly more than"),
        (dict(leaves=9, depth=3), "at most 8"),
        (dict(leaves=8, labels=14), "15 nodes"),
    ):
        with pytest.raises(UserError, match=words):
            load_items("train", tiny(**changes))


def test_passages_of_local_files_are_text_with_disjoint_splits(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"passage {i}" for i in range(30)))
    (tmp_path / "b.jsonl").write_text('{"text": "last"}\n')
    config = ReasonerConfig(dataset="text", data_dir=str(tmp_path))
    parts = [list(load_items(split, config)) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len({x.chain for part in parts for x in part}) == 31 and len(parts[0]) > 15
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"b.jsonl:1: wants"):
        list(load_items("train", config))
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "a.txt").write_text("one alone")
    with pytest.raises(UserError, match="none falls into the val split"):
        list(load_items("val", config))


def test_passages_are_encoded_as_they_stream_and_the_next_phase_finds_them_on_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file, read = tmp_path / "a.txt", []
    file.write_text("\n\n".join(f"passage {i} " + "of some words " * (i % 9) for i in range(300)))
    config = ReasonerConfig(dataset="text", tokenizer="bpe:340", data_dir=str(tmp_path), block_size=64)
    passages, tokenizer = load_items("train", config), make_tokenizer(config, load_items("train", config))
    whole = Encoded(list(passages), tokenizer, 1024)

    monkeypatch.setattr("reasoner.data._passages_of", lambda path, real=_passages_of: read.append(path) or real(path))
    for slots in (0, 0, 3, 3):
        data = EncodedPassages(passages, tokenizer, config.block_size, "train", slots)
        assert len(data) == len(whole) and data.length.max() == config.block_size
        assert data.batch([5, 0]).tokens[1, : data.length[0]].tolist() == next(iter(data.rows([0]))).tolist()
        for i, row in enumerate(data.rows(range(len(data)))):
            kept = min(whole.r[i] - 1, config.block_size - 2 - slots)
            assert row[0] == tokenizer.ans and (row[1 : 1 + slots] == tokenizer.pred).all() and row[-1] == tokenizer.eos
            assert row[1 + slots : -1].tolist() == next(whole.rows([i]))[1 : 1 + kept].tolist()
        assert f"{(whole.r - 1 > config.block_size - 2 - slots).sum()} passages cut off" in capsys.readouterr().out
    assert len(read) == 2  # the second of each comes from disk

    file.write_text(file.read_text() + "\n\nanother, and another")
    EncodedPassages(load_items("train", config), tokenizer, config.block_size)
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"b.jsonl:1: wants"):
        EncodedPassages(load_items("train", config), tokenizer, config.block_size)
    assert len(read) == 5  # changed files are read again


def test_reading_passages_takes_no_more_of_them_than_it_gives():
    taken = []

    def endless():
        while True:
            taken.append(0)
            yield Item("", "a b")

    rows = encoded(endless(), Words(["a", "b"]), 16, 0)
    assert [next(rows)["length"] for _ in range(1500)] == [4] * 1500 and len(taken) <= 2000


def test_a_row_is_prompt_chain_and_end_and_says_where_each_chain_token_is_predicted():
    config = tiny()
    batch, items, t = batch_of(config), load_items("train", config), make_tokenizer(config, ())
    flat = batch.tokens.flatten()
    assert torch.equal(flat[batch.chain_at + 1], batch.chain_ids) and torch.equal(flat[batch.all_at + 1], batch.all_ids)
    for row, item, start, length in zip(batch.tokens, items, batch.start, batch.length, strict=True):
        assert t.decode(row[:start].tolist()) == item.prompt and row[length - 1] == t.eos
        assert t.decode(row[start : length - 1].tolist()) == item.chain
    assert batch.share == {"chain": float((batch.length - batch.start).sum()), "all": float((batch.length - 1).sum())}


# ------------------------------------------------------------------------------------------- the chain


def test_the_chain_with_a_key_value_cache_is_the_chain_without():
    reasoner = made(Reasoner, trained="sst")
    fast, slow = (reasoner.rollout(PROMPTS, cached=cached) for cached in (True, False))
    assert fast.shape == slow.shape and torch.allclose(fast, slow, atol=1e-5)
    alone = reasoner.rollout(PROMPTS[:1])
    assert torch.allclose(alone[0], fast[0, : alone.size(1)], atol=1e-5)  # the batch does not matter


def test_latents_have_unit_norm_after_pretraining_and_not_before():
    config = tiny()
    batch = batch_of(config)
    for trained, norm, unit in (("sst", "hybrid", True), ("sst", "l2", True), ("sst", "rms", False),
                                ("pretrain", "hybrid", False)):  # fmt: skip
        reasoner = made(Reasoner, trained=trained, norm=norm)
        reasoner.norm_out.weight.data.uniform_(0.5, 2)  # a gain that was learned
        norms = reasoner.states(reasoner.inputs(batch.tokens)).norm(dim=-1)
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5) == unit
    r = made(Reasoner, trained="sst").rollout(PROMPTS)
    assert torch.allclose(r[r.abs().sum(-1) > 0].norm(dim=-1), torch.ones(()), atol=1e-5)


def test_a_chain_ends_with_the_latent_nearest_to_the_end_and_zeros_stand_behind():
    reasoner = made(Reasoner, trained="sst")
    r = reasoner.rollout(PROMPTS)
    eos = reasoner.nearest(r[0, 1])  # declare what is nearest to some latent the end: the chain must stop there
    reasoner.tokenizer.eos = int(eos)
    stopped = reasoner.rollout(PROMPTS)
    first = (reasoner.nearest(r[0]) == eos).nonzero()[0, 0]
    assert torch.allclose(stopped[0, : first + 1], r[0, : first + 1], atol=1e-5)
    assert (stopped[0, first + 1 :] == 0).all()


def test_no_token_can_touch_the_chain_while_where_tokens_are_read_they_do():
    """Chain tokens stand in the row, behind the prompt. A key/value cache that let them through would show here."""
    pair = Pair(made(Reasoner, trained="sst"), made(Talker, seed=1, trained="talker"))
    items = trees("test", 16, tiny())
    assert len({len(x.prompt) for x in items}) > 1
    kinds = ("coupled", "coupled-talker", "coconut")
    models = {"pair": pair} | {kind: made(Coupled, model=kind, thoughts=2) for kind in kinds}
    found = containment(models, items, EvalConfig())
    assert found["pair"]["gradient"] == 0.0 and found["pair"]["largest_change"] == 0.0
    assert found["pair"]["teacher_forced"] > 1e-3
    assert min(found[kind]["gradient"] for kind in kinds) > 1e-3
    later = sum(range(1, 1 + 8))  # at most
    assert all(0 < row["later_tokens"] <= later * len(items) for row in found.values())


@pytest.mark.parametrize("heals,kept", [(True, 1.0), (False, 0.0)])
def test_a_wrong_token_is_counted_in_what_comes_after_it(heals, kept):
    """A model that knows every chain by heart and after a wrong token goes on rightly, or wrongly for good."""
    items, t = trees("test", 12, tiny()), make_tokenizer(tiny(), ())
    gold = {x.prompt: t.encode([x.chain])[0] for x in items}

    def tokens(prompts, forced=None):
        said = [list(gold[p]) for p in prompts]
        for step in range(max(map(len, said)) if forced else 0):
            now = torch.tensor([s[step] if step < len(s) else t.eos for s in said])
            for s, before, after in zip(said, now.tolist(), forced(step, now).tolist(), strict=True):
                if before != after and step < len(s):
                    s[step:] = [after, *(s[step + 1 :] if heals else [t.pad] * 9)]
        return said

    shares, clean, n = spread(SimpleNamespace(tokenizer=t, tokens=tokens), items, random.Random(0))
    assert clean == [1.0] * 12 and shares == [kept] * 12
    assert n == sum(len(g) * (len(g) + 1) // 2 for g in gold.values())


def test_what_a_talker_is_fed_decides_what_is_counted():
    """A Talker that reads each latent by the nearest embedding: it says another's route, and continues nothing."""
    items = sorted(trees("test", 12, tiny(leaves=2)), key=lambda x: len(x.prompt))  # the order of batches
    reasoner, latents = perfect(items)
    at = {x.prompt: i for i, x in enumerate(items)}
    reasoner.rollout = lambda prompts: torch.stack([latents[at[p]] for p in prompts])
    reads = SimpleNamespace(config=reasoner.config, speak=lambda latents: [
        " ".join(reasoner.tokenizer.decode([i]) for i in row if i != reasoner.tokenizer.eos)
        for row in reasoner.nearest(latents).tolist()])  # fmt: skip
    found = of_talkers({"pair": Pair(reasoner, reads)}, items, EvalConfig())["pair"]
    assert found["own"]["share"] == found["nearest"]["share"] == found["other_says_other"]["share"] == 1
    assert found["own_valid"]["share"] == 1 and found["gauss_right"]["share"] < 0.2
    pairs = list(zip(items, items[1:] + items[:1], strict=True))
    assert found["other_says_own"]["share"] == sum(a.chain == b.chain for a, b in pairs) / 12
    assert found["first"]["share"] == sum(a.chain.split()[1] == b.chain.split()[1] for a, b in pairs) / 12


def test_noise_has_the_norm_that_is_asked_for():
    x = F.normalize(torch.randn(200, 64), dim=-1) * 3
    off = disturbed(x, 0.5, torch.Generator().manual_seed(0)) - x
    assert off.norm(dim=-1).mean() == pytest.approx(1.5, rel=0.02) and disturbed(x, 0.0, None) is x


def test_a_wrong_latent_changes_what_is_thought_after_it_and_nothing_before():
    reasoner = made(Reasoner, trained="sst")
    reasoner.tokenizer.eos = -1
    tokens, length = reasoner.rows(PROMPTS)
    x = reasoner.inputs(tokens)
    wrong = reasoner.chain(x, length, 5, forced=lambda step, h: h.flip(0) if step == 2 else h)
    right = reasoner.chain(x, length, 5)
    assert torch.equal(wrong[:, :3], right[:, :3]) and not torch.allclose(wrong[:, 3:], right[:, 3:], atol=1e-4)


def test_the_nth_rollout_pass_sees_exactly_what_a_free_running_chain_sees():
    """With as many passes as the chain has latents, the last pass is the rollout; one pass fewer is not."""
    config = tiny(rollout=6, trained="sst")
    reasoner, batch = made(Reasoner, rollout=6, trained="sst"), batch_of(config)
    seen = []
    states = reasoner.states
    reasoner.states = lambda x, *a, **k: seen.append(states(x, *a, **k)) or seen[-1]
    reasoner.self_supervised(batch)
    reasoner.states, R = states, batch.chain.size(1)
    reasoner.tokenizer.eos = -1  # never ends
    prompts = [row[:n].tolist() for row, n in zip(batch.tokens, batch.start, strict=True)]
    free = reasoner.rollout(prompts, max_chain=R)
    for h, equal in ((seen[R - 1], True), (seen[0], False)):
        r = torch.zeros_like(free)
        r[batch.chain >= 0] = h.flatten(0, 1)[batch.chain_at]
        assert torch.allclose(r[batch.chain >= 0], free[batch.chain >= 0], atol=1e-4) == equal


# ------------------------------------------------------------------------------------------- training


def test_the_target_is_the_embeddings_moving_average_and_has_no_gradient():
    reasoner = made(Reasoner, trained="sst", ema_decay=0.9)
    before = reasoner.target.weight.clone()
    with torch.no_grad():
        reasoner.embed.weight += 1.0
    reasoner.update_target()
    assert torch.allclose(reasoner.target.weight, before + 0.1, atol=1e-6)
    loss, _ = reasoner.train()(batch_of(tiny()))
    loss.backward()
    assert reasoner.target.weight.grad is None and reasoner.embed.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in reasoner.parameters() if p.requires_grad)


def test_self_supervised_loss_is_k_times_one_minus_cosine_on_the_chain_only():
    reasoner, batch = made(Reasoner, trained="sst", k=3.0), batch_of(tiny())
    loss, metrics = reasoner(batch)
    h = reasoner.states(reasoner.inputs(batch.tokens)).flatten(0, 1)[batch.chain_at]
    own = F.cosine_similarity(h, reasoner.target.weight[batch.chain_ids], dim=-1)
    assert torch.allclose(loss, 3 * (1 - own).mean(), atol=1e-5)
    assert torch.allclose(metrics["cos_own"], own.mean(), atol=1e-5)
    h = reasoner.states(reasoner.inputs(batch.tokens)).flatten(0, 1)
    changed = replace(batch, all_ids=batch.all_ids.flip(0))  # the prompt's own tokens are no target
    assert torch.equal(reasoner(changed)[0], loss)


def overfit(model, batch, steps=180, lr=4e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        loss, metrics = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(model, "update_target"):
            model.update_target()
    return {k: v.item() for k, v in metrics.items()}


def test_every_phase_and_every_baseline_learns_one_batch_by_heart():
    config = tiny()
    batch = batch_of(config)
    reasoner = made(Reasoner, trained="pretrain", pretrain_on="chain").train()
    assert overfit(reasoner, batch)["chain_accuracy"] > 0.99
    thinking = made(Reasoner, trained="sst").train()
    thinking.load_state_dict(reasoner.state_dict())
    thinking.target.weight.data.copy_(thinking.embed.weight)
    found = overfit(thinking, batch)
    assert found["chain_accuracy"] > 0.99 and found["cos_own"] > 0.9 > found["cos_other"] + 0.3
    latents = thinking.eval().teacher_forced(batch)
    for talker in ("mono", "dual"):
        spoken = made(Talker, trained="talker", talker=talker).train()
        assert overfit(spoken, replace(batch, latents=latents))["chain_accuracy"] > 0.99
        chains = [x.chain for x in load_items("train", config)]
        said = spoken.eval().speak(latents)
        assert sum(a == b for a, b in zip(said, chains, strict=True)) >= len(chains) - 1
    for kind in ("coupled", "coupled-talker", "coconut"):
        model = made(Coupled, model=kind, thoughts=2, pretrain_on="chain").train()
        rows = batch_of(config, slots=2 if kind == "coconut" else 0)
        assert overfit(model, rows)["chain_accuracy"] > 0.99
        items = load_items("train", config)
        said = model.eval().answer([x.prompt for x in items])
        assert sum(a == x.chain for a, x in zip(said, items, strict=True)) >= len(items) - 1


def test_hard_targets_are_a_cross_entropy_over_all_embeddings():
    reasoner, batch = made(Reasoner, trained="sst", sst_loss="hard"), batch_of(tiny())
    r = reasoner.teacher_forced(batch)[batch.chain >= 0]
    cosines = F.cosine_similarity(r[:, None], reasoner.target.weight[None], dim=-1)
    wanted = F.cross_entropy(cosines / TEMPERATURE, batch.chain[batch.chain >= 0])
    assert torch.allclose(reasoner(batch)[0], wanted, atol=1e-4)


# ------------------------------------------------------------------------------------------- the Talker


def test_a_dual_talker_with_a_cache_says_what_it_says_without():
    pair = made(Reasoner, trained="sst"), made(Talker, trained="talker", talker="dual")
    latents = pair[0].rollout(PROMPTS)
    talker, eos = pair[1], pair[1].tokenizer.eos
    y = talker.encode(latents)
    written = torch.full((3, 1), talker.tokenizer.ans)
    for _ in range(latents.size(1)):
        memory = [block.read(y) for block in talker.blocks]
        token = talker.head(talker.decode(talker.embed(written), memory)[:, -1]).argmax(-1, keepdim=True)
        written = torch.cat((written, token), 1)
    slow = [row[: row.index(eos)] if eos in row else row for row in written[:, 1:].tolist()]
    assert talker.tokens(latents) == slow


@pytest.mark.parametrize("talker", ["mono", "dual"])
def test_what_stands_behind_a_chains_end_is_not_heard(talker):
    model, latents = made(Talker, trained="talker", talker=talker), made(Reasoner, trained="sst").rollout(PROMPTS)
    padded = F.pad(latents, (0, 0, 0, 3))
    y, z = model.encode(latents), model.encode(padded)
    assert torch.allclose(y, z[:, : y.size(1)], atol=1e-5)
    assert model.tokens(latents) == model.tokens(padded)
    shorter = latents.clone()
    shorter[0, 2:] = 0
    assert len(model.tokens(shorter)[0]) <= 2


@pytest.mark.parametrize("talker", ["mono", "dual"])
def test_no_token_sees_a_latent_that_has_read_it(talker):
    """The latents that a Talker is trained on have read the chain: the one behind a token would give it away."""
    config = tiny(trained="talker", talker=talker)
    model, reasoner, batch = made(Talker, **vars(config)), made(Reasoner, trained="sst"), batch_of(config)
    latents = reasoner.teacher_forced(batch).requires_grad_()
    h = model.encode(latents)
    if talker == "dual":
        h = model.decode(model.embed(batch.chain.clamp(min=0)), [block.read(h) for block in model.blocks])
    for t in range(latents.size(1)):
        read = torch.autograd.grad(h[:, t].sum(), latents, retain_graph=True)[0].abs().sum((0, 2))
        assert read[: t + 1].min() > 0 and not read[t + 1 :].any()


def test_tokens_fed_back_are_the_nearest_embeddings_and_without_a_talker_they_are_what_is_said():
    reasoner = made(Reasoner, trained="sst")
    latents, fed = reasoner.rollout(PROMPTS), reasoner.rollout(PROMPTS, tokens=True)
    assert torch.equal(latents[:, 0], fed[:, 0]) and not torch.allclose(latents[:, 1], fed[:, 1])
    with torch.no_grad():  # the first token behind each prompt, by hand
        for prompt, chain in zip(PROMPTS, fed, strict=True):
            ids = reasoner.tokenizer.encode([prompt])[0]
            for before, after in zip(chain, chain[1:], strict=False):
                ids.append(reasoner.nearest(before).item())
                wanted = reasoner.states(reasoner.inputs(torch.tensor([ids])))[0, -1]
                assert torch.allclose(after, wanted, atol=1e-5) or not after.any()
    assert Nearest(reasoner, tokens=True).answer(PROMPTS) == reasoner.read(fed)
    t = reasoner.tokenizer
    rows = torch.tensor([[*t.encode(["4 2"])[0], t.eos, *t.encode(["7"])[0]], [*t.encode(["1 2 3"])[0], t.eos]])
    exact = F.normalize(reasoner.target(rows), dim=-1).detach()
    exact[1, 2:] = 0  # a chain that has ended without [EOS]
    assert reasoner.read(exact) == ["4 2", "1 2"]


# ------------------------------------------------------------------------------------------ measures


def test_a_mixture_is_taken_apart_again():
    torch.manual_seed(0)
    a, b = F.normalize(torch.randn(2, 5, 32), dim=-1)
    alpha, beta, residual = mixture(0.7 * a + 0.2 * b, a, b)
    assert torch.allclose(alpha, torch.full((5,), 0.7), atol=1e-4) and residual.max() < 1e-4
    assert torch.allclose(beta, torch.full((5,), 0.2), atol=1e-4)


def perfect(items):
    """A Reasoner whose latents are exactly the right embeddings, and its chains."""
    reasoner = made(Reasoner, trained="sst")
    gold = reasoner.tokenizer.encode([x.chain for x in items])
    return reasoner, [F.normalize(reasoner.target(torch.tensor([*g, reasoner.tokenizer.eos])), dim=-1) for g in gold]


def test_latents_are_taken_apart_and_drawn_where_the_chain_is_right(tmp_path):
    """Small trees have no node beside route and siblings: they are counted, not chosen from."""
    items = trees("test", 40, tiny())
    reasoner, latents = perfect(items)
    found = mixed_latents(reasoner, items, latents)
    assert found["step_accuracy"] == 1.0 and found["without_other_node"] > 0
    assert found["cases"] + found["without_other_node"] == sum(len(x.chain.split()) - 1 for x in items)
    assert found["sibling"]["alpha"] == pytest.approx(1, abs=1e-4) and found["sibling"]["residual"] < 1e-3
    assert abs(found["beta_difference"]["mean"]) < 1e-4
    mixed = [r.clone() for r in latents]
    id_of = reasoner.tokenizer.id_of
    for item, r in zip(items, mixed, strict=True):
        for t, w in enumerate(item.sibling[1:], 1):
            r[t] += 0.3 * F.normalize(reasoner.target.weight[id_of[w]], dim=-1)
    assert mixed_latents(reasoner, items, mixed)["beta_difference"]["mean"] > 0.2
    assert mixed_latents(reasoner, items, [r.flip(0) for r in latents]) is None
    for i in range(6):
        draw_chain(reasoner, items[i], latents[i], tmp_path / "chain.png")
    assert (tmp_path / "chain.png").stat().st_size > 5000


def test_a_chain_that_ended_early_has_no_right_tokens_behind_its_end():
    items = trees("test", 16, tiny())
    reasoner = made(Reasoner, trained="sst")
    reasoner.chain = lambda x, length, R: torch.zeros(len(x), R, 32)
    assert exposure(reasoner, items)["free_running"] == 0.0


def test_a_valid_answer_is_a_walk_down_the_tree_or_a_derivation():
    config, item = tiny(), trees("test", 1, tiny())[0]
    route = item.chain.split()
    assert valid(item, item.chain, config) and valid(item, route[0], config)
    assert not valid(item, " ".join(route[1:]), config) and not valid(item, " ".join(route[::-1]), config)
    string = derivations("test", 1, tiny(dataset="cfg"))[0]
    assert valid(string, string.chain, tiny(dataset="cfg")) and not valid(string, "S1 S1", tiny(dataset="cfg"))


def test_normalised_accuracy_is_a_paired_ratio_with_its_interval():
    clean = [0.9, 1.0, 0.8, 1.0] * 20
    found = ratio([x / 2 for x in clean], clean, 0)
    assert found["mean"] == pytest.approx(0.5) and found["ci95"] == pytest.approx([0.5, 0.5])


def test_baselines_are_as_large_as_reasoner_and_talker_together():
    for name in ("quick", "cfg-small", "gsm8k-small", "0.9b"):
        for talker in ("mono", "dual"):
            for kind in ("coupled", "coupled-talker", "coconut"):
                values = PRESETS[name].values | dict(talker=talker, model=kind)
                config = replace(ReasonerConfig(**values), vocab_size=50_304 if name == "0.9b" else 64)
                with torch.device("meta"):
                    own = Coupled(config).n_params()
                most = {"quick": 0.12, "cfg-small": 0.06}.get(name, 0.05)  # small models, whole blocks
                assert abs(own / sum(sizes(config)) - 1) < most, (name, talker, kind)


def test_thoughts_with_a_cache_are_those_of_a_whole_pass_each_and_so_are_their_gradients():
    """The definition, a pass over everything for every thought, beside the cached way; prompts of several lengths."""
    config = tiny(model="coconut", thoughts=2)
    model, batch = made(Coupled, model="coconut", thoughts=2).train(), batch_of(config, slots=2)
    assert batch.start.unique().numel() > 1 and (batch.length - batch.start).unique().numel() > 1
    x = model.embed(batch.tokens)
    position = torch.arange(x.size(1)).expand(x.shape[:2])
    row, whole = torch.arange(len(x)), x
    for i in range(2):
        place = batch.start - 2 + i
        whole = whole.index_put((row, place), F.normalize(model.states(whole, position)[1][row, place - 1], dim=-1))
    wanted, found = model.states(whole, position)[1], model.thinking(x, batch)
    for at in (batch.all_at, batch.chain_at):
        assert torch.allclose(found.flatten(0, 1)[at], wanted.flatten(0, 1)[at], atol=1e-5)
    weight = torch.randn_like(wanted.flatten(0, 1)[batch.all_at])
    one, two = (torch.autograd.grad((h.flatten(0, 1)[batch.all_at] * weight).sum(), [*model.trunk.parameters()],
                                    retain_graph=True) for h in (wanted, found))  # fmt: skip
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(one, two, strict=True))


def test_a_thoughts_place_is_no_target():
    config = tiny(model="coconut", thoughts=2)
    batch = batch_of(config, slots=2)
    assert not (batch.all_ids == make_tokenizer(config, ()).pred).any()
    assert len(batch.all_ids) == batch.share["all"] and set(batch.chain_at.tolist()) <= set(batch.all_at.tolist())


def test_the_presets_have_the_sizes_that_the_paper_states():
    talker_head = 50_304 * 1280
    large = replace(ReasonerConfig(**PRESETS["0.9b"].values), vocab_size=50_304)
    reasoner, talker = sizes(large)
    assert abs(reasoner / 694e6 - 1) < 0.01 and abs(talker / 198e6 - 1) < 0.01 and talker > talker_head
    middle = ReasonerConfig(**PRESETS["tree-42m"].values)
    assert abs(sizes(replace(middle, vocab_size=192))[0] / 42e6 - 1) < 0.02


# -------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("reasoner") / "whole"
    return run, script("-m", "reasoner.train", *TINY, "--run", run)


def test_one_command_trains_the_three_phases_and_measures_the_test_split(trained):
    run, done = trained
    summary = json.loads((run / "summary.json").read_text())
    assert 0 <= summary["route_accuracy"] <= 1 and summary["route_accuracy_ci95"][1] <= 1 and summary["n"] == 12
    assert list(summary["phases"]) == ["pretrain", "sst", "talker"] and "route accuracy" in done.stdout
    for phase in summary["phases"]:
        assert (run / phase / "loss_curve.png").is_file() and (run / phase / "summary.json").is_file()
    reasoner, talker = Reasoner.from_pretrained(run / "sst"), Talker.from_pretrained(run / "talker")
    assert reasoner.latent and len(talker.speak(reasoner.rollout(PROMPTS[:2]))) == 2
    again = script("-m", "reasoner.train", *TINY, "--run", run, "--resume")
    assert again.stdout.count("finished, in") == 3


def test_text_goes_through_the_three_phases_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("\n\n".join(f"passage {i}, of {i % 7} words" for i in range(150)))
    words = [*TINY, "--dataset", "text", "--data-dir", tmp_path, "--tokenizer", "bpe:340", "--run", tmp_path / "r"]
    for more in (["--phase", "pretrain", "--max-steps", "2"], ["--phase", "all", "--resume", "--max-steps", "0"]):
        monkeypatch.setattr("sys.argv", ["reasoner.train", *map(str, [*words, *more])])
        train_main()
    for phase, passes in (("pretrain", 2), ("sst", 1), ("talker", 1)):
        assert json.loads((tmp_path / "r" / phase / "summary.json").read_text())["epochs"] == passes
    assert " 0 passages cut off" in capsys.readouterr().out
    reasoner = Reasoner.from_pretrained(tmp_path / "r" / "sst")
    assert reasoner.rollout([""]).size(-1) == 32
    with pytest.raises(UserError, match="load the one of phase sst"):
        Reasoner.from_pretrained(tmp_path / "r" / "pretrain").rollout([""])


def test_two_processes_train_all_phases_as_one(trained, tmp_path):
    script("reasoner.train", *TINY, "--run", tmp_path, "--overwrite", launcher=torchrun(29518, "-m"))
    for phase in ("pretrain", "sst", "talker"):
        one, two = weights(trained[0] / phase), weights(tmp_path / phase)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-4)


def test_a_phase_refuses_the_checkpoint_of_another_phase_and_of_another_system(trained, tmp_path, monkeypatch):
    run, _ = trained
    for words, told in (
        (["sst", "--run", tmp_path / "a"], "no checkpoint in"),
        (["sst", "--run", tmp_path / "a", "--init", run / "talker"], "wanted is one of phase 'pretrain'"),
        (["talker", "--run", tmp_path / "a", "--init", run / "pretrain"], "wanted is one of phase 'sst'"),
        (["sst", "--run", tmp_path / "a", "--init", run / "pretrain", "--n-layer", "1"], "has n_layer = 2, not 1"),
        (["sst", "--run", run], "already holds a run"),
        (["talker", "--run", tmp_path / "b", "--init", run / "sst", "--resume"], "there is no run in"),
        (["all", "--run", tmp_path / "b", "--init", run / "sst"], "--init is for"),
        (["sst", "--run", tmp_path / "b", "--model", "coupled"], "has a single phase"),
        (["all", "--run", run / "sst"], "is the folder of a single phase"),
        (["all", "--run", run, "--model", "coupled"], "already holds a run"),
        (["all", "--run", run, "--resume", "--labels", "13"], "has labels = 12, not 13"),
        (["all", "--run", tmp_path / "b", "--grad-accum", "64"], "less than an example for each of the 64"),
    ):
        monkeypatch.setattr("sys.argv", ["reasoner.train", *TINY, "--phase", *map(str, words)])
        with pytest.raises(UserError, match=re.escape(told)):
            train_main()
    with pytest.raises(UserError, match="of system 'reasoner', not of nanojepa"):
        nano.load_run(run / "sst")
    with pytest.raises(UserError, match="of phase 'pretrain'; wanted is one of phase 'sst'"):
        load_phase(Reasoner, run / "pretrain", "sst")


def test_a_resumed_phase_takes_epochs_as_its_own(trained, tmp_path, monkeypatch):
    begin = [*TINY[:-6], "--device", "cpu", "--phase", "sst", "--init", trained[0] / "pretrain", "--epochs", "1"]
    for words in (begin, ["--resume", "--epochs", "2"]):
        monkeypatch.setattr("sys.argv", ["reasoner.train", *map(str, words), "--run", str(tmp_path)])
        train_main()
        assert json.loads((tmp_path / "sst" / "summary.json").read_text())["epochs"] == int(words[-1])


def test_a_mistake_costs_nothing_and_a_fresh_start_only_what_it_trains_anew(trained, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    (run / "mine.json").write_text("{}")
    (run / "mine.png").write_text("")
    (run / "tree.json").write_text("{}")
    again = ["reasoner.train", *TINY, "--phase", "sst", "--overwrite", "--run", str(run)]
    for words in (["--leaves", "99"], ["--n-layer", "3"]):
        monkeypatch.setattr("sys.argv", [*again, *words])
        with pytest.raises(UserError, match="leaves|has n_layer = 2, not 3; give the options"):
            train_main()
        assert (run / "sst" / "model.safetensors").is_file() and (run / "tree.json").is_file()
    (run / "pretrain" / "summary.json").rename(run / "kept")
    monkeypatch.setattr("sys.argv", again)
    with pytest.raises(UserError, match="pretrain is not finished; .*--phase pretrain --resume"):
        train_main()
    (run / "kept").rename(run / "pretrain" / "summary.json")
    script("-m", "reasoner.train", *TINY, "--run", run, "--phase", "sst", "--overwrite", "--seed", "7")
    assert (run / "mine.json").is_file() and (run / "mine.png").is_file() and not (run / "tree.json").exists()
    assert not (run / "talker").exists()
    shutil.copytree(trained[0] / "talker", run / "talker")
    with pytest.raises(UserError, match="trained on other latents than those now in"):
        load(run)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit_in_every_phase(trained, tmp_path):
    """Only --run and --resume are given: data, seed and sizes are those of the run."""
    run, _ = trained
    part = tmp_path / "part"
    script("-m", "reasoner.train", *TINY, "--phase", "pretrain", "--max-steps", "4", "--run", part)
    script("-m", "reasoner.train", "--phase", "all", "--max-steps", "0", "--resume", "--run", part, "--device", "cpu")
    for phase in ("pretrain", "sst", "talker"):
        one, other = weights(run / phase), weights(part / phase)
        assert all(torch.equal(one[name], other[name]) for name in one), phase


def test_a_later_phase_is_not_taken_for_one_of_new_weights(trained, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    script("-m", "reasoner.train", "--run", run, "--phase", "pretrain", "--epochs", "3", "--resume", "--device", "cpu")
    monkeypatch.setattr("sys.argv", ["reasoner.train", "--run", str(run), "--phase", "all", "--resume"])
    with pytest.raises(UserError, match="was trained from other weights"):
        train_main()
    script("-m", "reasoner.train", *TINY, "--run", run, "--phase", "pretrain", "--overwrite")
    assert not (run / "sst").exists() and not (run / "summary.json").exists()


@pytest.mark.parametrize("kind", ["coupled", "coupled-talker", "coconut"])
def test_a_baseline_is_trained_and_measured_by_the_same_command(kind, tmp_path):
    script("-m", "reasoner.train", *TINY, "--model", kind, "--run", tmp_path / "r")
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert "route_accuracy" in summary and summary["phases"]["coupled"]["steps"] == 12


@pytest.mark.parametrize("what", ["tree", "containment", "talker"])
def test_every_experiment_on_trees_writes_its_json(what, trained, monkeypatch):
    run, _ = trained
    monkeypatch.setattr("sys.argv", ["reasoner.evaluate", "--run", str(run), "--what", what, "--device", "cpu"])
    evaluate_main()
    assert json.loads((run / f"{what}.json").read_text())["examples"] == 12
    monkeypatch.setattr("sys.argv", ["reasoner.evaluate", "--run", str(run), "--what", "cfg"])
    with pytest.raises(UserError, match="was trained on tree"):
        evaluate_main()


def test_runs_on_other_data_are_not_measured_beside_each_other(trained, tmp_path, monkeypatch):
    words = ["--model", "coupled", "--max-steps", "1", "--run", tmp_path / "c", "--labels", "13"]
    script("-m", "reasoner.train", *TINY, *words)
    for words, told in ((["tree", "--run", trained[0], "--baseline", tmp_path / "c"], "labels = 13"),
                        (["talker", "--run", tmp_path / "c"], "a baseline has no Talker")):  # fmt: skip
        monkeypatch.setattr("sys.argv", ["reasoner.evaluate", "--what", *map(str, words)])
        with pytest.raises(UserError, match=told):
            evaluate_main()


def test_every_ablation_is_a_command_and_one_of_each_phase_is_trained_and_read_out(trained, tmp_path, monkeypatch):
    for options in (*ablations.SST.values(), *ablations.TALKER.values()):
        parse(ReasonerConfig, PRESETS, "", ["--preset", "quick", *options.split()])
    monkeypatch.setattr(ablations, "SST", {"L2 only": ablations.SST["L2 only"]})
    monkeypatch.setattr(ablations, "TALKER", {"dual": ablations.TALKER["dual, 1 + 1 blocks"]})
    where = ["--run", trained[0], "--out", tmp_path / "runs", "--json", tmp_path / "a.json"]
    ablations.main([*map(str, where), "--options", " ".join(TINY)])
    found = json.loads((tmp_path / "a.json").read_text())
    assert 0 <= found["sst"]["L2 only"]["route_accuracy"] <= 1 and found["talker"]["dual"]["n_params"] > 0


def test_noise_on_strings_is_measured_with_every_baseline(tmp_path):
    cfg = [*TINY, "--dataset", "cfg", "--levels", "3"]
    script("-m", "reasoner.train", *cfg, "--run", tmp_path / "r")
    script("-m", "reasoner.train", *cfg, "--model", "coupled", "--run", tmp_path / "c")
    script("-m", "reasoner.evaluate", "--run", tmp_path / "r", "--what", "cfg", "--baseline", tmp_path / "c")
    found = json.loads((tmp_path / "r" / "cfg.json").read_text())["runs"]
    names = [f"{tmp_path / 'r'}, {x}" for x in ("by the nearest embedding", "tokens fed back")]
    assert list(found) == [str(tmp_path / "r"), str(tmp_path / "c"), *names]
    assert (tmp_path / "r" / "noise.png").is_file()
    assert all(set(rows) == {"drop", "replace", "insert", "latent"} for rows in found.values())


def test_noise_is_scored_by_place_and_paired(monkeypatch, tmp_path):
    """A model that is right exactly where its prompt is untouched, beside one that is always right."""
    items = derivations("test", 60, tiny(dataset="cfg", levels=3))
    gold = {x.prompt: x.chain for x in items}

    def knows(model, prompts, latent_noise, generator):
        return [gold.get(p, "") if model == "fragile" else items[at(p)].chain for p in prompts]

    def at(prompt):  # the n-th prompt that is asked belongs to the n-th of its batch
        return order.pop(0)

    order = []
    monkeypatch.setattr("reasoner.evaluate.say", knows)
    monkeypatch.setattr("reasoner.evaluate.in_batches", lambda asked, n: order.extend(r := range(len(asked))) or [r])
    result = noise({"fragile": "fragile", "firm": "firm"}, items, EvalConfig(run=str(tmp_path)))
    for kind in ("drop", "replace", "insert"):
        fragile, firm = (result[name][kind] for name in ("fragile", "firm"))
        assert fragile[0]["token_accuracy"]["mean"] == fragile[0]["exact"] == 1 and fragile[-1]["exact"] < 0.2
        for a, b in zip(fragile, firm, strict=True):
            assert b["exact"] == b["normalised"]["mean"] == 1
            assert a["token_accuracy"]["mean"] == pytest.approx(a["exact"])
            assert b["less_the_first_run"]["mean"] == pytest.approx(1 - a["exact"])
    assert (tmp_path / "noise.png").is_file()


def test_answers_are_given_back_in_the_order_they_were_asked_for():
    """Prompts are sorted by length on the way."""
    items = trees("test", 40, tiny())
    gold = {x.prompt: x.chain for x in items}
    model = SimpleNamespace(config=tiny(), answer=lambda prompts: [gold[p] for p in prompts])
    share, _, said = chain_accuracy(model, items, 8)
    assert share == 1 and said == [x.chain for x in items] and len({len(x.prompt) for x in items}) > 3
    gold[items[7].prompt] = "0"
    assert chain_accuracy(model, items, 8)[0] == 39 / 40


def test_an_interval_over_examples_knows_that_their_steps_hang_together():
    values, examples = [0, 0, 0, 0, 1, 1, 1, 1] * 10, [i // 4 for i in range(80)]
    together, apart = clustered(values, examples, 0), clustered(values, range(80), 0)
    width = [x["ci95"][1] - x["ci95"][0] for x in (together, apart)]
    assert together["mean"] == apart["mean"] == 0.5 and 1.6 < width[0] / width[1] < 2.4  # twice: four to an example


def test_equations_survive_a_tokenizer_that_takes_their_spaces_away():
    chain = "90-40=50, 100-50=50, 50+1000=1050 #### 1050"
    tokenizer = make_tokenizer(tiny(dataset="gsm8k", tokenizer="bpe:400"), [Item("q", chain)] * 20)
    assert equations(tokenizer.decode(tokenizer.encode([chain])[0])) == equations(chain)
    assert equations(chain.replace(", ", ",")) == [("90-40", 50), ("100-50", 50), ("50+1000", 1050)]


def test_a_trajectory_is_taken_apart_step_by_step(monkeypatch):
    """Two problems: in one the second step is wrong and carried on, the other is right; each score by hand."""
    assert equations("48/2=24, 48+24=72 #### 72") == [("48/2", 24.0), ("48+24", 72.0)]
    assert equations("2*3=6,6+1=7, 1000+24 = 1024.5 #### 1024.5") == [("2*3", 6), ("6+1", 7), ("1000+24", 1024.5)]
    items = [Item("q", "2+3=5, 5*2=10, 10-1=9 #### 9"), Item("p", "4*6=24, 24/3=8 #### 8")]
    said = ["2+3=5, 5*2=11, 11-1=10 #### 10", "4*6=24, 24/3=8 #### 8"]
    monkeypatch.setattr("reasoner.evaluate.chain_accuracy", lambda model, asked, size: (0.5, [0.1, 0.9], said))
    row = trajectory({"run": None}, items, EvalConfig())["run"]
    assert row["steps"] == row["steps_wanted"] == 2.5
    assert row["results_found"]["mean"] == pytest.approx((2 / 3 + 1) / 2)  # 5 and, by accident, 10
    assert row["another_problems"]["mean"] == 0
    assert row["right_from_the_start"]["mean"] == pytest.approx((1 / 3 + 1) / 2)
    assert row["arithmetic"]["mean"] == 4 / 5 and row["follows"]["mean"] == 1
    assert row["after_a_right_step"] | {"ci95": 0} == {"mean": 1 / 2, "ci95": 0, "n": 2}
    assert row["after_a_wrong_step"] | {"ci95": 0} == {"mean": 0, "ci95": 0, "n": 1}
    with pytest.raises(UserError, match="two test problems or more, and equations"):
        trajectory({"run": None}, [Item("q", "so 4 #### 4"), Item("q", "so 5 #### 5")], EvalConfig())


def test_every_question_is_asked_behind_examples_of_its_own(monkeypatch):
    shown = [Item(f"How many is {i}?", f"{i} #### {i}") for i in range(50)]
    items = [Item(f"What is {i}?", f"{i} #### {i}") for i in range(6)]
    asked = {}

    def answers(model, given, size, dataset):
        n = given[0].prompt.count("####")
        asked[n] = given
        return 0, [], [f"0 #### {x.chain.split()[-1]}\n\nWhat? #### 7" for x in given]  # it goes on by itself

    monkeypatch.setattr("reasoner.evaluate.chain_accuracy", answers)
    monkeypatch.setattr("reasoner.evaluate.load_items", lambda split, config: shown)
    config = tiny(dataset="gsm8k", tokenizer="bpe:340")
    model = SimpleNamespace(config=config, tokenizer=make_tokenizer(config, shown))
    row = fewshot({"run": model}, items, EvalConfig())["run"]
    assert [row[str(n)]["exact_match"] for n in (0, 1, 5, 8)] == [1, 1, 1, 1]
    assert [row[str(n)]["longer_than_any_row"] for n in (0, 1)] == [0, 1] and row["8"]["less_none"]["mean"] == 0
    for n in (0, 1, 5, 8):
        drawn = [x.prompt.removesuffix(item.prompt).split("\n\n")[:-1] for x, item in zip(asked[n], items, strict=True)]
        assert all(len(set(d)) == n and set(d) <= {x.prompt + x.chain for x in shown} for d in drawn)
        assert n == 0 or len({tuple(d) for d in drawn}) > 1


def test_few_shot_prompts_run_on_real_questions(shared_data, tmp_path):
    options = [*TINY, "--dataset", "gsm8k", "--data-dir", shared_data / "gsm8k", "--reasoning", "equations",
               "--tokenizer", "bpe:512", "--block-size", "192", "--epochs", "1", "--max-steps", "2"]  # fmt: skip
    script("-m", "reasoner.train", *options, "--max-chain", "8", "--run", tmp_path / "r", "--n-embd", "16")
    script("-m", "reasoner.evaluate", "--run", tmp_path / "r", "--what", "fewshot", "--limit", "4")
    assert list(json.loads((tmp_path / "r" / "fewshot.json").read_text())["runs"].popitem()[1]) == ["0", "1", "5", "8"]
    script("-m", "reasoner.evaluate", "--run", tmp_path / "r", "--what", "trajectory", "--limit", "4")
    row = json.loads((tmp_path / "r" / "trajectory.json").read_text())["runs"].popitem()[1]
    assert row["n"] == 4 and row["steps_wanted"] > 1
