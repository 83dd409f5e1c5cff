"""What is asked: which response types of which images, and the request for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..endpoints.chat import ChatOptions, ChatRequest
from .contexts import ImageContext
from .prompting import Prompts, messages_for
from .response_types import RESPONSE_TYPES, ResponseType


@dataclass(frozen=True)
class GenerationOptions:
    """What is generated, and how answers are made.

    Args:
        types (`tuple[str, ...]`, *optional*): Names of `RESPONSE_TYPES`; all of them by default.
        counts (`Mapping[str, int]`, *optional*): Of how many images, by type; all by default. Which ones is drawn by hash,
            so that those of a smaller number are among those of a larger.
        ask_again (`int`, *optional*, defaults to 0): How often another answer is asked for where one was rejected.
        seed (`int`, *optional*, defaults to 0): Of what is drawn here: images, descriptions' questions and the image's
            place in a row. It is not sent.
        temperature (`float`, *optional*, defaults to 0.7): Of the answers; `None` leaves it to the endpoint.
        top_p (`float`, *optional*): Of the answers.
        max_tokens (`Mapping[str, int]`, *optional*): Longest answer by type.
        extra (`Mapping`, *optional*): More fields of each request to a server.

    Raises:
        ValueError: If a type is none, a number out of its range, or asking again would bring the same answer.
    """

    types: tuple[str, ...] = tuple(RESPONSE_TYPES)
    counts: Mapping[str, int] = field(default_factory=dict)
    ask_again: int = 0
    seed: int = 0
    temperature: float | None = 0.7
    top_p: float | None = None
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allowed = ", ".join(RESPONSE_TYPES)
        if not self.types or len(set(self.types)) != len(self.types):
            raise ValueError(f"types is {', '.join(self.types) or 'empty'}; it must name some of {allowed}, each once")
        for what, names in (("types", self.types), ("counts", self.counts), ("max_tokens", self.max_tokens)):
            for name in names:
                if name not in RESPONSE_TYPES:
                    raise ValueError(f"{what} has {name!r}; allowed are {allowed}")
        for name, count in self.counts.items():
            if count < 1:
                raise ValueError(f"counts has {count} for {name}; it must be at least 1")
        if self.ask_again < 0:
            raise ValueError(f"ask_again is {self.ask_again}; it must not be negative")
        for name in self.types:
            self.chat_options(RESPONSE_TYPES[name]).check_repeats(self.ask_again)

    def chat_options(self, response_type: ResponseType) -> ChatOptions:
        """Options of the requests for a type."""
        most = self.max_tokens.get(response_type.name, response_type.max_tokens)
        return ChatOptions(most, self.temperature, self.top_p, extra=self.extra)


@dataclass(frozen=True)
class Job:
    """One response of one type about one image."""

    type: ResponseType
    context: ImageContext

    def request(self, prompts: Mapping[str, Prompts], options: GenerationOptions, sample: int = 0) -> ChatRequest:
        """What is asked for it."""
        messages = messages_for(self.type, prompts[self.type.name], self.context)
        return ChatRequest(messages, options.chat_options(self.type), sample, tag=self)


def jobs_for(contexts: Sequence[ImageContext], options: GenerationOptions) -> list[Job]:
    """All jobs, in the order of the images and of the types."""
    chosen: dict[str, set[str]] = {}
    for name, count in options.counts.items():
        images = sorted({context.image for context in contexts}, key=lambda image: _place(options.seed, name, image))
        chosen[name] = set(images[:count])
    return list(_jobs(contexts, options, chosen))


def _jobs(
    contexts: Sequence[ImageContext], options: GenerationOptions, chosen: Mapping[str, set[str]]
) -> Iterator[Job]:
    for context in contexts:
        for name in options.types:
            if name not in chosen or context.image in chosen[name]:
                yield Job(RESPONSE_TYPES[name], context)


def _place(seed: int, name: str, image: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}/{image}".encode(), digest_size=16).digest()


__all__ = ["GenerationOptions", "Job", "jobs_for"]
