import time
from contextlib import nullcontext

import pytest
import torch

from utils.errors import InputError
from utils.runtime import Stages, autocast, resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_automatic_device_exists():
    device = resolve_device("auto")
    assert (device.type == "cuda") == torch.cuda.is_available()
    assert resolve_device() == device
    torch.zeros(1, device=device)


def test_named_devices():
    assert resolve_device("cpu") == resolve_device(CPU) == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu0"])
def test_unknown_devices(name):
    with pytest.raises(InputError, match="expected auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["xpu", "meta", "mps", "cuda"])
def test_absent_devices(name):
    present = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    if present.get(name):
        assert resolve_device(name).type == name
        return
    with pytest.raises(InputError, match=f"device {name} is not available here"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", CPU, torch.float32),
        ("auto", CUDA, torch.float16),
        ("fp32", CUDA, torch.float32),
        ("bf16", CPU, torch.bfloat16),
        ("bfloat16", CPU, torch.bfloat16),
        ("half", CUDA, torch.float16),
        ("fp16", CUDA, torch.float16),
        (torch.float32, CUDA, torch.float32),
    ],
)
def test_dtypes(dtype, device, expected):
    assert resolve_dtype(dtype, device) == expected


@pytest.mark.parametrize("dtype", ["float64", "int8", "", "FP16"])
def test_unknown_dtypes(dtype):
    with pytest.raises(InputError, match="expected auto, float32, float16, bfloat16"):
        resolve_dtype(dtype, CPU)


@pytest.mark.parametrize("dtype", ["float16", "fp16", torch.float16])
def test_half_precision_on_a_cpu_is_refused(dtype):
    with pytest.raises(InputError, match="CPU"):
        resolve_dtype(dtype, CPU)


def test_only_floating_dtypes():
    with pytest.raises(InputError, match="expected auto, float32"):
        resolve_dtype(torch.int64, CPU)


def test_autocast_on_a_cpu_does_nothing():
    assert isinstance(autocast(CPU, torch.bfloat16), nullcontext)


def test_stages_sum_seconds_and_calls():
    stages = Stages()
    for _ in range(3):
        with stages("sleep"):
            time.sleep(0.01)
    with pytest.raises(KeyError), stages("fail"):
        raise KeyError
    assert stages.calls == {"sleep": 3, "fail": 1}
    assert 0.03 <= stages.seconds["sleep"] < 1
    assert 0 <= stages.seconds["fail"] < 0.01
