"""LAVIS's checkpoint files to folders in transformers' layout and back, see `docs/conversion.md`."""

from .geometry import Heads
from .kinds import KINDS
from .options import ToFolder, ToLavis
from .report import ConversionReport
from .stored_tensors import ConversionError
from .to_folder import convert_to_folder
from .to_lavis import convert_to_lavis


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
