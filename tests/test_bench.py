"""The benchmarks: the plain loop computes what the fast path computes, and the commands run."""

import json

import pytest
import torch
from test_train import TINY, script
from tiny import PROBLEMS, encoded, tiny_model

from bench.straightforward import plain_answer, plain_loss


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
