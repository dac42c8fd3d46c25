"""common/optimizers.py: which parameters Muon takes, what it makes of a gradient, and that a resumed run goes on."""

import latent_tiny
import pytest
import reasoner_tiny
import tiny
import torch
import torch.nn as nn
from helpers import call

import train
from common.loop import set_learning_rate
from common.optimizers import Muon, make_optimizer, orthogonalize
from common.options import LoopConfig
from common.transformer import Transformer, positions_of
from latent_stack import train as latent_train
from reasoner import train as reasoner_train
from reasoner.baselines import Coupled
from reasoner.model import Reasoner, Talker

MUON = LoopConfig(optimizer="muon", lr=0.01, weight_decay=0.3)


def random_matrices(N: int, m: int, n: int) -> torch.Tensor:
    return torch.randn(N, m, n, generator=torch.Generator().manual_seed(0))


def toy() -> nn.Module:
    """Embedding, two blocks, head."""
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Embedding(5, 16), "trunk": Transformer(2, 16, 2), "head": nn.Linear(16, 5)})


def step(model: nn.Module, optimizer) -> float:
    """One step towards the token before each -> the loss before the step."""
    tokens = torch.arange(5)[None]
    x = model["embed"](tokens)
    logits = model["head"](model["trunk"](x, positions_of(x)))
    loss = nn.functional.cross_entropy(logits[0], tokens[0].roll(1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# --------------------------------------------------------------------------------------- Newton-Schulz


@pytest.mark.parametrize("m, n", ((8, 8), (8, 24), (32, 48)))
def test_singular_values_come_near_1_and_singular_vectors_stay(m, n):
    x = random_matrices(4, m, n)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    found = u.mT @ orthogonalize(x) @ vh.mT  # diagonal where the vectors are those of x
    kept = s > 0.02 * s[:, :1]  # the least of a square matrix are lifted, but not all the way
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    assert (diagonal[kept] - 1).abs().max() < 0.35 and kept.float().mean() > 0.9
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-4


def test_a_batch_gives_what_its_matrices_give_one_by_one():
    x = random_matrices(5, 8, 24) * torch.tensor([1e-6, 1e-3, 1.0, 1e3, 0.0])[:, None, None]
    torch.testing.assert_close(orthogonalize(x), torch.cat([orthogonalize(one[None]) for one in x]))
    assert not orthogonalize(x)[-1].any(), "a matrix without a gradient moves"


# ---------------------------------------------------------------------------------------------- groups


def test_norm_weights_do_not_decay_and_every_parameter_is_optimised_once():
    model = Transformer(2, 16, 2)
    model.blocks[0].requires_grad_(False)
    optimizer = make_optimizer(model, LoopConfig(weight_decay=0.3))
    grouped = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == sum(p.requires_grad for p in model.parameters())
    assert all(g["weight_decay"] == (0.3 if p.dim() >= 2 else 0) for g in optimizer.param_groups for p in g["params"])


@pytest.mark.parametrize(
    "make",
    (
        lambda: tiny.tiny_model(target="ema", predictor="mlp"),
        lambda: reasoner_tiny.tiny_model(Reasoner),
        lambda: reasoner_tiny.tiny_model(Talker, talker="dual"),
        lambda: reasoner_tiny.tiny_model(Coupled, model="coupled-talker"),
        lambda: latent_tiny.tiny_stack(middle="transformer", lora_encoder=2, lora_decoder=2),
    ),
    ids=("nanojepa", "reasoner", "talker", "coupled", "latent_stack"),
)
def test_every_trained_parameter_is_in_one_group_and_only_matrices_of_blocks_are_muons(make):
    model = make()
    optimizer = make_optimizer(model, MUON)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(grouped) == len(trained) and {*map(id, grouped)} == {*map(id, trained.values())}

    muons = {id(p) for group in optimizer.param_groups if "parts" in group for p in group["params"]}
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    assert not muons & {id(m.weight) for m in embeddings}
    assert muons == {id(p) for name, p in trained.items() if "blocks." in name and p.dim() == 2}


def test_queries_keys_and_values_are_orthogonalised_each_by_itself():
    """As one matrix of 3C rows, the largest of them would decide over all."""
    model = toy()
    optimizer = make_optimizer(model, MUON)
    weight = model["trunk"].blocks[0].attn.qkv.weight
    before, gradient = weight.detach().clone(), random_matrices(3, 16, 16)
    weight.grad = (gradient * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]).flatten(0, 1)
    optimizer.step()
    expected = before * (1 - 0.01 * 0.3) - 0.01 * 0.2 * 4 * orthogonalize(gradient).flatten(0, 1)
    torch.testing.assert_close(weight.detach(), expected)


def test_a_model_without_blocks_and_a_run_without_the_option_are_all_adamws():
    for model, config in ((nn.Linear(4, 4), MUON), (toy(), LoopConfig())):
        assert type(make_optimizer(model, config)) is torch.optim.AdamW


# ------------------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("shape", ((16, 16), (8, 24), (24, 8)))
def test_steps_are_those_of_torchs_muon_up_to_its_bf16(shape):
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(*shape, bias=True)])})
    weight = model["blocks"][0].weight
    other = nn.Parameter(weight.detach().clone())
    ours = make_optimizer(model, MUON)
    theirs = torch.optim.Muon([other], lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    before = other.detach().clone()
    for gradient in random_matrices(4, *weight.shape):
        weight.grad, other.grad = gradient, gradient.clone()
        ours.step()
        theirs.step()
    assert (weight - other).norm() < 0.03 * (other - before).norm()


def test_what_is_not_muons_takes_adamws_steps():
    model, plain = toy(), toy()
    ours, theirs = make_optimizer(model, MUON), make_optimizer(plain, LoopConfig(lr=0.01, weight_decay=0.3))
    for rate in (0.01, 0.002):
        for trained, optimizer in ((model, ours), (plain, theirs)):
            set_learning_rate(optimizer, rate)
            for i, p in enumerate(trained.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
            optimizer.step()
    for name in ("embed.weight", "head.weight", "head.bias", "trunk.blocks.1.norm2.weight"):
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name)), name
    assert not torch.equal(model["trunk"].blocks[0].up.weight, plain["trunk"].blocks[0].up.weight)


