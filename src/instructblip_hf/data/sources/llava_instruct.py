"""LLaVA-Instruct-150K: conversations about COCO images, with every turn and every word as published.

LAVIS read the first question and answer only, in lower case, without punctuation and cut to fifty words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...constants import IMAGE_TOKEN
from ..schema import Example
from .fields import identifier, images_of
from .files import Located, json_rows


_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}


def llava_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of one of the three published lists. An image may have several, so their number is added to its id."""
    for number, (where, row) in enumerate(json_rows(files[0])):
        yield where, row if isinstance(row, str) else {**row, "number": number}


def llava_examples(dataset: str) -> Callable[[Mapping[str, Any]], list[Example]]:
    """A reader of rows ``{"id", "image", "conversations": [{"from", "value"}]}`` for one of the three datasets."""

    def examples(row: Mapping[str, Any]) -> list[Example]:
        images: list[Any] = []
        image = row.get("image")
        if isinstance(image, str) and image:
            # Rows name train2017's files, which train2014 has under longer names.
            number = image.rpartition("/")[2]
            images = images_of(
                {}, *dict.fromkeys((f"train2017/{number}", image, f"train2014/COCO_train2014_{number}", number))
            )
        elif image is not None:
            images = images_of(row)
        row_id = identifier(row, "id")
        return [
            {
                "id": f"{row_id}-{row['number']}" if "number" in row else row_id,
                "dataset": dataset,
                "category": "llava_instruct",
                "images": images,
                "answers": [],
                "messages": llava_messages(row.get("conversations"), len(images)),
            }
        ]

    return examples


def llava_messages(conversations: Any, num_images: int) -> list[dict[str, Any]]:
    """A conversation in TRL's form. Texts are untouched but for the image markers, and the line break between an image that
    opens or closes a turn and the words.

    Args:
        conversations (`Sequence[Mapping]`): Turns with ``from`` ("human" or "gpt") and ``value``, in turns.
        num_images (`int`): How many images the row has. Without any marker they stand first.

    Raises:
        ValueError: If a turn is malformed or empty, the roles do not alternate from a human's to a gpt's, or markers
            and images differ in number.
    """
    if isinstance(conversations, str) or not isinstance(conversations, Sequence) or not conversations:
        raise ValueError("has no conversations")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(conversations, start=1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise ValueError(f"turn {number} has no text as value")
        role = _ROLES.get(turn.get("from", ""))
        expected = "user" if number % 2 else "assistant"
        if role != expected:
            wanted = "human" if number % 2 else "gpt"
            raise ValueError(f"turn {number} is from {turn.get('from')!r}; it must be from {wanted!r}")
        parts = _parts(turn["value"])
        if not any(part["type"] == "text" for part in parts):
            raise ValueError(f"turn {number} is empty")
        messages.append({"role": role, "content": parts})
    if len(messages) % 2:
        raise ValueError(f"its last turn, {len(messages)}, is a question without an answer")
    markers = sum(part["type"] == "image" for message in messages for part in message["content"])
    if not markers:
        messages[0]["content"][:0] = [{"type": "image"}] * num_images
    elif markers != num_images:
        raise ValueError(f"has {markers} {IMAGE_TOKEN} for {num_images} images")
    return messages


def _parts(value: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    pieces = value.split(IMAGE_TOKEN)
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
            if not any(map(str.strip, pieces[:number])):
                piece = piece.removeprefix("\n")
        if number < len(pieces) - 1 and not any(map(str.strip, pieces[number + 1 :])):
            piece = piece.removesuffix("\n")
        if piece.strip():
            parts.append({"type": "text", "text": piece})
    return parts


__all__ = ["llava_examples", "llava_messages", "llava_rows"]
