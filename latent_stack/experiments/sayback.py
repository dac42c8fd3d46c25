"""Is a held-out sentence said back exactly, from its own ideas alone?

own          by the language model
shuffled     the same from another sentence's ideas (control)
soft_tokens  without it: each soft token read as the token with the nearest embedding, as RUN/words trains them
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.options import UserError
from common.stats import bootstrap_mean, wilson
from latent_stack.config import EvalConfig
from latent_stack.experiments.measures import derangement, lower_case_words, recall_of, rouge_of
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair, load_pairs
from latent_stack.pretrain import of_length
from latent_stack.refine import refined


def plain(text: str) -> str:
    """A text without what an uncased encoder cannot know: its case, and its blanks."""
    return "".join(text.lower().split())


def measure(said: list[str], texts: list[str], lower_case: set[str], seed: int) -> dict:
    """N and N texts -> fractions, each with its 95% interval."""
    exact = {
        "exact": [a.split() == b.split() for a, b in zip(said, texts, strict=True)],
        "exact_but_for_case": [plain(a) == plain(b) for a, b in zip(said, texts, strict=True)],
    }
    found = {name: {"mean": sum(x) / len(x), "ci95": wilson(sum(x), len(x))} for name, x in exact.items()}
    recall = {f"recall_{kind}": x for kind, x in recall_of(said, texts, lower_case).items() if len(x)}
    scores = recall | {"rougeL": rouge_of(said, texts)["rougeL"]}
    return found | {name: bootstrap_mean(x, seed) | {"n": len(x)} for name, x in scores.items()}


def spelled(model: LatentStack, prefix: Tensor) -> list[str]:
    """Prefix (B, P, …) -> B texts: the tokens with the embeddings nearest to its soft tokens, up to EOS."""
    backbones, texts = model.backbones, []
    words = F.normalize(backbones.lm.get_input_embeddings().weight.float(), dim=-1)  # (V, E)
    for row in prefix:  # one at a time: (P, V)
        ids = (F.normalize(row[:, : words.size(1)].float(), dim=-1) @ words.T).argmax(-1).tolist()
        ids = ids[: ids.index(backbones.eos)] if backbones.eos in ids else ids
        texts.append(backbones.lm_tokenizer.decode(ids, skip_special_tokens=True).strip())
    return texts


def never_names(model: LatentStack, texts: list[str]) -> set[str]:
    """Words that are no names: of all splits, since in a few sentences many a first word is never in lower case."""
    every = [p.target for split in load_pairs(model.config).values() for p in split]
    return lower_case_words([*every, *texts]) | {"person"}  # DialogSum's speakers are #Person1#, #Person2#


@torch.no_grad()
def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    short = of_length(pairs, model, model.config.max_target)
    if len(short) < 10:
        raise UserError(f"{len(short)} sentences of 3 to {model.config.max_target} tokens: 10 or more are needed")
    texts = [p.target for p in short]
    z_in = model.encode(texts)
    by_round, distance = refined(model, z_in, config.refine)
    said = by_round[0]
    lower_case = never_names(model, texts)
    others = [said[i] for i in derangement(len(texts), config.seed)]
    result = {
        "n": len(texts),
        "longest": model.config.max_target,
        "own": measure(said, texts, lower_case, config.seed),
        "shuffled": measure(others, texts, lower_case, config.seed),
        "soft_tokens": measure(spelled(model, model.prefix(model.think(z_in))), texts, lower_case, config.seed),
        "refined": [
            measure(words, texts, lower_case, config.seed) | {"distance": float(row.mean())}
            for words, row in zip(by_round, distance, strict=True)
        ],
        "examples": [{"text": a, "said": b} for a, b in zip(texts, said, strict=True)][:20],
    }
    print(f"{len(texts):,} sentences of 3 to {model.config.max_target} tokens, {len(pairs) - len(short):,} longer")
    print(f"{'':<22}{'by the language model':<28}{'mismatched ideas (control)':<28}soft tokens alone")
    for name, found in result["own"].items():
        cells = [
            f"{row[name]['mean']:.1%} ({row[name]['ci95'][0]:.1%} to {row[name]['ci95'][1]:.1%})"
            for row in (result["own"], result["shuffled"], result["soft_tokens"])
        ]
        about = f"n {found.get('n', len(texts))}"
        print(f"  {name.replace('_', ' '):<20}{cells[0]:<28}{cells[1]:<28}{cells[2]:<28}{about}")
    for r, found in enumerate(result["refined"] if config.refine else ()):
        print(f"  {r} rounds: {found['exact']['mean']:.1%} exact, distance of the ideas {found['distance']:.3f}")
    for row in result["examples"][:5]:
        print(f"\n  {row['text']}\n  {row['said']}".rstrip())
    return result
