"""The kernels as operators of torch: schemas, fakes and autograd (`opcheck`), `torch.compile`, CUDA graphs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instructblip_hf.kernels import cross_attention, dropout_add_layer_norm, packed_attention
from kernel_inputs import DEVICE, gradients, scattered


pytest.importorskip("triton", minversion="3.9" if DEVICE == "cpu" else "3.6", reason="interpreting needs Triton 3.9")


def test_the_operators_are_sound():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("operator_checks.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: sound" for name in ("rows", "folded", "packed", "norm")]


def functions():
    """Each public function as one of float tensors, with the tensors."""
    index = torch.tensor([1, 0, 1], device=DEVICE)
    offsets = torch.tensor([0, 3, 3], dtype=torch.int32, device=DEVICE)

    def cross(query, key, value):
        return cross_attention(
            query, key, value, image_index=index, scaling=0.25, dropout_p=0.3, seed=5, implementation="triton"
        )

    def packed(query, key, value):
        return packed_attention(
            query,
            key,
            value,
            rows=2,
            num_queries=2,
            text_offsets=offsets,
            max_text=3,
            scaling=0.25,
            dropout_p=0.3,
            seed=5,
            implementation="triton",
        )

    def norm(x, residual, weight, bias):
        return dropout_add_layer_norm(x, residual, weight, bias, 1e-5, 0.3, seed=5, implementation="triton")

    query = scattered(3, 2, 1, 16, seed=1)
    key, value = (scattered(2, 5, 1, 16, seed=number) for number in (2, 3))
    return {
        "cross_attention": (cross, [query, key, value]),
        "packed_attention": (packed, [scattered(7, 1, 16, seed=number) for number in (1, 2, 3)]),
        "dropout_add_layer_norm": (
            norm,
            [scattered(3, 16, seed=1), scattered(3, 16, seed=2), scattered(16, seed=3), scattered(16, seed=4)],
        ),
    }


@pytest.mark.parametrize("name", ["cross_attention", "packed_attention", "dropout_add_layer_norm"])
def test_a_compiled_graph_is_whole_and_gives_the_same(name):
    function, tensors = functions()[name]
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for got, wanted in zip(gradients(compiled, tensors), gradients(function, tensors)):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["cross_attention", "packed_attention", "dropout_add_layer_norm"])
def test_a_cuda_graph_replays_on_new_numbers(name):
    """Nothing waits for the device: a capture would fail. A replay reads what the inputs hold then."""
    function, tensors = functions()[name]
    gradients(function, tensors)  # Compiles the kernels, which a capture must not do.
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(function(*leaves).sum(), leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*leaves)
        grads = torch.autograd.grad(output.sum(), leaves)
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(-0.5)
    graph.replay()
    fresh = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    expected = function(*fresh)
    for got, wanted in zip((output, *grads), (expected, *torch.autograd.grad(expected.sum(), fresh))):
        torch.testing.assert_close(got, wanted)
