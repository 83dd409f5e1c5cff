"""Attention laid over an image as a picture: the warmer a place, the more of the attention it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


_COLOURS = ((18, 12, 40), (88, 20, 110), (196, 50, 82), (250, 145, 35), (252, 246, 160))
"""From no attention to most of it."""

_SMALL = 224
"""Up to this many pixels images are enlarged as they are, pixel by pixel; larger ones smoothly."""

_CAPTION_HEIGHT = 44


def heat_map(attention: Any, image: Image.Image, side: int = 336) -> Image.Image:
    """An image with attention over it.

    Args:
        attention (`torch.Tensor` or `numpy.ndarray`): Shape (rows, columns), not negative; its largest value is warmest.
        image (`PIL.Image.Image`): What was looked at.
        side (`int`, *optional*, defaults to 336): Pixels of the longer side of the picture.

    Returns:
        `PIL.Image.Image`: RGB, in the shape of the image.
    """
    values = np.asarray(attention, dtype=np.float32)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    enlarging = Image.Resampling.NEAREST if max(image.size) <= _SMALL else Image.Resampling.LANCZOS
    picture = np.asarray(image.convert("RGB").resize(size, enlarging), dtype=np.float32)
    values = values / max(float(values.max()), 1e-12)
    smooth = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
    heat = np.asarray(smooth, dtype=np.float32).clip(0, 1)  # [height, width]
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(heat, stops, channel) for channel in zip(*_COLOURS)], axis=-1)
    share = (0.25 + 0.45 * heat)[..., None]
    return Image.fromarray(((1 - share) * picture + share * colours).round().astype(np.uint8))


def strip(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures side by side with their captions below, as one.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): At least one.
        captions (`Sequence[str]`): As many; wrapped to two lines, and cut where that does not do.

    Returns:
        `PIL.Image.Image`: RGB, on white.
    """
    gap = 12
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) + 1)
    height = max(picture.height for picture in pictures)
    page = Image.new("RGB", (width, height + 2 * gap + _CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    left = gap
    for picture, caption in zip(pictures, captions):
        page.paste(picture, (left, gap))
        lines = _wrapped(draw, caption, font, picture.width)
        draw.multiline_text((left, height + gap + 6), "\n".join(lines), fill=(40, 40, 40), font=font)
        left += picture.width + gap
    return page


def _wrapped(draw: Any, text: str, font: Any, width: int, most: int = 2) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [*lines[: most - 1], lines[most - 1] + " ..."] if len(lines) > most else lines


__all__ = ["heat_map", "strip"]
