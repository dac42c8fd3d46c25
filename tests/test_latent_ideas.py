"""Several ideas of a text, and saying texts back before the task: the set, the stages, resume, what is measured."""

import shutil
from collections import Counter
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from helpers import call, same, weights
from latent_tiny import (
    PAIRS,
    SEVERAL,
    TEXTS,
    options,
    said_back,
    texts_folder,
    tiny_stack,
    tokenized,
    trained_run,
    words_for,
)

from common.checkpoint import read_json
from common.options import UserError
from latent_stack import evaluate, pretrain, train
from latent_stack.experiments import sayback
from latent_stack.experiments.neighbours import untrained, vectors_of
from latent_stack.experiments.sayback import spelled
from latent_stack.losses import WordsInOrder
from latent_stack.model import load_run
from latent_stack.pairs import Pair, paraphrases, sentences, texts_from
from latent_stack.pretrain import random_words
from latent_stack.refine import distances, refined

# ------------------------------------------------------------------------------------ the set of ideas


@pytest.mark.parametrize("middle", ["mlp", "residual", "transformer", "gru", "identity"])
def test_texts_become_several_ideas_become_a_prefix_become_texts(middle):
    model = tiny_stack(middle=middle, **SEVERAL)
    z_in = model.encode(TEXTS[:3])
    z_out = model.think(z_in)
    assert z_in.shape == z_out.shape == (3, 4 * 16) and model.prefix(z_out).shape == (3, 8, 24)
    assert torch.equal(z_in, z_out) == (middle == "identity")
    assert model.generate(z_out, 4) == model.generate(z_out, 4)


def test_padding_and_order_do_not_change_a_set_of_ideas():
    model = tiny_stack(**SEVERAL)
    model.standardise(tokenized(PAIRS[:8], model))
    texts = [TEXTS[0], "Ana has 2 coins.", TEXTS[1]]
    alone = torch.cat([model.encode([text]) for text in texts])
    assert torch.allclose(model.encode(texts), alone, atol=1e-5)
    ideas = alone.view(3, 4, 16)
    assert all(not torch.allclose(ideas[:, i], ideas[:, 0], atol=1e-3) for i in (1, 2, 3)), "all queries read the same"


@pytest.mark.parametrize("middle", ["mlp", "transformer"])
def test_an_idea_has_soft_tokens_of_its_own_and_the_transformer_alone_mixes_ideas(middle):
    model = tiny_stack(middle=middle, **SEVERAL)
    z = model.encode(TEXTS[:1]).requires_grad_()
    prefix = model.prefix(model.think(z)).view(4, 2, 24)  # two soft tokens an idea
    reaches = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0].view(4, 16).abs().sum(1) > 0 for part in prefix]
    expected = torch.ones(4, 4) if middle == "transformer" else torch.eye(4)
    assert torch.equal(torch.stack(reaches), expected.bool())


def test_an_untrained_reading_stands_beside_that_of_several_ideas():
    model = tiny_stack(**SEVERAL)
    found = vectors_of(model, TEXTS[:4])
    assert torch.allclose(found["z_in"], model.encode(TEXTS[:4]), atol=1e-5)
    assert torch.allclose(found["z_in, mean of the ideas"], found["z_in"].view(4, 4, 16).mean(1), atol=1e-5)
    assert not torch.allclose(found["z_in"], found["z_in, untrained"], atol=1e-2)
    fresh = dict(untrained(model.pooling).named_parameters())
    assert not any(torch.equal(p, fresh[name]) for name, p in model.pooling.named_parameters() if p.std() > 0)


@pytest.mark.parametrize("changes", [dict(ideas=3), dict(ideas=5, latent_dim=12)])
def test_ideas_that_do_not_fit_the_prefix_are_refused(changes):
    with pytest.raises(UserError, match="--ideas . needs a multiple"):
        tiny_stack(pooling="queries", **changes)


