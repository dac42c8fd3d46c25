"""Does thinking in ideas do anything? Trained is the middle model alone, between an encoder and an expansion that say
texts back and stay as they are.

It learns to make of a text's ideas those of the target: the squared distance between ideas is the loss, the
language model only writes down what came out. On the pairs of a data set (`--dataset`), or on generated sentences:

    paraphrase   "Then Ana finds 4 shells." -> "4 more shells arrive."
    negation     "Ana has 12 coins." -> "Ana does not have 12 coins."
    numbers      "Ana has 12 coins." -> "Ana has 13 coins."
    answer       "Ana has 12 coins and finds 3 more." -> "Ana has 15 coins."

    identity     the text's own ideas, so that it is said back (control)
    untrained    a random middle model (control)
    linear       the best linear map of all K·D numbers, ridge regression
    mlp, transformer, deeper     of 2, 2 and 4 layers
    shuffled     what the transformer made of another text (control)
    target       the target's own ideas: what could be said at best

What came out is read twice: what the soft tokens spell, each as the word nearest to it, and what the language model
says.

Shapes: N pairs, K ideas of D numbers.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common.stats import bootstrap_mean, wilson
from common.word_problems import NARROW, split_of_pair
from latent_stack.config import EvalConfig
from latent_stack.experiments.measures import derangement, lower_case_words, recall_of, rouge_of
from latent_stack.experiments.sayback import spelled
from latent_stack.layers import Middle
from latent_stack.model import LatentStack
from latent_stack.pairs import SAME_EVENT, Pair, load_pairs

N_TRAIN, N_TEST = 1500, 100
STEPS, BATCH, LR = 400, 64, 1e-3
LAYERS = {"mlp": 2, "transformer": 2, "deeper": 4}
RIDGE = 0.1  # of the mean variance of a number
CONTROLS = ("identity", "untrained", "shuffled", "target")

# ------------------------------------------------------------------------------------------------ tasks


def paraphrase(rng: random.Random, words: dict) -> Pair:
    """From the wording that has all the names, where the other leaves one out."""
    both = list(rng.choice(SAME_EVENT))
    rng.shuffle(both)
    return Pair(*(template.format(**words) for template in sorted(both, key=lambda x: "{n}" not in x)))


def negation(rng: random.Random, words: dict) -> Pair:
    return Pair("{n} has {a} {x}.".format(**words), "{n} does not have {a} {x}.".format(**words))


def numbers(rng: random.Random, words: dict) -> Pair:
    return Pair("{n} has {a} {x}.".format(**words), f"{words['n']} has {words['a'] + 1} {words['x']}.")


def answer(rng: random.Random, words: dict) -> Pair:
    n, a, b, x = (words[name] for name in "nabx")
    if a > b and rng.random() < 0.5:
        return Pair(f"{n} has {a} {x} and loses {b}.", f"{n} has {a - b} {x}.")
    return Pair(f"{n} has {a} {x} and finds {b} more.", f"{n} has {a + b} {x}.")


TASKS: dict[str, Callable] = {f.__name__: f for f in (paraphrase, negation, numbers, answer)}


def generated(task: str, split: str, n: int) -> list[Pair]:
    """n pairs of a task; two numbers meet in one split only, and no input of one is an input of the other."""
    rng, pairs = random.Random(f"{task} {split}"), []
    while len(pairs) < n:
        a, b = rng.randint(2, 49), rng.randint(2, 49)
        if split_of_pair(a, b) == split:
            name, other = rng.sample(NARROW.names, 2)
            words = dict(n=name, m=other, x=rng.choice(NARROW.things), a=a, b=b)
            pair = TASKS[task](rng, words)
            is_test = random.Random(min(pair.input, pair.target)).random() < 0.2
            pairs += [pair] if is_test == (split == "test") else []
    return pairs


# -------------------------------------------------------------------------------------------- the middles


def without_zeros(model: LatentStack, z: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sets of ideas (N, K·D) -> (N, K'·D), without the last ideas if they are zeros, behind the end of every text."""
    D = model.config.latent_dim
    used = torch.cat(list(z.values())).view(-1, next(iter(z.values())).size(1) // D, D).ne(0).any(0).any(-1)  # (K,)
    return {name: x[:, : (int(used.nonzero().max()) + 1) * D] for name, x in z.items()}


def linear_map(z_in: Tensor, z_out: Tensor) -> Callable[[Tensor], Tensor]:
    """Ideas (N, K·D) and those of their targets (N, K·D) -> the ridge regression of the one on the other."""
    mean_in, mean_out = z_in.mean(0), z_out.mean(0)
    x, y = (z_in - mean_in).double(), (z_out - mean_out).double()
    penalty = RIDGE * x.square().mean() * len(x)
    gram = x @ x.T  # (N, N): fewer texts than numbers
    gram.diagonal().add_(penalty)
    found = torch.linalg.solve(gram, y)  # (N, K·D)
    return lambda z: ((z - mean_in).double() @ x.T @ found).float() + mean_out


def train_middle(model: LatentStack, name: str, z_in: Tensor, z_out: Tensor, seed: int) -> tuple[nn.Module, float]:
    """-> (a middle model of LAYERS[name] layers, trained on the squared distance to z_out (N, K·D); its last loss)."""
    torch.manual_seed(seed)
    kind = "transformer" if name == "deeper" else name
    middle = Middle(replace(model.config, middle=kind, middle_layers=LAYERS[name])).to(z_in.device).train()
    optimizer = torch.optim.AdamW(middle.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, pct_start=0.05)
    unit, losses = z_out.std(0).mean(), []
    for _ in tqdm(range(STEPS), desc=name, leave=False):
        index = torch.randint(len(z_in), (BATCH,)).to(z_in.device)
        loss = F.mse_loss(model.think(z_in[index], middle) / unit, z_out[index] / unit)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(middle.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return middle.eval(), float(torch.stack(losses[-50:]).mean())


def thought(model: LatentStack, z: dict[str, Tensor], seed: int) -> dict[str, tuple[Tensor, dict]]:
    """{"train", "train_target", "test", "test_target"}: ideas (N, K·D) -> {condition: (z_out (N, K·D), about it)}."""
    torch.manual_seed(seed)
    untrained = Middle(replace(model.config, middle="transformer", middle_layers=LAYERS["transformer"])).to(
        model.device
    )
    found = {
        "identity": (z["test"], {}),
        "untrained": (model.think(z["test"], untrained.eval()), {}),
        "linear": (linear_map(z["train"], z["train_target"])(z["test"]), {}),
    }
    for name in LAYERS:
        began = time.perf_counter()
        with torch.enable_grad():
            middle, loss = train_middle(model, name, z["train"], z["train_target"], seed)
        about = {"n_params": sum(p.numel() for p in middle.parameters()), "train_loss": loss}
        found[name] = model.think(z["test"], middle), about | {"seconds": round(time.perf_counter() - began, 1)}
    found["shuffled"] = found["transformer"][0][derangement(len(z["test"]), seed)], {}
    return found | {"target": (z["test_target"], {})}


# --------------------------------------------------------------------------------------------- measured


def measure(said: list[str], targets: list[str], lower_case: set[str], seed: int) -> dict:
    """N and N texts -> {measure: mean and 95% interval}; exact but for the case, which the encoder may not know."""
    same = [a.lower().split() == b.lower().split() for a, b in zip(said, targets, strict=True)]
    found = {"exact": {"mean": sum(same) / len(same), "ci95": wilson(sum(same), len(same))}}
    names = recall_of(said, targets, lower_case)["names"]
    found |= {"recall_names": bootstrap_mean(names, seed)} if len(names) else {}
    return found | {"rougeL": bootstrap_mean(rouge_of(said, targets)["rougeL"], seed)}


@torch.no_grad()
def run_task(model: LatentStack, train: list[Pair], test: list[Pair], seed: int) -> dict:
    """{"n", "n_train", condition: measures …, "examples"} of one task."""
    parts = {"train": train, "test": test}
    z = {name: model.encode([p.input for p in pairs]) for name, pairs in parts.items()}
    z |= {f"{name}_target": model.encode([p.target for p in pairs]) for name, pairs in parts.items()}
    z, targets = without_zeros(model, z), [p.target for p in test]
    lower_case = lower_case_words([text for p in (*train, *test) for text in (p.input, p.target)])
    result, said = {"n": len(test), "n_train": len(train)}, {}
    for name, (z_out, about) in thought(model, z, seed).items():
        said[name] = model.generate(z_out)
        result[name] = about | measure(said[name], targets, lower_case, seed)
        alone = measure(spelled(model, model.prefix(z_out)), targets, lower_case, seed)
        result[name]["soft_tokens"] = alone
        measures = {"exact": alone["exact"], "rougeL": alone["rougeL"], "said: rougeL": result[name]["rougeL"]}
        cells = [f"{x} {row['mean']:.3f} ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})" for x, row in measures.items()]
        control = " (control)" if name in CONTROLS else ""
        print(f"  {name + control:<22}{'   '.join(cells)}", flush=True)
    result["examples"] = [
        {"input": p.input, "target": p.target, **{name: texts[i] for name, texts in said.items()}}
        for i, p in enumerate(test[:8])
    ]
    return result


def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    """The generated tasks, or, where `--dataset` names one, its pairs alone."""
    n = config.limit or N_TEST
    if config.dataset == "run":
        tasks = {task: (generated(task, "train", N_TRAIN), generated(task, "test", n)) for task in TASKS}
    else:
        tasks = {config.dataset: (load_pairs(model.config)["train"][:N_TRAIN], pairs[:n])}
    result = {}
    for task, (train, test) in tasks.items():
        print(f"\n{task}")
        result[task] = run_task(model, train, test, config.seed)
    return result
