"""What an evaluation stops with, a message that is complete without a traceback."""

from __future__ import annotations


class EvaluationError(RuntimeError):
    """An evaluation that cannot go on; what is answered so far stays."""


__all__ = ["EvaluationError"]
