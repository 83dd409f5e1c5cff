"""`torch.library.opcheck` of the kernels' operators: schemas, fakes and autograd.

    TRITON_INTERPRET=1 PYTHONPATH=tests python tests/kernels/operator_checks.py [rows | folded | packed | norm ...]

A process of its own: torch's check of schemas has failed inside of itself ("basic_string::_M_create") in processes that had run
thousands of other tests before, and nowhere else.
"""

from __future__ import annotations

import sys

import torch

from instructblip_hf.kernels import ImageIndex
from instructblip_hf.kernels.attention_op import attention_backward, attention_forward
from instructblip_hf.kernels.residual_norm_op import residual_norm_backward, residual_norm_forward
from kernel_inputs import DEVICE, scattered


def attention_arguments(form):
    """Arguments of the operator: rows of their own, questions on shared images, or packed rows."""
    seed = torch.tensor([5], device=DEVICE)
    if form == "packed":
        states = [scattered(7, 1, 16, seed=number).requires_grad_() for number in (1, 2, 3)]
        offsets = torch.tensor([0, 3, 3], dtype=torch.int32, device=DEVICE)
        return (*states, None, None, None, None, offsets, seed, 2, 2, 3, 0.25, 0.3)
    images = 3 if form == "rows" else 2
    query = scattered(3, 2, 1, 16, seed=1).requires_grad_()
    key, value = (scattered(images, 5, 1, 16, seed=number).requires_grad_() for number in (2, 3))
    index = (None, None, None)
    if form == "folded":
        made = ImageIndex.of(torch.tensor([1, 0, 1], device=DEVICE), 2)
        index = (made.index, made.order, made.starts)
    mask = torch.ones(images, 5, dtype=torch.bool, device=DEVICE)
    return (query, key, value, mask, *index, None, seed, 3, 2, 0, 0.25, 0.3)


def check_attention(form):
    arguments = attention_arguments(form)
    torch.library.opcheck(attention_forward, arguments)
    detached = [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments]
    output, log_sum = attention_forward(*detached)
    torch.library.opcheck(attention_backward, (torch.ones_like(output), *detached[:3], output, log_sum, *detached[3:]))


def check_norm():
    x, residual = (scattered(3, 16, seed=number) for number in (1, 2))
    vectors = [scattered(16, seed=number).contiguous() for number in (3, 4, 5)]
    seed = torch.tensor([5], device=DEVICE)
    leaves = [states.requires_grad_() for states in (x, residual, *vectors)]
    torch.library.opcheck(residual_norm_forward, (*leaves, seed, 1e-5, 0.3, torch.float32))
    with torch.no_grad():
        _, mean, inverse = residual_norm_forward(*leaves, seed, 1e-5, 0.3, torch.float32)
        torch.library.opcheck(
            residual_norm_backward, (torch.ones(3, 16, device=DEVICE), x, residual, vectors[0], vectors[2], mean, inverse, seed, 0.3)
        )  # fmt: skip


FORMS = ("rows", "folded", "packed", "norm")

if __name__ == "__main__":
    for name in sys.argv[1:] or FORMS:
        check_norm() if name == "norm" else check_attention(name)
        print(f"{name}: sound")
