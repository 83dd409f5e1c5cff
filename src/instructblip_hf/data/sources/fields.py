"""Reading the fields of a published row: what is missing or of another type is an error that says so.

Errors name the field, not the row: whoever reads the file knows where the row stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class OneOf(tuple[str, ...]):
    """Paths of which the first that is there is meant: official archives unpack to different folders."""

    __slots__ = ()


def text(row: Mapping[str, Any], *keys: str) -> str:
    """The text under the first of ``keys`` that the row has.

    Raises:
        ValueError: If it is missing, empty or not text.
    """
    value = _first(row, keys)
    if not isinstance(value, str):
        raise ValueError(f"{_named(row, keys)} must be text, not {_short(value)}")
    if not value.strip():
        raise ValueError(f"{_named(row, keys)} is empty")
    return value


def optional_text(row: Mapping[str, Any], key: str) -> str:
    """The text under ``key``; empty if the row has none.

    Raises:
        ValueError: If it is not text.
    """
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, not {_short(value)}")
    return value


def texts(row: Mapping[str, Any], *keys: str) -> list[str]:
    """The list of texts under the first of ``keys`` that the row has; tuples and arrays of `datasets` too.

    Raises:
        ValueError: If it is missing or not a list of texts.
    """
    value = _first(row, keys)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{_named(row, keys)} must be a list of texts, not {_short(value)}")
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"{_named(row, keys)} holds {_short(item)}, which is not text")
    return list(value)


def identifier(row: Mapping[str, Any], *keys: str) -> str:
    """The number or text under the first of ``keys`` that the row has, as text.

    Raises:
        ValueError: If it is missing, empty or of another type.
    """
    value = _first(row, keys)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError(f"{_named(row, keys)} must be a number or a text, not {_short(value)}")
    return str(value)


def index(row: Mapping[str, Any], key: str, length: int) -> int:
    """The index under ``key`` into something of ``length`` items.

    Raises:
        ValueError: If it is missing, not a whole number or out of range.
    """
    value = _first(row, (key,))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < length:
        raise ValueError(f"{key} must be a whole number from 0 to {length - 1}, not {_short(value)}")
    return value


def number(row: Mapping[str, Any], key: str) -> float | None:
    """The number under ``key``, also written as text; `None` if the row has none.

    Raises:
        ValueError: If it is something else.
    """
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} must be a number, not {_short(value)}") from error


def binary_label(row: Mapping[str, Any]) -> int | None:
    """The ``label`` 0 or 1; `None` if the row has none.

    Raises:
        ValueError: If it is something else.
    """
    label = row.get("label")
    if label is None:
        return None
    if label not in (0, 1) or isinstance(label, float):
        raise ValueError(f"label must be 0 or 1, not {_short(label)}")
    return int(label)


def answer_texts(row: Mapping[str, Any], *keys: str) -> list[str]:
    """All answers under the first of ``keys`` that the row has, in order and as often as they were given.

    Published are a single text, a list of texts, a list of ``{"answer": ...}``, and, in some repositories of
    `datasets`, a dict of lists ``{"answer": [...]}``. A row without the field has no answers, as those of test splits.

    Raises:
        ValueError: If it is something else.
    """
    value = next((row[key] for key in keys if row.get(key) is not None), None)
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = value.get("answer")
    if isinstance(value, str):
        return [value] if value.strip() else []
    if not isinstance(value, Sequence):
        raise ValueError(f"{_named(row, keys)} must be answers, not {_short(value)}")
    answers: list[str] = []
    for item in value:
        answer = item.get("answer") if isinstance(item, Mapping) else item
        if not isinstance(answer, str):
            raise ValueError(f"{_named(row, keys)} holds {_short(answer)}, which is not an answer")
        answers.append(answer)
    return answers


def images_of(row: Mapping[str, Any], *names: str, folders: Sequence[str] = ("",)) -> list[Any]:
    """The row's image: what its ``image`` field holds, or else a path.

    Args:
        row (`Mapping`): ``image`` is a path, or what `instructblip_hf.utils.images.load_image` takes, as in
            `datasets` repositories.
        names (`str`): Paths for a row without such a field; the first that is there is meant.
        folders (`Sequence[str]`, *optional*): What may stand before a path in the row's ``image``, in this order.

    Raises:
        ValueError: If there is neither.
    """
    image = row.get("image")
    if isinstance(image, str) and image:
        names = tuple(f"{folder}{image}" for folder in folders)
    elif image is not None and not isinstance(image, str):
        if isinstance(image, (int, float, list, tuple)) or (isinstance(image, Mapping) and not _has_content(image)):
            raise ValueError(f"image must be a path or an image, not {_short(image)}")
        return [image]
    if not names:
        raise ValueError("has no image")
    return [OneOf(names) if len(names) > 1 else names[0]]


def _has_content(image: Mapping[str, Any]) -> bool:
    """Whether this is an image as `datasets` stores it."""
    return isinstance(image.get("bytes"), bytes) or isinstance(image.get("path"), str)


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise ValueError(f"has no {' or '.join(keys)}")


def _named(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((key for key in keys if row.get(key) is not None), keys[0])


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


__all__ = [
    "OneOf",
    "answer_texts",
    "binary_label",
    "identifier",
    "images_of",
    "index",
    "number",
    "optional_text",
    "text",
    "texts",
]
