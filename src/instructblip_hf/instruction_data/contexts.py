"""What a language model gets to know of an image: captions, and objects with their boxes (LLaVA, section 3).

From COCO's official files, or from a file with a row for each image in the form of LLaVA's own contexts
(``caps_boxes_coco2014_val_80.jsonl``): ``{"image", "captions": [...], "instances": [{"category", "bbox"}]}``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any


logger = logging.getLogger(__name__)
DECIMALS = 3
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxedObject:
    """One thing in an image.

    Args:
        category (`str`): What it is.
        box (`tuple` of four `float`): Left, upper, right and lower end, from 0 to 1 of the image's width and height.
    """

    category: str
    box: Box

    def text(self) -> str:
        """As the model reads it: ``"dog: [0.12, 0.3, 0.456, 0.9]"``."""
        return f"{self.category}: {list(self.box)}"


@dataclass(frozen=True)
class ImageContext:
    """What is known of an image.

    Args:
        image (`str`): Its path, as it will stand in the data.
        captions (`tuple[str, ...]`): Sentences about the whole of it.
        objects (`tuple[BoxedObject, ...]`): Things in it.
        id (`str`, *optional*): Of the image; the path's name without its ending by default.
    """

    image: str
    captions: tuple[str, ...]
    objects: tuple[BoxedObject, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", PurePosixPath(self.image).stem)

    def text(self, with_boxes: bool) -> str:
        """The context as a text: a caption a line, and after an empty line an object a line."""
        lines = list(self.captions)
        if with_boxes and self.objects:
            lines += ["", *(item.text() for item in self.objects)]
        return "\n".join(lines)


def coco_contexts(captions: str | Path, instances: str | Path | None = None) -> list[ImageContext]:
    """Images of COCO in the order of the captions' file, without those that have no caption.

    Args:
        captions (`str` or `Path`): ``captions_train2017.json`` or another of its form.
        instances (`str` or `Path`, *optional*): ``instances_train2017.json``. Boxes around crowds are left out, since
            they are about no single thing. Images that are not in it have no boxes, and a warning counts them.

    Raises:
        ValueError: If a file is not of this form, naming file, entry and what is wrong, or the two have no image in
            common.
    """
    table = _coco(captions)
    sentences: dict[Any, list[str]] = {}
    for number, row in enumerate(table["annotations"]):
        with _naming(captions, f"annotation {number}"):
            sentences.setdefault(row["image_id"], []).append(_sentence(row["caption"]))
    objects, known = _coco_objects(instances) if instances is not None else ({}, set())
    contexts = []
    for number, image in enumerate(table["images"]):
        with _naming(captions, f"image {number}"):
            if image["id"] in sentences:
                found = tuple(objects.get(image["id"], ()))
                contexts.append(ImageContext(image["file_name"], tuple(sentences[image["id"]]), found))
    if not contexts:
        raise ValueError(f"{captions}: no image has a caption")
    if instances is not None:
        _check_common(captions, instances, set(sentences), known)
    return contexts


def _check_common(captions: str | Path, instances: str | Path, described: set[Any], known: set[Any]) -> None:
    """Files of different splits have no image in common, and no image would have a box."""
    missing = len(described - known)
    if missing == len(described):
        raise ValueError(f"{captions} and {instances} have no image in common; are they of the same split?")
    if missing:
        logger.warning("%s: %d of %d images are not in %s", captions, missing, len(described), instances)


def jsonl_contexts(file: str | Path) -> list[ImageContext]:
    """Images of a file with a JSON object a line: ``image``, ``captions``, and as you like ``instances`` and ``id``.

    Raises:
        ValueError: If a line is not of this form, or a box has a number that is not from 0 to 1.
    """
    contexts = []
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            with _naming(file, f"line {number}"):
                contexts.append(context_of(json.loads(line)))
    if not contexts:
        raise ValueError(f"{file} has no rows")
    return contexts


def context_of(row: Mapping[str, Any]) -> ImageContext:
    """An image from a row ``{"image", "captions", "instances": [{"category", "bbox"}], "id"}``.

    Raises:
        ValueError: If it is malformed.
        KeyError: If a field is missing.
    """
    captions = row["captions"]
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise ValueError(f"captions must be a list, not {captions!r:.80}")
    sentences = tuple(_sentence(caption) for caption in captions)
    if not sentences:
        raise ValueError("has no captions")
    objects = tuple(_boxed(one["category"], one["bbox"]) for one in row.get("instances") or ())
    return ImageContext(str(row["image"]), sentences, objects, str(row.get("id") or ""))


def _coco(file: str | Path) -> dict[str, Any]:
    with Path(file).open(encoding="utf-8") as stream, _naming(file, "the file"):
        table: dict[str, Any] = json.load(stream)
        for name in ("images", "annotations"):
            if not isinstance(table[name], list):
                raise ValueError(f"{name} must be a list")
        return table


def _coco_objects(file: str | Path) -> tuple[dict[Any, list[BoxedObject]], set[Any]]:
    """Objects by image, and the ids of all images."""
    table = _coco(file)
    with _naming(file, "categories"):
        names = {row["id"]: str(row["name"]) for row in table["categories"]}
    sizes = {}
    for number, row in enumerate(table["images"]):
        with _naming(file, f"image {number}"):
            sizes[row["id"]] = float(row["width"]), float(row["height"])
    objects: dict[Any, list[BoxedObject]] = {}
    for number, row in enumerate(table["annotations"]):
        if row.get("iscrowd"):
            continue
        with _naming(file, f"annotation {number}"):
            width, height = sizes[row["image_id"]]
            left, top, across, down = row["bbox"]
            # Boxes of COCO stick out of their image by rounding.
            ends = (left / width, top / height, (left + across) / width, (top + down) / height)
            inside = [min(1.0, max(0.0, end)) for end in ends]
            objects.setdefault(row["image_id"], []).append(_boxed(names[row["category_id"]], inside))
    return objects, set(sizes)


def _boxed(category: Any, box: Any) -> BoxedObject:
    if not isinstance(category, str) or not category.strip():
        raise ValueError(f"category must be a text, not {category!r}")
    if isinstance(box, str) or not isinstance(box, Sequence) or len(box) != 4:
        raise ValueError(f"bbox must have four numbers, not {box!r:.80}")
    left, top, right, bottom = (round(float(end), DECIMALS) for end in box)
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise ValueError(f"bbox must be left, upper, right and lower end from 0 to 1, not {list(box)}")
    return BoxedObject(" ".join(category.split()), (left, top, right, bottom))


def _sentence(caption: Any) -> str:
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"a caption must be a text, not {caption!r}")
    return " ".join(caption.split())


class _naming:
    """Turns what is wrong with an entry into an error that names file and entry."""

    def __init__(self, file: str | Path, entry: str) -> None:
        self._where = f"{file}, {entry}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise ValueError(f"{self._where}: has no {error.args[0]}") from error
        if isinstance(error, (ValueError, TypeError, ZeroDivisionError)):
            raise ValueError(f"{self._where}: {error}") from error


def distinct(contexts: Sequence[ImageContext]) -> Iterator[ImageContext]:
    """Contexts without those that stood there before."""
    seen: set[ImageContext] = set()
    for context in contexts:
        if context not in seen:
            seen.add(context)
            yield context


__all__ = ["BoxedObject", "ImageContext", "coco_contexts", "context_of", "distinct", "jsonl_contexts"]
