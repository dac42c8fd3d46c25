"""What a trained JEPA-Reasoner does, and what the controls say of it.

    python -m reasoner.evaluate --what tree --run out/reasoner-quick          routes, mixed latents, the exposure gap
    python -m reasoner.evaluate --what cfg --run out/reasoner-cfg --baseline out/cfg-coupled     token and latent noise
    python -m reasoner.evaluate --what containment --run out/reasoner-quick --baseline out/coupled
    python -m reasoner.evaluate --what talker --run out/reasoner-quick        Gaussian latents, another prompt's latents
    python -m reasoner.evaluate --what trajectory --run out/reasoner-gsm8k    GSM8K: how good is the way to the answer?
    python -m reasoner.evaluate --what fewshot --run out/reasoner-gsm8k --data-dir DIR      n solved examples before it

Writes <what>.json, and for tree and cfg a figure, into the run's folder. Beside JEPA-Reasoner, tree, cfg and
trajectory measure the same Reasoner read without the Talker, and the same with tokens fed back instead of latents.

Shapes: B prompts, R latents a chain, C width, N cases.
"""

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import torch
import torch.nn.functional as F

from config import UserError, atomic, opt, parse, resolve_device, run_main, write_json
from data import compute, parse_answer
from evaluate_accuracy import wilson
from reasoner.config import EXPERIMENTS
from reasoner.data import Encoded, Item, derived, load_items, noisy, ordered_batches
from reasoner.model import Nearest, Pair, load, places
from reasoner.train import chain_accuracy, right

NOISE = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
LATENT_NOISE = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
SHOTS = (0, 1, 5, 8)
SHARES = ("arithmetic", "follows", "after_a_right_step", "after_a_wrong_step")  # of steps, see `trajectory`
MOST_FORCED, FORCED_STEPS = 400, 16  # `containment`: examples, and steps of a chain, each a rollout of its own


@dataclass
class EvalConfig:
    """What `reasoner.evaluate` reads."""

    run: str = opt("out/reasoner-quick", "folder of the trained run, with its phases inside")
    what: str = opt("tree", "the experiment", EXPERIMENTS)
    baseline: tuple = opt((), "folders of further runs, measured alike")
    data_dir: str = opt("", "gsm8k: DIR/train.jsonl and DIR/test.jsonl [what the run was trained on]")
    limit: int = opt(0, "use the first N examples only (0: all)", low=0)
    batch_size: int = opt(256, "examples at once; fewer where gradients or solved examples take room", low=1)
    seed: int = opt(0, "seed of noise and of controls", low=0)
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")


def interval(values):
    """list of floats -> mean and its 95% interval, normal approximation."""
    half = 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": mean(values), "ci95": [mean(values) - half, mean(values) + half]}


def less(values, first):
    """Mean of the paired differences between two runs' values, example by example, and its 95% interval."""
    return interval([a - b for a, b in zip(values, first, strict=True)])


def clustered(values, groups, seed):
    """Mean of values, and its 95% interval where those of a group, an example, hang together: groups are redrawn."""
    sums = defaultdict(lambda: [0.0, 0])
    for value, group in zip(values, groups, strict=True):
        sums[group][0] += value
        sums[group][1] += 1
    return ratio(*zip(*sums.values(), strict=True), seed)


