"""The smallest thing that `fit` trains: a linear layer on random numbers, a few steps an epoch."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from common.batching import BatchMixin
from common.log import read_log
from common.loop import fit
from common.options import LoopConfig

STEPS = 6  # of an epoch


@dataclass
class Numbers(BatchMixin):
    x: Tensor  # (B, 4)
    size: int  # B of the whole step

    @property
    def n_tokens(self) -> int:
        return len(self.x)


class Line(nn.Module):
    """What `fit` asks of a model and nothing else: parameters, and model(batch) -> (loss, metrics)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.dropout, self.linear = nn.Dropout(0.2), nn.Linear(4, 4)

    def forward(self, batch: Numbers):
        loss = (self.linear(self.dropout(batch.x)) - 1).square().mean(1).sum() / batch.size
        return loss, {"loss": loss.detach(), "rows": torch.tensor(float(len(batch.x)))}


def batches(epoch: int, k: int, grad_accum: int = 1):
    """The micro-batches of a step."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * epoch + k))
    return [Numbers(part, 8) for part in x.chunk(grad_accum)]


def toy_config(run: Path, **changes) -> LoopConfig:
    run.mkdir(exist_ok=True)
    values = dict(run=str(run), epochs=3, lr=0.1, warmup_steps=2, log_every=2, device="cpu")
    return LoopConfig(**values | changes)


def trained(run: Path, make=batches, **changes) -> dict:
    """Line, fitted; options of `fit` among the changes -> its summary."""
    named = {key: changes.pop(key) for key in ("validate", "after_step", "progress", "draw") if key in changes}
    return fit(Line(), STEPS, make, toy_config(run, **changes), **named)


def logged(run: Path) -> tuple[list[dict], list[dict]]:
    """The log without what clocks measure."""
    clocks = ("seconds", "tokens_per_second")
    return tuple([{k: v for k, v in row.items() if k not in clocks} for row in rows] for rows in read_log(run))
