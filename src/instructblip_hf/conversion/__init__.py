"""LAVIS's checkpoint files to folders in transformers' layout and back, see `docs/conversion.md`."""

from .convert import ToFolder, ToLavis, convert_to_folder, convert_to_lavis
from .geometry import Heads
from .kinds import KINDS
from .report import ConversionReport
from .stored_tensors import ConversionError


__all__ = [
    "KINDS",
    "ConversionError",
    "ConversionReport",
    "Heads",
    "ToFolder",
    "ToLavis",
    "convert_to_folder",
    "convert_to_lavis",
]
