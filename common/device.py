"""Where tensors live, in what precision matrix products are computed, and which processes share the work."""

import ctypes
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from common.options import UserError
from common.transformer import Transformer


@dataclass(frozen=True)
class Device:
    """`device` and the `dtype` of matrix products; `why` is printed once at the start."""

    device: torch.device
    dtype: torch.dtype
    why: str

    def autocast(self):
        """Context of a forward pass: mixed precision, or nothing under fp32."""
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(self.device.type, self.dtype)

    def synchronize(self) -> None:
        """Wait for the device: before reading a clock, nowhere else."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def resolve_device(name: str = "auto", precision: str = "auto") -> Device:
    """bf16 where the GPU computes it, fp16 on older GPUs, fp32 on everything else.

    A CPU never gets bf16: without AMX or AVX512-BF16 instructions its bf16 matrix products are emulated, about a
    hundred times slower than fp32.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, here in present.items() if here)
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        if not present[device.type]:
            raise RuntimeError
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, KeyError, ValueError):
        here = ", ".join(kind for kind, is_here in present.items() if is_here)
        raise UserError(f"--device {name}: no such device here; present: {here}") from None

    if device.type != "cuda":
        if precision not in ("auto", "fp32"):
            raise UserError(
                f"--precision {precision} needs a CUDA GPU; on {device.type} half precision is emulated and slow"
            )
        return Device(device, torch.float32, f"{device.type}, fp32 (no fast half precision here)")

    torch.set_float32_matmul_precision("high")
    why = "as asked"
    if precision == "auto":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bf16" if bf16 else "fp16"
        why = "this GPU computes bf16" if bf16 else "this GPU is older than bf16; losses are scaled"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return Device(device, dtype, f"{torch.cuda.get_device_name(device)}, {precision} ({why})")


def keep_freed_memory() -> None:
    """On Linux with glibc: this process keeps large blocks that it freed, instead of giving each back to the system.

    A training step on a CPU frees and asks again for the same hundreds of MiB; fresh pages cost it a tenth of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: nothing to do
        return
    mmap_max, trim_threshold = -4, -1  # from malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def whole(x: Tensor) -> Tensor:
    """A tensor, gathered from all processes if it is sharded."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor -> this process' shard of it, if `like` is a sharded one of that shape."""
    if not isinstance(like, DTensor) or x.shape != like.shape:
        return x
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)  # no process asks another


@contextmanager
def lost_process_reported():
    """Where processes wait for each other: one that is gone ends the others, each with one line and no traceback."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).split("] ", 1)[-1].split(". ")[0][:300]  # gloo's begins with its own source file
        raise UserError(
            f"another process of this training ended or cannot be reached ({reason}); its own message says why. "
            "The last checkpoint is intact: --resume continues it"
        ) from None


class Distributed:
    """This process among those that torchrun started; alone without torchrun."""

    def __init__(self, device: torch.device):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.main, self.device = self.rank == 0, device
        if self.world > 1 and not dist.is_initialized():
            with lost_process_reported():
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def wrap(self, model: torch.nn.Module, shard: bool = False) -> torch.nn.Module:
        """The model on its device; of several processes one whose gradients are averaged over all of them.

        With `shard` each holds its part of every parameter, and gathers those of a block while it computes with them
        (FSDP2); what comes after this sees DTensors.
        """
        if not shard or self.world == 1:
            model.to(self.device)
        if self.world == 1:
            return model
        if not shard:
            return DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)
        mesh = init_device_mesh(self.device.type, (self.world,))
        blocks = [block for module in model.modules() if isinstance(module, Transformer) for block in module.blocks]
        for module in (*blocks, model):  # each moves to the device as it is sharded: the whole need not fit there
            fully_shard(module, mesh=mesh)
        return model

    def sync_context(self, model, last: bool):
        """Gradients are exchanged at the last micro-batch only; sharded ones at each, or they had to be whole."""
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def gather(self, state: dict) -> dict:
        """A state_dict, entered by all processes -> in the main one the same with whole tensors instead of shards."""
        found = {}
        for name, value in state.items():
            if isinstance(value, DTensor):
                value = whole(value).cpu() if self.main else whole(value).new_empty(0)
            found[name] = self.gather(value) if isinstance(value, dict) else value
        return found

    @lost_process_reported()
    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def print(self, *words) -> None:
        """Print once, whatever the number of processes."""
        if self.main:
            print(*words)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