def in_batches(items, size):
    """Items -> lists of positions, like lengths together."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    return [order[i : i + size] for i in range(0, len(order), size)]


def chains(reasoner, items, batch_size=256):
    """Free-running latents of every item: list of (R, C) tensors on the CPU, zeros behind the end cut off."""
    found = [None] * len(items)
    for index in in_batches(items, batch_size):
        latents = reasoner.rollout([items[i].prompt for i in index]).cpu()
        for i, chain in zip(index, latents, strict=True):
            found[i] = chain[chain.abs().sum(-1) > 0]
    return found


# ------------------------------------------------------------------------------------------------- trees


def mixture(r, first, second):
    """Least squares r ≈ alpha * first + beta * second: (N, C) each -> alpha, beta (N,), norm of the residual (N,)."""
    A = torch.stack((first, second), -1)  # (N, C, 2)
    found = torch.linalg.lstsq(A, r[..., None]).solution[..., 0]  # (N, 2)
    return found[:, 0], found[:, 1], (r - (A @ found[..., None])[..., 0]).norm(dim=-1)


def mixed_latents(reasoner, items, latents, seed=0):
    """Where the chain has been right so far: how much of the right child's embedding, how much of its sibling's?

    -> dict, for the sibling and for the control, another node of the same tree: means of alpha, beta and the residual,
    share of cases in which the right child weighs more, share that are mixed (beta at least a tenth of alpha), and the
    former among the latter. None if no chain is right so far.

    Between unit vectors alpha > beta means exactly that the latent is nearer to the child than to the other vector, so
    for any second vector that share is near the accuracy of the step, which stands beside it. What would speak for two
    hypotheses is a beta of the sibling above that of the other node: `beta_difference`, paired, with its
    interval over trees.
    """
    rng, rows, tree_of, without = random.Random(seed), [], [], 0
    id_of = reasoner.tokenizer.id_of
    for i, (item, chain) in enumerate(zip(items, latents, strict=True)):
        route = item.chain.split()
        said = reasoner.nearest(chain.to(reasoner.device)).tolist()
        labels = sorted({w for w in item.prompt.split() if w.isdecimal()})
        for t in range(1, min(len(route), len(chain))):
            if said[:t] != [id_of[w] for w in route[:t]]:
                break
            others = [w for w in labels if w not in (*route, item.sibling[t])]
            without += not others
            if others:
                rows.append((chain[t], id_of[route[t]], id_of[item.sibling[t]], id_of[rng.choice(others)]))
                tree_of.append(i)
    if not rows:
        return None
    r = F.normalize(torch.stack([row[0] for row in rows]), dim=-1)
    embedding = F.normalize(reasoner.target.weight.detach().cpu(), dim=-1)
    child, sibling, other = (embedding[[row[i] for row in rows]] for i in (1, 2, 3))
    hits = reasoner.nearest(r.to(reasoner.device)).cpu() == torch.tensor([row[1] for row in rows])
    result = {"cases": len(rows), "without_other_node": without, "step_accuracy": hits.float().mean().item()}
    betas = [mixture(r, child, second)[1] for second in (sibling, other)]
    difference = (betas[0] - betas[1]).tolist()
    result["beta_difference"] = clustered(difference, tree_of, seed) | {"median": median(difference)}
    for name, second in (("sibling", sibling), ("other node (control)", other)):
        alpha, beta, residual = mixture(r, child, second)
        mixed, more = beta >= 0.1 * alpha.abs(), alpha > beta
        result[name] = {"alpha": alpha.mean().item(), "beta": beta.mean().item(), "residual": residual.mean().item(),
                        "right_weighs_more": more.float().mean().item(),
                        "right_weighs_more_ci95": clustered(more.tolist(), tree_of, seed)["ci95"],
                        "mixed": mixed.float().mean().item(),
                        "right_weighs_more_of_mixed": more[mixed].float().mean().item() if mixed.any() else None,
                        "beta_abs_95th_percentile": beta.abs().quantile(0.95).item()}  # fmt: skip
    return result


def exposure(reasoner, items, batch_size=256):
    """The gap between training and use: share of chain tokens that are right, given the true tokens or free-running."""
    data = Encoded(items, reasoner.tokenizer, reasoner.config.block_size, "test")
    hits, free, n = 0, 0, 0
    for batch in ordered_batches(data, batch_size):
        batch = batch.to(reasoner.device)
        R, real = batch.chain.size(1), batch.chain >= 0
        own = reasoner.chain(reasoner.inputs(batch.tokens), batch.start, R)
        said = reasoner.nearest(own).masked_fill(own.abs().sum(-1) == 0, -2)  # a chain that has ended says nothing
        given = reasoner.nearest(reasoner.teacher_forced(batch))
        hits += ((given == batch.chain) & real).sum().item()
        free += ((F.pad(said, (0, R - said.size(1)), value=-2) == batch.chain) & real).sum().item()
        n += real.sum().item()
    return {"teacher_forced": hits / n, "free_running": free / n}


def draw_chain(reasoner, item, chain, path):
    """The chain among the embeddings of its tree's nodes, along their two principal components -> PNG at `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    route = item.chain.split()
    labels = sorted({w for w in item.prompt.split() if w.isdecimal()}, key=int)
    embedding = F.normalize(reasoner.target.weight.detach().cpu(), dim=-1)
    nodes = embedding[[reasoner.tokenizer.id_of[w] for w in labels]]
    steps = chain[: len(route)]
    center = nodes.mean(0)
    _, _, V = torch.linalg.svd(torch.cat((nodes, steps)) - center, full_matrices=False)
    flat, way = ((x - center) @ V[:2].T for x in (nodes, steps))
    figure, axes = plt.subplots(figsize=(7, 5.5), layout="constrained")
    place = dict(zip(labels, flat.tolist(), strict=True))
    groups = (("other nodes", [w for w in labels if w not in (*route, *item.sibling)], "#999999", "o"),
              ("siblings of the route", [w for w in item.sibling if w], "#D55E00", "s"),
              ("nodes of the route", route, "#0072B2", "o"))  # fmt: skip
    for name, words, color, marker in (g for g in groups if g[1]):
        axes.scatter(*zip(*(place[w] for w in words), strict=True), color=color, marker=marker, s=60, label=name)
        for w in words:
            axes.annotate(w, place[w], textcoords="offset points", xytext=(6, 5), color=color)
    axes.plot(*way.T.tolist(), color="black", linewidth=1, marker="x", markersize=9, label="the chain's latents")
    for t, (x, y) in enumerate(way.tolist()):
        axes.annotate(f"r{t + 1}", (x, y), textcoords="offset points", xytext=(6, -12))
    axes.set(title=f"A chain of latents and its tree: route {' → '.join(route)}",
             xlabel="first principal component", ylabel="second principal component")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def tree(models, items, config):
    """Route accuracy of each run, in all and by the size of the tree; less the first run's, paired over trees.

    Of each decoupled run also the exposure gap, the mixed latents and the picture of a chain.
    """
    result, hits = {}, {}
    nodes = [len({w for w in x.prompt.split() if w.isdecimal()}) for x in items]
    for name, model in models.items():
        share, ci95, said = chain_accuracy(model, items, config.batch_size)
        hits[name] = [right(model.config, item, text) for item, text in zip(items, said, strict=True)]
        row = result[name] = {"n": len(items), "route_accuracy": share, "route_accuracy_ci95": ci95}
        row["by_nodes"] = {}
        for n in sorted({*nodes}):
            of_size = [hit for hit, k in zip(hits[name], nodes, strict=True) if k == n]
            row["by_nodes"][n] = {"share": mean(of_size), "ci95": wilson(sum(of_size), len(of_size)), "n": len(of_size)}
        row["less_the_first_run"] = less(hits[name], hits[next(iter(models))])
        print(f"\n{name}: route accuracy {share:.2%}   95% interval {ci95[0]:.2%} to {ci95[1]:.2%}")
        print("  by nodes: " + ", ".join(f"{n}: {r['share']:.2%} of {r['n']}" for n, r in row["by_nodes"].items()))
        if len(hits) > 1:
            low, high = row["less_the_first_run"]["ci95"]
            print(f"  less {next(iter(models))}: {row['less_the_first_run']['mean']:+.2%} ({low:+.2%} to {high:+.2%})")
        if not isinstance(model, Pair):
            continue
        latents = chains(model.reasoner, items, config.batch_size)
        row |= {
            "exposure": exposure(model.reasoner, items, config.batch_size),
            "mixed": mixed_latents(model.reasoner, items, latents, config.seed),
        }
        gap, mixed = row["exposure"], row["mixed"]
        print(f"  chain tokens right: {gap['teacher_forced']:.2%} with the true tokens as inputs, "
              f"{gap['free_running']:.2%} free-running")  # fmt: skip
        if mixed is None:
            print("  no chain is right so far: no latent to take apart")
            continue
        print(f"  mixed latents, {mixed['cases']:,} steps, of which {mixed['step_accuracy']:.2%} are right: "
              "r ≈ alpha * right child + beta * another embedding")  # fmt: skip
        for second in ("sibling", "other node (control)"):
            m = mixed[second]
            print(f"    {second:<22} alpha {m['alpha']:.3f}, beta {m['beta']:+.3f} (95% of |beta| below "
                  f"{m['beta_abs_95th_percentile']:.3f}), residual {m['residual']:.3f}; right child weighs more in "
                  f"{m['right_weighs_more']:.2%}; mixed {m['mixed']:.2%}")  # fmt: skip
        low, high = mixed["beta_difference"]["ci95"]
        print(f"    beta of the sibling less beta of the other node: {mixed['beta_difference']['mean']:+.4f} "
              f"({low:+.4f} to {high:+.4f}), in the median {mixed['beta_difference']['median']:+.4f}")  # fmt: skip
        best = max(range(len(items)), key=lambda i: len(items[i].chain.split()))
        draw_chain(model.reasoner, items[best], latents[best], Path(config.run) / f"chain_{Path(name).name}.png")
    return result


