"""How the command line says that something is wrong: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

import typer


USAGE_ERROR = 2
STOPPED = 1


def fail(*lines: str) -> NoReturn:
    """Writes each line to stderr as an error and ends the command with exit code 2."""
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    raise typer.Exit(USAGE_ERROR)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors about what the user handed in (values, files, missing extras) into `fail`.

    To be put around loading and checking, not around the work itself, whose tracebacks are worth seeing.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, KeyError, OSError, ImportError) as error:
        fail(*(getattr(error, "problems", None) or [_one_line(error)]))


@contextlib.contextmanager
def stopping_errors() -> Iterator[None]:
    """Turns errors that long work stops with, each complete in itself, into one line and exit code 1."""
    from ..capfilt.errors import CapFiltError
    from ..evaluation.errors import EvaluationError
    from ..training.errors import TrainingError

    try:
        yield
    except (CapFiltError, TrainingError, EvaluationError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        raise typer.Exit(STOPPED) from error


def _one_line(error: Exception) -> str:
    # transformers and huggingface_hub wrap their advice over many lines.
    # KeyError puts its message into quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = re.sub(r"\s+", " ", text).strip()
    return text or type(error).__name__
