"""A clue that arrives late: does a chain of latents keep open what it cannot know yet?

Trees whose goal stands in the chain, behind its first choice (`--dataset clue`). The goal is given: whatever the model
predicts in its place, a leaf drawn at random is the input. Before it a token has to be one of the root's two children,
and the goal may turn out to lie below the other; a latent may be both. Counted are chains whose words behind the goal
are those of the route to it, whether or not the chain's own first choice, the nearest, leads there; where it does not,
by how many words they are, since none and the goal alone might be written without a look at the tree.

Beside it: the same weights with tokens fed back; the chains of another goal compared with the first goal's route
(control: what reading the goal is worth); first choices that lead to the goal, the most that is reached by a chain that
stays with them. And before the goal, the weights of the two children beside their true posterior, the leaves below each
over all leaves.

Shapes: B rows, C width.
"""

from functools import partial
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from common.stats import clustered_mean, signed, wilson
from reasoner.baselines import Coupled
from reasoner.config import EvalConfig
from reasoner.experiments.measures import by_length, chain_accuracy, percent
from reasoner.experiments.posterior import FED_BACK, chain_states, node_weights, total_variation
from reasoner.model import Reasoner, ReasonerTalker, is_real
from reasoner.tasks import BEFORE, Example, Tree, parse_tree

Chain = list[str]  # a word a latent or token


def tree_with_goal(example: Example) -> Tree:
    """An example's tree, with the goal that its chain has."""
    return parse_tree(f"{example.prompt.removesuffix(':')}goal {example.chain.split()[-1]} :")


def on_the_other_side(tree: Tree) -> str:
    """A leaf below the child of the root that does not lead to the goal."""
    return tree.leaves(next(child for child in tree.children[tree.root] if child != tree.route()[1]))[0]


@torch.no_grad()
def chains(
    model: Reasoner | Coupled, examples: list[Example], goals: list[str], batch_size: int, fed_back: str
) -> list[Chain]:
    """Free-running but for the goal, which is the input in its place -> the nearest words of every chain."""
    found, t = [[]] * len(examples), model.tokenizer
    for index in by_length(examples, batch_size):
        prompts = [examples[i].prompt for i in index]
        clue = torch.tensor([[t.id_of["goal"], t.id_of[goals[i]]] for i in index], device=model.device)  # (B, 2)
        if isinstance(model, Coupled):
            rows = model.generate(prompts, intervene=partial(given, clue))
        else:
            rows = rollout(model, prompts, clue, fed_back)
        for i, row in zip(index, rows, strict=True):
            found[i] = t.pieces(row)
    return found


def given(clue: Tensor, step: int, otherwise: Tensor) -> Tensor:
    """The ids (B,) fed back after a step: the clue's (B, 2) in its place, behind the first choice."""
    return clue[:, step - BEFORE] if 0 <= step - BEFORE < 2 else otherwise


def rollout(model: Reasoner, prompts: list[str], clue: Tensor, fed_back: str) -> list[list[int]]:
    """A Reasoner's chains, ids up to [EOS]."""
    how = FED_BACK[fed_back]

    def intervene(step: int, r: Tensor) -> Tensor:
        ids = given(clue, step, model.nearest(r))
        return model.inputs(ids) if "feed_tokens" in how or 0 <= step - BEFORE < 2 else r

    tokens, length = model.tokenize(prompts)
    latents = model.chain(model.inputs(tokens), length, intervene=intervene, sharpen=how.get("sharpen", 0.0))
    ids = model.nearest(latents).masked_fill(~is_real(latents), model.tokenizer.eos).tolist()
    return [model.tokenizer.until_eos(row) for row in ids]


def words_behind(tree: Tree) -> Chain:
    """What a chain has behind its goal: the rest of the route."""
    return tree.route()[BEFORE:]


def leads_there(chain: Chain, tree: Tree) -> bool:
    """Are the words behind the goal those of the route to it?"""
    return len(chain) >= BEFORE + 2 and chain[BEFORE + 2 :] == words_behind(tree)


