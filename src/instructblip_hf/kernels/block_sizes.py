"""Sizes of blocks, chosen from what compiles without spilling registers (docs/kernels.md; tests/kernels)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Blocks:
    """How a kernel is cut up.

    Args:
        queries (`int`): Queries of a tile.
        keys (`int`): Keys of a block.
        warps (`int`): Warps of a program.
        stages (`int`): Depth of the software pipeline.
    """

    queries: int
    keys: int
    warps: int
    stages: int


def padded_size(head_size: int) -> int:
    """The power of two that a head is padded to; matrix products need 16."""
    return max(16, 1 << (head_size - 1).bit_length())


def forward_blocks(head_size: int, dtype: torch.dtype, tall: bool) -> Blocks:
    """Blocks of the forward kernel.

    Args:
        head_size (`int`): Size of a head.
        dtype (`torch.dtype`): Of the tensors.
        tall (`bool`): Whether a tile can be filled with more than 32 queries: folded questions, or text.
    """
    large = padded_size(head_size) > 64
    if dtype == torch.float32:
        return Blocks(16 if large else 32, 32, 8, 2)
    if tall:
        return Blocks(64, 64, 8 if large else 4, 2)
    return Blocks(32, 64, 4, 2)


def backward_blocks(head_size: int, dtype: torch.dtype, tall: bool, hopper: bool) -> Blocks:
    """Blocks of the backward kernel.

    Args:
        head_size (`int`): Size of a head.
        dtype (`torch.dtype`): Of the tensors.
        tall (`bool`): Whether a tile can be filled with more than 32 queries: folded questions, or text.
        hopper (`bool`): Whether the GPU multiplies matrices by groups of warps (compute capability 9.0), which takes 64
            keys as well as 64 queries; before it 64 keys spill.
    """
    large = padded_size(head_size) > 64
    if dtype == torch.float32:
        return Blocks(16 if large else 32, 32, 8, 1)
    if tall:
        return Blocks(64, 64 if hopper and not large else 32, 8, 1)
    return Blocks(32, 32, 8 if large else 4, 1)


__all__ = ["Blocks", "backward_blocks", "forward_blocks", "padded_size"]
