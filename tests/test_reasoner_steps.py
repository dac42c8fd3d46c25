"""One latent a step: chains cut into steps, the same chain in training as in use, tokens that cannot reach it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers import call
from reasoner_tiny import TINY, tiny_config

import demo.chain
from common.checkpoint import read_json
from common.options import UserError
from reasoner import evaluate, train
from reasoner.data import TokenizedDataset, load_examples, make_tokenizer
from reasoner.phases import load_run
from reasoner.steps import StepReasoner, Steps, StepTalker, comma_of

PROBLEMS = "--dataset wordproblems --reasoning steps --tokenizer words:1".split()


@cache
def problems():
    """A configuration, a few problems of two and three steps, and all of them in one batch."""
    config = tiny_config(dataset="wordproblems", reasoning="steps", tokenizer="words:1", n_train=6, trained="sst")
    examples = [*load_examples("train", config), *load_examples("train", replace(config, difficulty=6, n_train=4))]
    tokenizer = make_tokenizer(config, examples)
    batch = TokenizedDataset(examples, tokenizer, 256).batch(range(len(examples)))
    return replace(config, vocab_size=tokenizer.n_vocab), tokenizer, examples, batch


def model_of(cls, seed: int = 0):
    """An untrained model in eval mode."""
    config, tokenizer, *_ = problems()
    torch.manual_seed(seed)
    model = cls(config)
    model.tokenizer = tokenizer
    return model.eval()


def test_the_steps_of_a_chain_put_together_are_the_chain():
    _, t, examples, batch = problems()
    steps = Steps.of(batch.chain, comma_of(t))
    assert steps.count.tolist() == [x.chain.count(",") + 1 for x in examples] and set(steps.count.tolist()) == {3, 4}
    for example, row, n in zip(examples, steps.tokens, steps.count.tolist(), strict=True):
        texts = [t.decode(t.until_eos(ids[ids >= 0].tolist())) for ids in row]
        assert texts[:n] == [x + "," * (i < n - 1) for i, x in enumerate(example.chain.replace(" ", "").split(","))]
        assert not any(texts[n:])


def test_the_chain_is_the_same_in_training_as_in_use_whatever_stands_beside_it_in_a_batch():
    """A prompt's padding, or another row's longer prompt, would show."""
    reasoner, (_, _, examples, batch) = model_of(StepReasoner), problems()
    trained = reasoner.think(batch, 4)
    used = reasoner.rollout([x.prompt for x in examples], 4)
    real = used.abs().sum(-1) > 0
    assert real[:, :2].any() and torch.allclose(trained[real], used[real], atol=1e-5)
    alone = reasoner.rollout([examples[3].prompt], 4)[0]
    assert torch.allclose(alone, trained[3][: len(alone)], atol=1e-5)


def test_no_token_of_the_solution_reaches_the_chain_and_the_loss_reaches_the_first_latent():
    reasoner, (_, _, _, batch) = model_of(StepReasoner), problems()
    other = replace(batch, tokens=torch.where(batch.is_chain(), 0, batch.tokens))
    assert torch.equal(reasoner.think(batch, 3), reasoner.think(other, 3))
    kept, think = [], reasoner.think
    reasoner.think = lambda batch, n: kept.append(think(batch, n)) or kept[-1]
    steps = Steps.of(batch.chain, comma_of(reasoner.tokenizer))
    r = think(batch, 2)
    assert torch.autograd.grad((r[:, 1] * torch.randn_like(r[:, 1])).sum(), reasoner.embed.weight)[0].abs().max() > 0
    loss = reasoner(batch)[0]
    gradient = torch.autograd.grad(loss, kept[0])[0]  # (B, S, C)
    assert (gradient[steps.real].norm(dim=-1) > 0).all()


def overfit(model, batch, n: int) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=6e-3, weight_decay=0.0)
    for _ in range(n):
        loss, metrics = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return {name: value.item() for name, value in metrics.items()}


def test_reasoner_and_talker_learn_a_batch_by_heart_and_the_chain_ends_by_itself():
    _, t, examples, batch = problems()
    reasoner, talker = model_of(StepReasoner), model_of(StepTalker, 1)
    assert overfit(reasoner, batch, 150)["chain_accuracy"] > 0.97
    assert overfit(talker, replace(batch, latents=reasoner.teacher_forced(batch)), 250)["chain_accuracy"] > 0.97
    latents = reasoner.rollout([x.prompt for x in examples], 9)
    steps = Steps.of(batch.chain, comma_of(t)).count
    assert ((latents.abs().sum(-1) > 0).sum(1) == steps).float().mean() > 0.8
    hits = [a == b.chain.replace(" ", "") for a, b in zip(talker.speak(latents), examples, strict=True)]
    assert sum(hits) > 0.8 * len(hits)
    shuffled = [a == b.chain.replace(" ", "") for a, b in zip(talker.speak(latents.flip(0)), examples, strict=True)]
    assert not any(shuffled), "the Talker cannot answer from another prompt's latents"


def test_a_run_of_steps_goes_through_all_phases_and_is_measured(tmp_path):
    done = call(train, *TINY, *PROBLEMS, "--run", tmp_path / "run")
    assert "exact match" in done.stdout
    model = load_run(tmp_path / "run")
    assert isinstance(model.reasoner, StepReasoner) and isinstance(model.talker, StepTalker)
    call(evaluate, "--what", "trajectory", "--run", tmp_path / "run")
    row = read_json(tmp_path / "run/trajectory.json")["runs"][str(tmp_path / "run")]
    assert row["n"] == 12 and "exposure" not in row
    refused = call(evaluate, "--what", "trajectory", "--run", tmp_path / "run", "--sharpen", "0.1", check=False)
    assert "near no token's embedding" in refused.stderr
    *lines, words = call(evaluate, "--ask", "Tom has 4 cups.", "--run", tmp_path / "run").stdout.splitlines()
    assert [line[:2] for line in lines] == [f"r{k}" for k in range(1, len(lines) + 1)]
    assert ",".join(line[2:].strip() for line in lines) == words
    with pytest.raises(UserError, match="--ask"):
        demo.chain.load(str(tmp_path / "run"), "", "cpu")


@pytest.mark.parametrize(
    "words",
    [
        "--model coupled",
        "--talker dual",
        "--rollout 1",
        "--sst-noise 0.8",
        "--sharpen 0.1",
        "--contrast 1",
        "--sst-loss hard",
    ],
)
def test_options_of_chains_of_tokens_are_refused(words, tmp_path):
    with pytest.raises(UserError, match="--reasoning steps"):
        train.main([*TINY, *PROBLEMS, *words.split(), "--run", str(tmp_path)])
