"""Which form of an operation runs, and why not Triton where it does not."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Any

import torch

from .measured import is_faster, read_table


logger = logging.getLogger(__name__)

IMPLEMENTATIONS = (None, "torch", "triton")
LARGEST_HEAD = 128
TYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST_GPU = (8, 0)

_TRITON_IS_MISSING = importlib.util.find_spec("triton") is None
_TABLE = read_table()


def why_not_triton(tensor: torch.Tensor, head_size: int | None = None) -> str | None:
    """The reason why the kernels cannot run on a tensor, or `None` where they can.

    Args:
        tensor (`torch.Tensor`): One of the tensors of a call.
        head_size (`int`, *optional*): Size of a head, for attention.

    Returns:
        `str`, *optional*: The reason, in words.
    """
    if _TRITON_IS_MISSING:
        return "Triton is not installed (pip install 'instructblip-hf[gpu]')"
    if tensor.dtype not in TYPES:
        return f"the kernels compute in {', '.join(str(dtype)[6:] for dtype in TYPES)}, the tensors are {tensor.dtype}"
    if head_size is not None and head_size > LARGEST_HEAD:
        return f"heads can have up to {LARGEST_HEAD} numbers, these have {head_size}"
    if tensor.device.type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "the tensors are on the CPU"
    if tensor.device.type != "cuda" or torch.version.cuda is None:
        return f"the kernels are for NVIDIA GPUs, the tensors are on {tensor.device.type!r}"
    capability = torch.cuda.get_device_capability(tensor.device)
    if capability < OLDEST_GPU:
        return (
            f"the GPU has compute capability {capability[0]}.{capability[1]}, the kernels need "
            f"{OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
        )
    return None


def use_triton(implementation: str | None, operation: str, tensors: tuple[torch.Tensor, ...], **shape: int) -> bool:
    """Whether to run Triton. Where it was named and cannot run, the reason is logged, once for each reason.

    Args:
        implementation (`str`, *optional*): `"triton"`, `"torch"`, or `None` for what was measured to be faster.
        operation (`str`): Name of the operation, as in the table of measurements.
        tensors (`tuple` of `torch.Tensor`): What the operation reads.
        **shape: Numbers of the call, as in the table.

    Raises:
        ValueError: If there is no such implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {implementation!r}"
        )
    if implementation == "torch" or (implementation is None and not measured_faster(operation, tensors, **shape)):
        return False
    reason = why_not_triton(tensors[0], shape.get("head_size"))
    if reason is not None and implementation == "triton" and not torch.compiler.is_compiling():
        log_once(f"{operation} runs in plain torch, not in Triton: {reason}")
    return reason is None


def measured_faster(operation: str, tensors: tuple[torch.Tensor, ...], **shape: int) -> bool:
    """Whether Triton was measured to be faster at a shape like this one, on this GPU; arguments of [`use_triton`]."""
    if not _TABLE or tensors[0].device.type != "cuda":
        return False
    gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    device, dtype = torch.cuda.get_device_name(tensors[0].device), str(tensors[0].dtype)[6:]
    return is_faster(_TABLE, operation, device, dtype, gradients, shape)


@functools.cache
def log_once(message: str, *arguments: Any) -> None:
    """Log a warning, the first time."""
    logger.warning(message, *arguments)


__all__ = ["IMPLEMENTATIONS", "log_once", "measured_faster", "use_triton", "why_not_triton"]
