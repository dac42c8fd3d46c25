"""AdamW for all parameters, or Muon for the Transformers' matrices and AdamW for the rest.

Shapes: N matrices of m rows and n columns, m ≤ n; U, S, V the factors of a matrix's singular value decomposition.
"""

from collections import defaultdict

import torch
from torch import Tensor

from common.options import LoopConfig

MOMENTUM = 0.95
PARTS = {"qkv": 3, "kv": 2, "up": 2}  # layers of a block whose weight is so many matrices, one above the other


def make_optimizer(model: torch.nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW, one fused kernel a step; matrices decay, norm weights do not; every trained parameter is in one group.

    Under --optimizer muon the matrices inside `blocks` are Muon's; a model without blocks is all AdamW's.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = defaultdict(list)  # parts of a weight -> weights
    if config.optimizer == "muon":
        for name in [name for name, p in trained.items() if p.dim() == 2 and "blocks" in name.split(".")]:
            matrices[PARTS.get(name.split(".")[-2], 1)].append(trained.pop(name))
    groups = [
        {"params": [p for p in trained.values() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    assert sum(len(g["params"]) for g in groups) == len(trained)
    groups = [g for g in groups if g["params"]]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)
    return Muon(matrices, adamw, config.lr, config.weight_decay) if matrices else adamw


def orthogonalize(x: Tensor) -> Tensor:
    """Matrices U S Vᵀ (N, m, n) -> about U Vᵀ (N, m, n), singular values 0.7 to 1.2; a zero matrix stays zero.

    Five steps of the Newton-Schulz iteration with Keller Jordan's coefficients, which lift small singular values fast
    and bring none to exactly 1. In bf16 where a GPU computes it, else in fp32.
    """
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-20)  # no singular value above 1, or it diverges
    if x.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        x = x.bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised (Keller Jordan 2024, https://kellerjordan.github.io/posts/muon/).

    Each update is scaled to the root mean square of AdamW's, 0.2, so that learning rate and decoupled weight decay
    carry over (Liu et al. 2025, arXiv 2502.16982, section 2.2). `matrices` are weights by the number of parts that
    they consist of, each orthogonalised by itself; parts of one shape make one batch. What `adamw` holds is stepped by
    it. Its groups and its state are this optimiser's, too: one state_dict, one list of learning rates.

    torch.optim.Muon takes one matrix after the other, knows no parts, and computes in bf16, which a CPU emulates.
    """

    def __init__(self, matrices: dict[int, list[Tensor]], adamw: torch.optim.AdamW, lr: float, weight_decay: float):
        self.adamw = adamw
        groups = [{"params": weights, "parts": parts} for parts, weights in matrices.items()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.param_groups += adamw.param_groups
        adamw.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self.adamw.param_groups = [group for group in self.param_groups if "parts" not in group]
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self) -> None:
        self.adamw.step()
        batches = defaultdict(list)  # (m, n) -> views (m, n): part of a weight, of its update; learning rate
        for group in self.param_groups:
            for weight in group["params"] if "parts" in group else ():
                if weight.grad is None:
                    continue
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
                momentum = self.state[weight]["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                update = weight.grad.lerp(momentum, MOMENTUM)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                for part in zip(weight.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    wide = [x if x.size(0) <= x.size(1) else x.mT for x in part]
                    batches[wide[0].shape].append((*wide, group["lr"]))
        for (_, n), batch in batches.items():
            weights, updates, rates = zip(*batch, strict=True)
            for weight, update, lr in zip(weights, orthogonalize(torch.stack(updates)), rates, strict=True):
                weight.add_(update, alpha=-lr * 0.2 * n**0.5)
