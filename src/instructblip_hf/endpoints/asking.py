"""Many requests to one endpoint: concurrent, within limits, repeated where that helps, and stored as they arrive.

Threads send requests and write what comes back to the cache at once; the caller gets outcomes in the order of the requests.
Whatever ends this, an error, Ctrl-C or a caller who has enough, nothing new is sent then, and answers under way are waited
for and stored, as they are paid for.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .budget import Budget, Tokens
from .cache import AnswerCache
from .chat import ChatAnswer, ChatEndpoint, ChatFailure, ChatRequest, Outcome
from .errors import BudgetError, EndpointError, StoppedError, TransientError
from .rate_limit import RateLimit
from .retries import RetryPolicy
from .tokens import guess_tokens


logger = logging.getLogger(__name__)
_AHEAD = 4096
"""Requests that are taken from the caller before the first outcome must be there."""


class Asker:
    """Asks an endpoint, and the cache first.

    Args:
        endpoint (`ChatEndpoint`): Who answers.
        cache (`AnswerCache`, *optional*): Where answers are kept; without one they are not. It stays open.
        budget (`Budget`, *optional*): Limits of tokens and cost, to which what is in the cache counts.
        rate_limit (`RateLimit`, *optional*): Requests and tokens a minute; no limit by default.
        retries (`RetryPolicy`, *optional*): How often and when a request is repeated.
        max_failures (`int`, *optional*, defaults to 20): After so many requests in a row that came to nothing it ends.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        rate_limit: RateLimit | None = None,
        retries: RetryPolicy | None = None,
        max_failures: int = 20,
    ) -> None:
        self.endpoint = endpoint
        self.cache = cache
        self.budget = budget or Budget()
        if cache is not None:
            self.budget.spend(cache.spent)
        self._limit = rate_limit or RateLimit()
        self._retries = retries or RetryPolicy()
        self._max_failures = max_failures
        self._facts = dict(endpoint.facts)
        self._failures = 0
        self._lock = threading.Lock()
        self.paid = Tokens()
        """What this object's requests cost, in tokens; what was in the cache cost it nothing."""
        self.counts: Counter[str] = Counter()
        """``asked`` (answers from the endpoint), ``cached``, and what was repeated, by what happened."""

    def key(self, request: ChatRequest) -> str:
        """What a request's answer is stored under."""
        return request.key(self._facts)

    def is_cached(self, request: ChatRequest) -> bool:
        """Whether a request would cost nothing."""
        return self.cache is not None and self.key(request) in self.cache

    def ask(self, requests: Iterable[ChatRequest]) -> Generator[tuple[ChatRequest, Outcome], None, None]:
        """Answers, or why there are none, in the order of the requests. Of equal requests under way one is sent.

        Whoever may stop before the last outcome closes the generator (`contextlib.closing`), before the cache.

        Args:
            requests (`Iterable[ChatRequest]`): They are taken a few thousand ahead of the outcomes.

        Yields:
            `tuple[ChatRequest, Outcome]`: A request and its `ChatAnswer` or `ChatFailure`.

        Raises:
            EndpointError: If no further request can succeed.
            OSError: If an answer cannot be stored.
        """
        stop = threading.Event()
        threads = ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="asking")
        line: deque[tuple[ChatRequest, ChatAnswer | _Place]] = deque()
        places: dict[str, _Place] = {}
        fatal: list[Exception] = []
        batch = _Batch()

        def work(requests: Sequence[ChatRequest]) -> list[Outcome]:
            try:
                return self._answer(requests, stop)
            except (EndpointError, OSError) as error:
                fatal.append(error)
                stop.set()
                raise

        def send() -> None:
            nonlocal batch
            if batch.requests:
                batch.future = threads.submit(work, batch.requests)
                batch = _Batch()

        def first() -> tuple[ChatRequest, Outcome]:
            request, place = line.popleft()
            if isinstance(place, ChatAnswer):
                return request, place
            if place.batch.future is None:
                send()
            try:
                outcome = place.outcome()
            except (StoppedError, EndpointError, OSError):
                raise fatal[0] from None  # what came first
            if places.get(place.key) is place:
                del places[place.key]
            return request, outcome

        try:
            for request in requests:
                key = self.key(request)
                known = self.cache.get(key) if self.cache is not None else None
                if known is not None:
                    self._count("cached")
                    line.append((request, known))
                elif key in places and not places[key].has_failed():
                    line.append((request, places[key]))
                else:
                    places[key] = _Place(key, batch, len(batch.requests))
                    batch.requests.append(request)
                    line.append((request, places[key]))
                    if len(batch.requests) == self.endpoint.batch_size:
                        send()
                while line and (len(line) > _AHEAD or _is_there(line[0][1])):
                    yield first()
            send()
            while line:
                yield first()
        finally:
            stop.set()
            if any(place.batch.is_under_way() for place in places.values()):
                logger.warning("ending; answers that are under way are waited for and kept")
            threads.shutdown(wait=True, cancel_futures=True)

    def _answer(self, batch: Sequence[ChatRequest], stop: threading.Event) -> list[Outcome]:
        """What the endpoint says to requests, after as many tries as it takes. Runs in a thread."""
        most = sum(guess_tokens(request.messages) + request.options.max_tokens for request in batch)
        attempt = 0
        while True:
            attempt += 1
            try:
                reserved = self.budget.reserve(batch, stop)
            except BudgetError as error:
                return [ChatFailure("budget", str(error)) for _ in batch]
            actual = Tokens()
            try:
                sent = self._limit.enter(most, stop)
                outcomes = self.endpoint.answer(batch)
                actual = self._store(batch, outcomes)
                self._limit.correct(sent, actual.prompt + actual.completion)
                self._judge(outcomes)
            except TransientError as error:
                if error.may_be_paid:
                    actual = self._lose(batch)
                if not self._is_worth_waiting(attempt, error):
                    self._fail(str(error), len(batch))
                    return [ChatFailure("no answer", f"{error} ({attempt} tries)") for _ in batch]
                self._count(f"repeated: {error}")
                seconds = self._retries.wait(attempt, error.after)
                if error.is_limit:
                    self._limit.pause(error.after if error.after is not None else seconds)
            else:
                return outcomes
            finally:
                self.budget.settle(reserved, actual)
            if stop.wait(seconds):
                raise StoppedError

    def _is_worth_waiting(self, attempt: int, error: TransientError) -> bool:
        if attempt >= self._retries.attempts:
            return False
        return error.after is None or error.after <= self._retries.longest_asked_wait

    def _store(self, batch: Sequence[ChatRequest], outcomes: Sequence[Outcome]) -> Tokens:
        """Keeps all answers, which are paid for, before failures may end the run."""
        total = Tokens()
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, ChatFailure):
                continue
            if self.cache is not None:
                self.cache.add(self.key(request), outcome)
            self.budget.learn(request, outcome)
            total += Tokens(outcome.prompt_tokens, outcome.completion_tokens)
            with self._lock:
                self.counts["asked"] += 1
        with self._lock:
            self.paid += total
        return total

    def _judge(self, outcomes: Sequence[Outcome]) -> None:
        """Counts failures in a row."""
        for outcome in outcomes:
            if isinstance(outcome, ChatFailure):
                self._fail(outcome.detail, 1)
            else:
                with self._lock:
                    self._failures = 0

    def _lose(self, batch: Sequence[ChatRequest]) -> Tokens:
        """Counts what may have been paid for in vain."""
        tokens = Tokens(
            sum(guess_tokens(request.messages) for request in batch), sum(one.options.max_tokens for one in batch)
        )
        if self.cache is not None:
            self.cache.lose(tokens)
        with self._lock:
            self.paid += tokens
        return tokens

    def _fail(self, detail: str, requests: int) -> None:
        with self._lock:
            self._failures += requests
            if self._failures >= self._max_failures:
                raise EndpointError(f"{self._failures} requests in a row came to nothing; of the last: {detail}")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


class _Batch:
    """Requests that go to the endpoint together."""

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []
        self.future: Future[list[Outcome]] | None = None

    def is_done(self) -> bool:
        return self.future is not None and self.future.done()

    def is_under_way(self) -> bool:
        return self.future is not None and self.future.running()


class _Place:
    """Where a request's outcome will be."""

    def __init__(self, key: str, batch: _Batch, number: int) -> None:
        self.key, self.batch, self._number = key, batch, number

    def outcome(self) -> Outcome:
        if self.batch.future is None:
            raise RuntimeError("this batch was not sent")
        return self.batch.future.result()[self._number]

    def has_failed(self) -> bool:
        future = self.batch.future
        if future is None or not future.done():
            return False
        return future.exception() is not None or isinstance(self.outcome(), ChatFailure)


def _is_there(place: ChatAnswer | _Place) -> bool:
    return isinstance(place, ChatAnswer) or place.batch.is_done()


__all__ = ["Asker"]
