"""Where Triton was measured to be faster than plain torch: the table that decides when nobody names an implementation.

The table is ``measured.json`` beside this file; ``python -m instructblip_hf.kernels.measure`` fills it (docs/kernels.md).
It is empty until somebody has run that on a GPU: nothing in it is estimated, so without it torch runs.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


FORMAT = 1
LARGEST_RATIO = 2.0
"""A measurement speaks for shapes that differ from its own by no more than this factor in every number."""


@dataclass(frozen=True)
class Measurement:
    """Times of one operation at one shape.

    Args:
        operation (`str`): `"cross_attention"`, `"packed_attention"` or `"dropout_add_layer_norm"`.
        device (`str`): Name of the GPU, as torch gives it.
        dtype (`str`): Type of the tensors without ``torch.``.
        gradients (`bool`): Whether forward and backward were timed together, or the forward alone.
        shape (`dict[str, int]`): Numbers that an operation is called with (``SHAPE_KEYS``).
        triton_ms (`float`): Median milliseconds of Triton.
        torch_ms (`float`): Median milliseconds of plain torch.
        noise (`float`): Relative spread of the ratio; Triton has to win by more.
        command (`str`): What was run.
        date (`str`): When, as YYYY-MM-DD.
        versions (`str`): Versions of torch, Triton and the driver.
    """

    operation: str
    device: str
    dtype: str
    gradients: bool
    shape: dict[str, int]
    triton_ms: float
    torch_ms: float
    noise: float
    command: str
    date: str
    versions: str

    def __post_init__(self) -> None:
        keys = SHAPE_KEYS.get(self.operation)
        if keys is None:
            raise ValueError(f"operation must be one of {', '.join(SHAPE_KEYS)}, got {self.operation!r}")
        if set(self.shape) != set(keys):
            raise ValueError(f"shape of {self.operation} must have {', '.join(keys)}, got {', '.join(self.shape)}")
        if self.triton_ms <= 0 or self.torch_ms <= 0 or self.noise < 0:
            raise ValueError(
                f"times must be positive and noise at least 0, got {self.triton_ms}, {self.torch_ms} and {self.noise}"
            )

    @property
    def faster(self) -> bool:
        """Whether Triton won by more than the noise."""
        return self.triton_ms * (1 + self.noise) < self.torch_ms


SHAPE_KEYS = {
    "cross_attention": ("rows", "images", "queries", "keys", "heads", "head_size"),
    "packed_attention": ("rows", "queries", "text_tokens", "heads", "head_size"),
    "dropout_add_layer_norm": ("rows", "hidden"),
}
"""What a shape says of each operation. Text tokens are those of all rows."""


def read_table(path: Path | None = None) -> tuple[Measurement, ...]:
    """The measurements in a file.

    Args:
        path (`Path`, *optional*): File; without it the one in the package.

    Raises:
        ValueError: If the file is of another format or an entry is not what [`Measurement`] takes.
    """
    source = Path(__file__).with_name("measured.json") if path is None else path
    if path is None and not source.exists():
        # The code beside a checkpoint (`utils/remote_code.py`) is Python alone, and so has no measurements.
        return ()
    content = json.loads(source.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{source} has format {content.get('format')!r}, this version reads {FORMAT}")
    try:
        return tuple(Measurement(**entry) for entry in content["measurements"])
    except TypeError as error:
        raise ValueError(f"{source}: {error}") from error


def write_table(path: Path, measurements: tuple[Measurement, ...]) -> None:
    """Write measurements; a later one of the same shape on the same device replaces an earlier one."""
    newest: dict[Any, Measurement] = {}
    for entry in measurements:
        shape = tuple(sorted(entry.shape.items()))
        newest[entry.operation, entry.device, entry.dtype, entry.gradients, shape] = entry
    entries = [asdict(entry) for entry in newest.values()]
    path.write_text(json.dumps({"format": FORMAT, "measurements": entries}, indent=2) + "\n", encoding="utf-8")


def is_faster(
    table: tuple[Measurement, ...], operation: str, device: str, dtype: str, gradients: bool, shape: dict[str, int]
) -> bool:
    """Whether the nearest measurement says that Triton is faster.

    Nearest is the smallest sum of the logarithms of ratios, among measurements of the same operation, device, type and
    size of head that are near in every number. Where none is near, torch is kept.

    Args:
        table (`tuple` of [`Measurement`]): Measurements.
        operation (`str`): Operation.
        device (`str`): Name of the GPU.
        dtype (`str`): Type of the tensors without ``torch.``.
        gradients (`bool`): Whether a backward will follow.
        shape (`dict[str, int]`): Numbers of the call (``SHAPE_KEYS``).
    """
    best, smallest = None, math.inf
    for entry in table:
        if (entry.operation, entry.device, entry.dtype, entry.gradients) != (operation, device, dtype, gradients):
            continue
        if entry.shape.get("head_size") != shape.get("head_size"):
            continue
        # Texts can be empty; one more token does not make a shape another.
        apart = [abs(math.log((number + 1) / (entry.shape[name] + 1))) for name, number in shape.items()]
        if max(apart) <= math.log(LARGEST_RATIO) and sum(apart) < smallest:
            best, smallest = entry, sum(apart)
    return best is not None and best.faster


__all__ = ["SHAPE_KEYS", "Measurement", "is_faster", "read_table", "write_table"]
