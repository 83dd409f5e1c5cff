"""Asking a chat model many things: an OpenAI-compatible server or a local model, with limits, a budget and a cache."""

from __future__ import annotations

import importlib
from typing import Any


_PUBLIC_NAMES = {
    "AnswerCache": "cache",
    "Asker": "asking",
    "Budget": "budget",
    "ChatAnswer": "chat",
    "ChatEndpoint": "chat",
    "ChatFailure": "chat",
    "ChatOptions": "chat",
    "ChatRequest": "chat",
    "EndpointError": "errors",
    "EndpointOptions": "opening",
    "Estimate": "estimation",
    "LocalModel": "local",
    "OpenAiCompatible": "openai_compatible",
    "Prices": "budget",
    "RateLimit": "rate_limit",
    "RetryPolicy": "retries",
    "estimate": "estimation",
    "open_asker": "opening",
}

__all__ = sorted(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