def test_the_loss_of_a_small_problem_falls():
    model = toy()
    optimizer = make_optimizer(model, MUON)
    losses = [step(model, optimizer) for _ in range(40)]
    assert isinstance(optimizer, Muon) and losses[0] > 1 and losses[-1] < 0.1


def test_a_step_goes_on_bit_for_bit_from_a_saved_state(tmp_path):
    """Loaded groups are new objects: an inner AdamW that keeps the old ones would keep the old learning rate, too."""
    models = toy(), toy()
    optimizers = [make_optimizer(model, MUON) for model in models]
    for _ in range(3):
        step(models[0], optimizers[0])
    torch.save([models[0].state_dict(), optimizers[0].state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    models[1].load_state_dict(weights)
    optimizers[1].load_state_dict(state)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            set_learning_rate(optimizer, 0.003)
            step(model, optimizer)
    for name, p in models[0].named_parameters():
        assert torch.equal(p, models[1].get_parameter(name)), name


def test_a_gradient_that_overflowed_under_loss_scaling_is_not_applied():
    model = toy()
    optimizer = make_optimizer(model, MUON)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    step(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for finite in (False, True):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1.0 if finite else float("inf"))
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        assert finite != all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------ the systems


@pytest.mark.parametrize(
    "script, words",
    (
        (train, [*tiny.TINY, "--target", "ema", "--no-final-eval"]),
        (reasoner_train, [*reasoner_tiny.TINY, "--phase", "pretrain"]),
    ),
    ids=("nanojepa", "reasoner"),
)
def test_training_takes_the_option_and_resumes_bit_for_bit(script, words, tmp_path):
    short = [*words, "--optimizer", "muon", "--max-steps"]
    call(script, *short, 6, "--run", tmp_path / "whole")
    call(script, *short, 3, "--run", tmp_path / "broken")
    call(script, "--max-steps", 6, "--resume", "--run", tmp_path / "broken", "--device", "cpu")
    folder = "pretrain" if script is reasoner_train else ""
    whole, broken = (torch.load(tmp_path / run / folder / "state.pt", weights_only=True) for run in ("whole", "broken"))
    assert all(torch.equal(p, broken["model"][name]) for name, p in whole["model"].items())
    assert any("momentum" in state for state in whole["optimizer"]["state"].values())


def test_a_latent_stack_trains_its_middle_transformer_with_muon(tmp_path):
    words = ["--optimizer", "muon", "--middle", "transformer", "--max-steps", 3, "--n-eval", 2]
    call(latent_train, *latent_tiny.options(tmp_path), *words)
    state = torch.load(tmp_path / "state.pt", weights_only=True)["optimizer"]["state"]
    assert any("momentum" in values for values in state.values())
