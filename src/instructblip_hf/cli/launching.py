"""What the commands that start themselves on several processes share."""

from __future__ import annotations

from collections.abc import Sequence


def without_options(arguments: Sequence[str], *names: str) -> list[str]:
    """A command line without options that take a value, in both forms, ``--name value`` and ``--name=value``."""
    kept: list[str] = []
    is_value = False
    for argument in arguments:
        if is_value:
            is_value = False
        elif argument in names:
            is_value = True
        elif not argument.startswith(tuple(f"{name}=" for name in names)):
            kept.append(argument)
    return kept
