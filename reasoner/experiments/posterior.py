"""Several routes: does a latent hold the alternatives in proportion to how likely they are?

Where two or more nodes may follow, not all alike likely, the true posterior over them is known. What a model gives each
node of the graph:

    cosine loss     r ≈ Σ w E, w >= 0, over the nodes' embeddings E, scaled to sum 1: the loss is least at the posterior
    hard targets    softmax of the cosines at the temperature of training
    a baseline      softmax of its logits

compared by total variation, ½ Σ |w - p|: 0 is the posterior, 1 has nothing in common with it. Controls: the latent of
another step, an untrained Reasoner, the most likely node alone; even chances over what follows, known from the edges,
and over what leads to the goal, known from a search that does not count.

Free-running, nothing has been chosen: is a latent nearer to the posterior behind the nodes that the chain is nearest
to, or to the marginal one, over all routes at once?

Shapes: B rows, R chain tokens, C width, N nodes.
"""

from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor

from common.plots import COLOURS, GREY, LEGEND, MARKERS, WIDTH, figure, headline
from common.stats import clustered_mean, signed, wilson
from common.transformer import positions_of
from reasoner.baselines import Coupled
from reasoner.config import EvalConfig
from reasoner.data import TokenizedDataset
from reasoner.experiments.measures import chain_accuracy, percent, rollouts
from reasoner.model import TEMPERATURE, Reasoner, ReasonerTalker
from reasoner.routes import Graph
from reasoner.tasks import Example, is_correct

OWN, OTHER, UNTRAINED, ALONE = "own", "another step's", "untrained", "most likely alone"
FOLLOWS, LEADS = "even chances, what follows", "even chances, what leads to the goal"
BEHIND, WHOLE = "behind the nearest", "over all routes"  # of two posteriors
FED_BACK = {"latents": {"sharpen": 0.0}, "sharpened": {"sharpen": 0.01}, "tokens": {"feed_tokens": True}}


@torch.no_grad()
def chain_states(model: Reasoner | Coupled, examples: list[Example], batch_size: int) -> list[Tensor]:
    """With true inputs: each example's latents, of a baseline its hidden states, (R, C)."""
    data = TokenizedDataset(examples, model.tokenizer, model.config.block_size, "test", model.config.n_thoughts)
    found = []
    for i in range(0, len(data), batch_size):
        batch = data.batch(range(i, min(i + batch_size, len(data)))).to(model.device)
        if isinstance(model, Reasoner):
            found += model.teacher_forced(batch).cpu()
            continue
        x = model.embed(batch.tokens)
        h = model.think(x, batch) if model.config.n_thoughts else model.hidden_states(x, positions_of(x))[1]
        found += [row[start - 1 : n - 1].cpu() for row, start, n in zip(h, batch.start, batch.length, strict=True)]
    return found


def node_weights(model: Reasoner | Coupled, states: Tensor, nodes: list[str]) -> np.ndarray:
    """Latents or hidden states (R, C) -> what they give each node (R, N); rows sum to 1."""
    ids = torch.tensor([model.tokenizer.id_of[node] for node in nodes])
    if isinstance(model, Coupled):
        return F.linear(states, model.head.weight.cpu()[ids]).softmax(-1).detach().numpy()
    E = F.normalize(model.target.weight.cpu(), dim=-1)[ids].detach()  # (N, C)
    if model.config.sst_loss == "hard":
        return (F.normalize(states, dim=-1) @ E.T / TEMPERATURE).softmax(-1).numpy()
    w = np.stack([nnls(E.T.numpy(), r.numpy())[0] for r in states])
    return w / np.maximum(w.sum(-1, keepdims=True), 1e-9)


def vector(p: dict, nodes: list[str]) -> np.ndarray:
    """{node: probability} -> (N,)"""
    return np.array([float(p.get(node, 0)) for node in nodes])


def even(nodes) -> dict[str, float]:
    return {node: 1 / len(nodes) for node in nodes}


def total_variation(w: np.ndarray, p: np.ndarray) -> float:
    return float(np.abs(w - p).sum() / 2)


def uneven_steps(example: Example, graph: Graph) -> list[int]:
    """The steps of the chain before which two nodes or more lead to the goal, and not all alike often."""
    route = example.chain.split()
    return [t for t in range(1, len(route)) if len(set(graph.posterior(route[t - 1]).values())) > 1]


