"""The judge: every question in one order of the answers or in both, through any endpoint, resumable by its cache.

A judge prefers the answer that comes first, or second, whatever it says. With both orders each answer stands in each place
once, and what a place is worth cancels in the mean. A question of which one order has no verdict counts as not judged, as
the other order alone would bring the preference back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...endpoints.asking import Asker
from ...endpoints.chat import ChatAnswer, ChatFailure, ChatOptions, ChatRequest, Outcome
from ...endpoints.estimation import Estimate, estimate
from ...utils.whole_files import write_whole
from .inputs import JudgedQuestion
from .prompting import Rule, content_of, messages_for
from .scores import QuestionScore, relative_scores
from .verdicts import Verdict, parse_verdict


BOTH, REFERENCE_FIRST, MODEL_FIRST = "both", "reference-first", "model-first"
ORDERS = {BOTH: (False, True), REFERENCE_FIRST: (False,), MODEL_FIRST: (True,)}
REVIEWS, REPORT, CACHE = "reviews.jsonl", "report.json", "cache"
_EXPECTED_TOKENS = 200


@dataclass(frozen=True)
class JudgeOptions:
    """How it is judged.

    Args:
        order (`str`, *optional*, defaults to `"both"`): ``"both"``; ``"reference-first"``, as the paper; or
            ``"model-first"``.
        ask_again (`int`, *optional*, defaults to 0): How often another review is asked for where one cannot be read.
        temperature (`float`, *optional*, defaults to 0.2): The published one; `None` leaves it to the endpoint.
        max_tokens (`int`, *optional*, defaults to 1024): Longest review; the published one.
        extra (`Mapping`, *optional*): More fields of each request to a server.

    Raises:
        ValueError: If one is out of its range, or asking again would bring the same review.
    """

    order: str = BOTH
    ask_again: int = 0
    temperature: float | None = 0.2
    max_tokens: int = 1024
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order!r}; allowed are {', '.join(ORDERS)}")
        if self.ask_again < 0:
            raise ValueError(f"ask_again is {self.ask_again}; it must not be negative")
        self.chat_options().check_repeats(self.ask_again)

    def chat_options(self) -> ChatOptions:
        """Options of the requests."""
        return ChatOptions(self.max_tokens, self.temperature, extra=self.extra)


@dataclass
class _Review:
    """One order of one question."""

    question: JudgedQuestion
    is_model_first: bool
    outcome: Outcome | None = None
    verdict: Verdict | None = None
    unread: int = 0
    """Reviews that could not be read."""

    def request(self, rules: Mapping[str, Rule] | None, options: JudgeOptions, sample: int) -> ChatRequest:
        messages = messages_for(self.question, self.is_model_first, rules)
        return ChatRequest(messages, options.chat_options(), sample)

    @property
    def scores(self) -> tuple[float, float] | None:
        """Of the model and the reference."""
        if self.verdict is None:
            return None
        pair = self.verdict.first, self.verdict.second
        return pair if self.is_model_first else (pair[1], pair[0])

    def content(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "question_id": self.question.id,
            "category": self.question.category,
            "order": MODEL_FIRST if self.is_model_first else REFERENCE_FIRST,
            "model": self.scores[0] if self.scores else None,
            "reference": self.scores[1] if self.scores else None,
            "unread": self.unread,
        }
        if isinstance(self.outcome, ChatFailure):
            return {**row, "failure": self.outcome.reason, "detail": self.outcome.detail}
        return {**row, "review": self.outcome.text if self.outcome is not None else None}


def judge(
    questions: Sequence[JudgedQuestion],
    output: str | Path,
    asker: Asker,
    options: JudgeOptions | None = None,
    rules: Mapping[str, Rule] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Has answers judged, and writes ``reviews.jsonl`` and ``report.json``.

    Args:
        questions (`Sequence[JudgedQuestion]`): Of `read_questions`.
        output (`str` or `Path`): Folder for both files.
        asker (`Asker`): The judge; with a cache the same once more pays for nothing twice.
        options (`JudgeOptions`, *optional*): Order of the answers, and how often is asked again.
        rules (`Mapping[str, Rule]`, *optional*): The published ones in place of our wording, of `read_rules`.
        progress (`Callable`, *optional*): Called with how many reviews are there and how many there will be.

    Returns:
        `dict`: The content of ``report.json``: ``scores`` by category (see `relative_scores`), and of the reviews how many
        there are, how many could not be read, and how many did not come.

    Raises:
        EndpointError: If no further request can succeed.
        ValueError: If there are no rules for a category.
    """
    options = options or JudgeOptions()
    reviews = list(_reviews(questions, options))
    left, done, total = reviews, 0, len(reviews)
    for sample in range(1 + options.ask_again):
        requests = [review.request(rules, options, sample) for review in left]
        with closing(asker.ask(requests)) as outcomes:
            for review, (_, outcome) in zip(left, outcomes):
                _take(review, outcome)
                done += 1
                if progress is not None:
                    progress(done, total)
        left = [one for one in left if one.verdict is None and not isinstance(one.outcome, ChatFailure)]
        total += len(left) if sample < options.ask_again else 0
    per_question = len(ORDERS[options.order])
    scores = [_question_score(reviews[place : place + per_question]) for place in range(0, len(reviews), per_question)]
    report = {
        "scores": relative_scores(scores),
        "reviews": {
            "wanted": len(reviews),
            "read": sum(review.verdict is not None for review in reviews),
            "unread": sum(review.unread for review in reviews),
            "no_answer": sum(isinstance(review.outcome, ChatFailure) for review in reviews),
        },
        "judge": dict(asker.endpoint.facts),
        "order": options.order,
        "options": options.chat_options().content(),
        "prompts": content_of(rules),
    }
    write_whole(
        Path(output) / REVIEWS, "".join(json.dumps(one.content(), ensure_ascii=False) + "\n" for one in reviews)
    )
    write_whole(Path(output) / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def estimate_judging(
    questions: Sequence[JudgedQuestion],
    asker: Asker,
    options: JudgeOptions | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> Estimate:
    """What `judge` would ask and pay for at first; nothing is asked."""
    options = options or JudgeOptions()
    requests = (review.request(rules, options, 0) for review in _reviews(questions, options))
    return estimate(asker, requests, lambda request: _EXPECTED_TOKENS)


def _reviews(questions: Sequence[JudgedQuestion], options: JudgeOptions) -> Iterator[_Review]:
    for question in questions:
        for is_model_first in ORDERS[options.order]:
            yield _Review(question, is_model_first)


def _take(review: _Review, outcome: Outcome) -> None:
    review.outcome = outcome
    if isinstance(outcome, ChatAnswer):
        review.verdict = parse_verdict(outcome.text)
        review.unread += review.verdict is None


def _question_score(reviews: Sequence[_Review]) -> QuestionScore:
    """A question's scores: the mean over its orders, or none if one is missing."""
    category = reviews[0].question.category
    scores = [review.scores for review in reviews if review.scores is not None]
    if len(scores) < len(reviews):
        return QuestionScore(category, None, None)
    model = sum(pair[0] for pair in scores) / len(scores)
    reference = sum(pair[1] for pair in scores) / len(scores)
    if len(reviews) == 1:
        return QuestionScore(category, model, reference)
    verdicts = [review.verdict for review in reviews if review.verdict is not None]
    advantage = sum(verdict.first - verdict.second for verdict in verdicts) / len(verdicts)
    leads = [(pair[0] > pair[1]) - (pair[0] < pair[1]) for pair in scores]
    return QuestionScore(category, model, reference, advantage, leads[0] == leads[1])


__all__ = ["CACHE", "ORDERS", "JudgeOptions", "estimate_judging", "judge"]
