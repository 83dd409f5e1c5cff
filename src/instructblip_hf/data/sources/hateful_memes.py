"""Hateful Memes: an image with a text on it, and whether the two together are hateful."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import Example
from .fields import binary_label, identifier, images_of, text
from .files import Located, jsonl_rows


def hateful_memes_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Lines of ``train.jsonl``, ``dev.jsonl`` and so on."""
    yield from jsonl_rows(files[0])


def hateful_memes_examples(row: Mapping[str, Any]) -> list[Example]:
    """A meme: ``id``, ``img``, ``text`` and, where published, ``label`` 1 for hateful: answer "yes" or "no"."""
    label = binary_label(row)
    image = row.get("image") if row.get("image") is not None else row.get("img")
    example: Example = {
        "id": identifier(row, "id"),
        "dataset": "hateful_memes",
        "category": "image_classification",
        "images": images_of({"image": image}),
        "text": text(row, "text"),
        "answers": [] if label is None else [("no", "yes")[label]],
    }
    if label is not None:
        example["metadata"] = {"label": label}
    return [example]


__all__ = ["hateful_memes_examples", "hateful_memes_rows"]
