"""IconQA and ScienceQA: questions with choices, published as one file of problems and one of splits.

LAVIS read ScienceQA as if it were IconQA: without hint and lecture, and not at all where a question has no image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import Example
from .fields import identifier, images_of, index, optional_text, text, texts
from .files import Located, json_rows, read_json


def iconqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Problems of the split whose choices are texts, or LAVIS's list of them."""
    if len(files) == 1:
        yield from json_rows(files[0])
        return
    yield from _problems(files, f"choose_txt_{split}", split)


def iconqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A problem of IconQA."""
    row_id = identifier(row, "id", "question_id", "image")
    folder = f"iconqa/{row.get('split', 'test')}/choose_txt/{row_id}/image.png"
    named = {} if row.get("image") == "image.png" else row
    example = _problem(row, row_id, "iconqa", "visual_reasoning")
    example["images"] = images_of(named, folder, folder.removeprefix("iconqa/"), folders=("", "iconqa/all_images/"))
    example["metadata"] = {key: row[key] for key in ("grade", "skills", "label") if row.get(key)}
    return [example]


def scienceqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Problems of the split; of ``train_image``, ``val_image`` and ``test_image`` those with an image."""
    name = split.removesuffix("_image")
    rows = _problems(files, name, name) if len(files) == 2 else json_rows(files[0])
    for where, row in rows:
        if isinstance(row, str) or name == split or row.get("image"):
            yield where, row if isinstance(row, str) else {"split": name, **row}


def scienceqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A problem of ScienceQA: hint as context, lecture, solution as explanation; without images if it has none."""
    row_id = identifier(row, "id", "question_id")
    example = _problem(row, row_id, "scienceqa", "knowledge_qa")
    image = row.get("image")
    if image == "image.png":
        # The field holds the file's own name; which folder follows from split and id.
        name = f"{row_id}/image.png"
        example["images"] = images_of(
            {}, f"{row.get('split', 'test')}/{name}", f"images/{row.get('split', 'test')}/{name}", name
        )
    elif image:
        example["images"] = images_of(row, folders=("", "images/"))
    for slot, field in (("context", "hint"), ("lecture", "lecture"), ("explanation", "solution")):
        if optional_text(row, field).strip():
            example[slot] = row[field]  # type: ignore[literal-required]
    facts = ("task", "grade", "subject", "topic", "category", "skill", "split")
    example["metadata"] = {key: row[key] for key in facts if row.get(key)}
    return [example]


def _problem(row: Mapping[str, Any], row_id: str, dataset: str, category: str) -> Example:
    options = texts(row, "choices")
    if not options:
        raise ValueError("choices is empty")
    example: Example = {
        "id": row_id,
        "dataset": dataset,
        "category": category,
        "images": [],
        "question": text(row, "question"),
        "answers": [],
        "options": options,
    }
    if row.get("answer") is not None:
        example["correct_option"] = index(row, "answer", len(options))
        example["answers"] = [options[example["correct_option"]]]
    return example


def _problems(files: Sequence[Path], group: str, split: str) -> Iterator[Located]:
    problems, splits = read_json(files[0]), read_json(files[1])
    if not isinstance(problems, Mapping):
        raise ValueError(f"{files[0].name}: holds no object from ids to problems")
    if not isinstance(splits, Mapping) or group not in splits:
        raise ValueError(f"{files[1].name}: has no {group}, so it is not the published file")
    for problem_id in splits[group]:
        where = f'{files[0].name}["{problem_id}"]'
        problem = problems.get(str(problem_id))
        if isinstance(problem, Mapping):
            yield where, {**problem, "split": split, "id": str(problem_id)}
        else:
            yield where, f"is named in {files[1].name} and is not there"


__all__ = ["iconqa_examples", "iconqa_rows", "scienceqa_examples", "scienceqa_rows"]
