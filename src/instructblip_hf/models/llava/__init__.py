"""The LLaVA family (Liu et al., 2023, arXiv 2304.08485)."""

from .configuration_llava import LlavaConfig
from .modeling_llava import LlavaForConditionalGeneration
from .processing_llava import LlavaProcessor


__all__ = ["LlavaConfig", "LlavaForConditionalGeneration", "LlavaProcessor"]
