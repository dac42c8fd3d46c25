"""common/device.py: the device and the precision that a run gets, and the one process that is alone."""

import pytest
import torch

from common.device import Device, Distributed, resolve_device
from common.options import UserError


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_without_an_accelerator_auto_is_the_cpu_in_fp32_and_prints_why(only_cpu):
    found = resolve_device()
    assert (found.device.type, found.dtype) == ("cpu", torch.float32)
    assert "cpu" in found.why and "fp32" in found.why


@pytest.mark.parametrize("name", ("cuda", "cuda:0", "mps", "tpu", "meta", "", "cuda:x"))
def test_a_device_that_is_not_there_is_refused_with_those_that_are(only_cpu, name):
    with pytest.raises(UserError, match=f"--device {name}.*: .*present: cpu$"):
        resolve_device(name)


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_half_precision_on_a_cpu_is_refused(only_cpu, precision):
    """Emulated bf16 matrix products on a CPU are a hundred times slower and look like a hang."""
    with pytest.raises(UserError, match=f"--precision {precision}"):
        resolve_device("cpu", precision)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A machine with two GPUs, as far as `resolve_device` asks; this process is the second -> indices it chose."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setenv("LOCAL_RANK", "1")
    yield chosen
    torch.set_float32_matmul_precision("highest")


def test_cuda_by_name_takes_this_process_own_gpu(pretended_gpu):
    """`torch.cuda.set_device` refuses a device without an index: `--device cuda` once failed on every GPU machine."""
    assert resolve_device("cuda").device == resolve_device("auto").device == torch.device("cuda:1")
    assert pretended_gpu == [1, 1]


@pytest.mark.parametrize("capability, dtype", (((8, 6), torch.bfloat16), ((7, 5), torch.float16)))
def test_a_gpu_computes_bf16_if_it_can_and_fp16_if_not(pretended_gpu, monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_device("cuda").dtype is dtype
    assert resolve_device("cuda", "fp32").dtype is torch.float32


def test_under_fp32_nothing_is_cast():
    with Device(torch.device("cpu"), torch.float32, "").autocast():
        assert not torch.is_autocast_enabled("cpu")
    with Device(torch.device("cpu"), torch.bfloat16, "").autocast():
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16 and torch.is_autocast_enabled("cpu")


def test_a_process_alone_is_the_main_one_and_its_sums_are_its_own(capsys):
    alone, model = Distributed(torch.device("cpu")), torch.nn.Linear(1, 1)
    assert (alone.rank, alone.world, alone.main) == (0, 1, True)
    assert alone.wrap(model) is model and alone.sum([1.5, 2.0]) == [1.5, 2.0]
    alone.wait()
    alone.print("once")
    alone.close()
    assert capsys.readouterr().out == "once\n"