def first_leads_there(chain: Chain, tree: Tree) -> bool:
    """Does the node before the goal lead to it?"""
    return chain[1:BEFORE] == tree.route()[1:BEFORE]


def share(hits: list[bool]) -> dict:
    return {"share": mean(hits), "ci95": wilson(sum(hits), len(hits)), "n": len(hits)} if hits else {"n": 0}


def after_the_goal(found: list[Chain], with_another: list[Chain], trees: list[Tree]) -> dict:
    """One way of feeding back -> the rates of the module's docstring; `hits` of every tree."""
    right, first, other = (
        [f(*x) for x in zip(row, trees, strict=True)]
        for f, row in ((leads_there, found), (first_leads_there, found), (leads_there, with_another))
    )
    words = [min(len(words_behind(tree)), 2) for tree in trees]
    off = [(n, hit) for n, hit, leads in zip(words, right, first, strict=True) if not leads]
    return {
        "right": share(right),
        "another_goal_given": share(other),
        "first_choice_leads_there": share(first),
        "right_behind_such": share([x for x, y in zip(right, first, strict=True) if y]),
        "right_behind_others": share([hit for _, hit in off]),
        "right_behind_others_by_words": {str(n): share([hit for m, hit in off if m == n]) for n in (0, 1, 2)},
        "hits": right,
    }


def before_the_goal(model: Reasoner | Coupled, examples: list[Example], config: EvalConfig) -> dict:
    """Total variation between the two children's weights and their posterior, and of controls, where it is uneven."""
    distances = {"own": [], "most likely alone": [], "even chances": []}
    for example, states in zip(examples, chain_states(model, examples, config.batch_size), strict=True):
        tree = tree_with_goal(example)
        nodes = tree.children[tree.root]
        below = np.array([len(tree.leaves(node)) for node in nodes])
        if below[0] == below[1]:
            continue
        own = node_weights(model, states[1:2], nodes)[0]
        controls = np.eye(2)[own.argmax()], np.full(2, 0.5)
        for name, w in zip(distances, (own, *controls), strict=True):
            distances[name].append(total_variation(w, below / below.sum()))
    less = np.subtract(distances["own"], distances["even chances"]).tolist()
    found = {name: clustered_mean(x, range(len(x)), config.seed) for name, x in distances.items()}
    return found | {"less_even": clustered_mean(less, range(len(less)), config.seed), "n": len(less)}


def measure_run(model, examples: list[Example], config: EvalConfig) -> dict:
    """One run -> routes found with a goal of its own; before the goal; after it, by what is fed back."""
    rate, ci95, _ = chain_accuracy(model, examples, config.batch_size)
    print(f"a route to a goal of its own {percent(rate, ci95)}")
    model = model.reasoner if isinstance(model, ReasonerTalker) else model
    before, after = before_the_goal(model, examples, config), {}
    print(f"  before the goal, distance to the posterior less that of even chances: {signed(before['less_even'])}")
    trees = list(map(tree_with_goal, examples))
    goals = [tree.goal for tree in trees], list(map(on_the_other_side, trees))
    for fed_back in FED_BACK if isinstance(model, Reasoner) else ("tokens",):
        both = (chains(model, examples, x, config.batch_size, fed_back) for x in goals)
        after[fed_back] = row = after_the_goal(*both, trees)
        rates = (f"{key.replace('_', ' ')} {x['share']:.1%}" for key, x in row.items() if "share" in x)
        print(f"  {fed_back} fed back, {len(trees):,} trees: {', '.join(rates)}")
    hits = {fed_back: row.pop("hits") for fed_back, row in after.items()}
    for fed_back, row in after.items():
        less = np.subtract(hits[fed_back], hits["tokens"], dtype=float).tolist()
        row["less_tokens"] = clustered_mean(less, range(len(less)), config.seed)
    return {"route_accuracy": rate, "route_accuracy_ci95": ci95, "before": before, "after": after}


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """-> {run: what `measure_run` measures}"""
    result = {}
    for name, model in models.items():
        print(f"\n{name}: ", end="")
        result[name] = measure_run(model, examples, config)
    return result
