"""What all subjects are told."""

from __future__ import annotations

from dataclasses import dataclass

from lavis_models import Lavis


@dataclass(frozen=True)
class Options:
    """Where and what to run.

    Args:
        device (`str`): ``cpu`` or ``cuda``.
        size (`str`): Of the models, a name in `models.SIZES`.
        dtype (`str`): Precision of what is timed; results are compared in float32.
        compile (`bool`): Whether compiled variants are timed.
        lavis (`Lavis`, *optional*): A clone of LAVIS's repository.
        questions (`tuple[int]`): How many questions an image.
        candidates (`tuple[int]`): How many candidates are ranked.
    """

    device: str
    size: str
    dtype: str
    compile: bool
    lavis: Lavis | None
    questions: tuple[int, ...] = (1, 2, 4, 8, 16)
    candidates: tuple[int, ...] = (2, 20, 100, 1000)

    @property
    def is_quick(self) -> bool:
        """Whether a point or two of each curve will do."""
        return self.size == "tiny"
