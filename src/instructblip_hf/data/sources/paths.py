"""Paths of images: names from a row to files under the user's image folder, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..schema import Example
from .fields import OneOf


_PLAIN = re.compile(r"\w[\w./ -]*")


def resolve_path(root: Path, name: str | OneOf) -> Path:
    """The file, or folder of frames, that a row's path names.

    A path may not leave the folder by ``..`` or by being absolute. Links inside of the folder are the user's own and
    are followed, as copies of COCO are often linked.

    Raises:
        ValueError: If it leaves the folder.
        FileNotFoundError: If it is not there.
    """
    paths = [_inside(root, candidate) for candidate in ((name,) if isinstance(name, str) else name)]
    for path in paths:
        if path.exists():
            return path
    shown = [os.path.relpath(path, root) for path in paths[:3]]
    more = f" or {len(paths) - 3} more" if len(paths) > 3 else ""
    raise FileNotFoundError(f"there is no {' or '.join(shown)}{more} in {root}")


def _inside(root: Path, name: str) -> Path:
    if "://" in name:
        raise ValueError(f"image {name!r} is an address; download it and give its path")
    if "\0" in name:
        raise ValueError(f"image {name!r} is not a path")
    top = os.path.normpath(os.path.abspath(root))
    path = os.path.normpath(os.path.join(top, name))
    if path == top or os.path.commonpath([top, path]) != top:
        raise ValueError(f"image {name!r} leaves the image folder {root}")
    return Path(path)


def check_paths(example: Example, root: Path) -> None:
    """Raises if an image is not a path inside of the folder, without a look at the disk.

    Raises:
        ValueError: Naming the image.
    """
    for image in _images(example):
        if not isinstance(image, (str, OneOf)):
            raise ValueError(f"image must be a path, not {image!r:.60}")
        for name in (image,) if isinstance(image, str) else image:
            # Millions of names are plain ones, which cannot leave any folder.
            if not _PLAIN.fullmatch(name) or ".." in name:
                _inside(root, name)


def has_paths(example: Example) -> bool:
    """Whether an image of the example is given by its path."""
    return any(isinstance(image, (str, OneOf)) for image in _images(example))


def resolve_images(example: Example, root: Path) -> Example:
    """The example with files in place of names; what is no path stays.

    Raises:
        ValueError: If a path leaves the folder.
        FileNotFoundError: If a file is not there.
    """

    def found(image: Any) -> Any:
        return resolve_path(root, image) if isinstance(image, (str, OneOf)) else image

    return map_images(example, found)


def map_images(example: Example, function: Callable[[Any], Any]) -> Example:
    """The example with ``function`` of each of its images, and of its video's path."""
    resolved: Example = {**example, "images": [function(image) for image in example["images"]]}
    if "video" in example:
        resolved["video"] = {**example["video"], "path": function(example["video"]["path"])}
    return resolved


def _images(example: Example) -> list[Any]:
    return [*example["images"], *([example["video"]["path"]] if "video" in example else [])]


__all__ = ["check_paths", "has_paths", "map_images", "resolve_images", "resolve_path"]
