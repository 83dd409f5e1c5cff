"""Inputs for tests of kernels, and how near a kernel has to come to float64."""

import torch


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where kernels are tested: on a GPU, or interpreted."""


def scattered(*shape, seed, dtype=torch.float32):
    """Random numbers with strides of their own, among NaN: to read beside the tensor is to be wrong."""
    whole = torch.full([2 * shape[0] + 1, *[size + 3 for size in shape[1:]]], float("nan"), dtype=dtype, device=DEVICE)
    view = whole[(slice(1, 2 * shape[0], 2), *[slice(1, 1 + size) for size in shape[1:]])]
    return view.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def gradients(function, tensors, rounded_to=torch.float32):
    """Output of a function of tensors, and the gradients of a random weighting of it in numbers of a type."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(99)).to(rounded_to)
    weights = weights.to(output.device, output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, weights)]


def assert_near_float64(kernel, reference, tensors, factor=2.0):
    """Outputs and gradients of ``kernel`` against ``reference`` in float64.

    Single precision: within 1e-5 of the largest number. Half precision: within ``factor`` of how far ``reference`` is
    off when it computes in that precision, which is what users have now.
    """
    dtype = tensors[0].dtype
    ours = gradients(kernel, tensors, dtype)
    exact = gradients(reference, [tensor.double() for tensor in tensors], dtype)
    for number, (got, wanted) in enumerate(zip(ours, exact)):
        assert got.shape == wanted.shape
        assert torch.isfinite(got).all(), f"tensor {number} has numbers that are not finite"
    if dtype == torch.float32:
        for got, wanted in zip(ours, exact):
            torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))
        return
    usual = gradients(reference, tensors, dtype)
    for number, (got, same_precision, wanted) in enumerate(zip(ours, usual, exact)):
        off, allowed = ((states.double() - wanted).square().mean().sqrt() for states in (got, same_precision))
        assert off <= factor * allowed, f"tensor {number} is off by {off:.2e}, torch by {allowed:.2e}"
