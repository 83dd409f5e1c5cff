"""Instruction data as LLaVA's was made: captions and boxes in, conversations, descriptions and reasoning out."""

from __future__ import annotations

import importlib
from typing import Any


_PUBLIC_NAMES = {
    "RESPONSE_TYPES": "response_types",
    "BoxedObject": "contexts",
    "GenerationOptions": "jobs",
    "ImageContext": "contexts",
    "Prompts": "prompting",
    "coco_contexts": "contexts",
    "estimate_generation": "generating",
    "generate": "generating",
    "jsonl_contexts": "contexts",
    "load_prompts": "prompting",
    "parse_answer": "parsing",
}

__all__ = sorted(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
