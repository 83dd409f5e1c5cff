"""Rows on the same image drawn together, so that a batch encodes the image once.

The rows of a dataset are put in an order in which those on one image are neighbours, and an epoch takes them in groups of
G neighbours, in a permuted order. Of an image with 5 rows 4 are a group, and the fifth is in one with what other images
have left over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .permutations import KeyedPermutation


def peek(dataset: Any, row: int, epoch: int = 0) -> Mapping[str, Any]:
    """A row with its images as they are named, none of them opened.

    Raises:
        TypeError: If the dataset cannot give that: it has no method ``peek(row, epoch)`` and is no list.
    """
    if hasattr(dataset, "peek"):
        content: Mapping[str, Any] = dataset.peek(row, epoch)
        return content
    if isinstance(dataset, (list, tuple)):
        own: Mapping[str, Any] = dataset[row]
        return own
    raise TypeError(
        f"{type(dataset).__name__} cannot be grouped by image or length: it has no method peek(row, epoch), which gives a "
        "row without opening its images"
    )


def image_order(dataset: Any, group: int) -> np.ndarray:
    """Row numbers in an order in which rows on the same images are neighbours.

    Whole groups of one image come first, so that each begins at a multiple of `group`, then what is left of the images.
    Images are the same if they have the same path or bytes: nothing is opened. Rows without images, and those whose
    images are opened already, are strewn among the others.

    Args:
        dataset (`Sequence`): Its rows can be had without opening images, see `peek`.
        group (`int`): Rows of a group.

    Returns:
        `np.ndarray`: Of type int64 and shape (rows,).

    Raises:
        TypeError: As `peek`.
    """
    keys = np.empty(len(dataset), dtype=np.uint64)
    for row in range(len(dataset)):
        digest = hashlib.blake2b(_image_name(peek(dataset, row), row).encode(), digest_size=8).digest()
        keys[row] = int.from_bytes(digest, "little")
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
    counts = np.diff(np.append(first, len(keys)))
    within = np.arange(len(keys)) - np.repeat(first, counts)
    is_left = within >= np.repeat(counts // group * group, counts)
    return np.concatenate([order[~is_left], order[is_left]])


def _image_name(content: Mapping[str, Any], row: int) -> str:
    video = content.get("video")
    images = [video["path"]] if video else content.get("images")
    if images is None:
        images = [content["image"]] if content.get("image") is not None else []
    names = [_name(image) for image in images]
    # An opened image has no name that would be the same in another run.
    return f"row {row}" if not names or None in names else repr(names)


def _name(image: Any) -> str | None:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return hashlib.blake2b(image).hexdigest()
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


class GroupedEpoch:
    """The rows of one epoch of a dataset, in groups of neighbours.

    Draws of a dataset come in choices of G, and an epoch may begin inside of one. It begins with the rows that this
    choice still lacks and ends with those that do not fill one, both from the end of the order; between them groups come
    in a permuted order. So every row comes once, and which row stands where takes constant time.

    Args:
        size (`int`): Rows of the dataset.
        group (`int`): Rows of a group.
        epoch (`int`): Which epoch this is.
        order (`np.ndarray`, *optional*): Of `image_order`; by default rows as they are.
        key: What the order of groups depends on.
    """

    def __init__(self, size: int, group: int, epoch: int, order: np.ndarray | None, *key: int | str) -> None:
        self.size, self.group, self._order = size, group, order
        self._lead = min(-epoch * size % group, size)
        groups = (size - self._lead) // group
        self._grouped = groups * group
        self._groups = KeyedPermutation(groups, "groups", *key) if groups else None

    def __call__(self, position: int) -> int:
        """The row at a position of the epoch.

        Raises:
            IndexError: If there is no such position.
        """
        if not 0 <= position < self.size:
            raise IndexError(f"position is {position}; the epoch has {self.size} rows")
        if position < self._lead:
            place = self._grouped + position
        elif position < self._lead + self._grouped and self._groups is not None:
            group, within = divmod(position - self._lead, self.group)
            place = self._groups(group) * self.group + within
        else:
            place = position
        return place if self._order is None else int(self._order[place])


__all__ = ["GroupedEpoch", "image_order", "peek"]
