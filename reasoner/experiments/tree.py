"""Tree search: routes found, by the size of the tree; the exposure gap; what a latent is a mixture of.

Shapes: N cases, R latents a chain, C width.
"""

import random
from pathlib import Path
from statistics import mean, median

import torch
import torch.nn.functional as F
from torch import Tensor

from common.plots import BLACK, BLUE, GREY, LEGEND, ORANGE, WIDTH, figure, headline, label_points
from common.stats import clustered_mean, paired_difference, signed, wilson
from reasoner.config import EvalConfig
from reasoner.experiments.measures import chain_accuracy, correct, exposure_gap, percent, points, rollouts
from reasoner.model import Reasoner, ReasonerTalker
from reasoner.tasks import Example, node_labels

CONTROL = "other node (control)"
MIXED = 0.1  # a latent is mixed if beta is at least this much of alpha


def unit_embeddings(reasoner: Reasoner) -> Tensor:
    """Target embeddings on the unit sphere (V, C), on the CPU."""
    return F.normalize(reasoner.target.weight.detach().cpu(), dim=-1)


# ----------------------------------------------------------------------------------------- mixed latents


def mixture(r: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares r ≈ alpha * first + beta * second: (N, C) each -> alpha, beta (N,), norm of the residual (N,)."""
    A = torch.stack((first, second), -1)  # (N, C, 2)
    found = torch.linalg.lstsq(A, r[..., None]).solution[..., 0]  # (N, 2)
    return found[:, 0], found[:, 1], (r - (A @ found[..., None])[..., 0]).norm(dim=-1)


def cases(reasoner: Reasoner, examples: list[Example], latents: list[Tensor], seed: int) -> tuple[list, list, int]:
    """Steps before which the chain was correct -> (latent, ids of child, sibling and another node) each; the example
    of each; how many steps had no other node."""
    rng, id_of = random.Random(seed), reasoner.tokenizer.id_of
    found, example_of, without_other = [], [], 0
    for i, (example, chain) in enumerate(zip(examples, latents, strict=True)):
        route, labels = example.chain.split(), node_labels(example)
        ids = reasoner.nearest(chain.to(reasoner.device)).tolist()
        for t in range(1, min(len(route), len(chain))):
            if ids[:t] != [id_of[word] for word in route[:t]]:
                break
            others = [word for word in labels if word not in (*route, example.sibling[t])]
            if not others:
                without_other += 1
                continue
            words = (route[t], example.sibling[t], rng.choice(others))
            found.append((chain[t], *(id_of[word] for word in words)))
            example_of.append(i)
    return found, example_of, without_other


def weights_of(r: Tensor, child: Tensor, second: Tensor, example_of: list, seed: int) -> dict:
    """Latents, embeddings of the child and of another node (N, C) each -> means over the cases."""
    alpha, beta, residual = mixture(r, child, second)
    mixed, more = beta >= MIXED * alpha.abs(), alpha > beta
    return {
        "alpha": alpha.mean().item(),
        "beta": beta.mean().item(),
        "residual": residual.mean().item(),
        "right_weighs_more": more.float().mean().item(),
        "right_weighs_more_ci95": clustered_mean(more.tolist(), example_of, seed)["ci95"],
        "mixed": mixed.float().mean().item(),
        "right_weighs_more_of_mixed": more[mixed].float().mean().item() if mixed.any() else None,
        "beta_abs_95th_percentile": beta.abs().quantile(0.95).item(),
    }


def mixed_latents(reasoner: Reasoner, examples: list[Example], latents: list[Tensor], seed: int = 0) -> dict | None:
    """Where the chain has been correct so far: how much of the child's embedding, how much of its sibling's?

    -> for the sibling and for the control, another node of the same tree: means of alpha, beta and the residual, the
    fraction of cases in which the correct child weighs more, the fraction that are mixed (beta at least a tenth of
    alpha), and the former among the latter. None if no chain is correct so far.

    Between unit vectors alpha > beta means exactly that the latent is nearer to the child than to the other vector, so
    for any second vector that fraction is near the accuracy of the step, which stands beside it. What would speak for
    two hypotheses is a beta of the sibling above that of the other node: `beta_difference`, paired, with its interval
    over trees.
    """
    found, example_of, without_other = cases(reasoner, examples, latents, seed)
    if not found:
        return None
    r = F.normalize(torch.stack([case[0] for case in found]), dim=-1)  # (N, C)
    ids = torch.tensor([case[1:] for case in found])  # (N, 3)
    child, sibling, other = unit_embeddings(reasoner)[ids].unbind(1)  # (N, C) each
    hits = reasoner.nearest(r.to(reasoner.device)).cpu() == ids[:, 0]
    difference = (mixture(r, child, sibling)[1] - mixture(r, child, other)[1]).tolist()
    return {
        "cases": len(found),
        "without_other_node": without_other,
        "step_accuracy": hits.float().mean().item(),
        "beta_difference": clustered_mean(difference, example_of, seed) | {"median": median(difference)},
        "sibling": weights_of(r, child, sibling, example_of, seed),
        CONTROL: weights_of(r, child, other, example_of, seed),
    }


def print_mixed(mixed: dict | None) -> None:
    if mixed is None:
        print("  no chain is correct so far: no latent to take apart")
        return
    print(
        f"  mixed latents, {mixed['cases']:,} steps, of which {mixed['step_accuracy']:.2%} are correct: "
        "r ≈ alpha * correct child + beta * another embedding"
    )
    for second in ("sibling", CONTROL):
        m = mixed[second]
        print(
            f"    {second:<22} alpha {m['alpha']:.3f}, beta {m['beta']:+.3f} (95% of |beta| below "
            f"{m['beta_abs_95th_percentile']:.3f}), residual {m['residual']:.3f}; correct child weighs more in "
            f"{m['right_weighs_more']:.2%}; mixed {m['mixed']:.2%}"
        )
    beta = mixed["beta_difference"]
    print(f"    beta of the sibling minus that of the other node: {signed(beta)}, median {beta['median']:+.4f}")


# ------------------------------------------------------------------------------------------- the picture


def cosines(reasoner: Reasoner, chain: Tensor, words: list[str]) -> list[float]:
    """Of each latent of a chain (R, C) to the embedding of its word, where it has one."""
    found = unit_embeddings(reasoner)
    pairs = [(r, found[reasoner.tokenizer.id_of[word]]) for r, word in zip(chain, words, strict=False) if word]
    return [F.cosine_similarity(r, e, dim=0).item() for r, e in pairs]


def draw_chain(reasoner: Reasoner, example: Example, chain: Tensor, path: str | Path) -> None:
    """The chain (R, C) among the embeddings of its tree's nodes, along their two principal components -> PNG."""
    from sklearn.decomposition import PCA  # optional: only the picture needs it

    route, labels = example.chain.split(), node_labels(example)
    nodes = unit_embeddings(reasoner)[[reasoner.tokenizer.id_of[word] for word in labels]]  # (nodes, C)
    steps = chain[: len(route)]
    pca = PCA(2).fit(torch.cat((nodes, steps)).numpy())
    at = dict(zip(labels, pca.transform(nodes.numpy()).tolist(), strict=True))
    steps = pca.transform(steps.numpy())  # (R, 2)

    own, sibling = (cosines(reasoner, chain, words) for words in (route, example.sibling))
    groups = (
        ("other nodes", [word for word in labels if word not in (*route, *example.sibling)], GREY, "D"),
        ("siblings of the route", [word for word in example.sibling if word], ORANGE, "s"),
        ("nodes of the route", route, BLUE, "o"),
    )
    with figure(path, size=(WIDTH, 4.8)) as (fig, axes):
        for name, words, colour, marker in groups:
            if words:
                axes.scatter(*zip(*(at[w] for w in words), strict=True), color=colour, marker=marker, s=60, label=name)
        axes.plot(*steps.T, color=BLACK, linewidth=1, marker="x", markersize=9, label="the chain's latents")
        variance = pca.explained_variance_ratio_
        axes.set(
            xlabel=f"first principal component ({variance[0]:.0%} of variance)",
            ylabel=f"second ({variance[1]:.0%})",
        )
        found = f"mean cosine {mean(own):.3f} to its node, {mean(sibling):.3f} to the sibling (control)"
        headline(fig, f"Each latent of the chain {' → '.join(route)}: {found}")
        fig.legend(ncols=4, **LEGEND)
        names = {f"r{t}": point for t, point in enumerate(steps, 1)} | at
        label_points(axes, list(names.values()), list(names), gap=7)


# ------------------------------------------------------------------------------------------ the experiment


def by_nodes(examples: list[Example], hits: list[bool]) -> dict[int, dict]:
    """Route accuracy for trees of each size."""
    nodes = [len(node_labels(x)) for x in examples]
    found = {}
    for n in sorted(set(nodes)):
        of_size = [hit for hit, k in zip(hits, nodes, strict=True) if k == n]
        found[n] = {"share": mean(of_size), "ci95": wilson(sum(of_size), len(of_size)), "n": len(of_size)}
    return found


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """Route accuracy of each run, in all and by the size of the tree; the paired difference to the first run.

    Of a Reasoner with its Talker also the exposure gap, the mixed latents and the picture of a chain.
    """
    result, first = {}, None
    for name, model in models.items():
        rate, ci95, generated = chain_accuracy(model, examples, config.batch_size)
        hits = correct(model, examples, generated)
        first = first or hits
        row = result[name] = {
            "n": len(examples),
            "route_accuracy": rate,
            "route_accuracy_ci95": ci95,
            "by_nodes": by_nodes(examples, hits),
            "less_the_first_run": paired_difference(hits, first, config.seed),
        }
        print(f"\n{name}: route accuracy {percent(rate, ci95)}")
        print("  by nodes: " + ", ".join(f"{n}: {x['share']:.2%} of {x['n']}" for n, x in row["by_nodes"].items()))
        if len(result) > 1:
            print(f"  paired difference to {next(iter(models))}: {points(row['less_the_first_run'])}")
        if isinstance(model, ReasonerTalker):
            path = config.path(f"chain_{Path(name).name}.png")
            row |= measure_latents(model.reasoner, examples, config, path)
    return result


def measure_latents(reasoner: Reasoner, examples: list[Example], config: EvalConfig, path: Path) -> dict:
    """-> {"exposure", "mixed"}; the longest route's chain is drawn."""
    latents = rollouts(reasoner, examples, config.batch_size)
    gap = exposure_gap(reasoner, examples, config.batch_size)
    mixed = mixed_latents(reasoner, examples, latents, config.seed)
    print(
        f"  chain token accuracy: {gap['teacher_forced']:.2%} with the true tokens as inputs, "
        f"{gap['free_running']:.2%} free-running"
    )
    print_mixed(mixed)
    if mixed:
        longest = max(range(len(examples)), key=lambda i: len(examples[i].chain.split()))
        draw_chain(reasoner, examples[longest], latents[longest], path)
    return {"exposure": gap, "mixed": mixed}
