"""Losses as pure functions of tensors.

Shapes: N latents, C width, K positions with a target, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of rows: (N, C), (N, C) -> (N,) in -1…1, in fp32."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def cross_entropy(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """Next-token cross-entropy of positions (K, C) under the output layer (V, C), target (K,) -> nats, summed, ()."""
    return F.linear_cross_entropy(hidden, head, target, reduction="sum")


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
