"""Bias, dropout, residual and LayerNorm as one operator of torch; Triton is imported when it is first launched."""

from __future__ import annotations

from typing import Any

import torch

from .philox import ROUNDS, threshold


PROGRAMS = 256
"""Programs of the backward, each with its share of the rows; their sums are added up afterwards."""


def _options(
    x: torch.Tensor, dense_bias: torch.Tensor | None, dropout_p: float, *others: torch.Tensor
) -> dict[str, Any]:
    size = x.shape[-1]
    block = max(16, 1 << (size - 1).bit_length())
    half = any(tensor.dtype == torch.bfloat16 for tensor in (x, *others))
    return {
        "BIASED": dense_bias is not None,
        "DROPOUT": dropout_p > 0,
        "ROUNDS": ROUNDS,
        "SIZE": size,
        "BLOCK": block,
        "WIDEN": x.device.type == "cpu" and half,
        "num_warps": min(8, max(1, block // 256)),
        "enable_fp_fusion": True,
    }


@torch.library.custom_op("instructblip_hf::residual_norm_forward", mutates_args=())
def residual_norm_forward(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dense_bias: torch.Tensor | None,
    seed: torch.Tensor | None,
    eps: float,
    dropout_p: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output of shape (rows, hidden) and ``dtype``, and of each row the mean and the inverse deviation.

    ``x`` and ``residual`` have the shape (rows, hidden); their rows, and the vectors, must be contiguous.
    """
    from .residual_norm_kernels import residual_norm_forward_kernel

    rows = len(x)
    output = torch.empty(x.shape, dtype=dtype, device=x.device)
    mean = torch.empty(rows, dtype=torch.float32, device=x.device)
    inverse = torch.empty(rows, dtype=torch.float32, device=x.device)
    if output.numel():
        residual_norm_forward_kernel[(rows,)](
            x,
            residual,
            dense_bias,
            weight,
            bias,
            output,
            mean,
            inverse,
            seed,
            x.stride(0),
            residual.stride(0),
            eps,
            threshold(dropout_p),
            1 / (1 - dropout_p),
            **_options(x, dense_bias, dropout_p, residual, weight, output),
        )
    return output, mean, inverse


@residual_norm_forward.register_fake
def _(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dense_bias: torch.Tensor | None,
    seed: torch.Tensor | None,
    eps: float,
    dropout_p: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    return torch.empty(x.shape, dtype=dtype, device=x.device), row, torch.empty_like(row)


@torch.library.custom_op("instructblip_hf::residual_norm_backward", mutates_args=())
def residual_norm_backward(
    d_output: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    dense_bias: torch.Tensor | None,
    mean: torch.Tensor,
    inverse: torch.Tensor,
    seed: torch.Tensor | None,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x and the residual, and in float32 of weight, bias and the projection's bias."""
    from .residual_norm_kernels import residual_norm_backward_kernel

    rows, size = x.shape
    d_output = d_output.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    d_residual = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    programs = min(PROGRAMS, rows)
    partial = [torch.empty(programs, size, dtype=torch.float32, device=x.device) for _ in range(3)]
    if dx.numel():
        rows_a_program = -(-rows // programs)
        residual_norm_backward_kernel[(programs,)](
            x,
            residual,
            dense_bias,
            weight,
            d_output,
            mean,
            inverse,
            dx,
            d_residual,
            *partial,
            seed,
            rows,
            rows_a_program,
            x.stride(0),
            residual.stride(0),
            threshold(dropout_p),
            1 / (1 - dropout_p),
            **_options(x, dense_bias, dropout_p, residual, weight, d_output),
        )
    d_weight, d_bias, d_dense_bias = (part.sum(0) for part in partial)
    if dense_bias is None:
        d_dense_bias = torch.zeros_like(d_bias)
    return dx, d_residual, d_weight, d_bias, d_dense_bias


@residual_norm_backward.register_fake
def _(
    d_output: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    vector = torch.empty(x.shape[-1], dtype=torch.float32, device=x.device)
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(x.shape, dtype=residual.dtype, device=x.device),
        vector,
        torch.empty_like(vector),
        torch.empty_like(vector),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, residual, weight, bias, dense_bias, seed, _, ctx.dropout_p, _ = inputs
    _, mean, inverse = output
    ctx.save_for_backward(x, residual, weight, dense_bias, mean, inverse, seed)
    ctx.bias_type = bias.dtype
    ctx.mark_non_differentiable(mean, inverse)


def _backward(ctx: Any, d_output: torch.Tensor, *others: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    weight, dense_bias = ctx.saved_tensors[2], ctx.saved_tensors[3]
    dx, d_residual, d_weight, d_bias, d_dense_bias = residual_norm_backward(
        d_output, *ctx.saved_tensors, ctx.dropout_p
    )
    return (
        dx,
        d_residual,
        d_weight.to(weight.dtype),
        d_bias.to(ctx.bias_type),
        None if dense_bias is None else d_dense_bias.to(dense_bias.dtype),
        None,
        None,
        None,
        None,
    )


residual_norm_forward.register_autograd(_backward, setup_context=_save)

__all__ = ["residual_norm_backward", "residual_norm_forward"]
