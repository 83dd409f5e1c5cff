"""What asking would take, without asking."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .asking import Asker
from .chat import ChatRequest
from .tokens import guess_tokens


@dataclass(frozen=True)
class Estimate:
    """Requests, tokens and cost.

    Attributes:
        requests (`int`): All of them.
        cached (`int`): Those that are answered already.
        prompt_tokens (`int`): Of those that are not, at four bytes a token.
        completion_tokens (`int`): Of answers as long as expected.
        most_completion_tokens (`int`): Of answers as long as allowed.
        cost (`float`): US dollars, for answers as long as expected.
        most_cost (`float`): For answers as long as allowed.
        spent (`float`): What answers in the cache did cost.
    """

    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    most_completion_tokens: int
    cost: float
    most_cost: float
    spent: float

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))


def estimate(asker: Asker, requests: Iterable[ChatRequest], expected: Callable[[ChatRequest], int]) -> Estimate:
    """What requests would take, each asked once. Nothing is sent.

    Args:
        asker (`Asker`): With cache and prices.
        requests (`Iterable[ChatRequest]`): What would be asked.
        expected (`Callable`): Tokens that the answer to a request has as a rule.
    """
    count = cached = prompt = completion = most = 0
    seen: set[str] = set()
    for request in requests:
        count += 1
        key = asker.key(request)
        if key in seen or asker.is_cached(request):
            cached += 1
            continue
        seen.add(key)
        prompt += guess_tokens(request.messages)
        completion += min(expected(request), request.options.max_tokens)
        most += request.options.max_tokens
    prices = asker.budget.prices
    costs = prices.cost(prompt, completion), prices.cost(prompt, most)
    return Estimate(count, cached, prompt, completion, most, *costs, asker.budget.cost)


__all__ = ["Estimate", "estimate"]
