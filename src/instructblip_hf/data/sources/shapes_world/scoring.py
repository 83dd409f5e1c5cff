"""Whether an answer about a scene is right.

Answers are compared by exact match after normalisation (lower case, no punctuation, no leading article), with two
exceptions: a caption has to name every object and invent none, and a generated question has to be one that the world
understands and whose true answer is the given one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .scenes import COLORS, NOUNS, Scene
from .tasks import solve
from .wordings import parse, simplify


QUESTION_KINDS = ("color", "shape", "size", "where", "at")
"""Task types that a generated question may belong to."""


def normalize(answer: str) -> str:
    """An answer as it is compared: ``"A red circle."`` becomes ``"red circle"``."""
    return re.sub(r"^(a|an|the) ", "", simplify(answer))


def named_objects(caption: str) -> Counter[str]:
    """How often a text names each pair of colour and noun, such as ``"red circle"``."""
    names = rf"\b(?:{'|'.join(COLORS)}) (?:{'|'.join(NOUNS)})\b"
    return Counter(re.findall(names, simplify(caption)))


def asks_for(question: str, answer: str, scene: Scene) -> bool:
    """Whether ``question`` is a wording of one of `QUESTION_KINDS` whose one true answer is ``answer``."""
    for task in QUESTION_KINDS:
        slots = parse(task, question)
        if slots is not None and solve(task, scene, slots) == answer:
            return True
    return False


def score(example: dict[str, Any], answer: str | Sequence[str]) -> bool:
    """Whether an answer to an example of `ShapesWorld` is right.

    Args:
        example (`dict`): As `ShapesWorld.example` returns it.
        answer (`str` or sequence of `str`): What the model said. For a dialogue the sequence of its answers, all of
            which have to be right; a single string is its last answer.

    Returns:
        `bool`: Whether it is right.

    Raises:
        ValueError: If a dialogue gets more or fewer answers than it has turns.
    """
    if example["task"] == "dialogue":
        truths = [turn["content"] for turn in example["messages"] if turn["role"] == "assistant"]
        if isinstance(answer, str):
            return normalize(answer) == normalize(truths[-1])
        if len(answer) != len(truths):
            raise ValueError(f"{len(answer)} answers given to a dialogue of {len(truths)} turns")
        return all(normalize(said) == normalize(truth) for said, truth in zip(answer, truths))
    if not isinstance(answer, str):
        raise ValueError(f"answer to task {example['task']!r} has to be one string, got {type(answer).__name__}")
    if example["task"] == "caption":
        return named_objects(answer) == Counter(item.name for item in example["scene"].objects)
    if example["task"] == "question":
        return asks_for(answer, example["slots"]["answer"], example["scene"])
    return normalize(answer) == normalize(example["completion"])
