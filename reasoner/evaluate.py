"""What a trained JEPA-Reasoner does, and what the controls say of it.

    python -m reasoner.evaluate --what tree --run out/reasoner-quick          routes, mixed latents, the exposure gap
    python -m reasoner.evaluate --what cfg --run out/reasoner-cfg --baseline out/cfg-coupled     token and latent noise
    python -m reasoner.evaluate --what containment --run out/reasoner-quick --baseline out/coupled
    python -m reasoner.evaluate --what talker --run out/reasoner-quick        Gaussian latents, another prompt's latents
    python -m reasoner.evaluate --what fewshot --run out/reasoner-gsm8k --data-dir DIR      n solved examples before it

Writes <what>.json, and for tree and cfg a figure, into the run's folder.

Shapes: B prompts, R latents a chain, C width, N cases.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F

from config import UserError, atomic, opt, parse, resolve_device, run_main, write_json
from evaluate_accuracy import wilson
from reasoner.data import Encoded, Item, load_items, noisy, ordered_batches
from reasoner.model import Pair, load
from reasoner.train import chain_accuracy, right

NOISE = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
LATENT_NOISE = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
SHOTS = (0, 1, 5, 8)


@dataclass
class EvalConfig:
    """What `reasoner.evaluate` reads."""

    run: str = opt("out/reasoner", "folder of the trained run, with its phases inside")
    what: str = opt("tree", "the experiment", ("tree", "cfg", "containment", "talker", "fewshot"))
    baseline: tuple = opt((), "folders of further runs, measured alike")
    data_dir: str = opt("", "gsm8k: DIR/train.jsonl and DIR/test.jsonl [what the run was trained on]")
    limit: int = opt(0, "use the first N examples only (0: all)", low=0)
    seed: int = opt(0, "seed of noise and of controls", low=0)
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")


def interval(values):
    """list of floats -> mean and its 95% interval, normal approximation."""
    half = 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": mean(values), "ci95": [mean(values) - half, mean(values) + half]}


def in_batches(items, size=256):
    """Items -> lists of positions, like lengths together."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    return [order[i : i + size] for i in range(0, len(order), size)]


