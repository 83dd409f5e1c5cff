"""VQAv2, OKVQA, A-OKVQA and VizWiz, and the question generation that the first three are turned into.

All ten answers of a question stay with it, in order; `instructblip_hf.data.answers.choose_answer` takes one. LAVIS's
collator made one list of the distinct answers of all questions of a batch, which stood beside the wrong questions, and
its VizWiz reader lost how often an answer was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import Example
from .fields import answer_texts, identifier, images_of, index, text, texts
from .files import Located, completed_rows, joined_rows, json_rows, read_json


_COCO_FOLDERS = {
    "train": "train2014",
    "val": "val2014",
    "test": "test2015",
    "test-dev": "test2015",
}


def vqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Questions with their annotations, as VQAv2 and OKVQA publish them apart, or one of LAVIS's lists."""
    questions = json_rows(files[0], "questions") if "_mscoco_" in files[0].name else json_rows(files[0])
    rows = completed_rows(questions, lambda row: {"split": split, **row})
    if len(files) == 1:
        yield from rows
        return
    annotations = read_json(files[1])
    if not isinstance(annotations, Mapping) or "annotations" not in annotations:
        raise ValueError(f"{files[1].name}: has no annotations, so it is not the published file")
    by_question = {row.get("question_id"): row for row in annotations["annotations"]}
    yield from joined_rows(rows, by_question, "question_id", f"{files[1].name} has no annotation of the")


def vqav2_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of VQAv2 joined with its annotation, or a row with ``question``, ``answers`` and ``image``."""
    return [_vqa_example(row, "vqav2", "image_qa")]


def okvqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of OKVQA joined with its annotation, or a row with ``question``, ``answers`` and ``image``."""
    return [_vqa_example(row, "okvqa", "knowledge_qa")]


def vqg_vqav2_examples(row: Mapping[str, Any]) -> list[Example]:
    """A row of VQAv2 whose question is to be generated from one of its answers."""
    return [_vqa_example(row, "vqg_vqav2", "question_generation")]


def vqg_okvqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A row of OKVQA whose question is to be generated from one of its answers."""
    return [_vqa_example(row, "vqg_okvqa", "question_generation")]


def _vqa_example(row: Mapping[str, Any], dataset: str, category: str) -> Example:
    names: tuple[str, ...] = ()
    if row.get("image") is None and row.get("image_id") is not None:
        folder = _COCO_FOLDERS.get(str(row.get("split", "train")), "train2014")
        name = f"COCO_{folder}_{int(identifier(row, 'image_id')):012d}.jpg"
        names = (f"{folder}/{name}", name)
    example: Example = {
        "id": identifier(row, "question_id", "id"),
        "dataset": dataset,
        "category": category,
        "images": images_of(row, *names),
        "question": text(row, "question"),
        "answers": answer_texts(row, "answers", "answer"),
    }
    kinds = {key: row[key] for key in ("answer_type", "question_type", "confidence") if row.get(key) is not None}
    if kinds:
        example["metadata"] = kinds
    return example


def aokvqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``aokvqa_v1p0_*.json``."""
    yield from completed_rows(json_rows(files[0]), lambda row: {"split": split, **row})


def aokvqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of A-OKVQA: ten direct answers, four choices, three rationales."""
    example = _aokvqa_example(row, "aokvqa", "knowledge_qa")
    rationales = answer_texts(row, "rationales")
    if rationales:
        example["explanation"] = rationales[0]
    return [example]


def vqg_aokvqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A row of A-OKVQA whose question is to be generated from one of its answers."""
    return [_aokvqa_example(row, "vqg_aokvqa", "question_generation")]


def _aokvqa_example(row: Mapping[str, Any], dataset: str, category: str) -> Example:
    names: tuple[str, ...] = ()
    if row.get("image") is None:
        name = f"{int(identifier(row, 'image_id')):012d}.jpg"
        names = (f"{row.get('split', 'train')}2017/{name}", name)
    options = texts(row, "choices")
    example: Example = {
        "id": identifier(row, "question_id"),
        "dataset": dataset,
        "category": category,
        "images": images_of(row, *names),
        "question": text(row, "question"),
        "answers": _direct_answers(row),
        "options": options,
    }
    if row.get("correct_choice_idx") is not None:
        example["correct_option"] = index(row, "correct_choice_idx", len(options))
    if row.get("difficult_direct_answer") is not None:
        example["metadata"] = {"difficult_direct_answer": row["difficult_direct_answer"]}
    return example


def _direct_answers(row: Mapping[str, Any]) -> list[str]:
    answers = row.get("direct_answers")
    # One repository of `datasets` holds the list as it prints.
    if isinstance(answers, str) and answers.startswith("["):
        import ast

        try:
            answers = ast.literal_eval(answers)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"direct_answers must be a list of texts, not {answers[:40]!r}") from error
    return answer_texts({"direct_answers": answers}, "direct_answers")


def vizwiz_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of VizWiz's ``train.json``, ``val.json`` and ``test.json``."""
    yield from completed_rows(json_rows(files[0]), lambda row: {"split": split, **row})


def vizwiz_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of VizWiz with its ten answers, repeated as given, and how sure their annotators were."""
    folders = (f"{row.get('split', 'val')}/", "")
    example: Example = {
        "id": identifier(row, "question_id", "image"),
        "dataset": "vizwiz",
        "category": "image_qa",
        "images": images_of(row, folders=folders),
        "question": text(row, "question"),
        "answers": answer_texts(row, "answers"),
    }
    facts = {key: row[key] for key in ("answerable", "answer_type") if row.get(key) is not None}
    answers = row.get("answers")
    if isinstance(answers, Sequence) and all(isinstance(answer, Mapping) for answer in answers):
        facts["answer_confidences"] = [answer.get("answer_confidence") for answer in answers]
    if facts:
        example["metadata"] = facts
    return [example]


__all__ = [
    "aokvqa_examples",
    "aokvqa_rows",
    "okvqa_examples",
    "vizwiz_examples",
    "vizwiz_rows",
    "vqa_rows",
    "vqav2_examples",
    "vqg_aokvqa_examples",
    "vqg_okvqa_examples",
    "vqg_vqav2_examples",
]
