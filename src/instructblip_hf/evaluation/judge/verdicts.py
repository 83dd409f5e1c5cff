"""The judge's two scores, read off the first line, or none.

LLaVA's script gives both answers -1 where it cannot read a line, and takes the mean over those too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


LOWEST, HIGHEST = 1.0, 10.0
_LINE = re.compile(r"(\d+(?:\.\d+)?)(?:\s*,\s*|\s+)(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Verdict:
    """Scores of one review.

    Args:
        first (`float`): Of Assistant 1.
        second (`float`): Of Assistant 2.
    """

    first: float
    second: float


def parse_verdict(text: str) -> Verdict | None:
    """Reads a review: two numbers from 1 to 10 alone on its first line, with spaces or a comma between.

    Returns:
        `Verdict` or `None`: `None` if there is anything else.
    """
    lines = text.strip().splitlines()
    match = _LINE.fullmatch(lines[0].strip()) if lines else None
    if match is None:
        return None
    first, second = float(match.group(1)), float(match.group(2))
    if not (LOWEST <= first <= HIGHEST and LOWEST <= second <= HIGHEST):
        return None
    return Verdict(first, second)


__all__ = ["Verdict", "parse_verdict"]
