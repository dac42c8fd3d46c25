"""The output layer's cross-entropy: whole training steps with PyTorch's own fused function, and with its peers.

    python -m bench.cross_entropy --data-dir DIR        the 45M reference configuration, about 6 minutes on two cores
    python -m bench.cross_entropy --preset quick

    linear           the model as it is: F.linear_cross_entropy, a call a term of L_token
    linear_one_call  the same function, all terms' positions in one product
    plain            logits, then F.cross_entropy, a call a term
    chunked          an autograd function that takes softmax and gradient while a chunk of logits exists; one call

All take an optimiser step on the same examples, one right after the other, so that slower and faster minutes of a
shared machine hit all; the ratios are those of neighbouring steps.

Writes results/cross_entropy_<device>.json, an entry a configuration.

Shapes: K positions with a target, C width, V vocabulary, N examples.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import alternate, hardware, path_of, quartiles, real_steps, save, stepper
from common.batching import epoch_order
from common.checkpoint import read_json
from common.device import Device, keep_freed_memory, resolve_device
from common.losses import cosine
from common.options import opt, parse, run_main
from config import PRESETS, Config
from data import Batch, TokenizedDataset
from model import NanoJEPA

CHUNK_LOGITS = 2**25  # logits that exist at a time: 128 MiB in fp32, 667 positions of GPT-2's vocabulary


@dataclass
class BenchConfig(Config):
    batch_size: int = opt(16, "examples per optimiser step", low=1)
    steps: int = opt(40, "steps that each system takes", low=2)
    out: str = opt("", "file to write; by default results/cross_entropy_<device>.json")


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of scale × negative log-likelihood; backward has nothing left to compute.

    Three matrix products a position and no tensor of K × V, as in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx, hidden, head, target, scale):
        kind, K, rows = hidden.device.type, len(hidden), max(1, CHUNK_LOGITS // len(head))
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        x, w = hidden.to(dtype), head.to(dtype)
        loss = torch.zeros((), device=hidden.device)
        hidden_grad, head_grad = torch.empty_like(hidden), torch.zeros_like(head)
        # products in half precision must see numbers near 1, not 1/targets; the factor returns in backward, in fp32
        top = scale.max().clamp(min=1e-30)
        for start in range(0, K, rows):
            part = slice(start, start + rows)
            log_p = F.log_softmax((x[part] @ w.T).float(), -1)  # (k, V)
            at_target = target[part, None]  # (k, 1)
            loss -= (log_p.gather(1, at_target)[:, 0] * scale[part]).sum()
            # d nll / d logits = softmax - one-hot; `scale` multiplies the small side of each product
            minus_one = -torch.ones_like(at_target, dtype=log_p.dtype)
            error = log_p.exp_().scatter_add_(1, at_target, minus_one).to(dtype)
            hidden_grad[part] = (error @ w) * scale[part, None]
            scaled = (x[part] * (scale[part, None] / top)).to(dtype)  # (k, C)
            if dtype == head_grad.dtype:
                head_grad.addmm_(error.T, scaled)
            else:  # accumulate in the head's own precision
                head_grad += error.T @ scaled
        ctx.gradients = hidden_grad, head_grad, top
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        hidden_grad, head_grad, top = ctx.gradients
        del ctx.gradients  # scaled in place: a second backward must fail, not lie
        return hidden_grad.mul_(gradient), head_grad.mul_(gradient * top), None, None


def scaled_linear_cross_entropy(hidden: Tensor, head: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Sum of scale (K,) × F.linear_cross_entropy of hidden (K, C), head (V, C), target (K,) -> ()."""
    return (F.linear_cross_entropy(hidden, head, target, reduction="none") * scale).sum()


class Plain(NanoJEPA):
    """The same model with the logits written out."""

    def cross_entropy(self, hidden: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ self.embed.weight.T, target, reduction="sum")


class OneCall(NanoJEPA):
    """The default objective with the positions of question and decode pass in one product of the output layer."""

    summed: Callable  # (hidden, head, target, scale) -> ()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, n = self.config, batch.loss_denominators
        h = self.hidden_states(batch.tokens, batch.segment, batch.position_ids).flatten(0, 1)  # (B*T, C)
        z_hat, z = h[batch.pred_at], h[batch.eos_at]  # (N, C)
        y = self.decode_hidden_states(z, batch.answer_tokens[:, 1:-1]).flatten(0, 1)[batch.decode_at]  # (K', C)

        hidden, target = torch.cat((h[batch.question_at], y)), torch.cat((batch.question_ids, batch.answer_ids))
        question = h.new_full((len(batch.question_ids),), config.question_weight / n["question"])
        decode = h.new_full((len(batch.answer_ids),), config.decode_weight / n["answer"])
        scale = torch.cat((question, decode)).float()
        l_token = self.summed(hidden, self.embed.weight, target, scale)
        l_jepa = (1 - cosine(z_hat, z.detach())).sum() / n["examples"]
        loss = l_token + config.jepa_weight * l_jepa
        return loss, {"loss": loss.detach()}


class LinearOneCall(OneCall):
    summed = staticmethod(scaled_linear_cross_entropy)


class Chunked(OneCall):
    summed = staticmethod(ChunkedCrossEntropy.apply)


SYSTEMS = {"linear": NanoJEPA, "linear_one_call": LinearOneCall, "plain": Plain, "chunked": Chunked}


def measure(config: Config, data: TokenizedDataset, device: Device) -> dict:
    """Steps of every system on the same batches -> seconds a step, and its ratio to the model as it is."""
    steps = {}
    for name, system in SYSTEMS.items():
        torch.manual_seed(config.seed)
        steps[name] = stepper(system(config), data, device)
    seconds = alternate(steps, epoch_order(data.length, config.batch_size, config.seed, 0))
    ratios = {
        name: quartiles([a / b for a, b in zip(values, seconds["linear"], strict=True)])
        for name, values in seconds.items()
        if name != "linear"
    }
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "batch_size": config.batch_size,
        "vocab_size": config.vocab_size,
        "steps": len(seconds["linear"]),
        "seconds_a_step": {name: statistics.median(values) for name, values in seconds.items()},
        "time_over_linear": ratios,
    }


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(BenchConfig, PRESETS, __doc__.split("\n\n")[0], argv)
    device = resolve_device(config.device, config.precision)
    keep_freed_memory()
    config, data = real_steps(config, config.steps)

    found = measure(config, data, device)
    print(f"{found['hardware']}: {found['steps']} steps of {config.batch_size}, vocabulary {config.vocab_size:,}")
    for name, seconds in found["seconds_a_step"].items():
        ratio = found["time_over_linear"].get(name)
        shown = (
            ", {median:.3f} of linear ({lower_quartile:.3f} to {upper_quartile:.3f})".format(**ratio) if ratio else ""
        )
        print(f"{name:<16}{seconds:9.4f} s a step{shown}")
    path = path_of(config, device, "cross_entropy")
    earlier = read_json(path) if path.is_file() else {}
    save(earlier | {Path(config.run).name: found}, config, device, "cross_entropy")


if __name__ == "__main__":
    run_main(main)
