"""One way in for images: whatever a user holds becomes an RGB image of PIL, or a `ValueError` that names it.

Choices: transparency is laid over white, the EXIF orientation is applied, of an animation the first frame counts,
16-bit values are scaled to 8 bits. No setting of PIL is changed: what is too large is decided by
``PIL.Image.MAX_IMAGE_PIXELS``, which a user may raise or set to `None`.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import struct
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


MAX_IMAGE_BYTES = 256 * 2**20
"""Largest file or download, in bytes."""

_ALLOWED = (
    "an image can be a PIL image, the bytes of an image file, a path, a file:, http: or https: URL, a data: URI, base64 "
    "text, a numpy array or torch tensor (height and width, with or without 1, 2, 3 or 4 channels first or last), or a "
    'dict with "bytes" or "path"'
)
# What PIL's decoders are known to raise on damaged files.
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    NotImplementedError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_SHOWN_CHARACTERS = 100
_CHUNK_BYTES = 2**16


def load_image(source: Any, timeout: float | None = 20.0) -> Image.Image:
    """Load one image from anywhere.

    Args:
        source (`PIL.Image.Image`, `bytes`, `str`, `os.PathLike`, `dict`, `numpy.ndarray` or `torch.Tensor`):
            A PIL image of any mode; the bytes of an image file, or an open binary file; a path; a ``file:``,
            ``http:`` or ``https:`` URL; a ``data:`` URI or base64 text; an array or tensor of shape (height, width),
            (height, width, channels) or (channels, height, width) holding bools, integers 0-255, 16-bit unsigned
            integers or floats 0-1; a dict with ``"bytes"`` or ``"path"`` as `datasets.Image(decode=False)` gives.
        timeout (`float`, *optional*, defaults to 20.0):
            Seconds to wait for a server, and for a whole download. `None` waits without end.

    Returns:
        `PIL.Image.Image`: Mode RGB, upright, at least 1 x 1 pixels.

    Raises:
        ValueError: If nothing can be made of ``source``: no image, damaged or cut off, without pixels, more than
            ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, more than `MAX_IMAGE_BYTES` bytes, or not reachable.
    """
    source = _out_of_dict(source)
    name = describe_source(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, name)
    if hasattr(source, "detach") and hasattr(source, "cpu"):
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return _from_array(array, name, channels_first=True)
    if isinstance(source, np.ndarray):
        return _from_array(source, name, channels_first=False)
    data = _encoded_bytes(source, name, timeout)
    if data is not None:
        return _from_bytes(data, name)
    raise ValueError(f"cannot make an image of {name}: {_ALLOWED}")


def read_encoded(source: Any, timeout: float | None = 20.0) -> bytes | None:
    """The bytes of the image file behind ``source``, not decoded; `None` for what is decoded already.

    Args:
        source: As for `load_image`.
        timeout (`float`, *optional*, defaults to 20.0): As for `load_image`.

    Raises:
        ValueError: If a file or address cannot be read.
    """
    source = _out_of_dict(source)
    return _encoded_bytes(source, describe_source(source), timeout)


def is_single_image(source: Any) -> bool:
    """Whether ``source`` stands for one image rather than for a collection of them."""
    if isinstance(source, (list, tuple)) or source is None:
        return False
    return not (hasattr(source, "ndim") and source.ndim > 3)


def sample_frames(frames: Any, num_frames: int) -> list[Any]:
    """Frames of a video, evenly spaced: the first of each of ``num_frames`` stretches of equal length.

    Args:
        frames (`Sequence`): Frames in order; an array or tensor has them along its first axis.
        num_frames (`int`): How many to keep; fewer frames are all kept.

    Returns:
        `list`: At most ``num_frames`` frames.

    Raises:
        ValueError: If ``num_frames`` is not positive.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    total = len(frames)
    if total <= num_frames:
        return list(frames)
    return [frames[index * total // num_frames] for index in range(num_frames)]


def describe_source(source: Any) -> str:
    """A short name for ``source`` in error messages: never the whole of a long text or byte string."""
    if isinstance(source, Image.Image):
        return f"the PIL image of mode {source.mode} and size {source.width}x{source.height}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes that start with {bytes(source[:12])!r}"
    if isinstance(source, str):
        shown = source if len(source) <= _SHOWN_CHARACTERS else source[:_SHOWN_CHARACTERS] + "..."
        return repr(shown) + (f" ({len(source)} characters)" if len(source) > _SHOWN_CHARACTERS else "")
    if isinstance(source, os.PathLike):
        return repr(os.fspath(source))
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return f"the {type(source).__name__} of shape {tuple(source.shape)} and type {source.dtype}"
    if isinstance(source, dict):
        return f"a dict with the keys {sorted(map(str, source))}"
    return f"an object of type {type(source).__name__}"


# --- reading ------------------------------------------------------------------------------------------------------


def _out_of_dict(source: Any) -> Any:
    return source.get("bytes") or source.get("path") or source if isinstance(source, dict) else source


def _encoded_bytes(source: Any, name: str, timeout: float | None) -> bytes | None:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str):
        return _read_text_source(source, name, timeout)
    if isinstance(source, os.PathLike):
        return _read_file(Path(source), name)
    if hasattr(source, "read"):
        return _bounded(source.read(MAX_IMAGE_BYTES + 1), name)
    return None


def _read_text_source(source: str, name: str, timeout: float | None) -> bytes:
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return _download(source, name, timeout)
    if scheme.startswith("file:"):
        return _read_file(Path(url2pathname(urlsplit(source).path)), name)
    if scheme.startswith("data:"):
        header, comma, payload = source.partition(",")
        if not comma:
            raise ValueError(f"cannot read {name}: a data: URI has a comma before its content")
        data = _decode_base64(payload, name) if header.endswith(";base64") else unquote_to_bytes(payload)
        return _bounded(data, name)
    path = Path(source)
    if os.path.exists(path):
        return _read_file(path, name)
    try:
        data = _decode_base64(source, name)
    except ValueError as error:
        raise ValueError(f"{name} is neither an existing file nor base64 text; {_ALLOWED}") from error
    return _bounded(data, name)


def _decode_base64(text: str, name: str) -> bytes:
    compact = "".join(text.split())
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"cannot read {name}: it is not valid base64 ({error})") from error


