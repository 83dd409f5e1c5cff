"""What came of the answers, by response type: counts, lengths, rejects, tokens, cost."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..endpoints.budget import Prices, Tokens
from ..endpoints.chat import ChatAnswer
from .parsing import Turn


@dataclass
class TypeReport:
    """Counts of one response type."""

    images: int = 0
    answers: int = 0
    rows: int = 0
    duplicate_rows: int = 0
    duplicate_turns: int = 0
    estimated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    tokens: Tokens = field(default_factory=Tokens)
    turns: list[int] = field(default_factory=list)
    question_words: list[int] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)

    def add_answer(self, answer: ChatAnswer) -> None:
        """Counts an answer, whatever becomes of it: it was paid for."""
        self.answers += 1
        self.estimated += not answer.is_counted
        self.tokens += Tokens(answer.prompt_tokens, answer.completion_tokens)

    def reject(self, reason: str) -> None:
        """Counts an answer that was rejected."""
        self.rejected[reason] += 1

    def fail(self, reason: str) -> None:
        """Counts a request without an answer."""
        self.failed[reason] += 1

    def add_row(self, parsed: Sequence[Turn], kept: Sequence[Turn]) -> None:
        """Counts a row, of which some or all turns were there before."""
        if not kept:
            self.duplicate_rows += 1
            return
        self.rows += 1
        self.duplicate_turns += len(parsed) - len(kept)
        self.turns.append(len(kept))
        for turn in kept:
            if turn.question:
                self.question_words.append(len(turn.question.split()))
            self.answer_words.append(len(turn.answer.split()))

    def content(self, prices: Prices) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "images": self.images,
            "answers": self.answers,
            "rows": self.rows,
            "rejected": dict(sorted(self.rejected.items())),
            "failed": dict(sorted(self.failed.items())),
            "duplicate_rows": self.duplicate_rows,
            "duplicate_turns": self.duplicate_turns,
            "turns": _lengths(self.turns),
            "question_words": _lengths(self.question_words),
            "answer_words": _lengths(self.answer_words),
            "prompt_tokens": self.tokens.prompt,
            "completion_tokens": self.tokens.completion,
            "answers_with_estimated_tokens": self.estimated,
            "cost": prices.cost(self.tokens.prompt, self.tokens.completion),
        }


def _lengths(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    mean = round(statistics.fmean(values), 2)
    return {"mean": mean, "median": statistics.median(values), "min": min(values), "max": max(values)}


__all__ = ["TypeReport"]
