"""What is judged: questions, a model's and a reference's answers, and what the judge gets to know of the images.

The files are LLaVA's, a JSON object a line. LLaVA goes through them side by side, so that a missing line shifts all that
follow; here rows are found by ``question_id``, and one that is missing is named.

========================  ===================================================================================
questions                 ``question_id``, ``image``, ``text``, ``category`` (conv, detail, complex)
answers                   ``question_id``, ``text``
contexts                  ``image`` with ``captions`` and ``instances`` (``category``, ``bbox``); or with a
                          ``caption``, one or a list, as LLaVA-Bench (In-the-Wild) has them
========================  ===================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


CATEGORIES = ("conv", "detail", "complex")


@dataclass(frozen=True)
class JudgedQuestion:
    """A question with both answers.

    Args:
        id (`str`): Its ``question_id``.
        category (`str`): ``conv``, ``detail``, ``complex``, or another.
        text (`str`): The question.
        context (`str`): What the judge gets to know of the image.
        has_boxes (`bool`): Whether the context has boxes.
        model (`str`): The model's answer.
        reference (`str`): The reference's.
    """

    id: str
    category: str
    text: str
    context: str
    has_boxes: bool
    model: str
    reference: str


def read_questions(
    questions: str | Path, answers: str | Path, reference: str | Path, contexts: str | Path
) -> list[JudgedQuestion]:
    """Reads four files in LLaVA's form, in the order of the questions.

    Raises:
        ValueError: If a line is malformed, an id stands there twice, or a question has no answer or no context.
    """
    said, wanted = _texts(answers), _texts(reference)
    known = {str(row["image"]): row for _, row in _rows(contexts, ("image",))}
    found: dict[str, JudgedQuestion] = {}
    for where, row in _rows(questions, ("question_id", "image", "text", "category")):
        number = str(row["question_id"])
        if number in found:
            raise ValueError(f"{where}: question_id {number} stands there twice")
        for file, table in ((answers, said), (reference, wanted)):
            if number not in table:
                raise ValueError(f"{file} has no answer to question {number}")
        if str(row["image"]) not in known:
            raise ValueError(f"{contexts} has nothing about image {row['image']}")
        context, has_boxes = _context(known[str(row["image"])], contexts)
        found[number] = JudgedQuestion(
            number, str(row["category"]), str(row["text"]), context, has_boxes, said[number], wanted[number]
        )
    if not found:
        raise ValueError(f"{questions} has no questions")
    return list(found.values())


def _texts(file: str | Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, row in _rows(file, ("question_id", "text")):
        number = str(row["question_id"])
        if number in texts:
            raise ValueError(f"{where}: question_id {number} stands there twice")
        texts[number] = str(row["text"])
    return texts


def _context(row: Mapping[str, Any], file: str | Path) -> tuple[str, bool]:
    """An image as the judge reads it, and whether there are boxes."""
    captions = row.get("captions", row.get("caption"))
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(captions, list) or not captions:
        raise ValueError(f"{file}: image {row['image']} has neither captions nor a caption")
    text = "\n".join(str(caption) for caption in captions)
    if row.get("instances") is None:
        return text, False
    try:
        boxes = "\n".join(f"{one['category']}: {one['bbox']}" for one in row["instances"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: image {row['image']} has instances without category or bbox") from error
    return f"{text}\n\n{boxes}", True


def _rows(file: str | Path, fields: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: is no JSON ({error})") from error
            missing = [field for field in fields if not isinstance(row, dict) or row.get(field) is None]
            if missing:
                raise ValueError(f"{where}: has no {' and no '.join(missing)}")
            rows.append((where, row))
    return rows


__all__ = ["CATEGORIES", "JudgedQuestion", "read_questions"]
