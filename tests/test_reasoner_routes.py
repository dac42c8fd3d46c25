"""Several routes: the posterior over the next node, and what a model's weights are compared with."""

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import call
from reasoner_tiny import TINY, tiny_config, tiny_model

from common.checkpoint import read_json
from common.options import UserError
from reasoner import evaluate, train
from reasoner.baselines import Coupled
from reasoner.config import EvalConfig
from reasoner.experiments import posterior
from reasoner.model import TEMPERATURE, Reasoner
from reasoner.routes import Graph, guessing, routes
from reasoner.tasks import Example, is_correct, is_valid

SHAPE = dict(dataset="routes", leaves=3, depth=3, labels=12)


def all_routes(example: Example) -> list[tuple[str, ...]]:
    """Every walk from the root to the goal, by trying all sequences of nodes."""
    goal, *nodes = (part.split() for part in example.prompt[:-2].split(" ; "))
    edges = {(node, child) for node, *children in nodes for child in children}
    inner = {node for node, *_ in nodes}
    walks = [(nodes[-1][0], *middle, goal[1]) for n in (1, 2) for middle in product(inner, repeat=n)]
    return [walk for walk in walks if edges >= set(zip(walk, walk[1:], strict=False))]


def test_the_posterior_is_the_count_of_all_routes_and_each_of_them_is_correct():
    for example in routes("test", 40, tiny_config(**SHAPE)):
        graph, found = Graph(example.prompt), all_routes(example)
        assert len(found) > 1 and tuple(example.chain.split()) in found
        for step, node in enumerate(example.chain.split()[:-1]):
            behind = Counter(walk[step + 1] for walk in found if walk[step] == node)
            assert graph.posterior(node) == {x: Fraction(n, behind.total()) for x, n in behind.items()}
            assert graph.marginal(step + 1) == {
                x: Fraction(n, len(found)) for x, n in Counter(walk[step + 1] for walk in found).items()
            }
        assert all(is_correct("routes", example, " ".join(walk)) for walk in found)
        assert not is_valid(tiny_config(**SHAPE), example, " ".join(found[0][:-1]))


def test_routes_are_drawn_alike_often():
    """A chain that took each edge alike often would have another posterior."""
    drawn, expected = 0, 0
    for example in routes("train", 3000, tiny_config(**SHAPE, n_train=3000)):
        posterior_, node = Graph(example.prompt).posterior(example.chain.split()[0]), example.chain.split()[1]
        best = max(posterior_, key=posterior_.get)
        drawn, expected = drawn + (node == best), expected + float(posterior_[best])
    assert abs(drawn - expected) < 3 * 3000**0.5 / 2


def test_guessing_reaches_the_goal_as_often_as_edges_taken_alike_often_do():
    example = Example("goal 4 ; 2 4 ; 3 4 5 ; 1 2 3 :", "1 2 4")
    assert guessing(example) == 0.75
    with pytest.raises(UserError, match="--leaves 2"):
        routes("test", 1, tiny_config(**SHAPE | dict(depth=1)))


def test_a_mixture_of_embeddings_is_read_as_its_weights_and_a_baselines_logits_by_their_softmax():
    reasoner, coupled = (tiny_model(cls, **SHAPE, trained="sst") for cls in (Reasoner, Coupled))
    nodes, w = ["3", "7", "10"], np.array([[0.2, 0.5, 0.3], [0, 1, 0]])
    ids = [reasoner.tokenizer.id_of[node] for node in nodes]
    E = F.normalize(reasoner.target.weight[ids], dim=-1).detach()
    mixed = F.normalize(torch.tensor(w, dtype=torch.float32) @ E, dim=-1)
    assert np.allclose(posterior.node_weights(reasoner, mixed, nodes), w, atol=1e-5)
    reasoner.config.sst_loss = "hard"
    likely = (mixed @ E.T / TEMPERATURE).softmax(-1).numpy()
    assert np.allclose(posterior.node_weights(reasoner, mixed, nodes), likely, atol=1e-5)
    logits = coupled.head(mixed)[:, ids].softmax(-1).detach().numpy()
    assert np.allclose(posterior.node_weights(coupled, mixed, nodes), logits, atol=1e-5)


def test_states_with_true_inputs_are_those_that_predict_the_chain():
    """The latents of the first step are those of use, where no token has been fed back yet."""
    examples = routes("test", 5, tiny_config(**SHAPE))
    reasoner, coupled = (tiny_model(cls, **SHAPE, trained="sst") for cls in (Reasoner, Coupled))
    for example, latents in zip(examples, posterior.chain_states(reasoner, examples, 2), strict=True):
        assert torch.allclose(latents[0], reasoner.rollout([example.prompt], 1)[0, 0], atol=1e-5)
    for example, states in zip(examples, posterior.chain_states(coupled, examples, 2), strict=True):
        token = coupled.head(states[0]).argmax().item()
        assert coupled.generate([example.prompt], 1) == [coupled.tokenizer.until_eos([token])]


@pytest.mark.parametrize("ended", [True, False])
def test_a_chain_of_perfect_latents_is_nearer_to_the_posterior_behind_it(ended, monkeypatch):
    """One that does not end is read to its last node."""
    examples = routes("test", 30, tiny_config(**SHAPE))
    reasoner, graphs = tiny_model(Reasoner, **SHAPE, trained="sst"), [Graph(x.prompt) for x in examples]

    def perfect(reasoner, examples, batch_size, **how):
        t = reasoner.tokenizer
        rows = [torch.tensor([*ids, *[t.eos] * ended]) for ids in t.encode([x.chain for x in examples])]
        return [F.normalize(reasoner.target(row), dim=-1).detach() for row in rows]

    monkeypatch.setattr(posterior, "rollouts", perfect)
    found = posterior.free_running(reasoner, examples, graphs, EvalConfig(), {})
    assert found["routes"]["share"] == 1 and found["steps"] > 5
    assert found[posterior.BEHIND]["mean"] < found[posterior.WHOLE]["mean"] and found["difference"]["mean"] > 0


def test_the_posterior_is_measured_beside_a_baseline_and_drawn(tmp_path):
    words = [*TINY, "--dataset", "routes", "--leaves", "3", "--depth", "3", "--n-eval", "40"]
    call(train, *words, "--run", tmp_path / "r")
    call(train, *words, "--model", "coconut", "--run", tmp_path / "c")
    call(evaluate, "--run", tmp_path / "r", "--what", "posterior", "--baseline", tmp_path / "c", "--device", "cpu")
    found = read_json(tmp_path / "r/posterior.json")["runs"]
    for row in found.values():
        assert 0 <= row["distance"][posterior.OWN]["mean"] <= 1 and row["steps"] > 5
        assert row["distance"][posterior.LEADS]["mean"] <= row["distance"][posterior.FOLLOWS]["mean"]
    assert "free_running" in found[str(tmp_path / "r")] and (tmp_path / "r/posterior.png").is_file()
