"""A goal that arrives late in the chain: what is asked, how the goal is given, what counts as right."""

import pytest
import torch
import torch.nn.functional as F
from helpers import call
from reasoner_tiny import TINY, tiny_config, tiny_model

from common.checkpoint import read_json
from reasoner import evaluate, train
from reasoner.baselines import Coupled
from reasoner.config import EvalConfig
from reasoner.experiments import clue, posterior
from reasoner.model import Reasoner
from reasoner.tasks import Example, clues, is_correct, is_valid, trees

SHAPE = dict(dataset="clue", leaves=5, depth=4, labels=12)
TREE = "5 9 ; 5 2 ; 9 7 ; 9 1 ; 2 4 ; 2 8 ; 8 3 ; 8 6 ; root 5 :"
FED_BACK = [(Reasoner, "latents"), (Reasoner, "tokens"), (Coupled, "tokens")]


def test_the_goal_stands_in_the_chain_alone_and_any_leaf_may_be_it():
    config = tiny_config(**SHAPE)
    for example, plain in zip(clues("test", 40, config), trees("test", 40, config), strict=True):
        (*_, goal, _), chain = plain.prompt.split(), example.chain.split()
        assert "goal" not in example.prompt and chain[2:4] == ["goal", goal]
        assert " ".join(chain[:2] + chain[4:]) == plain.chain
        tree = clue.tree_with_goal(example)
        assert tree.goal == goal and len(example.routes) == len(tree.leaves()) and example.chain in example.routes
        assert all(is_correct("clue", example, x) and is_valid(config, example, x) for x in example.routes)
        assert not is_correct("clue", example, plain.chain)


def test_what_stands_behind_the_goal_must_lead_to_it_whatever_stands_before():
    tree = clue.tree_with_goal(Example(TREE, "5 2 goal 6 8 6"))
    for chain, leads, first in (
        ("5 2 goal 6 8 6", 1, 1),
        ("5 9 goal 6 8 6", 1, 0),
        ("5 2 goal 6 4 6", 0, 1),
        ("5", 0, 0),
    ):
        assert (clue.leads_there(chain.split(), tree), clue.first_leads_there(chain.split(), tree)) == (leads, first)
    assert clue.on_the_other_side(tree) == "7"


@pytest.mark.parametrize(("cls", "fed_back"), FED_BACK)
def test_the_goal_is_the_input_whatever_is_predicted_in_its_place(cls, fed_back):
    model, examples = tiny_model(cls, **SHAPE, trained="sst", max_chain=6), clues("test", 12, tiny_config(**SHAPE))
    goals = [clue.tree_with_goal(x).leaves() for x in examples]
    one, other = (clue.chains(model, examples, [row[i] for row in goals], 5, fed_back) for i in (0, 1))
    assert [row[:2] for row in one] == [row[:2] for row in other]
    assert [row[4:] for row in one] != [row[4:] for row in other]
    if cls is Coupled:  # whose chains have it, where a Reasoner's have what it predicted there
        assert [row[2:4] for row in one] == [["goal", row[0]] for row in goals]


def test_with_tokens_fed_back_a_chain_goes_on_as_with_true_inputs():
    model, examples = tiny_model(Reasoner, **SHAPE, trained="sst", max_chain=6), clues("test", 40, tiny_config(**SHAPE))
    goals, compared = [clue.tree_with_goal(x).goal for x in examples], 0
    for example, goal, chain in zip(examples, goals, clue.chains(model, examples, goals, 9, "tokens"), strict=True):
        if len(chain) > 4 and set(chain[:2]) <= set(model.tokenizer.words):
            read = Example(example.prompt, " ".join([*chain[:2], "goal", goal]))
            latent = posterior.chain_states(model, [read], 1)[0][-1]
            assert model.tokenizer.pieces([model.nearest(latent).item()])[0] == chain[4]
            compared += 1
    assert compared > 5


def test_latents_that_weigh_the_children_by_their_leaves_are_at_no_distance(monkeypatch):
    reasoner, examples = tiny_model(Reasoner, **SHAPE, trained="sst"), clues("test", 30, tiny_config(**SHAPE))

    def mixed(model, examples, batch_size):
        for tree in map(clue.tree_with_goal, examples):
            first = tree.children[tree.root]
            E = F.normalize(reasoner.target.weight[[reasoner.tokenizer.id_of[x] for x in first]], dim=-1)
            r = F.normalize(torch.tensor([float(len(tree.leaves(x))) for x in first]) @ E, dim=-1)
            yield torch.stack([torch.zeros_like(r), r]).detach()

    monkeypatch.setattr(clue, "chain_states", mixed)
    found = clue.before_the_goal(reasoner, examples, EvalConfig())
    assert found["own"]["mean"] < 1e-4 < 0.1 < found["even chances"]["mean"] and found["n"] > 5


def test_it_is_measured_beside_a_baseline_and_refused_for_other_trees(tmp_path):
    words = [*TINY, "--leaves", "5", "--depth", "4", "--n-eval", "80"]
    call(train, *words, "--dataset", "clue", "--run", tmp_path / "r")
    call(train, *words, "--dataset", "clue", "--model", "coconut", "--run", tmp_path / "c")
    call(evaluate, "--run", tmp_path / "r", "--what", "clue", "--baseline", tmp_path / "c", "--device", "cpu")
    found = read_json(tmp_path / "r/clue.json")["runs"]
    assert set(found[str(tmp_path / "r")]["after"]) == set(posterior.FED_BACK)
    assert set(found[str(tmp_path / "c")]["after"]) == {"tokens"}
    for row in (x for run in found.values() for x in run["after"].values()):
        assert row["right_behind_such"]["n"] + row["right_behind_others"]["n"] == row["right"]["n"] > 5
    refused = call(evaluate, "--run", tmp_path / "r", "--what", "tree", "--device", "cpu", check=False)
    assert refused.returncode and "was trained on clue" in refused.stderr


def test_the_goal_lies_below_the_child_with_more_leaves_and_below_the_other():
    """If it never lay below the other, what is kept open would never be asked for."""
    found = [clue.tree_with_goal(x) for x in clues("test", 60, tiny_config(**SHAPE))]
    uneven = [x for x in found if len({len(x.leaves(child)) for child in x.children[x.root]}) == 2]
    sides = [2 * len(tree.leaves(tree.route()[1])) > len(tree.leaves()) for tree in uneven]
    assert 5 < sum(sides) < len(sides) - 5
