"""How many tokens messages have, without the model's tokenizer: an estimate, and a bound that learns from what was counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from .chat import ChatAnswer, Message


BYTES_PER_TOKEN = 4.0
"""Of English text, roughly, with the vocabularies of today."""

TOKENS_PER_MESSAGE = 8
"""Role and separators, with some to spare."""

_MARGIN = 1.1


def num_bytes(messages: Sequence[Message]) -> int:
    """Length of all texts in UTF-8."""
    return sum(len(message["content"].encode()) for message in messages)


def estimate_tokens(text: str) -> int:
    """Tokens of a text, roughly."""
    return -int(-len(text.encode()) // BYTES_PER_TOKEN)


class TokenBound:
    """The most tokens that messages can have.

    A token has a byte at least, which is the bound as long as nothing is known. After the first answers whose tokens the
    endpoint counted, it is the largest ratio of tokens to bytes among them, and a tenth more.
    """

    def __init__(self) -> None:
        self._ratio = 0.0
        self._lock = threading.Lock()

    def of(self, messages: Sequence[Message]) -> int:
        """The bound for messages."""
        with self._lock:
            ratio = min(1.0, self._ratio * _MARGIN) or 1.0
        return int(ratio * num_bytes(messages)) + TOKENS_PER_MESSAGE * len(messages) + 1

    def learn(self, messages: Sequence[Message], answer: ChatAnswer) -> None:
        """Takes notice of an answer's count."""
        size = num_bytes(messages)
        if answer.is_counted and size:
            with self._lock:
                self._ratio = max(self._ratio, answer.prompt_tokens / size)


def guess_tokens(messages: Sequence[Message]) -> int:
    """Tokens of messages, roughly."""
    return sum(estimate_tokens(message["content"]) + TOKENS_PER_MESSAGE // 2 for message in messages)


__all__ = ["TokenBound", "estimate_tokens", "guess_tokens", "num_bytes"]