def test_sharpened_soft_tokens_are_the_nearest_words_and_nothing_follows_the_end():
    model = tiny_stack(sharpen=0.001, **SEVERAL)
    words, eos = model.backbones.lm.get_input_embeddings().weight, model.backbones.eos
    soft_tokens = words[torch.tensor([[7, 9, eos, 11, 12, 13, 14, 15]])] + 0.01  # eos among them
    expected = words[torch.tensor([[7, 9, *[eos] * 6]])]
    assert torch.allclose(model.sharpened(soft_tokens), expected, atol=1e-3)
    batch = tokenized(PAIRS[:4], model).batch([0, 1])
    raw = model.prefix_of(replace(batch, trains="soft tokens"))
    sharp = model.sharpened(raw)
    assert torch.allclose(model.prefix_of(batch), sharp) and not torch.allclose(raw, sharp)
    model.config.sharpen = 1e3  # the mean of all
    assert torch.allclose(model.sharpened(soft_tokens)[0, :2], words.mean(0).expand(2, -1), atol=1e-3)
    model.config.sharpen = 0.0
    assert model.sharpened(soft_tokens) is soft_tokens


def test_what_follows_the_end_is_not_read_and_a_text_is_read_alike_beside_longer_ones():
    model = tiny_stack(sharpen=0.001, **SEVERAL)
    words, eos = model.backbones.lm.get_input_embeddings().weight, model.backbones.eos
    prefix = words[torch.tensor([[7, 9, *[eos] * 6], [8, 9, 10, 11, 12, 13, 14, 15], [7, *[eos] * 7]])]
    part, seen = model.without_end(prefix[[0, 2]])
    assert seen.tolist() == [[True] * 3, [False, True, True]]
    assert torch.equal(part[0], prefix[0, :3]) and torch.equal(part[1, 1:], prefix[2, :2])
    batch = tokenized(PAIRS[:4], model).batch([0, 1, 2])
    together = model.target_losses(prefix, batch)
    for i, loss in enumerate(together):
        alone = tokenized(PAIRS[:4], model).batch([i])
        assert torch.allclose(loss, model.target_losses(prefix[i : i + 1], alone)[0], rtol=1e-4)
        x = torch.cat((prefix[i, : [3, 8, 2][i]], model.backbones.embed(alone.tokens[0, :-1])))
        logits = model.backbones.lm(inputs_embeds=x[None]).logits[0, [2, 7, 1][i] + 1 :]
        expected = torch.nn.functional.cross_entropy(logits, alone.tokens[0, 1:], reduction="sum")
        assert torch.allclose(loss, expected, rtol=1e-4)
    assert model.generate_from_prefix(prefix, 6) == [model.generate_from_prefix(row[None], 6)[0] for row in prefix]


def test_the_gradient_goes_through_sharpening():
    model = tiny_stack(sharpen=0.1, **SEVERAL)
    model(tokenized(PAIRS[:4], model).batch([0, 1]))[0].backward()
    assert model.pooling.query.grad.abs().sum() > 0


# -------------------------------------------------------------------------------------- words in order


def test_the_words_in_order_are_the_likelihood_of_each_token_by_its_own_soft_token(monkeypatch):
    model = tiny_stack(**SEVERAL)
    data = tokenized(PAIRS[:4], model)
    for name in ("N_OTHERS", "N_ALIKE"):
        monkeypatch.setattr(WordsInOrder, name, 0)
    loss, batch = WordsInOrder(data.targets, model.backbones.lm), data.batch([0, 2])
    prefix = model.prefix_of(batch).detach()
    embedding, total = model.backbones.lm.get_input_embeddings().weight, 0.0
    firsts = [data.targets[i][1:9] for i in (0, 2)]
    seen = sorted({i for ids in firsts for i in ids})
    for row, ids in zip(prefix, firsts, strict=True):
        for soft_token, i in zip(row, ids, strict=False):
            cosine = torch.cosine_similarity(soft_token[None], embedding[seen])
            total += 2 * (1 - cosine[seen.index(i)].item()) - (30 * cosine).log_softmax(0)[seen.index(i)].item()
    assert loss(prefix, batch.tokens).item() == pytest.approx(total, rel=1e-4)
    perfect = model.backbones.embed(batch.tokens[:, 1:9].clamp(min=0))
    assert loss(perfect, batch.tokens) < 0.1 * total < loss(perfect.roll(1, 1), batch.tokens)


