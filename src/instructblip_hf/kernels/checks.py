"""Checks of arguments that all operations share. Values on a GPU are not looked at, which would wait for it."""

from __future__ import annotations

from typing import Any

import torch


def readable(tensor: torch.Tensor) -> bool:
    """Whether values can be looked at for nothing: not on an accelerator, and not while a graph is traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_states(states: dict[str, torch.Tensor], dims: tuple[str, ...]) -> None:
    """Raise unless all tensors are of one floating type, on one device, and have the dimensions that are named."""
    first_name, first = next(iter(states.items()))
    for name, tensor in states.items():
        if tensor.dim() != len(dims):
            raise ValueError(f"{name} must have the shape ({', '.join(dims)}), got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating type, got {tensor.dtype}")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, {first_name} on {first.device}")
        if tensor.dtype != first.dtype:
            raise ValueError(f"{name} is of {tensor.dtype}, {first_name} of {first.dtype}; all must be of one type")


def check_index(index: Any, images: int) -> None:
    """Raise unless an index is integers of shape (rows,), and as far as values can be looked at, names images."""
    if not isinstance(index, torch.Tensor) or index.dim() != 1 or index.dtype not in (torch.int64, torch.int32):
        got = f"{tuple(index.shape)} of {index.dtype}" if isinstance(index, torch.Tensor) else type(index).__name__
        raise ValueError(f"image_index must be integers of one dimension, got {got}")
    if readable(index) and len(index) and not 0 <= int(index.min()) <= int(index.max()) < images:
        raise ValueError(
            f"image_index names images {int(index.min())} to {int(index.max())}; there are {images}, numbered from 0"
        )


def check_dropout(dropout_p: float, seed: int | torch.Tensor | None) -> None:
    """Raise unless the dropout is in [0, 1) and the seed, if any, is one integer."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be at least 0 and less than 1, got {dropout_p}")
    if isinstance(seed, torch.Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise ValueError(f"seed must be one int64, got {tuple(seed.shape)} of {seed.dtype}")
    elif seed is not None and not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit 64 bits, got {seed}")


def in_autocast_type(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors in the type that autocast gives to matrix products, where it is on."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
        for tensor in tensors
    )


__all__ = ["check_dropout", "check_index", "check_states", "in_autocast_type", "readable"]
