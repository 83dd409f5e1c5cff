"""What all subjects are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Where and what to run.

    Args:
        device (`str`): ``cpu`` or ``cuda``.
        dtype (`str`): Precision of what is timed; results are compared in float32.
        is_quick (`bool`): Whether a point or two of each curve will do.
        compile (`bool`): Whether compiled variants are timed.
        lavis (`Path`, *optional*): LAVIS's `Qformer.py`.
        questions (`tuple[int]`): How many questions an image.
    """

    device: str
    dtype: str
    is_quick: bool
    compile: bool
    lavis: Path | None
    questions: tuple[int, ...] = (1, 2, 4, 8, 16)
