"""common/losses.py: the cosine, the cross-entropy, and the regularisers against collapse."""

import pytest
import torch
import torch.nn.functional as F

from common.losses import cosine, covariance_loss, cross_entropy, sigreg_loss, variance_loss, vicreg_loss


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_a_cosine_ignores_length_and_is_in_fp32():
    a, b = torch.randn(6, 8), torch.randn(6, 8)
    slow = torch.stack([x @ y / (x.norm() * y.norm()) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(cosine(3 * a, 0.1 * b), slow)
    assert cosine(a.bfloat16(), b.bfloat16()).dtype is torch.float32


@pytest.mark.parametrize("K, V", ((0, 11), (1, 11), (50, 11), (700, 50_304)))
def test_the_cross_entropy_is_that_of_its_logits_in_value_and_gradient(K, V):
    """Whatever pieces the output layer is computed in, if all logits would not fit; of no position it is zero."""
    hidden, head = torch.randn(K, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
    target = torch.randint(0, V, (K,))
    fast, slow = cross_entropy(hidden, head, target), F.cross_entropy(hidden @ head.T, target, reduction="sum")
    torch.testing.assert_close(fast, slow)
    assert K or fast == 0
    fast_grads, slow_grads = (torch.autograd.grad(3 * loss, (hidden, head)) for loss in (fast, slow))
    torch.testing.assert_close(fast_grads, slow_grads, rtol=1e-3, atol=1e-4)


def test_the_variance_hinge_is_zero_for_spread_latents_and_large_for_collapsed_ones():
    spread = 3 * torch.randn(512, 16)
    assert variance_loss(spread) == 0 and variance_loss(torch.ones(512, 16)) > 0.9


def test_the_covariance_term_sees_correlated_dimensions():
    z = torch.randn(4096, 8)
    assert covariance_loss(z) < 0.02 < 1 < covariance_loss(torch.cat([z[:, :4]] * 2, 1))


def test_the_covariance_term_is_the_sum_over_pairs_of_dimensions():
    z = torch.randn(32, 5)
    cov = torch.cov(z.T)
    slow = sum(cov[i, j] ** 2 for i in range(5) for j in range(5) if i != j) / 5
    torch.testing.assert_close(covariance_loss(z), slow)


def test_vicreg_weighs_variance_and_covariance_as_its_paper_does():
    z = 0.5 * torch.randn(64, 8)
    torch.testing.assert_close(25 * vicreg_loss(z), 25 * variance_loss(z) + covariance_loss(z))


def test_sigreg_is_least_for_a_gaussian():
    gauss = torch.randn(1024, 16)
    least = sigreg_loss(gauss)
    for other in (torch.zeros(1024, 16), 3 * gauss, gauss + 2, gauss.sign() * torch.randn(1024, 1)):
        assert sigreg_loss(other) > 2 * least


@pytest.mark.parametrize("loss", (vicreg_loss, sigreg_loss))
def test_a_regulariser_pushes_nearly_collapsed_latents_apart(loss):
    z = (1 + 0.01 * torch.randn(64, 8)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z), z)
    assert (z - 0.1 * gradient).std(0).mean() > z.std(0).mean()
