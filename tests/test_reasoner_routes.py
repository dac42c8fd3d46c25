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
from reasoner.experiments import clue, posterior
from reasoner.model import TEMPERATURE, Reasoner
from reasoner.routes import Graph, graphs_of, guessing, routes
from reasoner.tasks import Example, is_correct, is_valid

SHAPE = dict(dataset="routes", leaves=3, depth=3, labels=12)
LATE = SHAPE | dict(late_goal=True)
FORKED = "8 3 ; 1 5 ; 4 1 8 ; 2 8 ; 7 4 2 :"  # from 2 there is no way to 5


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


def test_a_late_goal_stands_in_the_chain_alone_and_any_that_can_be_reached_may_be_it():
    for example in routes("test", 40, tiny_config(**LATE)):
        graphs, chain = graphs_of(example.prompt), example.chain.split()
        assert "goal" not in example.prompt and chain[2] == "goal" and chain[3] == chain[-1]
        assert chain[3] in [graph.goal for graph in graphs] and len(graphs) > 1
        expected = {" ".join(route[:2] + ["goal", g.goal] + route[2:]) for g in graphs for route in g.routes(g.root)}
        assert set(example.routes) == expected and example.chain in expected
    assert [graph.goal for graph in graphs_of(FORKED)] == ["3", "5"]
    assert guessing(Example(FORKED, "7 4 goal 3 8 3")) == 0.5


def test_what_follows_a_late_goal_must_lead_to_it_from_any_first_node():
    graph = next(graph for graph in graphs_of(FORKED) if graph.goal == "5")
    for chain, leads, first in (
        ("7 4 goal 5 1 5", 1, 1),
        ("7 2 goal 5 1 5", 1, 0),
        ("7 4 goal 5 8 5", 0, 1),
        ("7", 0, 0),
    ):
        assert clue.leads_there(chain.split(), graph) == leads
        assert clue.first_leads_there(chain.split(), graph) == first


@pytest.mark.parametrize(("cls", "fed_back"), [(Reasoner, "latents"), (Reasoner, "tokens"), (Coupled, "tokens")])
def test_the_goal_is_an_input_whatever_is_predicted_in_its_place(cls, fed_back):
    """Chains part behind the goal and not before it; and as fed to them they go on as with true inputs."""
    model, examples = tiny_model(cls, **LATE, trained="sst", max_chain=6), routes("test", 12, tiny_config(**LATE))
    goals = [[graph.goal for graph in graphs_of(x.prompt)] for x in examples]
    one, other = (clue.chains(model, examples, [row[i] for row in goals], 5, fed_back) for i in (0, 1))
    assert [row[:2] for row in one] == [row[:2] for row in other]
    assert [row[4:] for row in one] != [row[4:] for row in other]
    if cls is Coupled:  # whose chains have it, where a Reasoner's have what it predicted there
        assert [row[2:4] for row in one] == [["goal", row[0]] for row in goals]
    compared = 0
    for example, chain, (goal, *_) in zip(examples, one, goals, strict=True):
        read = Example(example.prompt, " ".join([*chain[:2], "goal", goal]))
        if cls is Reasoner and fed_back == "tokens" and len(chain) > 4 and set(chain[:2]) <= set(model.tokenizer.words):
            latent = posterior.chain_states(model, [read], 1)[0][-1]
            assert model.tokenizer.pieces([model.nearest(latent).item()])[0] == chain[4]
            compared += 1
    assert compared > 3 or cls is Coupled or fed_back == "latents"


def test_first_nodes_that_weigh_what_the_goals_make_likely_are_at_no_distance(monkeypatch):
    reasoner, examples = tiny_model(Reasoner, **LATE, trained="sst"), routes("test", 12, tiny_config(**LATE))

    def mixed(model, examples, batch_size):
        for example in examples:
            first = [x.posterior(x.root) for x in graphs_of(example.prompt)]
            ids = {node: reasoner.tokenizer.id_of[node] for p in first for node in p}
            r = sum(
                float(p.get(node, 0)) * F.normalize(reasoner.target.weight[i], dim=-1)
                for p in first
                for node, i in ids.items()
            )
            yield F.normalize(torch.stack([r, r]), dim=-1).detach()

    monkeypatch.setattr(clue, "chain_states", mixed)
    found = clue.before_the_goal(reasoner, examples, EvalConfig())
    assert found["own"]["mean"] < 1e-4 < found["even chances"]["mean"] and found["n"] > 5


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


def test_a_late_goal_is_measured_beside_a_baseline(tmp_path):
    words = [*TINY, "--dataset", "routes", "--leaves", "3", "--depth", "3", "--n-eval", "40", "--late-goal"]
    call(train, *words, "--run", tmp_path / "r")
    call(train, *words, "--model", "coconut", "--run", tmp_path / "c")
    call(evaluate, "--run", tmp_path / "r", "--what", "clue", "--baseline", tmp_path / "c", "--device", "cpu")
    found = read_json(tmp_path / "r/clue.json")["runs"]
    assert set(found[str(tmp_path / "r")]["after"]) == set(posterior.FED_BACK)
    assert set(found[str(tmp_path / "c")]["after"]) == {"tokens"}
    for row in (x for run in found.values() for x in run["after"].values()):
        assert row["right"]["n"] == row["first_leads_there"]["n"] > 5
        assert row["right_behind_such"]["n"] + row["right_behind_others"]["n"] == row["right"]["n"]
    refused = call(evaluate, "--run", tmp_path / "r", "--what", "posterior", "--device", "cpu", check=False)
    assert refused.returncode and "--late-goal" in refused.stderr
