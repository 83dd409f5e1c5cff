"""Random bits by the place of an element: Philox 4x32 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3".

Whether dropout keeps an element depends on a seed and on the element's logical place (row, head, query, key), so it is
the same forward and backward, for any size of block, padded or packed, in Triton and in torch. Seven rounds are the
fewest that pass the BigCrush tests of the paper.
"""

from __future__ import annotations

import torch


ROUNDS = 7
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def _high(constant: int, word: torch.Tensor) -> torch.Tensor:
    """Upper 32 bits of a product of 32-bit words, in halves: the whole product does not fit a signed integer."""
    return (constant * (word >> 16) + ((constant * (word & 0xFFFF)) >> 16)) >> 16


def philox(
    seed: int | torch.Tensor,
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    rounds: int = ROUNDS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The four output words of Philox 4x32.

    Args:
        seed (`int` or `torch.Tensor`): Key of 64 bits; a tensor has one element.
        counter (`tuple` of `torch.LongTensor`): Four words of 32 bits that broadcast against each other.
        rounds (`int`, *optional*, defaults to 7): Rounds.

    Returns:
        `tuple` of `torch.LongTensor`: Words of 32 bits, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(rounds):
        c0, c1, c2, c3 = (
            _high(_MULTIPLIERS[1], c2) ^ c1 ^ key0,
            (_MULTIPLIERS[1] * c2) & _LOW,
            _high(_MULTIPLIERS[0], c0) ^ c3 ^ key1,
            (_MULTIPLIERS[0] * c0) & _LOW,
        )
        key0, key1 = (key0 + _KEY_STEPS[0]) & _LOW, (key1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def threshold(dropout_p: float) -> int:
    """The 31-bit number below which an element is dropped."""
    return min(round(dropout_p * 2**31), 2**31 - 1)


def keep_attention(
    seed: int | torch.Tensor, dropout_p: float, rows: int, heads: int, queries: int, keys: int, device: torch.device
) -> torch.Tensor:
    """Which probabilities dropout keeps: boolean, of shape (rows, heads, queries, keys)."""
    row, head, query, key = (torch.arange(size, device=device) for size in (rows, heads, queries, keys))
    words = philox(seed, (key, query[:, None], head[:, None, None], row[:, None, None, None]))
    return (words[0] >> 1) >= threshold(dropout_p)


def keep_elements(
    seed: int | torch.Tensor, dropout_p: float, rows: int, columns: int, device: torch.device
) -> torch.Tensor:
    """Which elements of a matrix dropout keeps: boolean, of shape (rows, columns)."""
    row, column = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
    words = philox(seed, (column, row & _LOW, row >> 32, torch.zeros_like(column)))
    return (words[0] >> 1) >= threshold(dropout_p)


__all__ = ["ROUNDS", "keep_attention", "keep_elements", "philox", "threshold"]
