"""Which form runs: reasons why Triton does not, and the table of measurements."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_imports

from instructblip_hf.kernels import cross_attention, dispatch, measured, why_not_triton
from instructblip_hf.kernels.measured import Measurement, is_faster, read_table, write_table


SHAPE = {"rows": 32, "images": 8, "queries": 32, "keys": 257, "heads": 12, "head_size": 64}


def measurement(triton_ms=1.0, torch_ms=1.5, noise=0.05, **changes):
    entry = Measurement(
        operation="cross_attention",
        device="A GPU",
        dtype="bfloat16",
        gradients=False,
        shape=SHAPE,
        triton_ms=triton_ms,
        torch_ms=torch_ms,
        noise=noise,
        command="python -m instructblip_hf.kernels.measure",
        date="2026-01-01",
        versions="none",
    )
    return dataclasses.replace(entry, **changes)


def asked(table, dtype="bfloat16", device="A GPU", gradients=False, **shape):
    return is_faster(table, "cross_attention", device, dtype, gradients, {**SHAPE, **shape})


def test_the_table_in_the_package_has_nothing_that_was_not_measured():
    """Nobody has run the benchmark on a GPU yet; whoever has replaces this by a check of what it found."""
    assert read_table() == ()


def test_only_a_measurement_makes_triton_the_default():
    assert not asked(())
    assert asked((measurement(),))
    assert not asked((measurement(triton_ms=1.45),)), "a win within the noise is no win"
    assert not asked((measurement(triton_ms=2.0),))


def test_a_measurement_speaks_for_its_own_kind_and_near_shapes():
    table = (measurement(),)
    assert not asked(table, dtype="float16")
    assert not asked(table, device="Another GPU")
    assert not asked(table, gradients=True)
    assert not asked(table, head_size=80)
    assert asked(table, rows=60)
    assert not asked(table, rows=70)
    assert not asked(table, keys=50)


def test_the_nearest_measurement_decides():
    slow = measurement(triton_ms=2.0, shape={**SHAPE, "rows": 16})
    table = (slow, measurement())
    assert asked(table, rows=28)
    assert not asked(table, rows=18)
    assert asked(table[::-1], rows=28)


def test_a_table_is_read_as_it_was_written_and_newer_replaces_older(tmp_path):
    path = tmp_path / "measured.json"
    older, newer, other = measurement(), measurement(triton_ms=0.5), measurement(gradients=True)
    write_table(path, (older, other, newer))
    assert set(map(str, read_table(path))) == {str(newer), str(other)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 2, "measurements": []}, "has format 2, this version reads 1"),
        ({"format": 1, "measurements": [{"operation": "cross_attention"}]}, "missing"),
    ],
)
def test_another_table_is_refused(tmp_path, content, message):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operation": "matmul"}, "operation must be one of cross_attention"),
        ({"shape": {"rows": 1}}, "shape of cross_attention must have rows, images"),
        ({"triton_ms": 0.0}, "times must be positive"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        measurement(**change)


def test_the_nearest_measurement_is_what_a_call_is_decided_by(monkeypatch):
    """On a GPU that is not here: the table is asked with what the call is made of."""
    asked_with = []
    monkeypatch.setattr(dispatch, "_TABLE", (measurement(),))
    monkeypatch.setattr(dispatch, "is_faster", lambda table, *call: asked_with.append(call) or False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")

    class OnGpu:
        device, dtype, requires_grad = torch.device("cuda"), torch.bfloat16, True

    assert not dispatch.measured_faster("cross_attention", (OnGpu,), **SHAPE)
    with torch.no_grad():
        dispatch.measured_faster("cross_attention", (OnGpu,), **SHAPE)
    assert asked_with == [
        ("cross_attention", "A GPU", "bfloat16", True, SHAPE),
        ("cross_attention", "A GPU", "bfloat16", False, SHAPE),
    ]
    assert set(SHAPE) == set(measured.SHAPE_KEYS["cross_attention"])


class Tensor:
    """As much of a tensor as is asked about."""

    def __init__(self, device="cuda", dtype=torch.bfloat16):
        self.device, self.dtype = torch.device(device), dtype


@pytest.fixture
def gpu(monkeypatch):
    """A machine with Triton and a new GPU, as far as is asked about."""
    monkeypatch.setattr(dispatch, "_TRITON_IS_MISSING", False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return monkeypatch


def test_reasons(gpu):
    assert why_not_triton(Tensor(), 128) is None
    assert why_not_triton(Tensor(dtype=torch.float64)) == (
        "the kernels compute in float16, bfloat16, float32, the tensors are torch.float64"
    )
    assert why_not_triton(Tensor(), 129) == "heads can have up to 128 numbers, these have 129"
    assert why_not_triton(Tensor("cpu")) == "the tensors are on the CPU"
    assert why_not_triton(Tensor("meta")) == "the kernels are for NVIDIA GPUs, the tensors are on 'meta'"
    gpu.setenv("TRITON_INTERPRET", "1")
    assert why_not_triton(Tensor("cpu")) is None
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert why_not_triton(Tensor()) == "the GPU has compute capability 7.5, the kernels need 8.0"
    gpu.setattr(torch.version, "cuda", None)
    assert why_not_triton(Tensor()) == "the kernels are for NVIDIA GPUs, the tensors are on 'cuda'"
    gpu.setattr(dispatch, "_TRITON_IS_MISSING", True)
    assert why_not_triton(Tensor()) == "Triton is not installed (pip install 'instructblip-hf[gpu]')"


def test_a_named_implementation_that_cannot_run_is_logged_once_and_answered_by_torch(monkeypatch, caplog):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch.log_once.cache_clear()
    states = torch.randn(2, 3, 1, 16, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, logger="instructblip_hf"):
        named, again = (
            cross_attention(states, states, states, scaling=0.25, implementation="triton") for _ in range(2)
        )
        plain = cross_attention(states, states, states, scaling=0.25)
    assert torch.equal(named, plain)
    assert torch.equal(named, again)
    (record,) = caplog.records
    assert record.message.startswith("cross_attention runs in plain torch, not in Triton: ")


def test_code_beside_a_checkpoint_asks_for_no_triton():
    """transformers refuses remote code whose imports are missing, unless it sees that they may be."""
    folder = Path(dispatch.__file__).parent
    assert {path.name for path in folder.glob("*.py") if "triton" in get_imports(path)} == set()


def test_without_a_name_nothing_is_logged(caplog):
    dispatch.log_once.cache_clear()
    states = torch.randn(2, 3, 1, 16)
    with caplog.at_level(logging.WARNING, logger="instructblip_hf"):
        cross_attention(states, states, states, scaling=0.25)
    assert not caplog.records
