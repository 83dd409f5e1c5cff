"""What an image is, as a short text: by it something computed from an image is found again.

Of a file its bytes count, so that they are read but not decoded; of an image in memory its pixels, as `load_image`
gives them. A file and the image decoded from it are therefore two contents.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .images import load_image, read_encoded


@dataclass(frozen=True)
class ImageContent:
    """An image by its content, perhaps not decoded.

    Args:
        digest (`str`): Of the content, 64 hexadecimal characters.
        source (`Any`): What `load_image` makes the image of.
    """

    digest: str
    source: Any

    def load(self) -> Image.Image:
        """The image, RGB.

        Raises:
            ValueError: As `load_image`.
        """
        return load_image(self.source)


class ContentReader:
    """Makes `ImageContent` of whatever stands for an image, and reads no file twice that has not changed since.

    A file counts as unchanged while its size and time of change are.
    """

    def __init__(self) -> None:
        self._digests: dict[tuple[str, int, int], str] = {}

    def __call__(self, source: Any) -> ImageContent:
        """The content of an image.

        Args:
            source: As for `load_image`; an `ImageContent` is returned as it is.

        Raises:
            ValueError: If nothing can be read there, or nothing can be made of it.
        """
        if isinstance(source, ImageContent):
            return source
        state = _state_of_file(source)
        if state is not None and state in self._digests:
            return ImageContent(self._digests[state], source)
        data = read_encoded(source)
        if data is None:
            image = load_image(source)
            content = f"pixels {image.width} {image.height} ".encode() + image.tobytes()
            return ImageContent(hashlib.sha256(content).hexdigest(), image)
        digest = hashlib.sha256(b"file " + data).hexdigest()
        if state is None:
            return ImageContent(digest, data)
        self._digests[state] = digest
        return ImageContent(digest, source)


def _state_of_file(source: Any) -> tuple[str, int, int] | None:
    """Path, size and time of change of a local file; `None` for anything else."""
    if isinstance(source, dict):
        source = None if source.get("bytes") else source.get("path")
    # Text may also be an address, or the content itself.
    if isinstance(source, str) and (len(source) > 4096 or "://" in source or source.startswith("data:")):
        return None
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        status = Path(source).stat()
    except OSError:
        return None  # What is wrong with it is said when it is read.
    return os.fspath(source), status.st_size, status.st_mtime_ns


__all__ = ["ContentReader", "ImageContent"]
