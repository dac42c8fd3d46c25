"""nanoJEPA written the plain way: what the fast path is checked against in tests and measured against in bench/.

Random batches padded to their longest row, a dense mask built per example, logits over the whole vocabulary at every
padded position, evaluation one question at a time with nothing kept from token to token. Same model, same loss.

Shapes: B examples, T tokens of the longest row, M tokens of the longest answer, C width, V vocabulary.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model import NanoJEPA

IGNORE = -100


def example_mask(n: int, m: int, T: int) -> Tensor:
    """n question tokens, m answer tokens -> (T, T) bool of one example: causal inside each of the two views."""
    mask = torch.eye(T, dtype=torch.bool)
    views = (slice(0, n + 1), slice(n + 1, n + m + 3))
    for view in views:
        size = view.stop - view.start
        mask[view, view] = torch.ones(size, size).tril().bool()
    return mask


def plain_loss(model: NanoJEPA, pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Model under --mask jepa, (question ids, answer ids) of B examples -> (loss, its terms)."""
    t, config, tensor = model.tokenizer, model.config, partial(torch.tensor, device=model.device)
    T, M = max(len(q) + len(a) + 3 for q, a in pairs), max(len(a) for _, a in pairs)
    tokens, position_ids, masks, targets, decoded, answers, pred, eos = [], [], [], [], [], [], [], []
    for q, a in pairs:
        row = [*q, t.pred, t.ans, *a, t.eos]
        padding = T - len(row)
        tokens.append(row + [t.pad] * padding)
        position_ids.append([*range(len(q) + 1), *range(len(a) + 2)] + [0] * padding)
        masks.append(example_mask(len(q), len(a), T))
        targets.append([*q[1:], *[IGNORE] * (T - len(q) + 1)] if q else [IGNORE] * T)
        decoded.append([*a, *[t.pad] * (M - len(a))])
        answers.append([*a, t.eos, *[IGNORE] * (M - len(a))])
        pred.append(len(q))
        eos.append(len(row) - 1)

    tokens, rows, mask = tensor(tokens), tensor(range(len(pairs))), torch.stack(masks)[:, None].to(model.device)
    h = model.trunk(model.embed(tokens), tensor(position_ids), mask)  # (B, T, C)
    logits = h @ model.embed.weight.T  # (B, T, V)
    z_hat, z = model.predictor(h[rows, tensor(pred)]), h[rows, tensor(eos)]  # (B, C)
    y = model.decode_hidden_states(z, tensor(decoded)) @ model.embed.weight.T  # (B, M+1, V)
    terms = {
        "question_loss": F.cross_entropy(logits.flatten(0, 1), tensor(targets).flatten(), ignore_index=IGNORE),
        "decode_loss": F.cross_entropy(y.flatten(0, 1), tensor(answers).flatten(), ignore_index=IGNORE),
        "jepa_loss": (1 - F.cosine_similarity(z_hat, z.detach(), dim=-1)).mean(),
    }
    weights = (config.question_weight, config.decode_weight, config.jepa_weight)
    return sum(weight * term for weight, term in zip(weights, terms.values(), strict=True)), terms


@torch.no_grad()
def plain_answer(model: NanoJEPA, question: str, keep_latent: bool = False) -> str:
    """One question -> its answer, token by token; every token costs a whole forward pass, logits everywhere.

    `keep_latent` reads the question once and repeats only the decode pass.
    """
    t, ids, z_hat, tensor = model.tokenizer, [], None, partial(torch.tensor, device=model.device)
    q = tensor([[*model.tokenize([question])[0], t.pred]])  # (1, T)
    while len(ids) < model.config.max_new_tokens:
        if z_hat is None or not keep_latent:
            h = model.trunk(model.embed(q), tensor([range(q.size(1))]))  # (1, T, C)
            if not keep_latent:
                h @ model.embed.weight.T  # a forward pass that returns logits returns them everywhere
            z_hat = model.predictor(h[:, -1])
        y = model.decode_hidden_states(z_hat, tensor([ids], dtype=torch.int64)) @ model.embed.weight.T  # (1, M+1, V)
        token = int(y[0, -1].argmax())
        if token == t.eos:
            break
        ids.append(token)
    return t.decode(ids)
