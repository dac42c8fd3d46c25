"""The latent stack on tiny, random backbones: shapes, losses, what the prefix carries, what a checkpoint holds."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from helpers import same
from huggingface_hub import constants
from latent_tiny import PAIRS, TEXTS, backbones, tiny_stack, tokenized

from common.checkpoint import save_model
from common.options import UserError
from latent_stack.backbones import Inputs
from latent_stack.losses import BagOfWords
from latent_stack.model import LatentStack, load_run

# ---------------------------------------------------------------------------------- from texts to texts


@pytest.mark.parametrize("pooling", ["mean", "attention", "cls"])
@pytest.mark.parametrize("middle", ["mlp", "residual", "transformer", "gru", "identity"])
def test_texts_become_ideas_become_a_prefix_become_texts(pooling, middle):
    model = tiny_stack(pooling=pooling, middle=middle)
    z_in = model.encode(TEXTS[:3])
    z_out = model.think(z_in)
    assert z_in.shape == z_out.shape == (3, 16) and model.prefix(z_out).shape == (3, 5, 24)
    assert torch.equal(z_in, z_out) == (middle == "identity")
    texts = model.generate(z_out, 4)
    assert len(texts) == 3 and texts == model.generate(z_out, 4)


@pytest.mark.parametrize("pooling", ["mean", "attention", "cls"])
def test_padding_and_order_do_not_change_an_idea(pooling):
    model = tiny_stack(pooling=pooling)
    texts = [TEXTS[0], "Ana has 2 coins.", TEXTS[1]]
    alone = torch.cat([model.encode([text]) for text in texts])
    assert torch.allclose(model.encode(texts), alone, atol=1e-5)
    assert torch.allclose(model.encode(texts, batch_size=2), alone, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)


def test_memory_slots_of_the_transformer_see_each_other():
    """Slots that see only themselves would be a wide mlp."""
    model = tiny_stack(middle="transformer", memory_slots=3)
    z = model.encode(TEXTS[:1])
    slots = model.middle.spread(z).view(1, 3, 16)
    mixed = model.think(z)
    alone = torch.cat([model.middle.trunk(slots[:, i : i + 1], torch.tensor([[i]])) for i in range(3)], 1).mean(1)
    assert not torch.allclose(mixed, alone, atol=1e-3)


def test_what_all_texts_have_in_common_is_removed_before_the_compression():
    model = tiny_stack()
    before = model.encode(TEXTS[:8])
    data = tokenized(PAIRS[:8], model)
    model.standardise(data)
    batch = data.batch(range(8))
    pooled = model.pooling(model.backbones.hidden_states(batch.inputs), batch.inputs.attention_mask)
    standardised = (pooled - model.origin) / model.unit
    assert torch.allclose(standardised.mean(0), torch.zeros(32), atol=1e-4)
    assert torch.allclose(standardised.std(0), torch.ones(32), atol=1e-2)
    z_in = model.encode(TEXTS[:8])
    assert torch.allclose(model.compress(standardised), z_in, atol=1e-4) and not torch.allclose(before, z_in)
    assert {"origin", "unit"} <= set(model.state_dict()), "a checkpoint would forget where ideas are measured from"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder of the tiny encoder beside a tiny Llama, whose keys and values have projections of their own."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "encoder").symlink_to(backbones() / "encoder")
    shutil.copytree(backbones() / "lm", folder / "lm")
    n_vocab = transformers.AutoConfig.from_pretrained(folder / "lm").vocab_size
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.LlamaConfig(vocab_size=n_vocab, num_key_value_heads=1, initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "lm")
    return folder


def moving(folder, **changes):
    """A stack whose ideas move keys and values, by a little more than nothing."""
    model = tiny_stack(folder=folder, prefix_kv=True, **changes)
    torch.nn.init.normal_(model.kv.weight, std=0.5)
    return model


def test_ideas_move_the_keys_and_values_of_their_soft_tokens_and_at_first_by_nothing(llama):
    plain, zero, moved = tiny_stack(folder=llama), tiny_stack(folder=llama, prefix_kv=True), moving(llama)
    batch = tokenized(PAIRS[:3], plain).batch(range(3))
    logits = [model.logits(model.prefix_of(batch), batch.tokens.clamp(min=0)) for model in (plain, zero, moved)]
    assert torch.equal(logits[0], logits[1]) and (logits[2] - logits[0]).abs().max() > 0.1
    assert moved.kv.out_features == 5 * 2 * 2 * 12  # soft tokens, layers, keys and values, numbers of a head
    assert not any(module._forward_hooks for module in moved.backbones.lm.modules()), "a hook stayed behind"
    losses = [
        BagOfWords([[1, 2, 3]], model.backbones.lm)(model.prefix_of(batch), batch.tokens) for model in (plain, moved)
    ]
    assert torch.equal(*losses)  # of the soft tokens alone
    with pytest.raises(UserError, match="k_proj and v_proj"):
        tiny_stack(prefix_kv=True)  # GPT-2


def test_where_ideas_stay_what_they_move_is_still_trained(llama):
    model = moving(llama, lora_decoder=2)
    model(replace(tokenized(PAIRS[:4], model).batch([0, 1]), trains="decoder"))[0].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"kv.weight", "kv.bias"} < trained and all(name.startswith(("kv.", "lora.lm")) for name in trained)


@pytest.mark.parametrize("moves", [False, True])
def test_what_is_generated_is_the_greedy_reading_of_the_logits_of_training(moves, llama):
    """BOS left out, or a prefix of another size, in generation but not in training: the two would part."""
    model = moving(llama) if moves else tiny_stack()
    both = model.backbones
    z = model.think(model.encode(TEXTS[:1]))
    tokens = torch.tensor([[both.bos]])
    for _ in range(6):
        token = model.logits(model.prefix(z), tokens)[:, -1].argmax(-1, keepdim=True)
        if token.item() == both.eos:
            break
        tokens = torch.cat((tokens, token), 1)
    expected = both.lm_tokenizer.decode(tokens[0, 1:].tolist(), skip_special_tokens=True).strip()
    assert model.generate(z, 6) == [expected] and expected


def test_the_prefix_is_the_only_way_from_the_input_to_the_output():
    model = tiny_stack()
    batch = tokenized(PAIRS[:2], model).batch([0, 1])
    inputs = batch.inputs
    swapped = replace(
        batch, inputs=Inputs(*(x.flip(0) for x in (inputs.input_ids, inputs.attention_mask, inputs.lm_ids)))
    )
    assert not torch.equal(model(batch)[0], model(swapped)[0])  # another text, another prefix
    z = model.think(model.encode(TEXTS[:2])).requires_grad_()
    with torch.no_grad():
        for p in model.expand[-1].parameters():
            p.zero_()
    assert torch.equal(model(batch)[0], model(swapped)[0])  # the same prefix for all: nothing of the text is left
    logits = model.logits(model.prefix(z), batch.tokens[:, :-1].clamp(min=0))
    assert torch.autograd.grad(logits.sum(), z)[0].abs().max() == 0


@pytest.mark.parametrize(
    "texts, message",
    [
        (["a", "  "], "text 2 of 2 is empty"),
        (["a", None], "text 2 of 2 is no text but a NoneType"),
        ("a text", "needs a list of texts"),
        ([], "needs a list of texts"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts, message):
    with pytest.raises(UserError, match=message):
        tiny_stack().encode(texts)


# ---------------------------------------------------------------------------------------------- losses


def test_the_teacher_forced_loss_is_the_language_models_own_loss_on_the_same_text():
    """A label shifted by one position, or a position too many, and the two differ."""
    model = tiny_stack()
    model.standardise(tokenized(PAIRS[:8], model))
    batch = tokenized(PAIRS[:1], model).batch([0])
    prefix = model.prefix(model.think(model.encode(TEXTS[:1]))).detach()
    x = torch.cat((prefix, model.backbones.embed(batch.tokens)), 1)
    labels = torch.cat((torch.full((1, prefix.size(1)), -100), batch.tokens), 1)
    labels[0, prefix.size(1)] = -100  # BOS is given
    expected = model.backbones.lm(inputs_embeds=x, labels=labels).loss
    assert torch.allclose(model(batch)[0], expected, atol=1e-5)


def test_a_batch_of_padded_targets_has_the_loss_of_its_texts():
    model = tiny_stack()
    data = tokenized(PAIRS[:5], model)
    whole = model(data.batch(range(5)))[0]
    parts = sum(model(data.batch([i], data.loss_denominators(range(5))))[0] for i in range(5))
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_bag_of_words_loss_is_the_likelihood_of_the_targets_distinct_tokens():
    """Against the definition, written out token by token; BOS and padding are no words."""
    model = tiny_stack()
    data = tokenized(PAIRS[:6], model)
    special = (model.backbones.bos, model.backbones.eos)
    loss, batch = BagOfWords(data.targets, model.backbones.lm, special), data.batch([0, 3])
    prefix = model.prefix_of(batch).detach()
    embedding, total = model.backbones.lm.get_input_embeddings().weight, 0.0
    vocabulary = sorted({i for ids in data.targets for i in ids} - set(special))
    frequency = torch.tensor([sum(i in ids for ids in data.targets) / 6 for i in vocabulary])
    for row, ids in zip(prefix, (data.targets[0], data.targets[3]), strict=True):
        p = torch.zeros(len(vocabulary))
        for soft_token in row:
            cosine = torch.cosine_similarity(soft_token[None], embedding[vocabulary])
            p += (12 * cosine + frequency.log()).softmax(0) / len(row)
        total -= sum(p[vocabulary.index(i)].log().item() for i in set(ids) - set(special))
    assert loss(prefix, batch.tokens).item() == pytest.approx(total, rel=1e-4)


def test_the_bag_of_words_loss_is_added_in_training_only_and_logged_separately():
    model = tiny_stack(words_weight=0.5)
    data = tokenized(PAIRS[:6], model)
    batch = data.batch(range(6))
    plain, _ = model(batch)
    model.bag_of_words = BagOfWords(data.targets, model.backbones.lm)
    assert model(batch)[0] == plain, "a validation loss with the aid in it"
    loss, metrics = model.train()(batch)
    assert torch.allclose(metrics["loss"], plain, atol=1e-5) and metrics["words"] > 0
    assert torch.allclose(loss, plain + 0.5 * metrics["words"], atol=1e-5)


def test_one_batch_is_learned_by_heart():
    model = tiny_stack(latent_dim=32, middle_hidden=64, lora_decoder=4).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = tokenized(PAIRS[:4], model).batch(range(4))
    first = model(batch)[0].item()
    for _ in range(200):
        loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first


# ----------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("lora", [0, 2])
def test_a_checkpoint_holds_only_what_was_trained_and_gives_the_same_texts(tmp_path, lora):
    model = tiny_stack(lora_encoder=lora, lora_decoder=lora)
    with torch.no_grad():
        for p in model.lora.values():
            p.add_(0.05)
    save_model(model, model.config, tmp_path)
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert stored < 4 * model.n_params() + 20_000, "the backbones are in it"
    again = load_run(tmp_path)
    assert torch.allclose(again.encode(TEXTS[:3]), model.encode(TEXTS[:3]), atol=1e-6)
    assert again.rewrite(TEXTS[:3]) == model.rewrite(TEXTS[:3])


def test_a_stack_is_saved_and_loaded_by_the_hubs_own_functions(tmp_path):
    model = tiny_stack()
    model.save_pretrained(tmp_path / "run")
    again = LatentStack.from_pretrained(tmp_path / "run")
    assert same(again.state_dict(), model.state_dict()) and asdict(again.config) == asdict(model.config)
    assert not again.training


def test_a_checkpoint_that_is_nowhere_is_reported_with_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("out/nothing", "/nowhere/at/all", "someone/nothing"):
        with pytest.raises(UserError, match=f"{name} cannot be loaded .* Tried: {name} as a folder, then the Hugging"):
            LatentStack.from_pretrained(name)
    with pytest.raises(UserError, match="no checkpoint in .* train one with: python -m latent_stack.train"):
        LatentStack.from_pretrained(tmp_path)
