"""Questions that are asked twice about one image, and rows that stand there twice.

Two questions are the same if their words are, in their order, apart from case, punctuation and words that only frame a
question ("the", "in the image", "can you see", "is there"). A measure of likeness would also drop "Is the cup left of the plate?" beside
"Is the cup right of the plate?", which differ in a tenth of their words and in all of their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .parsing import Turn


_FRAMES = (
    r"\b(in|of|on|from|within) (the|this|that) (image|picture|photo|photograph|scene)\b",
    r"\b(can|could|do|would) you (please )?(see|tell me|tell|describe|say)\b",
    r"\b(please|shown|visible|depicted|pictured|seen|here)\b",
    r"\b(a|an|the)\b",
)
_FRAME = re.compile("|".join(_FRAMES))
_THERE = re.compile(r"^(is|are) there\b|\bthere\b")


def question_key(question: str) -> str:
    """What near-identical questions have in common."""
    words = " ".join(re.sub(r"[^\w\s]", " ", question.lower().replace("colour", "color")).split())
    bare = " ".join(_FRAME.sub(" ", words).split())
    return " ".join(_THERE.sub(" ", bare).split()) or words


@dataclass
class Duplicates:
    """Remembers what was there, and counts what was there before.

    Attributes:
        turns (`int`): Turns that were left out, as their question had been asked about the image.
        rows (`int`): Rows of which nothing was left, or that were there word by word.
    """

    turns: int = 0
    rows: int = 0
    _questions: dict[str, set[str]] = field(default_factory=dict)
    _rows: set[tuple[str, tuple[Turn, ...]]] = field(default_factory=set)

    def without(self, image: str, turns: Sequence[Turn]) -> list[Turn]:
        """The turns of a row that are new for its image. Descriptions, whose questions come from a list, stay whole."""
        row = image, tuple(turns)
        if row in self._rows:
            self.rows += 1
            return []
        self._rows.add(row)
        asked = self._questions.setdefault(image, set())
        left = []
        for turn in turns:
            key = question_key(turn.question)
            if turn.question and key in asked:
                self.turns += 1
                continue
            asked.add(key)
            left.append(turn)
        self.rows += not left
        return left


__all__ = ["Duplicates", "question_key"]
