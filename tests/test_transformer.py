"""common/transformer.py: rotary positions, attention with a mask and with a cache, the block."""

from functools import partial

import pytest
import torch
import torch.nn as nn

from common.options import UserError
from common.transformer import Transformer, apply_rotary_emb, positions_of, rotary_cos_sin


def tiny(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(n_layer=2, n_embd=32, n_head=2, **options).eval()


def embeddings(B: int = 3, T: int = 7) -> torch.Tensor:
    return torch.randn(B, T, 32, generator=torch.Generator().manual_seed(1))


def test_the_complex_rotation_equals_the_real_one():
    """The CPU multiplies complex numbers; other devices take the four real products."""
    x, position_ids = torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 9]])
    a, b = x[..., 0::2], x[..., 1::2]
    angle = position_ids[:, None, :, None] * 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    real = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)
    torch.testing.assert_close(apply_rotary_emb(x, rotary_cos_sin(position_ids, 8)), real)


def test_a_rotated_product_depends_on_the_distance_alone():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(i, j):
        turned = (apply_rotary_emb(x, rotary_cos_sin(torch.tensor([[at]]), 16)) for x, at in ((q, i), (k, j)))
        return (next(turned) * next(turned)).sum()

    torch.testing.assert_close(product(5, 2), product(103, 100), rtol=1e-4, atol=1e-4)
    assert not torch.isclose(product(5, 2), product(5, 3))


@pytest.mark.parametrize("options", ({}, {"qk_norm": True}, {"norm": partial(nn.RMSNorm, eps=1e-6)}, {"ends": False}))
def test_without_a_mask_attention_is_causal(options):
    model, x = tiny(**options), embeddings()
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(model(x, positions_of(x)), model(x, positions_of(x), causal))
    later = x.clone()
    later[:, 4:] += 1
    assert torch.equal(model(later, positions_of(x))[:, :4], model(x, positions_of(x))[:, :4])


@pytest.mark.parametrize("qk_norm", (False, True))
def test_with_a_cache_token_by_token_gives_the_same_hidden_states(qk_norm):
    model, x = tiny(qk_norm=qk_norm), embeddings()
    cache, at, parts = [[] for _ in model.blocks], positions_of(x), []
    parts.append(model(x[:, :3], at[:, :3], None, cache))
    for t in range(3, 7):
        everything = torch.ones(1, 1, 1, t + 1, dtype=torch.bool)
        parts.append(model(x[:, t : t + 1], at[:, t : t + 1], everything, cache))
    torch.testing.assert_close(torch.cat(parts, 1), model(x, at), rtol=1e-4, atol=1e-5)


def test_what_is_masked_moves_nothing():
    model, x = tiny(), embeddings(1)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    mask[:, 2] = False
    mask[2, 2] = True
    before = model(x, positions_of(x), mask[None, None])
    x[0, 2] = 1e3 * torch.randn(32)
    after = model(x, positions_of(x), mask[None, None])
    others = [i for i in range(7) if i != 2]
    assert torch.equal(before[0, others], after[0, others])


def test_under_qk_norm_the_length_of_a_query_does_not_matter():
    model, x = tiny(qk_norm=True), embeddings()
    attention, cos_sin = model.blocks[0].attn, rotary_cos_sin(positions_of(x), model.head_dim)
    before = attention(x, cos_sin, None)
    with torch.no_grad():
        attention.qkv.weight[:64] *= 10  # queries and keys
    torch.testing.assert_close(attention(x, cos_sin, None), before, rtol=1e-4, atol=1e-5)


def test_residual_branches_start_smaller_the_deeper_the_network():
    for n_layer in (1, 8):
        model = Transformer(n_layer, 64, 2)
        branch, other = (float(layer.weight.detach().std()) for layer in (model.blocks[0].down, model.blocks[0].up))
        assert other == pytest.approx(64**-0.5, rel=0.1)
        assert branch == pytest.approx(64**-0.5 * (2 * n_layer) ** -0.5, rel=0.1)


def test_without_ends_an_empty_stack_gives_back_what_came_in():
    x = embeddings()
    assert torch.equal(Transformer(0, 32, 2, ends=False)(x, positions_of(x)), x)


def test_dropout_is_for_training_alone():
    model, x = tiny(dropout=0.5), embeddings()
    assert torch.equal(model(x, positions_of(x)), model(x, positions_of(x)))
    model.train()
    assert not torch.equal(model(x, positions_of(x)), model(x, positions_of(x)))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="--n-embd 30 must be a multiple of twice --n-head 4"):
        Transformer(1, 30, 4)
