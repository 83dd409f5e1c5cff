"""Which option a generated text chooses, as LLaVA reads it (``llava/eval/eval_science_qa.py``).

A text chooses by being a letter, by beginning with one ("B. because ..."), or by saying "The answer is B." exactly once.
Anything else is a failure, and wrong; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...data.templates.scienceqa_forms import LETTERS
from .answers import scienceqa_accuracy
from .rows import check_columns


# One more character belongs to it, whichever, but no line break: LLaVA's pattern does not escape its full stop.
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def answer_letter(text: str, sentence_only: bool = False) -> str | None:
    """The letter that a text chooses, which may be one that no option has, or `None`.

    Args:
        text (`str`): What a model answered.
        sentence_only (`bool`, *optional*, defaults to `False`):
            Whether the sentence alone counts, as in LLaVA's ensembles with GPT-4.
    """
    if not sentence_only:
        if text in LETTERS:
            return text
        if text[:1] in LETTERS and text[1:3] == ". ":
            return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def letter_index(letter: str | None, options: int) -> int:
    """The place of a letter among so many options; -1 where it is none of theirs."""
    return LETTERS.index(letter) if letter in LETTERS[:options] else -1


def scienceqa_letters(
    texts: Sequence[str],
    option_counts: Sequence[int],
    answers: Sequence[int],
    subjects: Sequence[str] | None = None,
    grades: Sequence[str] | None = None,
    has_text: Sequence[bool] | None = None,
    has_image: Sequence[bool] | None = None,
    topics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """ScienceQA's table for generated texts.

    Args:
        texts (`Sequence[str]`): What the model answered.
        option_counts (`Sequence[int]`): Options of each question.
        answers, subjects, grades, has_text, has_image, topics: As for [`scienceqa_accuracy`].

    Returns:
        `dict`: As of [`scienceqa_accuracy`], with ``failed``, how many texts choose nothing, and ``not_an_option``, how many
        choose a letter that no option has. Both count as wrong.

    Raises:
        ValueError: As [`scienceqa_accuracy`].
    """
    check_columns(texts=texts, option_counts=option_counts, answers=answers)
    letters = [answer_letter(text) for text in texts]
    chosen = [letter_index(letter, count) for letter, count in zip(letters, option_counts)]
    result = scienceqa_accuracy(chosen, answers, subjects, grades, has_text, has_image, topics)
    failed = sum(letter is None for letter in letters)
    return {**result, "failed": failed, "not_an_option": chosen.count(-1) - failed}


__all__ = ["LETTERS", "answer_letter", "letter_index", "scienceqa_letters"]
