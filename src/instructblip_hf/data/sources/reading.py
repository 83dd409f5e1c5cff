"""TextCaps, TextVQA and OCR-VQA: images whose text is to be read, with the words that OCR found in them.

TextVQA publishes the words of its images, which are TextCaps' images too, by the Rosetta system; OCR-VQA publishes
none. LAVIS has the place for OCR words in its prompts and no reader of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ..schema import Example
from .fields import answer_texts, identifier, images_of, text, texts
from .files import Located, json_rows


_OCR_VQA_SPLITS = {1: "train", 2: "val", 3: "test"}


def ocr_tokens_of(files: Sequence[Path]) -> dict[str, list[str]]:
    """Words by image, of ``TextVQA_Rosetta_OCR_v0.2_*.json`` or a file of that layout.

    Raises:
        ValueError: If a row has no image or no list of words.
    """
    words: dict[str, list[str]] = {}
    for file in files:
        for where, row in json_rows(file, "data"):
            if isinstance(row, str):
                raise ValueError(f"{where}: {row}")
            try:
                words[identifier(row, "image_id")] = texts(row, "ocr_tokens")
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    return words


def textvqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``TextVQA_0.5.1_*.json`` with the words of their images."""
    yield from _with_words(json_rows(files[0], "data"), split, ocr_tokens_of(optional))


def textcaps_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``TextCaps_0.1_*.json`` with the words of their images: a caption a row for training, an image a row
    with its reference captions for evaluation."""
    seen = set()
    for where, row in _with_words(json_rows(files[0], "data"), split, ocr_tokens_of(optional)):
        if isinstance(row, str) or split == "train":
            yield where, row
        elif row.get("image_id") not in seen:
            seen.add(row.get("image_id"))
            yield where, {key: value for key, value in row.items() if key not in ("caption_str", "caption_id")}


def _with_words(rows: Iterator[Located], split: str, words: Mapping[str, list[str]]) -> Iterator[Located]:
    for where, row in rows:
        if not isinstance(row, str):
            row = {"split": split, **row}
            if str(row.get("image_id")) in words:
                row["ocr_tokens"] = words[str(row["image_id"])]
        yield where, row


def textvqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of TextVQA with its ten answers."""
    example: Example = {
        "id": identifier(row, "question_id"),
        "dataset": "textvqa",
        "category": "qa_reading",
        "images": _textvqa_images(row),
        "question": text(row, "question"),
        "answers": answer_texts(row, "answers"),
    }
    return [_add_words(example, row)]


def textcaps_examples(row: Mapping[str, Any]) -> list[Example]:
    """A caption of TextCaps (``caption_str``), or an image with its ``reference_strs``."""
    row_id = identifier(row, "image_id")
    if row.get("caption_str") is not None and row.get("caption_id") is not None:
        row_id = f"{row_id}-{row['caption_id']}"
    example: Example = {
        "id": row_id,
        "dataset": "textcaps",
        "category": "captioning_reading",
        "images": _textvqa_images(row),
        "answers": answer_texts(row, "caption_str", "reference_strs"),
    }
    return [_add_words(example, row)]


def _textvqa_images(row: Mapping[str, Any]) -> list[Any]:
    name = f"{identifier(row, 'image_id')}.jpg"
    folder = "test_images" if row.get("split") == "test" else "train_images"
    return images_of(row, f"{folder}/{name}", name)


def _add_words(example: Example, row: Mapping[str, Any]) -> Example:
    if row.get("ocr_tokens") is not None:
        example["ocr_tokens"] = texts(row, "ocr_tokens")
    return example


def ocr_vqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Books of ``dataset.json`` that are in the split by their own field; all of them for the split ``all``."""
    words = ocr_tokens_of(optional)
    for where, row in json_rows(files[0]):
        if isinstance(row, str) or split == "all" or _ocr_vqa_split(row) in (split, None):
            if not isinstance(row, str) and str(row.get("id")) in words:
                row = {**row, "ocr_tokens": words[str(row["id"])]}
            yield where, row


def _ocr_vqa_split(row: Mapping[str, Any]) -> str | None:
    number = row.get("split")
    return _OCR_VQA_SPLITS.get(number) if isinstance(number, int) else None


def ocr_vqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """The questions of a book cover, each with its own answer: ``id``, ``questions``, ``answers``, ``split``."""
    if row.get("split") is not None and _ocr_vqa_split(row) is None and not isinstance(row["split"], str):
        raise ValueError(f"split must be 1, 2 or 3, not {row['split']!r}")
    book = identifier(row, "id", "image_id")
    questions, answers = texts(row, "questions"), texts(row, "answers")
    if len(questions) != len(answers):
        raise ValueError(f"has {len(questions)} questions and {len(answers)} answers")
    # The archive of images keeps the endings of the addresses.
    ending = PurePosixPath(urlsplit(str(row.get("imageURL") or "")).path).suffix or ".jpg"
    names = dict.fromkeys((f"images/{book}{ending}", f"images/{book}.jpg"))
    metadata = {key: row[key] for key in ("title", "authorName", "genre") if row.get(key)}
    examples = []
    for number, (question, answer) in enumerate(zip(questions, answers)):
        example: Example = {
            "id": f"{book}-{number}",
            "dataset": "ocr_vqa",
            "category": "qa_reading",
            "images": images_of(row, *names),
            "question": question,
            "answers": [answer],
            "metadata": metadata,
        }
        examples.append(_add_words(example, row))
    return examples


__all__ = [
    "ocr_tokens_of",
    "ocr_vqa_examples",
    "ocr_vqa_rows",
    "textcaps_examples",
    "textcaps_rows",
    "textvqa_examples",
    "textvqa_rows",
]
