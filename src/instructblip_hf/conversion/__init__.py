"""Checkpoints of LAVIS (both ways) and of LLaVA's own code in transformers' layout, see `docs/conversion.md`."""

from .from_llava import FromLlava, convert_llava
from .geometry import Heads
from .kinds import KINDS
from .llava_original import is_original_llava
from .options import ToFolder, ToLavis
from .report import ConversionReport
from .stored_tensors import ConversionError
from .to_folder import convert_to_folder
from .to_lavis import convert_to_lavis


__all__ = [
    "KINDS",
    "ConversionError",
    "ConversionReport",
    "FromLlava",
    "Heads",
    "ToFolder",
    "ToLavis",
    "convert_llava",
    "convert_to_folder",
    "convert_to_lavis",
    "is_original_llava",
]
