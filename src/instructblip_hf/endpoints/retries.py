"""How often and when a request is repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Waits that double, with a random share so that requests which failed together do not come back together.

    Args:
        attempts (`int`, *optional*, defaults to 6): How often a request is sent at most.
        first_wait (`float`, *optional*, defaults to 1.0): Seconds before the second time.
        longest_wait (`float`, *optional*, defaults to 60.0): Seconds, where the server does not say how long.
        longest_asked_wait (`float`, *optional*, defaults to 600.0): Seconds that a server may ask for (Retry-After).

    Raises:
        ValueError: If one is out of its range.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_asked_wait: float = 600.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; it must be at least 1")
        for name in ("first_wait", "longest_wait", "longest_asked_wait"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")

    def wait(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after a failure.

        Args:
            attempt (`int`): How often the request was sent, 1 or more.
            asked (`float`, *optional*): What the server asked for; never less is waited.
        """
        own = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.5, 1.0)
        return own if asked is None else asked + min(own, 0.1 * asked)


__all__ = ["RetryPolicy"]
