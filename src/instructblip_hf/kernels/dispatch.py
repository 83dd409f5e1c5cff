"""Which form of an operation runs, and why not Triton where it does not."""

from __future__ import annotations

import torch


IMPLEMENTATIONS = (None, "torch", "triton")


def why_not_triton(query: torch.Tensor) -> str | None:
    """The reason why the kernels cannot run on a tensor like ``query``, or `None` where they can.

    Args:
        query (`torch.Tensor`): Shape (..., head size).

    Returns:
        `str`, *optional*: The reason, in words.
    """
    return "the Triton kernels are not here yet"


def use_triton(implementation: str | None, query: torch.Tensor) -> bool:
    """Whether to run Triton, logging once why not where it was asked for.

    Raises:
        ValueError: If there is no such implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {implementation!r}"
        )
    return False


__all__ = ["IMPLEMENTATIONS", "use_triton", "why_not_triton"]
