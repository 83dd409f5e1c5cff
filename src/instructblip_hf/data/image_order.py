"""Where images stand in the first turn of a conversation: as published, first, or first or last by a hash.

The paper's data has ``<image>\\n`` before the question or ``\\n<image>`` behind it, drawn once when it was made (Liu et al.
2023, section 4.2: the order is chosen at random). Later LLaVA moves the image to the front of every turn that has it
(``preprocess_multimodal`` of ``llava/train/train.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..constants import IMAGE_TOKEN
from .answers import draw_index


IMAGE_ORDERS = ("published", "first", "random")
"""``published``: as the row has it. ``first``: before the words of the first turn. ``random``: before or behind them, which
depends on seed and draw alone."""


def order_images(row: Mapping[str, Any], order: str, seed: int = 0, draw: int = 0) -> dict[str, Any]:
    """A row with the images of its first turn in their place.

    Args:
        row (`Mapping`): ``prompt`` and ``completion``, or ``messages``, with ``images`` or ``image``.
        order (`str`): One of `IMAGE_ORDERS`.
        seed (`int`, *optional*, defaults to 0): Seed of the mixture.
        draw (`int`, *optional*, defaults to 0): Number of the draw.

    Returns:
        `dict`: A new row. One whose first turn has no image or no words is as it was.
    """
    if order == "published":
        return dict(row)
    is_last = order == "random" and draw_index(2, seed, 0, draw, "image order") == 1
    images = row.get("images")
    count = len(images) if images is not None else int(row.get("image") is not None)
    if isinstance(row.get("prompt"), str):
        return {**row, "prompt": _ordered_text(row["prompt"], count, is_last)}
    key = "messages" if row.get("messages") is not None else "prompt"
    turns = list(row.get(key) or ())
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        return dict(row)
    parts = [_parts(turn["content"]) for turn in turns]
    here = [part for part in parts[first] if part["type"] == "image"]
    if not here and not any(part["type"] == "image" for own in parts for part in own):
        here = [{"type": "image"} for _ in range(count)]
    words = "".join(part["text"] for part in parts[first] if part["type"] == "text").strip()
    if not here or not words:
        return dict(row)
    text = [{"type": "text", "text": words}]
    turns[first] = {**turns[first], "content": [*text, *here] if is_last else [*here, *text]}
    return {**row, key: turns}


def _ordered_text(prompt: str, count: int, is_last: bool) -> str:
    words = prompt.replace(IMAGE_TOKEN, "").strip()
    if not count or not words:
        return prompt
    # Without markers images come first, in the way that the model's family has them there.
    return words + f"\n{IMAGE_TOKEN}" * count if is_last else words


def _parts(content: Any) -> list[Any]:
    if not isinstance(content, str):
        return [part for part in content if part["type"] == "image" or part.get("text")]
    parts: list[Any] = []
    for number, piece in enumerate(content.split(IMAGE_TOKEN)):
        parts += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


__all__ = ["IMAGE_ORDERS", "order_images"]
