"""A clue that arrives late: does a chain of latents keep open what it cannot know yet?

Graphs whose goal stands in the chain, behind its first choice (--late-goal). The goal is given: whatever the model
predicts in its place, a goal drawn at random is the input. Before it a token has to be one node, and the goal may turn
out not to lie behind that one; a latent may be several nodes at once. Counted is what comes after the goal: nodes that
lead to it, behind any first node, also where the chain's own, the nearest, does not lead to it. Only graphs in which a
choice is left after the goal.

Beside it: the same weights with tokens fed back; the same chains and a goal that was not given (control: what the goal
is worth); chains whose first node leads to it, the most that is reached by one that stays with its first choice. And
before the goal, the weights of the first nodes beside their true posterior, over all goals that may be given.
"""

from collections.abc import Iterable
from functools import partial
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from common.stats import clustered_mean, signed, wilson
from reasoner.baselines import Coupled
from reasoner.config import EvalConfig
from reasoner.experiments.measures import by_length, chain_accuracy, percent
from reasoner.experiments.posterior import FED_BACK, chain_states, even, node_weights, total_variation, vector
from reasoner.model import Reasoner, ReasonerTalker, is_real
from reasoner.routes import LATE, Graph, graphs_of
from reasoner.tasks import Example

Chain = list[str]  # a word a latent or token


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
    return clue[:, step - LATE] if 0 <= step - LATE < 2 else otherwise


def rollout(model: Reasoner, prompts: list[str], clue: Tensor, fed_back: str) -> list[list[int]]:
    """A Reasoner's chains, ids up to [EOS]."""
    how = FED_BACK[fed_back]

    def intervene(step: int, r: Tensor) -> Tensor:
        ids = given(clue, step, model.nearest(r))
        return model.inputs(ids) if "feed_tokens" in how or 0 <= step - LATE < 2 else r

    tokens, length = model.tokenize(prompts)
    latents = model.chain(model.inputs(tokens), length, intervene=intervene, sharpen=how.get("sharpen", 0.0))
    ids = model.nearest(latents).masked_fill(~is_real(latents), model.tokenizer.eos).tolist()
    return [model.tokenizer.until_eos(row) for row in ids]


def leads_there(chain: Chain, graph: Graph) -> bool:
    """Does what stands behind the goal lead to it, from any node that follows the root?"""
    return chain[LATE + 2 :] in [route[LATE:] for route in graph.routes(graph.root)]


def first_leads_there(chain: Chain, graph: Graph) -> bool:
    """Does the node before the goal lead to it?"""
    return len(chain) > 1 and chain[1] in graph.posterior(graph.root)


def share(hits: Iterable[bool]) -> dict:
    hits = list(map(bool, hits))
    return {"share": mean(hits), "ci95": wilson(sum(hits), len(hits)), "n": len(hits)} if hits else {"n": 0}


def difference(a: list[bool], b: list[bool], seed: int) -> dict:
    """Paired: {"mean", "ci95"}."""
    return clustered_mean(np.subtract(a, b, dtype=float).tolist(), range(len(a)), seed)


def after_the_goal(found: list[Chain], graphs: list[Graph], others: list[Graph]) -> dict:
    """One way of feeding back -> the rates of the module's docstring."""
    right, first = (list(map(f, found, graphs)) for f in (leads_there, first_leads_there))
    return {
        "right": share(right),
        "first_leads_there": share(first),
        "right_behind_such": share(x for x, y in zip(right, first, strict=True) if y),
        "right_behind_others": share(x for x, y in zip(right, first, strict=True) if not y),
        "to_another_goal": share(map(leads_there, found, others)),
        "hits": list(map(int, right)),
    }


def before_the_goal(model: Reasoner | Coupled, examples: list[Example], config: EvalConfig) -> dict:
    """Total variation between the first nodes' weights and their posterior, and of controls, where it is uneven."""
    distances = {"own": [], "most likely alone": [], "even chances": []}
    for example, states in zip(examples, chain_states(model, examples, config.batch_size), strict=True):
        goals = graphs_of(example.prompt)
        nodes = goals[0].children[goals[0].root]
        p = np.mean([vector(graph.posterior(graph.root), nodes) for graph in goals], 0)
        if np.ptp(p) < 1e-9:
            continue
        own = node_weights(model, states[1:2], nodes)[0]
        controls = np.eye(len(nodes))[own.argmax()], vector(even(nodes), nodes)
        for name, w in zip(distances, (own, *controls), strict=True):
            distances[name].append(total_variation(w, p))
    less = np.subtract(distances["own"], distances["even chances"]).tolist()
    found = {name: clustered_mean(x, range(len(x)), config.seed) for name, x in distances.items()}
    return found | {"less_even": clustered_mean(less, range(len(less)), config.seed), "n": len(less)}


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """-> {run: routes found with a goal of its own; before the goal; after it, by what is fed back}."""
    result, left = {}, [x for x in examples if len(x.chain.split()) > LATE + 3]  # with a node between the two goals
    goals = [x.chain.split()[-1] for x in left]
    graphs = [Graph(f"goal {goal} ; {x.prompt}") for goal, x in zip(goals, left, strict=True)]
    others = [next(g for g in graphs_of(x.prompt) if g.goal != goal) for goal, x in zip(goals, left, strict=True)]
    print(f"{len(left):,} graphs with a choice left after the goal")
    for name, model in models.items():
        rate, ci95, _ = chain_accuracy(model, examples, config.batch_size)
        model = model.reasoner if isinstance(model, ReasonerTalker) else model
        print(f"\n{name}: a route to a goal of its own {percent(rate, ci95)}")
        row = result[name] = {"route_accuracy": rate, "route_accuracy_ci95": ci95, "after": {}}
        before = row["before"] = before_the_goal(model, examples, config)
        print(f"  first node, distance to the posterior, less that of even chances: {signed(before['less_even'])}")
        for fed_back in FED_BACK if isinstance(model, Reasoner) else ("tokens",):
            found = chains(model, left, goals, config.batch_size, fed_back)
            after = row["after"][fed_back] = after_the_goal(found, graphs, others)
            words = (f"{key.replace('_', ' ')} {percent_of(x)}" for key, x in after.items() if key != "hits")
            print(f"  {fed_back} fed back: " + "; ".join(words))
        hits = {fed_back: after.pop("hits") for fed_back, after in row["after"].items()}
        for fed_back in hits:
            row["after"][fed_back]["less_tokens"] = difference(hits[fed_back], hits["tokens"], config.seed)
    return result


def percent_of(found: dict) -> str:
    return f"{found['share']:.1%} of {found['n']:,}" if found["n"] else "none"
