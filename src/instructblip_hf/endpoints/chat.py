"""What is asked and answered: requests, their keys, answers and failures, and what an endpoint has to offer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

OWN_FIELDS = (
    "best_of",
    "max_completion_tokens",
    "max_new_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "n_predict",
    "num_predict",
    "stream",
    "stream_options",
    "tools",
)
"""Fields of a request that budget, cache or the reading of answers rest on, so that no one else may set them."""


@dataclass(frozen=True)
class ChatOptions:
    """How an answer is made.

    Args:
        max_tokens (`int`, *optional*, defaults to 1024): Longest answer, in tokens.
        temperature (`float`, *optional*): 0 takes the most likely token; by default what the endpoint does.
        top_p (`float`, *optional*): Probability of the nucleus that is sampled from.
        seed (`int`, *optional*): Of sampling, where an endpoint knows it. The sample's number is added to it.
        extra (`Mapping`, *optional*): More fields of the request, for endpoints over HTTP alone; none of `OWN_FIELDS`.

    Raises:
        ValueError: If one is out of its range, or ``extra`` has a field that is the package's own.
    """

    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature is {self.temperature}; it must be from 0 to 2")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        own = sorted(set(self.extra) & set(OWN_FIELDS))
        own += [
            name for name in ("temperature", "top_p", "seed") if name in self.extra and vars(self)[name] is not None
        ]
        if own:
            raise ValueError(
                f"a request cannot have {', '.join(own)} as more fields: these are set by options, or fixed"
            )

    def check_repeats(self, ask_again: int) -> None:
        """Refuses to ask again for what is always the same.

        Raises:
            ValueError: If another answer is wanted, and temperature 0 or one seed for all makes it the first again.
        """
        fixed = {"temperature": self.temperature, **self.extra}
        if ask_again and fixed["temperature"] == 0:
            raise ValueError(f"ask_again is {ask_again} with temperature 0, which gives the same answer again")
        if ask_again and "seed" in self.extra:
            raise ValueError(
                f"ask_again is {ask_again} with one seed for all requests, which gives the same answer again"
            )

    def content(self) -> dict[str, Any]:
        """The options as JSON has them, without those that are not set."""
        values = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "extra": dict(self.extra) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ChatRequest:
    """Messages to answer.

    Args:
        messages (`Sequence[Message]`): System message, turns of user and assistant, and a user's turn last.
        options (`ChatOptions`, *optional*): How the answer is made.
        sample (`int`, *optional*, defaults to 0): Which of several answers to the same messages.
        tag (`Any`, *optional*): What the caller knows the request by; no part of what is asked.
    """

    messages: Sequence[Message]
    options: ChatOptions = field(default_factory=ChatOptions)
    sample: int = 0
    tag: Any = field(default=None, compare=False)

    def key(self, model: Mapping[str, Any]) -> str:
        """What the answer is stored under: a hash of everything that decides about it.

        Args:
            model (`Mapping`): What the endpoint says of its model.
        """
        content = [
            dict(model),
            [[message["role"], message["content"]] for message in self.messages],
            self.options.content(),
            self.sample,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class ChatAnswer:
    """An answer, as the model gave it.

    Attributes:
        text (`str`): Untouched.
        finish_reason (`str`): ``"stop"``; ``"length"`` where it was cut off; or what else the endpoint says.
        prompt_tokens (`int`): Tokens of the messages.
        completion_tokens (`int`): Tokens of the answer.
        is_counted (`bool`): Whether the endpoint counted the tokens, or they are an estimate.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    is_counted: bool = True


@dataclass(frozen=True)
class ChatFailure:
    """Why there is no answer.

    Attributes:
        reason (`str`): ``"refused"`` for a request that the endpoint does not take, ``"no answer"`` after all tries,
            ``"budget"`` where nothing is left to pay with.
        detail (`str`): What was said about it.
    """

    reason: str
    detail: str


Outcome = ChatAnswer | ChatFailure


class ChatEndpoint(Protocol):
    """A chat model: `OpenAiCompatible`, `LocalModel`, or one of a user's own."""

    batch_size: int
    """How many requests `answer` takes at once."""

    concurrency: int
    """How many calls of `answer` may be under way at once."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What decides about answers beside the request, such as the model's name; it is part of their keys."""
        ...  # pragma: no cover

    def answer(self, requests: Sequence[ChatRequest]) -> list[Outcome]:
        """Answers to requests, in their order.

        Raises:
            TransientError: If the same may succeed later.
            EndpointError: If nothing can.
        """
        ...  # pragma: no cover


__all__ = [
    "OWN_FIELDS",
    "ChatAnswer",
    "ChatEndpoint",
    "ChatFailure",
    "ChatOptions",
    "ChatRequest",
    "Message",
    "Outcome",
]