def chains(reasoner, items):
    """Free-running latents of every item: list of (R, C) tensors on the CPU, zeros behind the end cut off."""
    found = [None] * len(items)
    for index in in_batches(items):
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
    former among the latter.
    """
    rng, rows = random.Random(seed), []
    id_of = reasoner.tokenizer.id_of
    for item, chain in zip(items, latents, strict=True):
        route = item.chain.split()
        said = reasoner.nearest(chain.to(reasoner.device)).tolist()
        labels = sorted({w for w in item.prompt.split() if w.isdecimal()})
        for t in range(1, min(len(route), len(chain))):
            if said[:t] != [id_of[w] for w in route[:t]]:
                break
            other = rng.choice([w for w in labels if w not in (*route, item.sibling[t])])
            rows.append((chain[t], id_of[route[t]], id_of[item.sibling[t]], id_of[other]))
    if not rows:
        raise UserError("no chain of this run is right so far; there is nothing to take apart")
    r = F.normalize(torch.stack([row[0] for row in rows]), dim=-1)
    embedding = F.normalize(reasoner.target.weight.detach().cpu(), dim=-1)
    child, sibling, other = (embedding[[row[i] for row in rows]] for i in (1, 2, 3))
    result = {"cases": len(rows)}
    for name, second in (("sibling", sibling), ("other node (control)", other)):
        alpha, beta, residual = mixture(r, child, second)
        mixed, more = beta >= 0.1 * alpha.abs(), alpha > beta
        result[name] = {"alpha": alpha.mean().item(), "beta": beta.mean().item(), "residual": residual.mean().item(),
                        "right_weighs_more": more.float().mean().item(),
                        "right_weighs_more_ci95": wilson(int(more.sum()), len(rows)),
                        "mixed": mixed.float().mean().item(),
                        "right_weighs_more_of_mixed": more[mixed].float().mean().item() if mixed.any() else None,
                        "beta_abs_95th_percentile": beta.abs().quantile(0.95).item()}  # fmt: skip
    return result


def exposure(pair, items):
    """The gap between training and use: share of chain tokens that are right, given the true tokens or free-running."""
    data = Encoded(items, pair.tokenizer, pair.reasoner.config.block_size, "test")
    hits, free, n = 0, 0, 0
    for _, batch in ordered_batches(data, 256):
        batch = batch.to(pair.reasoner.device)
        given = pair.reasoner.nearest(pair.reasoner.teacher_forced(batch))
        x, length = batch.tokens, batch.start
        own = pair.reasoner.nearest(pair.reasoner.chain(pair.reasoner.inputs(x), length, batch.chain.size(1)))
        real, own = batch.chain >= 0, F.pad(own, (0, batch.chain.size(1) - own.size(1)), value=-2)
        hits, free, n = (hits + ((given == batch.chain) & real).sum().item(),
                         free + ((own == batch.chain) & real).sum().item(), n + real.sum().item())  # fmt: skip
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
    for name, words, color, marker in groups:
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
    """Route accuracy of each run; of each decoupled one the exposure gap, the mixed latents, the picture of a chain."""
    result = {}
    for name, model in models.items():
        share, ci95, _ = chain_accuracy(model, items)
        row = result[name] = {"n": len(items), "route_accuracy": share, "route_accuracy_ci95": ci95}
        print(f"\n{name}: route accuracy {share:.2%}   95% interval {ci95[0]:.2%} to {ci95[1]:.2%}")
        if not isinstance(model, Pair):
            continue
        latents = chains(model.reasoner, items)
        row |= {"exposure": exposure(model, items), "mixed": mixed_latents(model.reasoner, items, latents, config.seed)}
        gap, mixed = row["exposure"], row["mixed"]
        print(f"  chain tokens right: {gap['teacher_forced']:.2%} with the true tokens as inputs, "
              f"{gap['free_running']:.2%} free-running")  # fmt: skip
        print(f"  mixed latents, {mixed['cases']:,} steps: r ≈ alpha * right child + beta * another embedding")
        for second in ("sibling", "other node (control)"):
            m = mixed[second]
            print(f"    {second:<22} alpha {m['alpha']:.3f}, beta {m['beta']:+.3f} (95% of |beta| below "
                  f"{m['beta_abs_95th_percentile']:.3f}), residual {m['residual']:.3f}; right child weighs more in "
                  f"{m['right_weighs_more']:.2%}; mixed {m['mixed']:.2%}")  # fmt: skip
        best = max(range(len(items)), key=lambda i: len(items[i].chain.split()))
        draw_chain(model.reasoner, items[best], latents[best], Path(config.run) / f"chain_{Path(name).name}.png")
    return result


# --------------------------------------------------------------------------------------------------- CFG


def token_accuracy(chain, said):
    """Share of the chain's tokens that stand at their place."""
    chain, said = chain.split(), said.split()
    return sum(a == b for a, b in zip(chain, said, strict=False)) / len(chain)


def noise(models, items, config):
    """Accuracy, of chain tokens and of whole chains, against noise on the prompt's tokens and on latents fed back."""
    words = sorted({w for item in items[:200] for w in item.prompt.split()[:-1]})
    result = {}
    for name, model in models.items():
        rows = result.setdefault(name, {})
        for kind in ("drop", "replace", "insert", "latent"):
            for rate in LATENT_NOISE if kind == "latent" else NOISE:
                rng, said = random.Random(f"{config.seed} {kind} {rate}"), [""] * len(items)
                asked = items
                if kind != "latent":
                    asked = [replace(x, prompt=noisy(x.prompt, kind, rate, rng, words)) for x in items]
                generator = torch.Generator().manual_seed(config.seed)
                for index in in_batches(asked):
                    prompts = [asked[i].prompt for i in index]
                    for i, text in zip(
                        index, say(model, prompts, rate if kind == "latent" else 0.0, generator), strict=True
                    ):
                        said[i] = text
                shares = [token_accuracy(x.chain, text) for x, text in zip(items, said, strict=True)]
                whole = sum(x.chain.split() == text.split() for x, text in zip(items, said, strict=True))
                row = {"rate": rate, "token_accuracy": interval(shares), "exact": whole / len(items),
                       "exact_ci95": wilson(whole, len(items))}  # fmt: skip
                rows.setdefault(kind, []).append(row)
            clean = rows[kind][0]["token_accuracy"]["mean"] or 1e-9
            for row in rows[kind]:
                row["normalised"] = row["token_accuracy"]["mean"] / clean
            told = ", ".join(f"{r['rate']:g}: {r['token_accuracy']['mean']:.1%}" for r in rows[kind])
            print(f"{name}: {kind:<8} {told}")
    draw_noise(result, Path(config.run) / "noise.png")
    return result


