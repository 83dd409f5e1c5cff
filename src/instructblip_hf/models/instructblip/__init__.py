"""The InstructBLIP family (Dai et al., 2023, arXiv 2305.06500)."""

from .configuration_instructblip import InstructBlipConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig
from .modeling_instructblip import InstructBlipForConditionalGeneration
from .modeling_instructblip_parts import InstructBlipQFormerModel, InstructBlipVisionModel
from .processing_instructblip import InstructBlipProcessor
from .without_instruction import load_without_instruction


__all__ = [
    "InstructBlipConfig",
    "InstructBlipForConditionalGeneration",
    "InstructBlipProcessor",
    "InstructBlipQFormerConfig",
    "InstructBlipQFormerModel",
    "InstructBlipVisionConfig",
    "InstructBlipVisionModel",
    "load_without_instruction",
]
