"""InstructBLIP, BLIP-2 and LLaVA in the manner of Hugging Face Transformers.

Importing this package loads neither torch nor any model code: public names are resolved when they are first
used (PEP 562). The only other effect of the import is that transformers' removed ``AutoModelForVision2Seq`` and
``"image-to-text"`` pipeline are available again, a pipeline for vocabulary ranking, and ``attn_implementation="triton"``, see
`instructblip_hf.transformers_hooks`.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import transformers_hooks


__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "AutoModelForVision2Seq": "auto",
    "BUNDLED_CHECKPOINTS": "checkpoints",
    "Blip2Config": "models.blip_2",
    "Blip2ForConditionalGeneration": "models.blip_2",
    "Blip2ForImageTextRetrieval": "models.blip_2",
    "Blip2ForPreTraining": "models.blip_2",
    "Blip2Processor": "models.blip_2",
    "Blip2QFormerConfig": "models.blip_2",
    "Blip2QFormerModel": "models.blip_2",
    "Blip2VisionConfig": "models.blip_2",
    "Blip2VisionModel": "models.blip_2",
    "ImageCache": "models.image_cache",
    "ImageToTextPipeline": "pipelines.image_to_text",
    "InstructBlipConfig": "models.instructblip",
    "InstructBlipForConditionalGeneration": "models.instructblip",
    "InstructBlipProcessor": "models.instructblip",
    "InstructBlipQFormerConfig": "models.instructblip",
    "InstructBlipQFormerModel": "models.instructblip",
    "InstructBlipVisionConfig": "models.instructblip",
    "InstructBlipVisionModel": "models.instructblip",
    "LlavaConfig": "models.llava",
    "LlavaForConditionalGeneration": "models.llava",
    "LlavaProcessor": "models.llava",
    "PreTrainingOptions": "models.blip_2",
    "VocabularyRankingPipeline": "pipelines.vocabulary_ranking",
    "bundled_checkpoint": "checkpoints",
    "export_remote_code": "utils.remote_code",
    "model_card": "utils.model_card",
    "push_to_hub": "utils.hub",
    "query_attention": "models.query_attention",
    "save_for_hub": "utils.hub",
    "start_instruction_tuning": "models.stages",
    "start_second_stage": "models.stages",
}

__all__ = ["__version__", *sorted(_PUBLIC_NAMES)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        value = getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


transformers_hooks.install()
