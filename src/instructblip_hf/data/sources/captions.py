"""COCO Caption, Flickr30k, NoCaps and Web CapFilt: images and captions of them.

Karpathy's files of COCO and Flickr30k hold all splits and all captions of an image in one row; the lists that BLIP and
LAVIS made of them hold a caption a row for training. Both give the same rows here: a caption a row for training, an
image with all its captions a row for evaluation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import Example
from .fields import answer_texts, identifier, images_of, text
from .files import Located, json_rows, jsonl_rows, read_json, streamed_json_rows


_KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def karpathy_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of Karpathy's ``dataset_*.json``, or of BLIP's list for one split."""
    if not files[0].name.startswith("dataset_"):
        for number, (where, row) in enumerate(json_rows(files[0])):
            yield where, row if isinstance(row, str) or split != "train" else {**row, "sentence": number}
        return
    for where, row in json_rows(files[0], "images"):
        if isinstance(row, str) or row.get("split") in _KARPATHY_SPLITS[split]:
            if isinstance(row, str) or split != "train" or not isinstance(row.get("sentences"), list):
                yield where, row
                continue
            for number, sentence in enumerate(row["sentences"]):
                yield f"{where}.sentences[{number}]", {**row, "sentences": [sentence], "sentence": number}


def coco_caption_examples(row: Mapping[str, Any]) -> list[Example]:
    """A row of ``dataset_coco.json`` or ``coco_karpathy_*.json``."""
    return _karpathy_examples(row, "coco_caption", "cocoid", ("",))


def flickr30k_examples(row: Mapping[str, Any]) -> list[Example]:
    """A row of ``dataset_flickr30k.json`` or ``flickr30k_*.json``."""
    return _karpathy_examples(row, "flickr30k", "imgid", ("flickr30k-images/", "flickr30k_images/", "images/", ""))


def _karpathy_examples(row: Mapping[str, Any], dataset: str, id_key: str, folders: Sequence[str]) -> list[Example]:
    if "sentences" in row:
        captions = [text(sentence, "raw") for sentence in row["sentences"]]
        name = text(row, "filename")
        if row.get("filepath"):
            folders = (f"{row['filepath']}/",)
        images = images_of({"image": name}, folders=folders)
    else:
        captions = answer_texts(row, "caption", "captions")
        images = images_of(row, folders=("", *folders) if folders != ("",) else folders)
    if not captions:
        raise ValueError("has no caption")
    row_id = identifier(row, id_key, "image_id", "id", "image")
    if row.get("sentence") is not None:
        row_id = f"{row_id}-{row['sentence']}"
    return [_captioned(row_id, dataset, images, captions)]


def nocaps_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of NoCaps' files in COCO's format, with the captions of each image, or of LAVIS's lists."""
    content = read_json(files[0])
    if not isinstance(content, Mapping):
        yield from json_rows(files[0])
        return
    captions: dict[Any, list[str]] = defaultdict(list)
    for annotation in content.get("annotations", []):
        captions[annotation.get("image_id")].append(annotation.get("caption"))
    for position, row in enumerate(content.get("images", [])):
        where = f"{files[0].name}.images[{position}]"
        if "annotations" in content and row.get("id") not in captions:
            yield where, f"has no captions in annotations for the image {row.get('id')!r}"
        else:
            yield where, {**row, "captions": captions.get(row.get("id")), "split": split}


def nocaps_examples(row: Mapping[str, Any]) -> list[Example]:
    """An image of NoCaps: ``file_name`` (or ``image``), ``id`` (or ``img_id``) and, where published, captions."""
    folders = ("images/", f"{row.get('split', 'val')}/", "")
    images = images_of({"image": row.get("file_name") or row.get("image")}, folders=folders)
    captions = answer_texts(row, "captions", "annotations_captions", "caption")
    example = _captioned(identifier(row, "id", "img_id", "image_id"), "nocaps", images, captions)
    if row.get("domain"):
        example["metadata"] = {"domain": row["domain"]}
    return [example]


def capfilt_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``annotation.json``, read one by one: there are 14 million of them."""
    rows = jsonl_rows(files[0]) if files[0].suffix == ".jsonl" else streamed_json_rows(files[0])
    for number, (where, row) in enumerate(rows):
        yield where, row if isinstance(row, str) else {"id": number, **row}


def capfilt_examples(row: Mapping[str, Any]) -> list[Example]:
    """An image from the web and its filtered caption."""
    if "image" not in row and "url" in row:
        raise ValueError("has a url and no image: download the image and write its path under image")
    captions = answer_texts(row, "caption")
    if not captions:
        raise ValueError("has no caption")
    return [_captioned(identifier(row, "id", "image"), "web_capfilt", images_of(row), captions)]


def _captioned(row_id: str, dataset: str, images: list[Any], captions: list[str]) -> Example:
    return {"id": row_id, "dataset": dataset, "category": "image_captioning", "images": images, "answers": captions}


__all__ = [
    "capfilt_examples",
    "capfilt_rows",
    "coco_caption_examples",
    "flickr30k_examples",
    "karpathy_rows",
    "nocaps_examples",
    "nocaps_rows",
]