def _read_file(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return _bounded(file.read(MAX_IMAGE_BYTES + 1), name)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the image file {name}: {error}") from error


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"{name} is too large: an image file may have at most {MAX_IMAGE_BYTES} bytes")
    return data


def _download(url: str, name: str, timeout: float | None) -> bytes:
    deadline = None if timeout is None else time.monotonic() + timeout
    data = bytearray()
    try:
        request = Request(url, headers={"User-Agent": "instructblip-hf"})
        # The scheme was checked by the caller, and redirects lead to the web only.
        with urlopen(request, timeout=timeout) as response:
            while chunk := response.read1(_CHUNK_BYTES):
                data += chunk
                if len(data) > MAX_IMAGE_BYTES:
                    raise ValueError(f"a download may have at most {MAX_IMAGE_BYTES} bytes")
                # The timeout of a socket starts anew with every read, so a slow drip would never meet it.
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError
    except (OSError, HTTPException, ValueError) as error:
        is_timeout = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
        reason = f"not done within timeout={timeout} seconds" if is_timeout else error
        raise ValueError(f"cannot download {name}: {reason}") from error
    return bytes(data)


def _from_bytes(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ValueError(f"{name} is empty: {_ALLOWED}")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not in an image format that PIL can read") from error
    except _DECODING_ERRORS as error:
        raise ValueError(f"cannot read {name} as an image: {error}") from error
    with image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ValueError(
                f"{name} has {image.width}x{image.height} pixels, more than the {limit} of PIL.Image.MAX_IMAGE_PIXELS"
            )
        return _to_rgb(image, name)


# --- to RGB -------------------------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise ValueError(f"{name} has no pixels: width and height must be at least 1")
    # PIL below 11.3 opens 16-bit PNG files in mode I, where nothing else tells their range.
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    try:
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would make a copy all the same
            image = ImageOps.exif_transpose(image)
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        if image.mode in ("I", "F") or is_16_bit:
            return _gray_to_rgb(np.asarray(image), is_16_bit, name)
        if image.has_transparency_data:
            background = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")
    except _DECODING_ERRORS as error:
        raise ValueError(f"cannot read {name}: {error}") from error


def _gray_to_rgb(values: np.ndarray, is_16_bit: bool, name: str) -> Image.Image:
    if not is_16_bit and np.issubdtype(values.dtype, np.integer):
        is_16_bit = int(values.max()) > 255
    return Image.fromarray(_to_uint8(values, is_16_bit, name)).convert("RGB")


def _from_array(array: np.ndarray, name: str, channels_first: bool) -> Image.Image:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"cannot make an image of {name}: {_ALLOWED}")
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 2, 3, 4), array.shape[2] in (1, 2, 3, 4)
        if not (first or last):
            raise ValueError(f"{name} has no axis of 1, 2, 3 or 4 channels, first or last")
        if first and (channels_first or not last):
            array = np.moveaxis(array, 0, -1)
    values = _to_uint8(array, array.dtype == np.uint16, name)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(values)), name)


def _to_uint8(values: np.ndarray, is_16_bit: bool, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise ValueError(f"cannot make an image of {name}: its values must be bools, integers or floats")
    low, high = float(values.min()), float(values.max())
    is_float = np.issubdtype(values.dtype, np.floating)
    # Interpolation overshoots by a little; more than that is another range.
    largest, slack = (1.0, 1e-2) if is_float else (65535.0 if is_16_bit else 255.0, 0.0)
    if not (low >= -slack and high <= largest + slack):
        kind = "floats" if is_float else "integers"
        raise ValueError(f"{name} holds {kind} from {low:g} to {high:g}; allowed are {kind} from 0 to {largest:g}")
    scaled = np.clip(values.astype(np.float64) * (255.0 / largest), 0, 255)
    return np.rint(scaled).astype(np.uint8)


__all__ = ["MAX_IMAGE_BYTES", "describe_source", "is_single_image", "load_image", "read_encoded", "sample_frames"]
