"""The BLIP-2 family (Li et al., 2023, arXiv 2301.12597)."""

from .configuration_blip_2 import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig
from .modeling_blip_2 import Blip2ForConditionalGeneration
from .modeling_blip_2_parts import Blip2QFormerModel, Blip2VisionModel
from .modeling_blip_2_pretraining import Blip2ForPreTraining, PreTrainingOptions
from .modeling_blip_2_retrieval import Blip2ForImageTextRetrieval
from .processing_blip_2 import Blip2Processor


__all__ = [
    "Blip2Config",
    "Blip2ForConditionalGeneration",
    "Blip2ForImageTextRetrieval",
    "Blip2ForPreTraining",
    "Blip2Processor",
    "Blip2QFormerConfig",
    "Blip2QFormerModel",
    "Blip2VisionConfig",
    "Blip2VisionModel",
    "PreTrainingOptions",
]
