"""Bias, dropout, residual and LayerNorm in one kernel against float64, interpreted or on a GPU."""

import pytest
import torch

from instructblip_hf.kernels import dropout_add_layer_norm, reference, residual_norm_op
from kernel_inputs import DEVICE, assert_near_float64, gradients, scattered


pytest.importorskip("triton", minversion="3.9" if DEVICE == "cpu" else "3.6", reason="interpreting needs Triton 3.9")


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    """Fresh memory is NaN, so that an element that no program writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(rows, hidden, dtype):
    states = [scattered(rows, hidden, seed=seed, dtype=dtype) for seed in (1, 2)]
    return [*states, *(scattered(hidden, seed=seed, dtype=dtype) for seed in (3, 4, 5))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "hidden", "dropout_p"), [(5, 48, 0.0), (3, 33, 0.3), (1, 1, 0.0), (7, 768, 0.1)])
def test_outputs_and_gradients(rows, hidden, dropout_p, dtype):
    options = {"eps": 1e-5, "dropout_p": dropout_p, "seed": 2**33 + 1}

    def call(function, **more):
        def with_bias(x, residual, weight, bias, dense_bias):
            return function(x, residual, weight, bias, dense_bias=dense_bias, **options, **more)

        return with_bias

    tensors = inputs(rows, hidden, dtype)
    assert_near_float64(
        call(dropout_add_layer_norm, implementation="triton"), call(reference.dropout_add_layer_norm_in_torch), tensors
    )


def test_more_rows_than_programs_and_no_bias(monkeypatch):
    monkeypatch.setattr(residual_norm_op, "PROGRAMS", 3)
    tensors = inputs(8, 20, torch.float32)[:4]
    assert_near_float64(
        lambda *states: dropout_add_layer_norm(*states, 1e-5, 0.2, seed=6, implementation="triton"),
        lambda *states: reference.dropout_add_layer_norm_in_torch(*states, 1e-5, 0.2, seed=6),
        tensors,
    )


def test_backward_is_the_same_every_time():
    tensors = inputs(40, 64, torch.float32)

    def run():
        return gradients(
            lambda x, residual, weight, bias, dense_bias: dropout_add_layer_norm(
                x, residual, weight, bias, 1e-5, 0.2, seed=6, dense_bias=dense_bias, implementation="triton"
            ),
            tensors,
        )

    for first, second in zip(run(), run()):
        assert torch.equal(first, second)


def test_leading_dimensions_and_types_are_those_of_torch():
    x = scattered(2, 3, 16, seed=1, dtype=torch.bfloat16)
    residual = scattered(2, 3, 16, seed=2)
    weight, bias = scattered(16, seed=3), scattered(16, seed=4)
    ours = dropout_add_layer_norm(x, residual, weight, bias, 1e-5, implementation="triton")
    torchs = dropout_add_layer_norm(x, residual, weight, bias, 1e-5, implementation="torch")
    assert ours.dtype == torchs.dtype == torch.float32
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-5)
    half = [states.bfloat16() for states in (residual, weight, bias)]
    with torch.autocast(DEVICE, torch.bfloat16):
        ours = dropout_add_layer_norm(x, *half, 1e-5, implementation="triton")
        torchs = dropout_add_layer_norm(x, *half, 1e-5, implementation="torch")
    # On the CPU autocast leaves LayerNorm as it is; on a GPU it is taken in single precision.
    assert ours.dtype == torchs.dtype
    torch.testing.assert_close(ours.float(), torchs.float(), rtol=2**-6, atol=2**-6)