def with_true_inputs(model, untrained, examples: list[Example], graphs: list[Graph], config: EvalConfig) -> dict:
    """Distances to the posterior of the model and of its controls, and weights by the posterior's value."""
    distances, of, by_value = defaultdict(list), [], defaultdict(list)
    states = [chain_states(x, examples, config.batch_size) for x in (model, untrained)]
    for i, (example, graph) in enumerate(zip(examples, graphs, strict=True)):
        nodes, route = graph.nodes, example.chain.split()
        own, other = (
            node_weights(x, s[i][: len(route)], nodes) for x, s in zip((model, untrained), states, strict=True)
        )
        inner = range(1, len(route) - 1)  # the root and the goal are certain
        for t in uneven_steps(example, graph):
            posterior = graph.posterior(route[t - 1])
            p = vector(posterior, nodes)
            found = {
                OWN: own[t],
                OTHER: own[inner[t % len(inner)]],
                UNTRAINED: other[t],
                ALONE: np.eye(len(nodes))[own[t].argmax()],
                FOLLOWS: vector(even(graph.children[route[t - 1]]), nodes),
                LEADS: vector(even(posterior), nodes),
            }
            for name, w in found.items():
                distances[name].append(total_variation(w, p))
            of.append(i)
            for node, weight in zip(nodes, own[t], strict=True):
                value = posterior.get(node, 0)
                if value or node in graph.children[route[t - 1]]:
                    by_value[str(value)].append(float(weight))
    less = np.subtract(distances[OWN], distances[LEADS]).tolist()
    return {
        "steps": len(of),
        "distance": {name: clustered_mean(values, of, config.seed) for name, values in distances.items()},
        "less_even": clustered_mean(less, of, config.seed),
        "by_value": {value: {"mean": mean(w), "n": len(w)} for value, w in by_value.items()},
    }


def free_running(
    reasoner: Reasoner, examples: list[Example], graphs: list[Graph], config: EvalConfig, how: dict
) -> dict:
    """Routes that the nearest nodes walk; from the second choice on, distances to both posteriors where they differ."""
    distances, of, hits = defaultdict(list), [], []
    for i, latents in enumerate(rollouts(reasoner, examples, config.batch_size, **how)):
        example, graph, tokenizer, t = examples[i], graphs[i], reasoner.tokenizer, 1
        route = tokenizer.pieces(tokenizer.until_eos(reasoner.nearest(latents.to(reasoner.device)).tolist()))
        hits.append(is_correct("routes", example, " ".join(route)))
        w = node_weights(reasoner, latents, graph.nodes)
        while t < len(w) - 1 and route[0] == graph.root and route[t] in graph.posterior(route[t - 1]):
            t += 1  # the chain has led towards the goal up to here
            behind, whole = graph.posterior(route[t - 1]), graph.marginal(t)
            if behind and behind != whole:
                distances[BEHIND].append(total_variation(w[t], vector(behind, graph.nodes)))
                distances[WHOLE].append(total_variation(w[t], vector(whole, graph.nodes)))
                of.append(i)
    row = {"routes": {"share": mean(hits), "ci95": wilson(sum(hits), len(hits))}, "steps": len(of)}
    distances["difference"] = np.subtract(distances[WHOLE], distances[BEHIND]).tolist()
    return row | {name: clustered_mean(values, of, config.seed) for name, values in distances.items() if of}


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """-> {run: routes found, and what the module's docstring says}; the figure of weights by the posterior's value."""
    result, graphs = {}, [Graph(example.prompt) for example in examples]
    for name, model in models.items():
        rate, ci95, _ = chain_accuracy(model, examples, config.batch_size)
        row = result[name] = {"route_accuracy": rate, "route_accuracy_ci95": ci95}
        model = model.reasoner if isinstance(model, ReasonerTalker) else model
        torch.manual_seed(config.seed)
        untrained = type(model)(model.config).eval()
        untrained.tokenizer = model.tokenizer
        row |= with_true_inputs(model, untrained.to(model.device), examples, graphs, config)
        print(f"\n{name}: a route to the goal {percent(rate, ci95)}; distance to the posterior, {row['steps']:,} steps")
        for control, distance in row["distance"].items():
            print(f"  {control:<40}{in_words(distance)}")
        print(f"  own minus {LEADS}, paired: {signed(row['less_even'])}")
        if isinstance(model, Reasoner):
            row["free_running"] = {
                fed: free_running(model, examples, graphs, config, how) for fed, how in FED_BACK.items()
            }
            for fed, found in row["free_running"].items():
                both = "; ".join(f"{name} {in_words(found[name])}" for name in (BEHIND, WHOLE) if name in found)
                print(f"  {fed} fed back: routes {found['routes']['share']:.1%}; {found['steps']:,} steps, {both}")
    draw(result, config.path("posterior.png"))
    return result


def in_words(distance: dict) -> str:
    return f"{distance['mean']:.3f} ({distance['ci95'][0]:.3f} to {distance['ci95'][1]:.3f})"


def draw(result: dict, path: str | Path) -> None:
    """The mean weight of nodes whose true probability is the same -> PNG."""
    with figure(path, size=(WIDTH, 4.4)) as (fig, axes):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="the posterior itself")
        for i, (name, row) in enumerate(result.items()):
            at = sorted((float(Fraction(value)), found["mean"]) for value, found in row["by_value"].items())
            axes.plot(*zip(*at, strict=True), color=COLOURS[i], marker=MARKERS[i], label=Path(name).name)
        axes.set(
            xlabel="true probability of a node", ylabel="mean weight it has", xlim=(-0.02, 0.85), ylim=(-0.02, 0.85)
        )
        first = next(iter(result.values()))["distance"]
        found = (
            f"total variation {first[OWN]['mean']:.2f} to the posterior, with even chances {first[LEADS]['mean']:.2f}"
        )
        headline(fig, f"Weights of the nodes that may follow: {found}")
        fig.legend(ncols=3, **LEGEND)
