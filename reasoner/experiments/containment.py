"""Can a wrong token harm what is thought after it? And can a wrong thought?

Shapes: B prompts, T tokens a row, R latents a chain, C width.
"""

import random
from collections.abc import Callable
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.stats import bootstrap_mean, paired_difference
from common.transformer import positions_of
from reasoner.baselines import Coupled
from reasoner.config import EvalConfig
from reasoner.data import Batch, TokenizedDataset
from reasoner.experiments.measures import ENDED, percent, points
from reasoner.model import Reasoner, ReasonerTalker, is_real
from reasoner.tasks import Example

MOST_EXAMPLES = 400  # each is continued anew after every intervention
MOST_GRADIENTS = 200  # examples through which gradients are taken
STEPS = 16  # at which a chain is intervened in, at most


# ------------------------------------------------------------------------------------------- gradients


def largest_gradient(states: Callable[[Tensor], Tensor], x: Tensor, batch: Batch) -> float:
    """Largest |d (u · s) / d x| at chain tokens of the inputs x (B, T, C): s the sum of states(x) of unit norm, u a
    random direction. States that come before a token have none, by causality."""
    x = x.detach().requires_grad_()
    u = F.normalize(torch.randn(x.size(-1), generator=torch.Generator().manual_seed(0)), dim=0).to(x)
    with torch.enable_grad():
        found = torch.autograd.grad((F.normalize(states(x), dim=-1) @ u).sum(), x)[0]  # (B, T, C)
    return found[batch.is_chain()].abs().max().item()


def chain_gradients(reasoner: Reasoner, batch: Batch) -> dict[str, float]:
    """The chain of rows in which chain tokens stand behind the prompt, and may not be seen."""

    def chain(x):
        return reasoner.chain(x, batch.start, batch.chain.size(1))

    x = reasoner.inputs(batch.tokens)
    behind_prompt = positions_of(x) >= batch.start[:, None]
    changed = torch.where(behind_prompt, (batch.tokens + 1) % reasoner.tokenizer.n_text, batch.tokens)
    return {
        "gradient": largest_gradient(chain, x, batch),
        "largest_change": (chain(x) - chain(reasoner.inputs(changed))).abs().max().item(),
        "teacher_forced": largest_gradient(reasoner.hidden_states, x, batch),
    }


def baseline_gradients(model: Coupled, batch: Batch) -> dict[str, float]:
    """The rows as the baseline reads them in training."""

    def states(x):
        return model.think(x, batch) if model.config.n_thoughts else model.hidden_states(x, positions_of(x))[0]

    return {"gradient": largest_gradient(states, model.embed(batch.tokens), batch)}


