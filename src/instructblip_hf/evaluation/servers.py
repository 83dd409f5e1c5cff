"""Files for the servers that keep answers to themselves.

Formats: VQA (visualqa.org, evaluation page), VizWiz (vizwiz.org, VQA challenge), TextVQA (textvqa.org, challenge), NoCaps
(nocaps.org, evaluation): a JSON list with an object for each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ..data.schema import Example
from .tasks import EvalTask


SUBMISSION = "submission.json"
SERVERS = ("VQA", "VizWiz", "TextVQA", "NoCaps")


def submission(
    task: EvalTask, examples: Sequence[Example], answers: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What the task's server takes.

    Args:
        task (`EvalTask`): A task with a ``server``.
        examples (`Sequence[Example]`): All rows of its split.
        answers (`Mapping[str, Mapping]`): Records by id.

    Raises:
        ValueError: If the task has no server that is known, or an id is not of the form that the server wants.
    """
    if task.server not in SERVERS:
        raise ValueError(f"the task's server is {task.server!r}; known are {', '.join(SERVERS)}")
    texts = [answers[str(example["id"])]["prediction"] for example in examples]
    if task.server == "VizWiz":
        return [{"image": _image_name(example), "answer": text} for example, text in zip(examples, texts)]
    key, value = ("image_id", "caption") if task.server == "NoCaps" else ("question_id", "answer")
    return [{key: _number(example), value: text} for example, text in zip(examples, texts)]


def _number(example: Example) -> int:
    try:
        return int(example["id"])
    except ValueError as error:
        raise ValueError(f"{example['dataset']} {example['id']}: the server wants ids that are numbers") from error


def _image_name(example: Example) -> str:
    image: Any = example["images"][0]
    # A path, or several of which one is there and that have the same name.
    return PurePosixPath(image if isinstance(image, str) else image[0]).name


__all__ = ["SERVERS", "SUBMISSION", "submission"]
