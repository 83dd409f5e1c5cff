"""The end of a sub-layer in one pass over memory: bias, dropout, residual and LayerNorm."""

from __future__ import annotations

import torch

from .attention_op import seed_tensor
from .checks import check_dropout
from .dispatch import use_triton
from .reference import dropout_add_layer_norm_in_torch
from .residual_norm_op import residual_norm_forward


def dropout_add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor | None = None,
    dense_bias: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """LayerNorm(dropout(x + dense_bias) + residual).

    Args:
        x (`torch.Tensor`): Shape (..., hidden), the product of the projection.
        residual (`torch.Tensor`): Shape (..., hidden), what went into the sub-layer.
        weight (`torch.Tensor`): Shape (hidden,), of LayerNorm.
        bias (`torch.Tensor`): Shape (hidden,), of LayerNorm.
        eps (`float`): Of LayerNorm.
        dropout_p (`float`, *optional*, defaults to 0.0): Dropout of ``x + dense_bias``.
        seed (`int` or `torch.Tensor`, *optional*):
            Of dropout, an integer or one int64 on the device; without it torch's generator decides.
        dense_bias (`torch.Tensor`, *optional*): Shape (hidden,), bias of the projection where ``x`` lacks it.
        implementation (`str`, *optional*):
            `"triton"` or `"torch"`; `None` for Triton where measurements say that it is faster. Where Triton cannot
            run, torch does, and the reason is logged once.

    Returns:
        `torch.Tensor`: Shape (..., hidden), contiguous, of the type that torch gives the sum.

    Raises:
        ValueError: If shapes or devices do not fit.
    """
    check_dropout(dropout_p, seed)
    if not x.dim() or not x.is_floating_point() or not residual.is_floating_point():
        raise ValueError(
            f"x and residual must be of shape (..., hidden) and a floating type, got {tuple(x.shape)} of {x.dtype} and "
            f"{residual.dtype}"
        )
    if residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}; they must be equal")
    for name, vector in (("weight", weight), ("bias", bias), ("dense_bias", dense_bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} must have the shape ({x.shape[-1]},), got {tuple(vector.shape)}")
    rows, hidden = x[..., 0].numel(), x.shape[-1]
    if not use_triton(implementation, "dropout_add_layer_norm", (x, residual, weight), rows=rows, hidden=hidden):
        return dropout_add_layer_norm_in_torch(x, residual, weight, bias, eps, dropout_p, seed, dense_bias)
    # Under autocast torch takes LayerNorm on a GPU in single precision.
    single = x.is_cuda and torch.is_autocast_enabled("cuda")
    dtype = torch.float32 if single else torch.promote_types(x.dtype, residual.dtype)
    output, _, _ = residual_norm_forward(
        _in_rows(x, hidden),
        _in_rows(residual, hidden),
        weight.contiguous(),
        bias.contiguous(),
        None if dense_bias is None else dense_bias.contiguous(),
        seed_tensor(seed, dropout_p, x.device),
        eps,
        dropout_p,
        dtype,
    )
    return output.view(x.shape)


def _in_rows(states: torch.Tensor, hidden: int) -> torch.Tensor:
    """States as (rows, hidden), copied only where a row's elements do not lie behind one another."""
    rows = states.reshape(-1, hidden)
    return rows if rows.stride(1) == 1 or hidden == 1 else rows.contiguous()


__all__ = ["dropout_add_layer_norm"]
