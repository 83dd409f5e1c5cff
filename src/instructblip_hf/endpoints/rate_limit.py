"""Never more than so many requests, and tokens, in any minute."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from .errors import StoppedError


WINDOW = 60.0


class RateLimit:
    """Lets requests through, so that no stretch of 60 seconds has more than the limits.

    Tokens count when a request is sent, as an estimate that `correct` replaces by what they were.

    Args:
        requests_per_minute (`int`, *optional*): No limit by default.
        tokens_per_minute (`int`, *optional*): Of prompts and answers; no limit by default. A request with more tokens than
            that goes when nothing else was sent for a minute.
        clock (`Callable`, *optional*): Seconds that only grow.

    Raises:
        ValueError: If a limit is not positive.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        for name, limit in limits.items():
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; it must be at least 1")
        self._requests, self._tokens, self._clock = requests_per_minute, tokens_per_minute, clock
        self._sent: deque[_Sent] = deque()
        self._sum = 0
        self._closed_until = -float("inf")
        self._lock = threading.Lock()

    def pause(self, seconds: float) -> None:
        """Lets nothing through for a while, as a server asked for."""
        with self._lock:
            self._closed_until = max(self._closed_until, self._clock() + seconds)

    def enter(self, tokens: int, stop: threading.Event) -> _Sent:
        """Waits for room and takes it.

        Raises:
            StoppedError: If ``stop`` was set.
        """
        while True:
            with self._lock:
                seconds = self._wait(tokens)
                if seconds <= 0 and not stop.is_set():
                    sent = _Sent(self._clock(), tokens)
                    if self._requests is not None or self._tokens is not None:
                        self._sent.append(sent)
                        self._sum += tokens
                    return sent
            if stop.wait(seconds):
                raise StoppedError

    def correct(self, sent: _Sent, tokens: int) -> None:
        """Says how many tokens a request and its answer had."""
        with self._lock:
            if not sent.is_over:
                self._sum += tokens - sent.tokens
            sent.tokens = tokens

    def _wait(self, tokens: int) -> float:
        """Seconds until there may be room, 0 if there is."""
        now = self._clock()
        while self._sent and self._sent[0].time <= now - WINDOW:
            old = self._sent.popleft()
            old.is_over = True
            self._sum -= old.tokens
        seconds = max(0.0, self._closed_until - now)
        if self._requests is not None and len(self._sent) >= self._requests:
            seconds = max(seconds, self._sent[len(self._sent) - self._requests].time + WINDOW - now)
        if self._tokens is not None and self._sent and self._sum + tokens > self._tokens:
            excess = self._sum + tokens - self._tokens
            for old in self._sent:
                excess -= old.tokens
                if excess <= 0 or old is self._sent[-1]:
                    seconds = max(seconds, old.time + WINDOW - now)
                    break
        return seconds


class _Sent:
    def __init__(self, when: float, tokens: int) -> None:
        self.time, self.tokens, self.is_over = when, tokens, False


__all__ = ["WINDOW", "RateLimit"]
