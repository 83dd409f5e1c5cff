"""Relative scores by category: mean of the model over mean of the reference, times 100 (LLaVA, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .inputs import CATEGORIES


ALL = "all"
_DRAWS = 2000


@dataclass(frozen=True)
class QuestionScore:
    """Scores of one question, the mean of those orders in which it was judged.

    Args:
        category (`str`): Of the question.
        model (`float`, *optional*): `None` where a review could not be read or did not come.
        reference (`float`, *optional*): The same.
        advantage_of_first (`float`, *optional*): How much more the answer that came first got, in the mean of both
            orders; `None` where it was judged in one.
        is_same_winner (`bool`, *optional*): Whether both orders prefer the same answer, or none.
    """

    category: str
    model: float | None
    reference: float | None
    advantage_of_first: float | None = None
    is_same_winner: bool | None = None


def relative_scores(questions: Sequence[QuestionScore], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Scores by category and of all questions.

    A question without both scores counts in ``not_judged`` and nowhere else.

    Args:
        questions (`Sequence[QuestionScore]`): What was judged.
        seed (`int`, *optional*, defaults to 0): Of the draws of questions for ``interval``.

    Returns:
        `dict`: For each category ``relative``, ``interval`` (95 %, by drawing questions with replacement), ``model`` and
        ``reference`` (mean scores), ``judged``, ``not_judged``, and where both orders were judged
        ``advantage_of_first`` and ``same_winner``.
    """
    present = {question.category for question in questions}
    names = [name for name in CATEGORIES if name in present] + sorted(present - set(CATEGORIES))
    scores = {name: _scores([one for one in questions if one.category == name], seed) for name in names}
    scores[ALL] = _scores(questions, seed)
    return scores


def _scores(questions: Sequence[QuestionScore], seed: int) -> dict[str, Any]:
    pairs = [(one.model, one.reference) for one in questions if one.model is not None and one.reference is not None]
    content: dict[str, Any] = {"judged": len(pairs), "not_judged": len(questions) - len(pairs)}
    if not pairs:
        return {"relative": None, "interval": None, "model": None, "reference": None, **content}
    values = np.asarray(pairs, dtype=float)  # [questions, (model, reference)]
    model, reference = values.mean(0)
    drawn = np.random.default_rng(seed).integers(len(values), size=(_DRAWS, len(values)))
    means = values[drawn].mean(1)  # [draws, 2]
    interval = np.percentile(means[:, 0] / means[:, 1] * 100, (2.5, 97.5))
    content = {
        "relative": float(model / reference * 100),
        "interval": [float(end) for end in interval],
        "model": float(model),
        "reference": float(reference),
        **content,
    }
    advantages = [one.advantage_of_first for one in questions if one.advantage_of_first is not None]
    winners = [one.is_same_winner for one in questions if one.is_same_winner is not None]
    if advantages:
        content["advantage_of_first"] = float(np.mean(advantages))
        content["same_winner"] = float(np.mean(winners))
    return content


__all__ = ["ALL", "QuestionScore", "relative_scores"]
