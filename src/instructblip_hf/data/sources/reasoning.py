"""GQA and VSR: questions and statements about how the things in an image relate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import Example
from .fields import answer_texts, binary_label, identifier, images_of, text
from .files import Located, json_rows, jsonl_rows


def gqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``*_balanced_questions.json``: an object by question id as published, or LAVIS's list of it."""
    yield from json_rows(files[0])


def gqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of GQA with its one short answer; the full sentence stays in ``metadata``."""
    names: tuple[str, ...] = ()
    if row.get("image") is None:
        name = f"{identifier(row, 'imageId', 'image_id')}.jpg"
        names = (f"images/{name}", name)
    example: Example = {
        "id": identifier(row, "id", "question_id"),
        "dataset": "gqa",
        "category": "visual_reasoning",
        "images": images_of(row, *names, folders=("images/", "")),
        "question": text(row, "question"),
        "answers": answer_texts(row, "answer"),
    }
    facts = {key: row[key] for key in ("fullAnswer", "types") if row.get(key)}
    if facts:
        example["metadata"] = facts
    return [example]


def vsr_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Lines of ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``; they have no ids, so their number is one."""
    for number, (where, row) in enumerate(jsonl_rows(files[0])):
        yield where, row if isinstance(row, str) else {"id": number, **row}


def vsr_examples(row: Mapping[str, Any]) -> list[Example]:
    """A statement about where two things are, and whether it is true: answer "yes" or "no"."""
    label = binary_label(row)
    example: Example = {
        "id": identifier(row, "id", "image", "image_link"),
        "dataset": "vsr",
        "category": "visual_reasoning",
        "images": images_of(row, folders=("images/", "")),
        "statement": text(row, "caption"),
        "answers": [] if label is None else [("no", "yes")[label]],
    }
    facts = {key: row[key] for key in ("relation", "subj", "obj") if row.get(key)}
    if label is not None:
        facts["label"] = label
    example["metadata"] = facts
    return [example]


__all__ = ["gqa_examples", "gqa_rows", "vsr_examples", "vsr_rows"]
