"""The benchmarks: the plain loop computes what the fast path computes, and the commands run."""

import json
from dataclasses import replace

import pytest
import torch
from test_train import TINY, script
from tiny import PROBLEMS, encoded, tiny_model

from bench.latent_memory import measure
from bench.straightforward import plain_answer, plain_loss
from latent_stack.config import StackConfig


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("bench") / "run"
    script("train.py", *TINY, "--no-final-eval", "--run", run)
    return run


def pairs(examples, tokenizer):
    questions, answers = (tokenizer.encode([getattr(e, key) for e in examples]) for key in ("question", "answer"))
    return list(zip(questions, answers, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_the_fast_loss_and_its_gradients_equal_the_plain_loop(packed):
    model, examples = tiny_model(), PROBLEMS[:12]
    fast, metrics = model(encoded(examples).batch(range(12), packed=packed))
    fast.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    slow, terms = plain_loss(model, pairs(examples, model.tokenizer))
    slow.backward()
    torch.testing.assert_close(fast, slow)
    for name, term in terms.items():
        torch.testing.assert_close(metrics[name], term.detach(), msg=name)
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, msg=name, rtol=1e-4, atol=1e-6)


def test_the_memory_of_a_latent_stack_grows_with_its_texts():
    """Activations are counted, weights are not: twice the texts, twice the activations."""
    size = dict(vocab_size=32, hidden_size=24, n_embd=24, intermediate_size=32, num_hidden_layers=1, n_layer=1,
                num_attention_heads=2, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    config = StackConfig(latent_dim=8, middle_hidden=8, prefix_len=2, max_input=16, max_target=16, device="cpu")
    one, two = (measure(replace(config, batch_size=B), size) for B in (8, 16))
    assert one["trained"] == two["trained"] and one["precision"] == "fp32"
    assert two["activations_gib"] / one["activations_gib"] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("keep_latent", [False, True])
def test_batched_answers_equal_the_plain_ones(keep_latent):
    model = tiny_model(max_new_tokens=5).eval()
    questions = [e.question for e in PROBLEMS[:10]]
    assert model.answer(questions) == [plain_answer(model, q, keep_latent) for q in questions]


def test_the_training_benchmark_runs_and_writes_its_figures(tmp_path):
    tiny = ["--dataset=wordproblems", "--tokenizer=bpe:400", "--n-layer=1", "--n-embd=32", "--n-head=2", "--n-train=64"]
    script("-m", "bench.train_speed", *tiny, "--batch-size=4", "--rounds=1", "--steps=2", "--scale", "4", "8",
                  "--device=cpu", f"--out={tmp_path}/speed.json")  # fmt: skip
    found = json.loads((tmp_path / "speed.json").read_text())
    assert set(found["examples_per_second"]) == {"ours", "language_model", "packed", "straightforward", "llm_jepa"}
    assert [row["batch_size"] for row in found["scaling"]] == [4, 8]


def test_the_evaluation_benchmark_runs_and_gives_the_answers_of_the_plain_loop(tmp_path, trained_run):
    script("-m", "bench.eval_speed", "--run", trained_run, "--rounds=1", "--sample=5", "--limit=20", "--device=cpu",
                  f"--out={tmp_path}/speed.json")  # fmt: skip
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["questions"] == 20 and found["same_answers"] == 1.0
