"""What answers cost, and a limit that is not gone over.

Before a request is sent the most that it can cost is set aside: a bound of its prompt's tokens and all tokens that its
answer may have. What it did cost takes that place when the answer is there. A request that does not fit waits for those
under way, which mostly cost less than was set aside; if it does not fit then either, nothing more is sent.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from .chat import ChatAnswer, ChatRequest
from .errors import BudgetError, StoppedError
from .tokens import TokenBound


_MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens.

    Args:
        prompt (`float`, *optional*, defaults to 0.0): Of what is sent.
        completion (`float`, *optional*, defaults to 0.0): Of what is answered.

    Raises:
        ValueError: If one is negative.
    """

    prompt: float = 0.0
    completion: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt", "completion"):
            if getattr(self, name) < 0:
                raise ValueError(f"the price of a {name} token is {getattr(self, name)}; it must not be negative")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars for so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / _MILLION


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of answers."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)


class Budget:
    """Counts tokens and keeps them and their cost below limits.

    Args:
        prices (`Prices`, *optional*): Without any, nothing costs anything.
        max_cost (`float`, *optional*): US dollars, of all that was spent before and is spent now.
        max_tokens (`int`, *optional*): Tokens of prompts and answers together.

    Raises:
        ValueError: If a limit is not positive, or there is one of cost without prices.
    """

    def __init__(
        self, prices: Prices | None = None, max_cost: float | None = None, max_tokens: int | None = None
    ) -> None:
        self.prices = prices or Prices()
        if max_cost is not None and max_cost <= 0:
            raise ValueError(f"max_cost is {max_cost}; it must be above 0")
        if max_cost is not None and self.prices == Prices():
            raise ValueError("max_cost needs the prices of a million tokens, of prompts and of answers")
        if max_tokens is not None and max_tokens <= 0:
            raise ValueError(f"max_tokens is {max_tokens}; it must be above 0")
        self.max_cost, self.max_tokens = max_cost, max_tokens
        self.spent = Tokens()
        self.bound = TokenBound()
        self._reserved = Tokens()
        self._is_spent = False
        self._changed = threading.Condition()

    @property
    def cost(self) -> float:
        """US dollars spent."""
        return self.prices.cost(self.spent.prompt, self.spent.completion)

    def spend(self, tokens: Tokens) -> None:
        """Counts what was spent before, by an earlier run."""
        with self._changed:
            self.spent += tokens

    def reserve(self, requests: Sequence[ChatRequest], stop: threading.Event) -> Tokens:
        """Sets aside the most that requests can cost, and waits for those under way where there is no room.

        Raises:
            BudgetError: If there is no room.
            StoppedError: If ``stop`` was set while it waited.
        """
        while True:
            most = Tokens(
                sum(self.bound.of(request.messages) for request in requests),
                sum(request.options.max_tokens for request in requests),
            )
            with self._changed:
                if stop.is_set():
                    raise StoppedError
                if self._is_spent:
                    raise BudgetError(self._limit())
                if self._fits(self.spent + self._reserved + most):
                    self._reserved += most
                    return most
                if self._reserved == Tokens():
                    self._is_spent = True
                    raise BudgetError(self._limit())
                self._changed.wait(0.2)

    def settle(self, reserved: Tokens, actual: Tokens) -> None:
        """Puts what was spent in the place of what was set aside."""
        with self._changed:
            self._reserved -= reserved
            self.spent += actual
            self._changed.notify_all()

    def learn(self, request: ChatRequest, answer: ChatAnswer) -> None:
        """Takes notice of how many tokens a prompt had."""
        self.bound.learn(request.messages, answer)

    def _fits(self, tokens: Tokens) -> bool:
        if self.max_tokens is not None and tokens.prompt + tokens.completion > self.max_tokens:
            return False
        return self.max_cost is None or self.prices.cost(tokens.prompt, tokens.completion) <= self.max_cost

    def _limit(self) -> str:
        told = [f"{self.spent.prompt + self.spent.completion:,} tokens are spent"]
        if self.max_tokens is not None:
            told[0] += f" of {self.max_tokens:,}"
        if self.max_cost is not None:
            told.append(f"${self.cost:.4f} of ${self.max_cost:.4f}")
        return " and ".join(told) + ", and another request might go over"


__all__ = ["Budget", "Prices", "Tokens"]
