"""The device made of CPU memory: what it refuses as CUDA does, and what it counts."""

import numpy as np
import pytest
import torch
from fake_accelerator import DEVICE, fake_accelerator


@pytest.fixture
def traffic():
    with fake_accelerator() as counted:
        yield counted


@pytest.fixture
def numbers(traffic):
    """0..5 as (2, 3) on the device."""
    made = torch.arange(6.0, device="acc").view(2, 3)
    traffic.clear()
    return made


MIXED = {
    "sum": lambda x: x + torch.ones(2, 3),
    "sum with a scalar of the device": lambda x: torch.ones(2, 3) * x[0, 1],
    "in place": lambda x: torch.ones(2, 3).add_(x),
    "product": lambda x: x @ torch.ones(3, 1),
    "joined": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "stacked scalars": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "where": lambda x: torch.where(x > 1, x, torch.ones(2, 3)),
    "gathered": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
    "an index of the device for a tensor of the host": lambda x: torch.ones(9)[x.long()],
    "linear": lambda x: torch.nn.functional.linear(x, torch.ones(4, 3)),
}


@pytest.mark.parametrize("operation", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("inference", [False, True])
def test_devices_do_not_mix(numbers, operation, inference):
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match="same device"):
        operation(numbers)


@pytest.mark.parametrize("operation", [torch.Tensor.numpy, np.asarray, np.array])
def test_numpy_needs_the_tensor_on_the_host(numbers, operation):
    with pytest.raises(RuntimeError, match="numpy"):  # of CUDA's tensors a TypeError
        operation(numbers)


COUNTED = {
    "arithmetic": (lambda x: (x * 2 + 1).softmax(1).sum(), (0, 0)),
    "a number of the host": (lambda x: x * torch.tensor(2.0), (0, 0)),
    "made there": (lambda x: torch.zeros(3, device=x.device) + torch.arange(3, device=x.device), (0, 0)),
    "scattered": (lambda x: x.new_zeros(3).scatter_reduce(0, x[0].long(), x[0], "amax"), (0, 0)),
    "item": (lambda x: x[0, 0].item(), (1, 0)),
    "float": (lambda x: float(x.sum()), (1, 0)),
    "a condition": (lambda x: bool((x > 1).any()), (1, 0)),
    "to a list": (lambda x: x.tolist(), (1, 0)),
    "to the host": (lambda x: x.cpu(), (1, 0)),
    "copied to the host": (lambda x: torch.zeros(2, 3).copy_(x), (1, 0)),
    "nonzero": (lambda x: x.nonzero(), (1, 0)),
    "unique": (lambda x: torch.unique(x, return_inverse=True), (1, 0)),
    "a boolean index": (lambda x: x[x > 1], (1, 0)),
    "equal": (lambda x: torch.equal(x, x), (1, 0)),
    "an index of the device": (lambda x: x[torch.zeros(2, dtype=torch.long, device=x.device)], (0, 0)),
    "an index of the host": (lambda x: x[torch.tensor([1, 0])], (0, 1)),
    "a list as index": (lambda x: x[[1, 0]], (0, 1)),
    "from the host": (lambda x: torch.ones(3).to(x.device), (0, 1)),
    "from a list": (lambda x: torch.tensor([1.0, 2.0], device=x.device), (0, 1)),
    "new from a list": (lambda x: x.new_tensor([1.0, 2.0]), (0, 1)),
    "from an array": (lambda x: torch.as_tensor(np.ones(3), device=x.device), (0, 1)),
    "a model": (lambda x: torch.nn.Linear(3, 4).to(x.device), (0, 2)),
}


@pytest.mark.parametrize(("operation", "expected"), COUNTED.values(), ids=COUNTED)
@pytest.mark.parametrize("inference", [False, True])
def test_reads_and_uploads_are_counted(numbers, traffic, operation, expected, inference):
    with torch.inference_mode(inference):
        operation(numbers)
    assert traffic.counts == expected, str(traffic)


def test_places_are_lines_of_our_code(numbers, traffic):
    from textregion.pooling import nonempty
    from textregion.resampling import lerp_columns

    nonempty(numbers).any().item()
    lerp_columns(numbers[None], [torch.tensor([0, 1]), torch.tensor([1, 2]), numbers[0, :2]])
    assert traffic.reads == ["elsewhere aten::_local_scalar_dense"]
    assert [place.split(":")[0] for place in traffic.uploads] == ["textregion/resampling.py"] * 2


def test_values_views_and_writes_are_real(numbers):
    numbers[0, 1:] = 9
    numbers.T[0].mul_(2)
    numbers[numbers > 8] += 1
    assert numbers.cpu().tolist() == [[0, 10, 10], [6, 4, 5]]
    assert numbers.device == DEVICE


def test_gradients_are_those_of_the_cpu(traffic):
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(4, 3)).square().sum().backward()
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    moved = torch.nn.Linear(3, 2)
    moved.load_state_dict(layer.state_dict())
    moved.to("acc")(torch.ones(4, 3, device="acc")).square().sum().backward()
    assert torch.equal(moved.weight.grad.cpu(), expected)


def test_a_device_without_float64():
    with fake_accelerator(float64=False):
        for make in (
            lambda: torch.ones(2, device="acc").double(),
            lambda: torch.zeros(2, dtype=torch.float64, device="acc"),
            lambda: torch.tensor([1.0], dtype=torch.float64, device="acc"),
            lambda: torch.ones(2, dtype=torch.float64).to("acc"),
        ):
            with pytest.raises(TypeError, match="no float64"):
                make()


def test_the_device_is_there_within_the_block_only(traffic):
    from textregion.devices import AVAILABLE, resolve_device

    assert resolve_device("acc").type == "acc"
    assert AVAILABLE["acc"]()
