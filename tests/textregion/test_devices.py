"""Names of devices, and small tensors that go there and back together."""

import ast
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.devices import (
    AVAILABLE,
    _packed,
    _unpack,
    autocast,
    constants,
    device_facts,
    free_memory,
    peak_memory,
    process_device,
    read,
    reset_peak_memory,
    resolve_device,
    resolve_dtype,
    to_device,
    upload,
)
from textregion.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("cuda", "mps")
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


def test_pinned_memory_changes_nothing_on_a_cpu():
    array = torch.arange(12, dtype=torch.uint8).view(3, 4).numpy()
    assert torch.equal(to_device(array, CPU), torch.from_numpy(array))
    assert free_memory(CPU) is None


PARTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 7), max_size=3),
        st.sampled_from([torch.bool, torch.uint8, torch.float16, torch.float32, torch.int64]),
    ),
    max_size=5,
)


@given(PARTS)
def test_packed_tensors_come_back_as_they_were(parts):
    tensors = [torch.rand(tuple(shape)).mul(100).to(dtype) for shape, dtype in parts]
    tensors = [tensor.T if tensor.ndim == 2 else tensor for tensor in tensors]
    if tensors:
        found = _unpack(_packed(tensors), tensors)
        assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(found, tensors, strict=True))


def test_on_a_cpu_nothing_is_copied():
    tensors = [torch.arange(3), torch.ones(2, 2)]
    first, second, none = upload("cpu", tensors, tensors[:1], [])
    for moved, given_ in ((first, tensors), (second, tensors[:1]), (read(*tensors), tensors)):
        assert all(one is other for one, other in zip(moved, given_, strict=True))
    assert none == read() == []


def test_constants_are_made_once():
    assert constants(CPU, (1.0, 2.0)).tolist() == [[1, 2]]
    assert constants(CPU, (1.0, 2.0)) is constants(CPU, (1.0, 2.0))


def test_mps_takes_the_plain_paths(monkeypatch):
    mps = torch.device("mps")
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: False)
    monkeypatch.setitem(AVAILABLE, "mps", lambda: True)
    assert resolve_device("mps") == resolve_device("auto") == mps
    assert resolve_dtype("auto", mps) == torch.float32
    assert isinstance(autocast(mps, torch.bfloat16), nullcontext)
    assert free_memory(mps) is reset_peak_memory(mps) is peak_memory(mps) is None
    assert device_facts(mps)["type"] == "mps"
    assert process_device("mps", 1, 2) == ("mps", "gloo")


def test_devices_of_several_processes(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(chosen))
    assert process_device("auto", 1, 2) == ("cpu", "gloo")
    chosen.append("a GPU is there now")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert process_device("auto", 3, 2) == ("cuda:1", "nccl")
    assert process_device("cuda", 0, 3) == ("cuda:0", "gloo"), "nccl wants a GPU for each process"
    assert process_device("cpu", 0, 3) == ("cpu", "gloo")
    assert chosen[1:] == ["cuda:1", "cuda:0"]


# ---------------------------------------------------------------- one module knows kinds of devices


def named_kinds(tree: ast.AST) -> list[int]:
    """Lines that name a kind of device in code: `torch.cuda`, "cuda" or "cuda:0". Texts that mention one do not."""
    lines = []
    for node in ast.walk(tree):
        names = [getattr(node, part, None) for part in ("id", "attr", "arg", "name")]
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if (text.partition(":")[0] in KINDS and " " not in text) or any(name in KINDS for name in names):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('torch.cuda.synchronize()\nx.type == "cuda"\nx.cuda()', [1, 2, 3]),
        ('"cuda:0"\nf"cuda:{n}"\nmps = 1', [1, 2, 3]),
        ('"""Docs: cuda:N"""\nhelp = "auto, cpu, cuda, cuda:N, mps"\n# cuda', []),
    ],
)
def test_what_counts_as_naming_a_kind(code, found):
    assert sorted(named_kinds(ast.parse(code))) == found


@pytest.mark.parametrize("folder", ["textregion", "eval", "utils"])
def test_no_other_module_names_a_kind_of_device(folder):
    files = [path for path in (ROOT / folder).rglob("*.py") if path != ROOT / "textregion" / "devices.py"]
    named = {str(path.relative_to(ROOT)): named_kinds(ast.parse(path.read_text("utf-8"))) for path in files}
    assert {path: lines for path, lines in named.items() if lines} == {}