def say(model, prompts, latent_noise, generator):
    """Answers of a Pair or a baseline, with Gaussian noise of a norm on everything that is fed back."""
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
        for (name, rows), color in zip(result.items(), colors, strict=False):
            x = [row["rate"] for row in rows[kind]]
            low, high = zip(*(row["token_accuracy"]["ci95"] for row in rows[kind]), strict=True)
            axes.plot(x, [row["token_accuracy"]["mean"] for row in rows[kind]], marker="o", markersize=4, color=color,
                      label=Path(name).name)  # fmt: skip
            axes.fill_between(x, low, high, color=color, alpha=0.2)
        title = "Gaussian noise on what is fed back" if kind == "latent" else f"Prompt tokens: {kind}"
        axes.set(title=title, xlabel="norm of the noise" if kind == "latent" else "share of tokens", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="chain tokens right (band: 95%)")
    panels[0].legend(fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


# ------------------------------------------------------------------------------------------- containment


def containment(models, items, config):
    """Can a wrong token harm what is thought after it? By autograd, and by forcing a wrong token at every step in turn.

    -> for each run: the largest gradient of any state of the chain with respect to any token that was written; for a
    Pair, the largest change of any latent when every token is wrong; for a baseline, the share of later tokens that
    stay right after one wrong token, beside the share without it.
    """
    result, rng = {}, random.Random(config.seed)
    items = [x for x in items if len(x.prompt.split()) == len(items[0].prompt.split())][:200]
    for name, model in models.items():
        prompts = [x.prompt for x in items]
        row = result[name] = {"examples": len(items), "gradient": token_gradient(model, prompts)}
        print(f"{name}: largest gradient of a state with respect to a token before it: {row['gradient']:g}")
        if isinstance(model, Pair):
            before = model.reasoner.rollout(prompts)
            wrong = torch.randint(model.tokenizer.n_text, before.shape[:2]).to(before.device)
            if model.config.talker == "dual":  # its own earlier tokens are what a Talker could be misled by
                model.talker.decode(model.talker.embed(wrong), *model.talker.encode(before))
            row["largest_change"] = (model.reasoner.rollout(prompts) - before).abs().max().item()
            print(f"{name}: largest change of a latent when every token is wrong: {row['largest_change']:g}")
            continue
        clean = [ids + [model.tokenizer.eos] for ids in model.tokens(prompts)]
        kept = whole = n = 0
        for at in range(max(map(len, clean)) - 1):
            wrong = torch.tensor([rng.randrange(model.tokenizer.n_text) for _ in items], device=model.device)

            def force(step, ids, at=at, wrong=wrong, n_text=model.tokenizer.n_text):
                return torch.where(wrong == ids, (wrong + 1) % n_text, wrong) if step == at else ids

            forced = [ids + [model.tokenizer.eos] for ids in model.tokens(prompts, forced=force)]
            for item, before, after in zip(items, clean, forced, strict=True):
                gold = [*model.tokenizer.encode([item.chain])[0], model.tokenizer.eos]
                for t in range(at + 1, len(gold)):
                    kept += t < len(after) and after[t] == gold[t]
                    whole += t < len(before) and before[t] == gold[t]
                    n += 1
        row |= {"later_tokens_right": kept / n, "without_the_wrong_token": whole / n, "later_tokens": n}
        print(f"{name}: after one wrong token {kept / n:.1%} of the later tokens are right; without it {whole / n:.1%}")
    return result


def token_gradient(model, prompts):
    """Largest |d state / d token| over a chain, tokens as one-hot vectors in the place where the model reads them.

    A Pair's states are its latents, tokens are read by a dual Talker only; a baseline's states follow its tokens.
    Prompts of one length. 0.0 if no path leads from any token to any state.
    """
    coupled = not isinstance(model, Pair)
    tokens, length = (model if coupled else model.reasoner).rows(prompts)
    R = 4
    said = torch.randint(model.tokenizer.n_text, (len(prompts), R), device=tokens.device)
    one_hot = F.one_hot(said, model.config.vocab_size).float().requires_grad_()  # (B, R, V)
    with torch.enable_grad():
        if coupled:
            x = torch.cat((model.embed(tokens), one_hot @ model.embed.weight), 1)
            states = model.states(x, torch.arange(x.size(1), device=x.device).expand(x.shape[:2]))[0][:, -R:]
        else:
            if model.config.talker == "dual":  # words first, so that thought after them could have read them
                model.talker.decode(one_hot @ model.talker.head.weight,
                                    *model.talker.encode(model.reasoner.rollout(prompts, R)))  # fmt: skip
            states = model.reasoner.chain(model.reasoner.inputs(tokens), length, R)
        found = torch.autograd.grad(states.square().sum() + states.sum(), one_hot, allow_unused=True)[0]
    return 0.0 if found is None else found.abs().max().item()


# ---------------------------------------------------------------------------------------------- the Talker


def talker(models, items, config):
    """Can the Talker reason by itself? Fed with Gaussian latents, and with the latents of another prompt."""
    result = {}
    for name, model in models.items():
        if not isinstance(model, Pair):
            continue
        own = other = random_right = n = 0
        generator = torch.Generator().manual_seed(config.seed)
        for index in in_batches(items):
            part = [items[i] for i in index]
            latents = model.reasoner.rollout([x.prompt for x in part])
            gauss = F.normalize(torch.randn(latents.shape, generator=generator), dim=-1).to(latents)
            gauss = gauss * (latents.abs().sum(-1, keepdim=True) > 0)
            shifted = [*part[1:], part[0]]
            for item, stranger, a, b, c in zip(part, shifted, model.talker.speak(latents),
                                               model.talker.speak(latents.roll(-1, 0)), model.talker.speak(gauss),
                                               strict=True):  # fmt: skip
                own += right(model.config, item, a)
                other += right(model.config, stranger, b)
                random_right += right(model.config, item, c)
                n += 1
        result[name] = {"n": n, "own_latents": own / n, "own_latents_ci95": wilson(own, n),
                        "other_prompts_latents_say_the_other_answer": other / n,
                        "other_ci95": wilson(other, n), "gaussian_latents": random_right / n,
                        "gaussian_ci95": wilson(random_right, n)}  # fmt: skip
        print(f"{name}: right with the own latents {own / n:.2%}; another prompt's latents give the other prompt's "
              f"answer in {other / n:.2%}; right with Gaussian latents {random_right / n:.2%}")  # fmt: skip
    return result


# ----------------------------------------------------------------------------------------------- few-shot


def fewshot(models, items, config):
    """Exact match with n = 0, 1, 5, 8 solved training examples before the question."""
    result = {}
    for name, model in models.items():
        conf = model.config
        source = replace(conf, data_dir=config.data_dir or conf.data_dir)
        train, rng = load_items("train", source), random.Random(config.seed)
        for n in SHOTS:
            shown = "".join(f"{x.prompt}\n{x.chain}\n\n" for x in rng.sample(train, n))
            asked = [Item(shown + x.prompt, x.chain) for x in items]
            room = conf.block_size - conf.max_chain
            length = [len(ids) for ids in model.tokenizer.encode([x.prompt for x in asked])]
            beyond = sum(k > room for k in length)
            share, ci95, _ = chain_accuracy(model, asked, batch_size=32 if n else 256)
            result.setdefault(name, {})[str(n)] = {"exact_match": share, "ci95": ci95, "n": len(items),
                                                   "longer_than_trained": beyond / len(items)}  # fmt: skip
            note = f"; {beyond / len(items):.0%} of the prompts are longer than any in training" if beyond else ""
            print(f"{name}: {n}-shot exact match {share:.2%}   95% interval {ci95[0]:.2%} to {ci95[1]:.2%}{note}")
    return result


# --------------------------------------------------------------------------------------------------- main


def main():
    config, _ = parse(EvalConfig, {}, __doc__.split("\n\n")[0])
    device = resolve_device(config.device).device
    models = {run: load(run, device) for run in (config.run, *config.baseline)}
    wanted = {"tree": ("tree",), "cfg": ("cfg",), "fewshot": ("gsm8k",)}.get(config.what)
    for run, model in models.items():
        if wanted and model.config.dataset not in wanted:
            raise UserError(f"{run} was trained on {model.config.dataset}; --what {config.what} wants {wanted[0]}")
    first = models[config.run].config
    items = load_items("test", replace(first, data_dir=config.data_dir or first.data_dir))[: config.limit or None]
    experiment = {"tree": tree, "cfg": noise, "containment": containment, "talker": talker, "fewshot": fewshot}
    with torch.no_grad():
        result = experiment[config.what](models, items, config)
    write_json(Path(config.run) / f"{config.what}.json", {"runs": result, "examples": len(items), "seed": config.seed})
    print(f"\nwrote {config.run}/{config.what}.json")


if __name__ == "__main__":
    run_main(main)
