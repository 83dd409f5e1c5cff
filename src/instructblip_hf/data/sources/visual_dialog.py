"""Visual Dialog 1.0: ten questions about an image, each with what was said before it.

Every turn is a row of its own. LAVIS added one and the same object ten times, so that all rows were the last turn, and
left out the caption and the candidate answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import DialogTurn, Example
from .fields import identifier, images_of, index, text, texts
from .files import Located, read_json


def visdial_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Dialogues of ``visdial_1.0_*.json`` with texts in place of the file's numbers of questions and answers."""
    content = read_json(files[0])
    data = content.get("data") if isinstance(content, Mapping) else None
    if not isinstance(data, Mapping) or not {"dialogs", "questions", "answers"} <= set(data):
        raise ValueError(f"{files[0].name}: has no data.dialogs, data.questions and data.answers")
    for position, dialog in enumerate(data["dialogs"]):
        where = f"{files[0].name}.data.dialogs[{position}]"
        try:
            turns = [_turn(turn, data["questions"], data["answers"]) for turn in dialog["dialog"]]
        except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
            yield where, f"has a turn that points to no question or answer: {error}"
            continue
        yield where, {**dialog, "dialog": turns, "split": content.get("split", split)}


def _turn(turn: Mapping[str, Any], questions: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"question": _pick(questions, turn["question"])}
    if turn.get("answer") is not None:
        found["answer"] = _pick(answers, turn["answer"])
    if turn.get("answer_options") is not None:
        found["answer_options"] = [_pick(answers, option) for option in turn["answer_options"]]
        if turn.get("gt_index") is not None:
            found["gt_index"] = turn["gt_index"]
    return found


def _pick(choices: Sequence[str], position: int) -> str:
    if not 0 <= position < len(choices):
        raise IndexError(f"number {position} of {len(choices)}")
    return choices[position]


def visdial_examples(row: Mapping[str, Any]) -> list[Example]:
    """The turns of a dialogue: ``image_id``, ``caption`` and ``dialog`` with texts.

    In a dialogue that ends with a question without an answer, as those of the test split, that question is the one row.
    """
    image_id = identifier(row, "image_id")
    images = images_of(row, *_image_names(image_id, str(row.get("split", "train"))))
    turns = row.get("dialog")
    if not isinstance(turns, Sequence) or not turns:
        raise ValueError("has no dialog")
    open_turns = [number for number, turn in enumerate(turns) if turn.get("answer") is None]
    if open_turns not in ([], [len(turns) - 1]):
        raise ValueError(f"turn {open_turns[0] + 1} of its dialog has no answer")
    history: list[DialogTurn] = []
    examples = []
    for number, turn in enumerate(turns):
        question = text(turn, "question")
        answers = [] if turn.get("answer") is None else [text(turn, "answer")]
        if not open_turns or number in open_turns:
            example: Example = {
                "id": f"{image_id}-{number + 1}",
                "dataset": "visdial",
                "category": "conversational_qa",
                "images": images,
                "caption": text(row, "caption"),
                "history": list(history),
                "question": question,
                "answers": answers,
            }
            if turn.get("answer_options"):
                example["options"] = texts(turn, "answer_options")
                if turn.get("gt_index") is not None:
                    example["correct_option"] = index(turn, "gt_index", len(example["options"]))
            examples.append(example)
        if answers:
            history.append({"question": question, "answer": answers[0]})
    return examples


def _image_names(image_id: str, split: str) -> list[str]:
    number = f"{int(image_id):012d}.jpg"
    if split in ("val", "test"):
        name = f"VisualDialog_{split}2018_{number}"
        return [f"VisualDialog_{split}2018/{name}", name]
    # The training images are those of COCO's train2014 and val2014, and the file does not say which of the two.
    return [f"{folder}/COCO_{folder}_{number}" for folder in ("train2014", "val2014")]


__all__ = ["visdial_examples", "visdial_rows"]
