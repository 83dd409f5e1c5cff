"""The judge of LLaVA's paper: a language model scores a model's answers beside a reference's (section 5.1)."""

from __future__ import annotations

import importlib
from typing import Any


_PUBLIC_NAMES = {
    "JudgeOptions": "judging",
    "JudgedQuestion": "inputs",
    "Verdict": "verdicts",
    "estimate_judging": "judging",
    "judge": "judging",
    "parse_verdict": "verdicts",
    "read_questions": "inputs",
    "read_rules": "prompting",
    "relative_scores": "scores",
}

__all__ = sorted(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
