"""Which images of a batch are the same one: several questions on one image need it only once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Sequence
from typing import Any

from PIL import Image


def source_key(source: Any) -> Hashable | None:
    """What two sources of surely the same image have in common, without opening them; `None` if nothing is known.

    Paths and addresses are known by their text, everything else by being the same object.
    """
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path") or source
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    # Readers are at another place the second time.
    return None if hasattr(source, "read") else id(source)


def image_key(image: Image.Image) -> str:
    """What an RGB image is known by: its size and pixels."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
    return f"{image.width}x{image.height} {digest}"


def distinct_images(images: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Images of equal size and pixels once each.

    Args:
        images (`Sequence[PIL.Image.Image]`): RGB images, as `load_image` gives them.

    Returns:
        The distinct ones in the order of their first appearance, and for each of `images` its place among them.
    """
    places: dict[Hashable, int] = {}
    by_object: dict[int, int] = {}
    distinct: list[Image.Image] = []
    index = []
    for image in images:
        place = by_object.get(id(image))
        if place is None:
            place = places.setdefault(image_key(image), len(distinct))
            by_object[id(image)] = place
            if place == len(distinct):
                distinct.append(image)
        index.append(place)
    return distinct, index


__all__ = ["distinct_images", "image_key", "source_key"]