# --------------------------------------------------------------------------------------------------- CFG


def token_accuracy(chain, said):
    """Share of the chain's tokens that stand at their place."""
    chain, said = chain.split(), said.split()
    return sum(a == b for a, b in zip(chain, said, strict=False)) / len(chain)


def noise(models, items, config):
    """Accuracy, of chain tokens and of whole chains, against noise on the prompt's tokens and on latents fed back.

    All runs read the same noisy prompts; `less_the_first_run`: the paired difference of token accuracy.
    """
    words = sorted({w for item in items[:200] for w in item.prompt.split()[:-1]})
    result, first = {}, {}
    for name, model in models.items():
        rows = result.setdefault(name, {})
        for kind in ("drop", "replace", "insert", "latent"):
            per_item = []
            for rate in LATENT_NOISE if kind == "latent" else NOISE:
                rng, said = random.Random(f"{config.seed} {kind} {rate}"), [""] * len(items)
                asked = items
                if kind != "latent":
                    asked = [replace(x, prompt=noisy(x.prompt, kind, rate, rng, words)) for x in items]
                generator = torch.Generator().manual_seed(config.seed)
                for index in in_batches(asked, config.batch_size):
                    prompts = [asked[i].prompt for i in index]
                    for i, text in zip(
                        index, say(model, prompts, rate if kind == "latent" else 0.0, generator), strict=True
                    ):
                        said[i] = text
                shares = [token_accuracy(x.chain, text) for x, text in zip(items, said, strict=True)]
                whole = sum(x.chain.split() == text.split() for x, text in zip(items, said, strict=True))
                per_item.append(shares)
                row = {"rate": rate, "token_accuracy": interval(shares), "exact": whole / len(items),
                       "exact_ci95": wilson(whole, len(items))}  # fmt: skip
                rows.setdefault(kind, []).append(row)
            for row, own, other in zip(rows[kind], per_item, first.setdefault(kind, per_item), strict=True):
                row["normalised"] = ratio(own, per_item[0], config.seed)
                row["less_the_first_run"] = less(own, other)
            told = ", ".join(f"{r['rate']:g}: {r['token_accuracy']['mean']:.1%}" for r in rows[kind])
            print(f"{name}: {kind:<8} {told}")
    draw_noise(result, Path(config.run) / "noise.png")
    return result


