"""Losses as pure functions of tensors.

Shapes: N latents, C width, K positions with a target, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of rows: (N, C), (N, C) -> (N,) in -1…1, in fp32."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def cross_entropy(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """Next-token cross-entropy of positions (K, C) under the output layer (V, C), target (K,) -> nats, summed, ()."""
    return F.linear_cross_entropy(hidden, head, target, reduction="sum")


# ------------------------------------------------------------------------------- token cross-entropy

CHUNK_LOGITS = 2**25  # logits that exist at a time: 128 MiB in fp32, 667 positions of GPT-2's vocabulary


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Softmax and its gradient are taken while a chunk's logits exist; backward has nothing left to compute.

    Three matrix products a position and no tensor of K × V, as in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx, h, weight, target, scale, wants_grad):
        kind, K, rows = h.device.type, len(h), max(1, CHUNK_LOGITS // len(weight))
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype
        x, w = h.to(dtype), weight.to(dtype)
        nll = torch.empty(K, device=h.device)
        ctx.grads = (torch.empty_like(h), torch.zeros_like(weight)) if wants_grad else None
        # products in half precision must see numbers near 1, not 1/targets; the factor returns in backward, in fp32
        ctx.top = scale.max().clamp(min=1e-30) if K else scale.new_ones(())
        for start in range(0, K, rows):
            part = slice(start, start + rows)
            log_p = F.log_softmax((x[part] @ w.T).float(), -1)  # (k, V)
            at_target = target[part, None]
            nll[part] = -log_p.gather(1, at_target)[:, 0]
            if wants_grad:  # d nll / d logits = softmax - one-hot; `scale` multiplies the small side of each product
                error = (
                    log_p.exp_().scatter_add_(1, at_target, -torch.ones_like(at_target, dtype=log_p.dtype)).to(dtype)
                )
                h_grad, weight_grad = ctx.grads
                h_grad[part] = (error @ w) * scale[part, None]
                scaled = (x[part] * (scale[part, None] / ctx.top)).to(dtype)
                if dtype == weight_grad.dtype:
                    weight_grad.addmm_(error.T, scaled)
                else:  # accumulate in the weight's own precision
                    weight_grad += error.T @ scaled
        ctx.mark_non_differentiable(nll)
        return (nll * scale).sum(), nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, _):
        h_grad, weight_grad = ctx.grads
        del ctx.grads  # scaled in place: a second backward must fail, not lie
        return h_grad.mul_(gradient), weight_grad.mul_(gradient * ctx.top), None, None, None


@torch.compiler.disable  # the number of chunks depends on the batch: compiled, each number would be another program
def scaled_cross_entropy(h: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy of positions h (K, C) under the head `weight` (V, C), target (K,) int64, scale (K,).

    -> (sum of scale * nll, (); nll in nats, (K,) fp32, without gradient).
    """
    return _ChunkedCrossEntropy.apply(h, weight, target, scale, torch.is_grad_enabled())


@dataclass(frozen=True)
class TokenTerm:
    """One term of a token loss: `weight` × the cross-entropy of `target` (K,) given hidden states (K, C), summed over
    positions and divided by `denominator`, the number of such positions in the whole optimiser step."""

    weight: float
    hidden: Tensor
    target: Tensor
    denominator: float


def token_loss(head: Tensor, terms: dict[str, TokenTerm]) -> tuple[Tensor, dict[str, Tensor]]:
    """Output layer (V, C), named terms -> (their weighted sum, (); each term unweighted, without gradient).

    All positions go through the output layer in one product: two would make a second gradient as large as the layer.
    """
    sizes = [len(t.target) for t in terms.values()]
    scale = torch.cat(
        [
            head.new_full((k,), t.weight / t.denominator, dtype=torch.float32)
            for k, t in zip(sizes, terms.values(), strict=True)
        ]
    )
    hidden, target = torch.cat([t.hidden for t in terms.values()]), torch.cat([t.target for t in terms.values()])
    loss, nll = scaled_cross_entropy(hidden, head, target, scale)
    parts = zip(terms.items(), nll.split(sizes), strict=True)
    return loss, {name: part.sum() / term.denominator for (name, term), part in parts}


# --------------------------------------------------------------------------------- against collapse


def variance_loss(z: Tensor, eps: float = 1e-4) -> Tensor:
    """VICReg's variance hinge (Bardes et al. 2022, arXiv 2105.04906, eq. 1): z (N, C) -> (), 0 once every
    dimension has standard deviation 1 over the batch."""
    return F.relu(1 - (z.float().var(0) + eps).sqrt()).mean()


def covariance_loss(z: Tensor) -> Tensor:
    """VICReg's covariance term (ibid., eq. 3): z (N, C) -> (), the squared off-diagonal covariances, summed, over C."""
    z = z.float() - z.float().mean(0)
    cov = z.T @ z / (len(z) - 1)
    return (cov.square().sum() - cov.diagonal().square().sum()) / z.size(1)


def vicreg_loss(z: Tensor) -> Tensor:
    """VICReg's two terms against collapse in the paper's proportion, 25 to 1: z (N, C) -> ()."""
    return variance_loss(z) + 0.04 * covariance_loss(z)


def sigreg_loss(z: Tensor, directions: int = 256, knots: int = 17) -> Tensor:
    """SIGReg of LeJEPA (Balestriero & LeCun 2025, arXiv 2511.08544): z (N, C) -> (), 0 for an isotropic Gaussian.

    The Epps-Pulley statistic, N * integral |phi_hat(t) - exp(-t²/2)|² exp(-t²/2) dt over t in -5…5, of the batch's
    empirical characteristic function phi_hat along random directions, averaged; the trapezoidal rule on `knots`.
    """
    A = F.normalize(torch.randn(z.size(1), directions, device=z.device), dim=0)
    t = torch.linspace(-5, 5, knots, device=z.device)
    gauss = torch.exp(-t.square() / 2)
    angle = (z.float() @ A)[..., None] * t  # (N, directions, knots)
    error = (angle.cos().mean(0) - gauss).square() + angle.sin().mean(0).square()
    return len(z) * torch.trapezoid(error * gauss, t, dim=-1).mean()
