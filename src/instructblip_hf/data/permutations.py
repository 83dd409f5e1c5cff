"""Shuffled orders that are functions of a key: nothing is drawn in sequence, stored or carried from step to step.

Two forms. `KeyedPermutation` gives the place of one element in constant time and memory, for any number of rows;
`keyed_order` writes a short order out. Both rest on hashlib alone, so that they are the same in every process, on
every platform and with every version of Python, numpy and torch, which no random generator promises.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np


_ROUNDS = 8


class KeyedPermutation:
    """A permutation of ``range(size)``.

    A Feistel network of 8 rounds on a rectangle of ``rows x columns`` cells, just large enough for `size`. A cell
    beyond `size` is sent through again until one inside comes out ("cycle walking"; Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002), which is a permutation again. Fewer cells than one column are beyond, so that
    this is rare.

    Args:
        size (`int`): Number of elements, at least 1.
        key: What the order depends on: numbers and texts.

    Raises:
        ValueError: If `size` is below 1.
    """

    def __init__(self, size: int, *key: int | str) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; it must be at least 1")
        self.size = size
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        self._hash = hashlib.blake2b(_key_bytes(key), digest_size=8)

    def __len__(self) -> int:
        return self.size

    def __call__(self, index: int) -> int:
        """The element at place `index`.

        Raises:
            IndexError: If there is no such place.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"index is {index}; there are {self.size} elements")
        while True:
            index = self._permute_cell(index)
            if index < self.size:
                return index

    def _permute_cell(self, cell: int) -> int:
        row, column = divmod(cell, self._columns)
        for number in range(0, _ROUNDS, 2):
            row = (row + self._round(number, column)) % self._rows
            column = (column + self._round(number + 1, row)) % self._columns
        return row * self._columns + column

    def _round(self, number: int, value: int) -> int:
        state = self._hash.copy()
        state.update(b"%d/%d" % (number, value))
        return int.from_bytes(state.digest(), "little")


def keyed_order(size: int, *key: int | str) -> np.ndarray:
    """An order of ``range(size)``, written out.

    Args:
        size (`int`): Number of elements; time and memory grow with it.
        key: What the order depends on: numbers and texts.

    Returns:
        `np.ndarray`: Of type int64 and shape (size,).
    """
    numbers = np.frombuffer(hashlib.shake_128(_key_bytes(key)).digest(8 * size), dtype="<u8")
    return np.argsort(numbers, kind="stable").astype(np.int64)


def _key_bytes(key: tuple[Any, ...]) -> bytes:
    # repr keeps 1 and "1", and ("a", "b") and ("ab",), apart.
    return repr(key).encode()


__all__ = ["KeyedPermutation", "keyed_order"]