def ratio(shares, clean, seed, n=1000):
    """Accuracy with noise over accuracy without, paired over examples -> the ratio of means and its 95% interval."""
    shares, clean = np.array(shares), np.array(clean)
    draw = np.random.default_rng(seed).integers(0, len(shares), (n, len(shares)))
    means = shares[draw].mean(1) / np.maximum(clean[draw].mean(1), 1e-9)
    return {"mean": shares.mean() / max(clean.mean(), 1e-9), "ci95": np.percentile(means, [2.5, 97.5]).tolist()}


def say(model, prompts, latent_noise, generator):
    """Answers of any model, with Gaussian noise of a norm on everything that is fed back."""
    if isinstance(model, Nearest):
        return model.answer(prompts, None, latent_noise, generator)
    if isinstance(model, Pair):
        return model.talker.speak(model.reasoner.rollout(prompts, noise=latent_noise, generator=generator))
    ids = model.tokens(prompts, noise=latent_noise, generator=generator)
    return [model.tokenizer.decode(row) for row in ids]


def draw_noise(result, path):
    """Token accuracy against each kind of noise, a line a run -> PNG at `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained", sharey=True)
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
    for axes, kind in zip(panels, ("drop", "replace", "insert", "latent"), strict=True):
        for (name, rows), color in zip(result.items(), cycle(colors), strict=False):
            x = [row["rate"] for row in rows[kind]]
            low, high = zip(*(row["token_accuracy"]["ci95"] for row in rows[kind]), strict=True)
            axes.plot(x, [row["token_accuracy"]["mean"] for row in rows[kind]], marker="o", markersize=4, color=color,
                      label=Path(name).name)  # fmt: skip
            axes.fill_between(x, low, high, color=color, alpha=0.2)
        title = "Gaussian noise on what is fed back" if kind == "latent" else f"Prompt tokens: {kind}"
        axes.set(title=title, xlabel="norm of the noise" if kind == "latent" else "share of tokens", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="chain tokens right (band: 95%)")
    panels[-1].legend(fontsize=8, loc="lower left")  # where no curve is
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


# ------------------------------------------------------------------------------------------- containment


def containment(models, items, config):
    """Can a wrong token harm what is thought after it? And a wrong thought?

    Rows of prompt and chain tokens, of all lengths, are given to every model. -> for each run
    gradient             largest |d (u · s) / d embedded chain token|: s the sum of all states of unit norm after that
                         token, u a random direction; between models only whether it is zero is comparable
    largest_change       Pair: of any latent of the chain when all chain tokens in the row are others; bit-equal is 0
    teacher_forced       Pair, the control: the same gradient where the tokens *are* read, as in training
    after_a_wrong_token  baseline: share of later chain tokens that are right after one wrong token is fed back, at
                         each step in turn, of long chains at 16 steps; mean over examples. The wrong tokens are the
                         same for all
    after_a_wrong_latent Pair: the same after one latent is exchanged for another word's embedding
    undisturbed          the share without the disturbance
    less_the_first_run   after_a_wrong_…, less the first run's, paired over examples
    """
    result, first = {}, None
    items = random.Random(config.seed).sample(items, min(len(items), MOST_FORCED))
    for name, model in models.items():
        rng, row = random.Random(config.seed), {"examples": len(items)}
        slots = model.config.thoughts if model.config.model == "coconut" else 0
        data = Encoded(items, model.tokenizer, model.config.block_size, "test", slots)
        device, n = next(iter(parameters(model))).device, min(len(data), 200)
        few = max(1, config.batch_size // 16)  # a gradient through a chain keeps keys and values of its every step
        batches = [data.batch(range(i, min(i + few, n))).to(device) for i in range(0, n, few)]
        if isinstance(model, Pair):
            found = [contained(model.reasoner, batch) for batch in batches]
            row |= {key: max(x[key] for x in found) for key in found[0]}
            print(f"{name}: largest gradient of a latent with respect to a chain token {row['gradient']:g} "
                  f"(where tokens are read, {row['teacher_forced']:.3g}); largest change when all tokens are others "
                  f"{row['largest_change']:g}")  # fmt: skip
        else:
            states = model.thinking if slots else lambda x, batch, m=model: m.states(x, places(x))[0]
            row["gradient"] = max(read_gradient(states, model.embed(batch.tokens), batch) for batch in batches)
            print(f"{name}: largest gradient of a state with respect to a chain token before it {row['gradient']:.3g}")
        key = "after_a_wrong_latent" if isinstance(model, Pair) else "after_a_wrong_token"
        shares, clean, row["later_tokens"] = spread(model, items, rng)
        first = first or shares
        row |= {key: interval(shares), "undisturbed": interval(clean), "less_the_first_run": less(shares, first)}
        what = "latent" if isinstance(model, Pair) else "token"
        (low, high), (least, most) = row[key]["ci95"], row["less_the_first_run"]["ci95"]
        print(f"{name}: after one wrong {what} {mean(shares):.1%} ({low:.1%} to {high:.1%}) of the later tokens are "
              f"right; without it {mean(clean):.1%}; less the first run {row['less_the_first_run']['mean']:+.1%} "
              f"({least:+.1%} to {most:+.1%})")  # fmt: skip
        result[name] = row
    return result


def parameters(model):
    return (model.reasoner if isinstance(model, Pair) else model).parameters()


def read_gradient(states, x, batch):
    """Largest |d (u · s) / d x| at chain tokens: s the sum of states(x, batch) of unit norm, u a random direction.

    States that come before a token have none, by causality.
    """
    x = x.detach().requires_grad_()
    u = F.normalize(torch.randn(x.size(-1), generator=torch.Generator().manual_seed(0)), dim=0).to(x)
    of_chain = (places(x) >= batch.start[:, None]) & (places(x) < batch.length[:, None])
    with torch.enable_grad():
        found = torch.autograd.grad((F.normalize(states(x, batch), dim=-1) @ u).sum(), x)[0]
    return found[of_chain].abs().max().item()


def contained(reasoner, batch):
    """The chain of a row in which chain tokens stand behind the prompt, and may not be seen."""

    def chain(x, batch=batch):
        return reasoner.chain(x, batch.start, batch.chain.size(1))

    x = reasoner.inputs(batch.tokens)
    of_chain = places(x) >= batch.start[:, None]
    other = reasoner.inputs(torch.where(of_chain, (batch.tokens + 1) % reasoner.tokenizer.n_text, batch.tokens))
    return {"gradient": read_gradient(chain, x, batch), "largest_change": (chain(x) - chain(other)).abs().max().item(),
            "teacher_forced": read_gradient(lambda x, batch: reasoner.states(x), x, batch)}  # fmt: skip


def spread(model, items, rng):
    """One wrong token, or latent, at a step, all or 16 in turn -> for each item the share of later tokens that are
    right, and the share without it; the number of later tokens in all.

    A Pair's chain is read by the nearest embedding, so that no Talker can mend it.
    """
    prompts, t = [x.prompt for x in items], model.tokenizer
    gold = [[*ids, t.eos] for ids in t.encode([x.chain for x in items])]

    def say(forced=None):
        if not isinstance(model, Pair):
            return [[*ids, t.eos] for ids in model.tokens(prompts, forced=forced)]
        tokens, length = model.reasoner.rows(prompts)
        latents = model.reasoner.chain(model.reasoner.inputs(tokens), length, forced=forced)
        return model.reasoner.nearest(latents).masked_fill(latents.abs().sum(-1) == 0, -2).tolist()

    clean, kept, whole = say(), [[] for _ in gold], [[] for _ in gold]
    last = max(map(len, gold)) - 2
    for at in sorted({round(x) for x in np.linspace(0, last, min(last + 1, FORCED_STEPS))}):
        wrong = torch.tensor([rng.choice([i for i in range(t.n_text) if i != g[min(at, len(g) - 1)]]) for g in gold])

        def forced(step, now, at=at, wrong=wrong):
            if step != at:
                return now
            return model.reasoner.inputs(wrong.to(now.device)) if isinstance(model, Pair) else wrong.to(now)

        for i, (g, before, after) in enumerate(zip(gold, clean, say(forced), strict=True)):
            later = range(at + 1, len(g))
            kept[i] += [t < len(after) and after[t] == g[t] for t in later]
            whole[i] += [t < len(before) and before[t] == g[t] for t in later]
    return [mean(x) for x in kept], [mean(x) for x in whole], sum(map(len, kept))


# ---------------------------------------------------------------------------------------------- the Talker


def valid(item, text, config):
    """Could `text` be an answer at all? A walk down the tree from its root; a derivation; a solution with a number."""
    if config.dataset == "tree":
        words, route = item.prompt.split(), text.split()
        edges = {(words[i], words[i + 1]) for i in range(0, len(words) - 5, 3)}
        return route[:1] == [words[-4]] and all(step in edges for step in zip(route, route[1:], strict=False))
    return derived(text, config.levels) is not None if config.dataset == "cfg" else parse_answer(text) is not None


def talker(models, items, config):
    """Can the Talker reason by itself? What it says of the own latents, and of four others.

    another prompt's   it is told nothing of the prompt: what it says should be the other's answer, and the own one by
                       accident alone
    own first          the own first latent, the rest another prompt's: the own answer would be the Talker's own work
    Gaussian           random directions: is there sense in what it says?
    Beside it, the same latents read without a Talker, by the nearest embedding.
    """
    result = {}
    for name, model in models.items():
        if not isinstance(model, Pair):
            continue
        count, generator, sample = Counter(), torch.Generator().manual_seed(config.seed), []
        for index in in_batches(items, config.batch_size):
            part = [items[i] for i in index]
            latents = model.reasoner.rollout([x.prompt for x in part])
            real = latents.abs().sum(-1, keepdim=True) > 0
            gauss = F.normalize(torch.randn(latents.shape, generator=generator), dim=-1).to(latents) * real
            first = torch.cat((latents[:, :1], latents.roll(-1, 0)[:, 1:]), 1)
            read = model.reasoner.read(latents)
            said = {"own": model.talker.speak(latents), "other": model.talker.speak(latents.roll(-1, 0)),
                    "first": model.talker.speak(first), "gauss": model.talker.speak(gauss)}  # fmt: skip
            for b, item in enumerate(part):
                stranger = part[(b + 1) % len(part)]
                count["own"] += right(model.config, item, said["own"][b])
                count["nearest"] += right(model.config, item, read[b])
                count["other_says_own"] += right(model.config, item, said["other"][b])
                count["other_says_other"] += right(model.config, stranger, said["other"][b])
                count["first"] += right(model.config, item, said["first"][b])
                count["gauss_right"] += right(model.config, item, said["gauss"][b])
                count["gauss_valid"] += valid(item, said["gauss"][b], model.config)
                count["own_valid"] += valid(item, said["own"][b], model.config)
            sample = sample or said["gauss"][:5]
        n = len(items)
        result[name] = {"n": n, "gaussian_sample": sample} | {
            k: {"share": count[k] / n, "ci95": wilson(count[k], n)} for k in
            ("own", "own_valid", "nearest", "other_says_own", "other_says_other", "first", "gauss_right", "gauss_valid")
        }  # fmt: skip
        for label, key in (("own latents: right", "own"), ("the same, read by the nearest embedding", "nearest"),
                           ("another prompt's latents: the own answer", "other_says_own"),
                           ("another prompt's latents: the other's answer", "other_says_other"),
                           ("own first latent, another's rest: own answer", "first"),
                           ("Gaussian latents: right", "gauss_right"),
                           ("Gaussian latents: a possible answer", "gauss_valid"),
                           ("own latents: a possible answer", "own_valid")):  # fmt: skip
            low, high = wilson(count[key], n)
            print(f"{name}: {label:<46}{count[key] / n:8.2%}   {low:.2%} to {high:.2%}")
        print(f"{name}: said of Gaussian latents: {' | '.join(sample)}")
    return result


# --------------------------------------------------------------------------------------------- trajectories


def equations(text):
    """'48/2=24, 48+24=72 #### 72' -> [("48/2", 24.0), ("48+24", 72.0)]: what is computed, and what is said of it."""
    # a comma always ends an equation: the numbers here have none, and a tokenizer may take the space behind it away
    return [(left, float(result)) for left, result in
            re.findall(r"([-+*/().\d]+)=(-?\d*\.?\d+)", text.replace(" ", ""))]  # fmt: skip


def near(a, b):
    return abs(a - b) < 0.0051  # solutions round to cents


def trajectory(models, items, config):
    """How good is the way to the answer, and do errors come together? For chains of equations.

    exact_match            the last number is the answer
    steps                  equations a chain, beside the solutions' own
    arithmetic             share of equations whose left side comes to what is said
    results_found          share of the solution's results that the chain has, at any place
    another_problems       the same for the chain of another problem: the control
    right_from_the_start   share of the solution's steps that are right before the first wrong one
    after_a_right_step     share of steps with the right result, where the step before in the same place has it
    after_a_wrong_step     the same where it has not; hard problems alone make it less. What an error does to the steps
                           after it is measured by forcing one: `containment`
    follows                share of chains whose answer is the result of their last equation
    exposure               of a Reasoner: share of chain tokens that are right, with the true ones as inputs and without

    Intervals are over problems.
    """
    result, wanted = {}, [equations(x.chain) for x in items]
    if len(items) < 2 or not any(wanted):
        raise UserError("--what trajectory wants two test problems or more, and equations in their solutions")
    for name, model in models.items():
        share, ci95, said = chain_accuracy(model, items, config.batch_size)
        found = [equations(x) for x in said]
        score, steps = defaultdict(list), {key: [] for key in SHARES}  # steps: (value, problem), several to a problem
        for i, (gold, own, stranger, text) in enumerate(zip(wanted, found, found[1:] + found[:1], said, strict=True)):
            if gold:
                for key, chain in (("results_found", own), ("another_problems", stranger)):
                    score[key].append(mean(any(near(r, true) for _, r in chain) for _, true in gold))
                step = [t < len(own) and near(own[t][1], gold[t][1]) for t in range(len(gold))]
                score["right_from_the_start"].append([*step, False].index(False) / len(gold))
                for before, now in zip(step, step[1:], strict=False):
                    steps["after_a_right_step" if before else "after_a_wrong_step"].append((now, i))
            for left, stated in own:
                value = compute(left, {})
                steps["arithmetic"].append((bool(value) and near(float(value), stated), i))
            answer = parse_answer(text)
            if own and answer is not None:
                steps["follows"].append((near(float(answer), own[-1][1]), i))
        row = {"n": len(items), "exact_match": share, "exact_match_ci95": ci95,
               "steps": mean(map(len, found)), "steps_wanted": mean(map(len, wanted))}  # fmt: skip
        row |= {key: interval(values) for key, values in score.items()}
        for key, values in steps.items():
            none = {"mean": 0.0, "ci95": wilson(0, 0)}
            row[key] = (clustered(*zip(*values, strict=True), config.seed) if values else none) | {"n": len(values)}
        if isinstance(model, Pair):
            row["exposure"] = exposure(model.reasoner, items, config.batch_size)
        print(f"\n{name}: exact match {share:.2%} ({ci95[0]:.2%} to {ci95[1]:.2%}); {row['steps']:.1f} steps a chain, "
              f"{row['steps_wanted']:.1f} in the solutions")  # fmt: skip
        for key in (*score, *SHARES):
            low, high = row[key]["ci95"]
            print(f"  {key.replace('_', ' '):<22}{row[key]['mean']:7.2%}   {low:.2%} to {high:.2%}")
        if "exposure" in row:
            print(f"  chain tokens right     {row['exposure']['teacher_forced']:7.2%} with the true tokens as inputs, "
                  f"{row['exposure']['free_running']:.2%} free-running")  # fmt: skip
        result[name] = row
    return result


# ----------------------------------------------------------------------------------------------- few-shot


def fewshot(models, items, config):
    """Exact match with n = 0, 1, 5, 8 solved training examples, drawn for each question, before it.

    `less_none`: less that with none, paired over questions. Also the share of prompts longer than --block-size, and
    than any question with its answer that the model was trained on.
    """
    result = {}
    for name, model in models.items():
        conf = model.config
        own = conf.data_dir if conf.dataset == "gsm8k" else ""
        source = replace(conf, dataset="gsm8k", data_dir=config.data_dir or own)
        train, rng = load_items("train", source), random.Random(config.seed)
        if len(train) < max(SHOTS):
            raise UserError(f"{len(train)} training questions are too few to show {max(SHOTS)} of them")
        none, longest = None, max(map(len, model.tokenizer.encode([x.prompt + x.chain for x in train])))
        between = "" if conf.dataset == "gsm8k" else "\n"  # as in the rows it was trained on
        for n in SHOTS:
            shown = ["".join(f"{x.prompt}{between}{x.chain}\n\n" for x in rng.sample(train, n)) for _ in items]
            asked = [Item(before + x.prompt + between, x.chain) for before, x in zip(shown, items, strict=True)]
            length = [len(ids) for ids in model.tokenizer.encode([x.prompt for x in asked])]
            beyond = sum(k > conf.block_size for k in length)
            _, _, said = chain_accuracy(model, asked, max(1, config.batch_size // (8 if n else 1)), "gsm8k")
            # a model of text goes on with problems of its own: what stands behind an empty line is none of this one
            hits = [right(source, x, text.split("\n\n")[0]) for x, text in zip(items, said, strict=True)]
            none = none or hits  # of the first n, 0
            share, ci95 = mean(hits), wilson(sum(hits), len(items))
            result.setdefault(name, {})[str(n)] = {
                "exact_match": share, "ci95": ci95, "n": len(items), "less_none": less(hits, none),
                "longer_than_block_size": beyond / len(items),
                "longer_than_any_row": mean(k > longest for k in length)}  # fmt: skip
            note = (
                f"; {beyond / len(items):.0%} of the prompts are longer than --block-size {conf.block_size}"
                if beyond
                else ""
            )
            print(f"{name}: {n}-shot exact match {share:.2%}   95% interval {ci95[0]:.2%} to {ci95[1]:.2%}{note}")
    return result


# --------------------------------------------------------------------------------------------------- main


def main():
    config, _ = parse(EvalConfig, {}, __doc__.split("\n\n")[0])
    device = resolve_device(config.device).device
    models = {run: load(run, device) for run in (config.run, *config.baseline)}
    wanted = {"tree": "tree", "cfg": "cfg", "trajectory": "gsm8k"}.get(config.what)
    for run, model in models.items():
        if wanted and model.config.dataset != wanted:
            raise UserError(f"{run} was trained on {model.config.dataset}; --what {config.what} wants {wanted}")
        if config.what == "trajectory" and model.config.reasoning != "equations":
            raise UserError(f"{run} was trained with --reasoning {model.config.reasoning}; --what trajectory reads "
                            "equations")  # fmt: skip
        if config.what in ("containment", "talker") and model.config.dataset == "text":
            raise UserError(f"{run} was trained on text, where there is no right answer")
    first = models[config.run].config
    for run, model in models.items() if config.what != "fewshot" else ():
        for name in ("dataset", "reasoning", "leaves", "depth", "labels", "levels"):
            if getattr(model.config, name) != getattr(first, name):
                raise UserError(f"{run} was trained with {name} = {getattr(model.config, name)}, {config.run} with "
                                f"{getattr(first, name)}: they cannot be measured on the same examples")  # fmt: skip
    if config.what == "talker" and not any(isinstance(model, Pair) for model in models.values()):
        raise UserError("--what talker: a baseline has no Talker of its own")
    source = replace(first, data_dir=config.data_dir or first.data_dir)
    if config.what == "fewshot" and first.dataset != "gsm8k":  # any checkpoint that reads text may be asked
        if first.dataset != "text":
            raise UserError(f"{config.run} was trained on {first.dataset} and cannot read questions")
        source = replace(source, dataset="gsm8k", data_dir=config.data_dir)
    items = load_items("test", source)[: config.limit or None]
    for run, model in list(models.items()) if config.what in ("tree", "cfg", "trajectory") else ():
        if isinstance(model, Pair):
            models[f"{run}, by the nearest embedding"] = Nearest(model.reasoner)
            models[f"{run}, tokens fed back"] = Nearest(model.reasoner, tokens=True)
    experiment = {"tree": tree, "cfg": noise, "containment": containment, "talker": talker,
                  "trajectory": trajectory, "fewshot": fewshot}  # fmt: skip
    with torch.no_grad():
        result = experiment[config.what](models, items, config)
    write_json(Path(config.run) / f"{config.what}.json", {"runs": result, "examples": len(items), "seed": config.seed})
    print(f"\nwrote {config.run}/{config.what}.json")


if __name__ == "__main__":
    run_main(main)