def measure_gradients(model, examples: list[Example], batch_size: int) -> dict[str, float]:
    """The largest over batches of each figure."""
    data = TokenizedDataset(examples, model.tokenizer, model.config.block_size, "test", model.config.n_thoughts)
    n = min(len(data), MOST_GRADIENTS)
    few = max(1, batch_size // 16)  # a gradient through a chain keeps keys and values of its every step
    found = []
    for i in range(0, n, few):
        batch = data.batch(np.arange(i, min(i + few, n))).to(model.device)
        if isinstance(model, ReasonerTalker):
            found.append(chain_gradients(model.reasoner, batch))
        else:
            found.append(baseline_gradients(model, batch))
    return {key: max(x[key] for x in found) for key in found[0]}


# -------------------------------------------------------------------------------------------- one error


def chain_ids(model, prompts: list[str], intervene: Callable | None = None) -> list[list[int]]:
    """Prompts -> what each step of the chain predicts, [EOS] included.

    A Reasoner's chain is read by the nearest embedding, so that no Talker can mend it.
    """
    if not isinstance(model, ReasonerTalker):
        return [[*ids, model.tokenizer.eos] for ids in model.generate(prompts, intervene=intervene)]
    reasoner = model.reasoner
    tokens, length = reasoner.tokenize(prompts)
    latents = reasoner.chain(reasoner.inputs(tokens), length, intervene=intervene)
    return reasoner.nearest(latents).masked_fill(~is_real(latents), ENDED).tolist()


def intervention(model, step: int, wrong: Tensor) -> Callable:
    """Feed back the tokens `wrong` (B,) at one step: the tokens themselves, or their embeddings as latents."""

    def intervene(now, fed_back):
        if now != step:
            return fed_back
        if isinstance(model, ReasonerTalker):
            return model.reasoner.inputs(wrong.to(fed_back.device))
        return wrong.to(fed_back)

    return intervene


def error_spread(model, examples: list[Example], rng: random.Random) -> tuple[list[float], list[float], int]:
    """One wrong token, or latent, at a step, all or 16 in turn -> for each example the accuracy of later tokens, the
    same without it; the number of later tokens in all."""
    prompts, t = [x.prompt for x in examples], model.tokenizer
    gold = [[*ids, t.eos] for ids in t.encode([x.chain for x in examples])]
    undisturbed = chain_ids(model, prompts)
    hits, hits_undisturbed = [[] for _ in gold], [[] for _ in gold]
    last = max(map(len, gold)) - 2
    for step in sorted({round(x) for x in np.linspace(0, last, min(last + 1, STEPS))}):
        avoided = [g[min(step, len(g) - 1)] for g in gold]
        wrong = torch.tensor([rng.choice([i for i in range(t.n_text) if i != token]) for token in avoided])
        disturbed = chain_ids(model, prompts, intervention(model, step, wrong))
        for i, reference in enumerate(gold):
            for at in range(step + 1, len(reference)):
                hits[i].append(disturbed[i][at : at + 1] == [reference[at]])
                hits_undisturbed[i].append(undisturbed[i][at : at + 1] == [reference[at]])
    return [mean(x) for x in hits], [mean(x) for x in hits_undisturbed], sum(map(len, hits))


# ----------------------------------------------------------------------------------------- the experiment


def print_gradients(name: str, row: dict) -> None:
    if "teacher_forced" not in row:
        print(f"{name}: largest gradient of a hidden state to a chain token before it {row['gradient']:.3g}")
        return
    print(
        f"{name}: largest gradient of a latent to a chain token {row['gradient']:g} (where tokens are read, "
        f"{row['teacher_forced']:.3g}); largest change when all tokens are others {row['largest_change']:g}"
    )


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """Rows of prompt and chain tokens, of all lengths, are given to every model. -> for each run

    gradient             largest gradient of the states after a chain token to its embedding; between models only
                         whether it is zero is comparable
    largest_change       Reasoner: of any latent of the chain when all chain tokens in the row are others; 0: bit-equal
    teacher_forced       Reasoner, the control: the same gradient where the tokens *are* read, as in training
    after_a_wrong_token  baseline: accuracy of later chain tokens after one wrong token is fed back, at each step in
                         turn, of long chains at 16 steps; mean over examples. The wrong tokens are the same for all
    after_a_wrong_latent Reasoner: the same after one latent is exchanged for another word's embedding
    undisturbed          the accuracy without the intervention
    less_the_first_run   after_a_wrong_…, the paired difference to the first run's over examples
    """
    result, first = {}, None
    examples = [x for x in examples if x.chain]  # a question without a program has no chain to intervene in
    examples = random.Random(config.seed).sample(examples, min(len(examples), MOST_EXAMPLES))
    for name, model in models.items():
        row = {"examples": len(examples)} | measure_gradients(model, examples, config.batch_size)
        print_gradients(name, row)
        accuracy, undisturbed, row["later_tokens"] = error_spread(model, examples, random.Random(config.seed))
        first = first or accuracy
        what = "latent" if isinstance(model, ReasonerTalker) else "token"
        after = row[f"after_a_wrong_{what}"] = bootstrap_mean(accuracy, config.seed)
        row["undisturbed"] = bootstrap_mean(undisturbed, config.seed)
        row["less_the_first_run"] = paired_difference(accuracy, first, config.seed)
        print(
            f"{name}: accuracy of later tokens after one wrong {what} {percent(after['mean'], after['ci95'])}, without "
            f"it {mean(undisturbed):.2%}; paired difference to the first run {points(row['less_the_first_run'])}"
        )
        result[name] = row
    return result