def test_the_words_most_like_a_word_are_among_those_it_is_told_from():
    model = tiny_stack(**SEVERAL)
    loss = WordsInOrder(tokenized(PAIRS[:20], model).targets, model.backbones.lm)
    embedding = model.backbones.lm.get_input_embeddings().weight
    for word in loss.words[:5]:
        cosine = torch.cosine_similarity(embedding[word][None], embedding)
        assert loss.alike[word, 0] == word and set(loss.alike[word].tolist()) == set(cosine.topk(6).indices.tolist())


def test_soft_tokens_stay_where_the_language_model_alone_learns_to_read_them():
    model = tiny_stack(lora_decoder=2, **SEVERAL)
    batch = tokenized(PAIRS[:4], model).batch([0, 1])
    model(replace(batch, trains="decoder"))[0].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and all(name.startswith("lora.lm") for name in trained)


def words_loss_after(steps: int, ideas: int, latent_dim: int) -> float:
    """Train to say sentences back without the language model -> the loss of held-out ones, nats a token."""
    model = tiny_stack(
        pooling="queries", ideas=ideas, latent_dim=latent_dim, prefix_len=16, middle="identity", middle_hidden=64
    )
    texts = list(dict.fromkeys(s for p in paraphrases("train", 500) for s in sentences(p.input)))
    data = tokenized([Pair(s, s) for s in texts], model)
    model.standardise(data)
    model.bag_of_words = WordsInOrder(data.targets, model.backbones.lm)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    order = torch.randperm(len(data) - 64, generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        batch = data.batch(order[torch.arange(32) + 32 * step % (len(order) - 32)].tolist())
        loss, _ = model(replace(batch, trains="soft tokens"))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model(replace(data.batch(range(len(data) - 64, len(data))), trains="soft tokens"))[0].item()


@pytest.mark.slow
def test_several_ideas_say_back_held_out_sentences_better_than_one_of_as_many_numbers():
    """Random backbones of width 32: after 1,000 steps of 64 it was 66% against 1% of sentences without an error."""
    one, several = words_loss_after(250, 1, 128), words_loss_after(250, 8, 16)
    assert several < 0.92 * one, (several, one)


# ----------------------------------------------------------------------------------------- plain texts


def test_plain_texts_are_read_as_sentences_and_a_test_file_stays_apart(tmp_path):
    assert sentences("Hi there! It is 3.5 m.\nBye") == ["Hi there!", "It is 3.5 m.", "Bye"]
    splits = texts_from(texts_folder(tmp_path / "x"))
    trained = {p.input for p in (*splits["train"], *splits["validation"])}
    assert {"Is it late?", "It is.", *sentences(TEXTS[1])} <= trained
    assert set(sentences(TEXTS[0])) <= {p.input for p in splits["test"]}
    assert all(p.input == p.target for split in splits.values() for p in split)
    one_file = texts_from(tmp_path / "x" / "a.txt")
    assert min(len(split) for split in one_file.values()) > 3
    with pytest.raises(UserError, match="no texts for training"):
        texts_from(tmp_path / "nothing")


def test_lists_of_random_words_have_every_word_of_the_vocabulary_equally_often():
    model = tiny_stack(**SEVERAL)
    with pytest.raises(UserError, match="where a word begins"):  # WordPiece marks where it goes on
        random_words(model, 10, 12, 0)
    words = [f"w{chr(97 + i)}{chr(97 + j)}" for i in range(6) for j in range(6)]
    vocab = {f"Ġ{word}": i for i, word in enumerate(words)} | {"ĠÐ¿": 99, "Ġ42": 98, "piece": 97}
    model.backbones.lm_tokenizer = Mock(side_effect=lambda texts, **_: {"input_ids": [t.split() for t in texts]})
    model.backbones.lm_tokenizer.get_vocab.return_value = vocab
    pairs = random_words(model, 30, 12, 0)
    found = Counter(word for p in pairs for word in p.target.split())
    assert len(pairs) == 30 and found.keys() == set(words) and max(found.values()) - min(found.values()) <= 1
    assert all(p.input == p.target and 3 <= len(p.target.split()) <= 10 for p in pairs)


# ---------------------------------------------------------------------------------------- the stages


def test_one_command_says_texts_back_and_then_learns_the_task():
    words, said, task = (read_json(said_back() / stage / "summary.json") for stage in ("words", "pretrain", "."))
    assert words["epochs"] == 2 and said["steps"] == 4 and task["steps"] == 12 and said["val_loss_shuffled"] > 0
    first, last = (weights(said_back() / stage) for stage in ("words", "pretrain"))
    lora = [name for name in first if "lora_B" in name]
    assert all(first[name].abs().max() == 0 for name in lora), "the language model took part in the first stage"
    assert not same(first, last) and not same(last, weights(said_back()))
    assert load_run(said_back() / "pretrain").config.dataset == "texts"


@pytest.mark.parametrize("killed_in", ["words", "pretrain", "between", "."])
def test_a_run_killed_in_any_stage_resumes_bit_for_bit(tmp_path, killed_in):
    run, stages = tmp_path / "run", ["words", "pretrain", "."]
    shutil.copytree(said_back(), run)
    reached = 1 if killed_in == "between" else stages.index(killed_in)
    for stage in stages[reached + 1 :]:  # what had not begun
        for name in ("state.pt", "state.previous.pt", "model.safetensors", "summary.json", "log.jsonl"):
            (run / stage / name).unlink(missing_ok=True)
    if killed_in != "between":
        (run / stages[reached] / "state.previous.pt").replace(run / stages[reached] / "state.pt")
    call(train, "--run", run, "--resume")
    assert same(weights(said_back()), weights(run))


def test_another_run_begins_where_one_ended_if_it_has_its_shape(tmp_path):
    words = [*words_for(tmp_path / "run", "")[:-2], "--init", said_back() / "pretrain"]
    call(train, *words, "--max-steps", 1, "--words-epochs", 0, "--lr", "0")
    assert same(weights(tmp_path / "run"), weights(said_back() / "pretrain"))
    done = call(train, *options(tmp_path / "other"), "--init", said_back() / "pretrain", check=False)
    assert (
        done.returncode
        and "its pooling is queries, this run's mean" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    done = call(train, *options(tmp_path / "other"), "--init", tmp_path / "none", check=False)
    assert done.returncode and "no checkpoint" in done.stderr


def test_the_beginnings_of_the_tasks_inputs_are_said_back_too(tmp_path):
    model = tiny_stack(pretrain=str(texts_folder(tmp_path / "x")), pretrain_tokens=8, **SEVERAL)
    with_task, without = (pretrain.sentences(model, model.config, task)[0] for task in (PAIRS[:3], []))
    assert len(with_task) == len(without) + 3
    words = model.backbones.lm_tokenizer([p.input for p in PAIRS[:3]], add_special_tokens=False)["input_ids"]
    assert [ids[1:] for ids in with_task.targets[-3:]] == [ids[:8] for ids in words]


def test_the_decoder_alone_learns_the_task_and_the_ideas_stay(tmp_path):
    words = [*words_for(tmp_path / "run", "")[:-2], "--init", said_back() / "pretrain", "--trains", "decoder"]
    done = call(train, *words, check=False)
    assert done.returncode and "--trains decoder needs --lora-decoder" in done.stderr
    words = [*options(tmp_path / "run"), "--trains", "decoder", "--lora-decoder", 2]
    assert "needs ideas that say something" in call(train, *words, check=False).stderr
    run = tmp_path / "lora"
    folder = texts_folder(tmp_path / "texts")
    call(train, *words_for(run, folder), "--lora-decoder", 2, "--trains", "decoder")
    before, after = weights(run / "pretrain"), weights(run)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("lora.lm") for name in changed)


def test_a_mistaken_option_costs_no_run_that_is_overwritten(tmp_path):
    """--overwrite once cleared the folder before --init and --pretrain were looked at."""
    run = tmp_path / "run"
    shutil.copytree(said_back(), run)
    kept = weights(run)
    for words in (("--init", run / "pretrain"), ("--init", tmp_path / "none"), ("--pretrain", tmp_path / "none.txt")):
        done = call(train, *options(run), "--overwrite", *words, check=False)
        assert done.returncode and len(done.stderr.strip().splitlines()) == 1, words
        assert same(weights(run), kept) and (run / "pretrain" / "model.safetensors").is_file(), words


# --------------------------------------------------------------------------------------- what is said


def test_a_sentence_counts_as_said_back_if_it_is_the_same_beside_another_sentences_ideas():
    texts = ["Ana has two coins.", "Ben  sold one.", "it is late"]
    found = sayback.measure(["Ana has two coins.", "ben sold one .", "late"], texts, {"one", "it", "late"}, 0)
    assert found["exact"]["mean"] == pytest.approx(1 / 3) and found["exact_but_for_case"]["mean"] == pytest.approx(
        2 / 3
    )
    assert found["recall_names"]["mean"] == 0.5 and found["recall_names"]["n"] == 2

    done = call(evaluate, "--run", said_back() / "pretrain", "--what", "sayback", "--limit", 24)
    result = read_json(said_back() / "pretrain" / "sayback.json")
    assert result["own"].keys() == result["shuffled"].keys() == result["soft_tokens"].keys()
    assert result["longest"] == 12
    assert f"{result['n']} sentences of 3 to 12 tokens" in done.stdout


def test_soft_tokens_are_spelled_as_the_tokens_nearest_to_them_up_to_the_end():
    model = tiny_stack()
    ids = tokenized(PAIRS[:1], model).targets[0][1:5]
    rows = torch.tensor([[*ids, model.backbones.eos, 7]])
    assert sayback.spelled(model, 3 * model.backbones.embed(rows)) == [model.backbones.lm_tokenizer.decode(ids)]


def test_rounds_of_refining_never_take_what_is_said_farther_from_the_text():
    model = load_run(said_back() / "pretrain")
    z = model.encode(TEXTS[:6])
    texts, distance = refined(model, z, 3)
    assert texts[0] == model.generate(model.think(z)) and len(texts) == 4 and distance.shape == (4, 6)
    assert (distance[1:] <= distance[:-1]).all()
    assert torch.allclose(distances(model, texts[-1], z)[1], distance[-1], atol=1e-5)
    assert distances(model, ["", *TEXTS[1:6]], z)[1].tolist() == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("reads", ["both", "encoder", "words"])
def test_queries_read_what_they_are_to_read(reads):
    """Words in another order for the encoder, for the language model: what changes the ideas was read."""
    model = tiny_stack(queries_read=reads, **SEVERAL)
    inputs = model.backbones.pad(model.backbones.tokenize(TEXTS[:1])[0])
    z = model.idea(inputs)
    changed = [
        not torch.allclose(z, model.idea(replace(inputs, **{name: getattr(inputs, name).flip(1)})), atol=1e-4)
        for name in ("input_ids", "lm_ids")
    ]
    assert changed == [reads != "words", reads != "encoder"]


def test_the_control_of_ideas_reads_the_first_words_themselves():
    model = tiny_stack(**SEVERAL)
    texts = [TEXTS[0], "Ana has 2 coins."]
    ids = model.backbones.lm_tokenizer(texts, add_special_tokens=False)["input_ids"]
    prefix, eos = model.words_as_prefix(texts), model.backbones.eos
    assert len(ids[0]) > 8 > len(ids[1]) + 1
    expected = [ids[0][:8], [*ids[1], *[eos] * (8 - len(ids[1]))]]
    assert torch.equal(prefix, model.backbones.embed(torch.tensor(expected)))
    assert spelled(model, prefix)[1] == model.backbones.lm_tokenizer.decode(ids[1]).strip()


def test_summaries_from_ideas_stand_beside_those_from_the_words_themselves(capsys):
    evaluate.main(["--run", str(said_back()), "--what", "summaries", "--device", "cpu", "--limit", "10"])
    result = read_json(said_back() / "summaries.json")
    for name, found in result["own_less_words"].items():
        assert found["mean"] == pytest.approx(result["own"][name]["mean"] - result["words"][name]["mean"])
    assert "its words themselves (control)" in capsys.readouterr().out


def test_what_queries_read_needs_queries(tmp_path):
    done = call(train, *options(tmp_path / "run"), "--queries-read", "words", check=False)
    assert done.returncode and "--queries-read words needs --pooling queries, not mean" in done.stderr


def test_one_idea_of_queries_is_another_idea_than_the_mean_of_the_states():
    model = tiny_stack(pooling="queries", ideas=1, prefix_len=8)
    z = model.think(model.encode(TEXTS[:2]))
    assert z.shape == (2, 16) and model.prefix(z).shape == (2, 8, 24) and len(model.generate(z, 4)) == 2


def test_one_idea_is_what_it_was():
    """A run of before has no --ideas in its config.json."""
    assert load_run(trained_run().run).config.ideas == 1
