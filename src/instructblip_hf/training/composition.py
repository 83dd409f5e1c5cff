"""The model and the processor that a stage of training begins with, out of the parts that a recipe names."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoTokenizer, BlipImageProcessorPil, PreTrainedConfig

from ..models.blip_2 import Blip2ForPreTraining, Blip2Processor
from ..models.composition import load_language_model, load_vision_tower
from ..models.families import FAMILIES, family_of
from ..models.instructblip import InstructBlipProcessor
from ..models.llava import LlavaForConditionalGeneration, LlavaProcessor
from ..models.stages import start_instruction_tuning, start_second_stage
from .arguments import PartsArguments


logger = logging.getLogger(__name__)

DECODER_TOKEN = "[DEC]"
"""BOS token of the Q-Former's tokenizer, which begins captions that are to be generated (LAVIS `blip2.py`)."""

PAD_TOKEN = "[PAD]"
"""Given to language models without a padding token, LLaMA's for instance, as LAVIS does."""


def compose(parts: PartsArguments, dtype: Any) -> tuple[Any, Any]:
    """Model and processor of the parts; what was taken from where is logged.

    Args:
        parts (`PartsArguments`): Checked.
        dtype (`torch.dtype` or `str`): Of the weights.

    Returns:
        `tuple`: Model, in evaluation mode, and processor.

    Raises:
        OSError: If there is no such part.
        KeyError, ValueError: If a part lacks weights, or parts do not fit together.
    """
    if parts.names == ("vision", "bert"):
        return _first_stage(parts, dtype)
    if parts.is_llava:
        return _llava(parts, dtype)
    model: Any
    first_processor: Any = Blip2Processor.from_pretrained(str(parts.first_stage))
    if parts.text is not None:
        processor: Any = Blip2Processor(
            first_processor.image_processor,
            _tokenizer_of(parts.text),
            num_query_tokens=first_processor.num_query_tokens,
            end_token=parts.end_token,
        )
        model, report = start_second_stage(parts.first_stage, parts.text, processor, text_kwargs={"dtype": dtype})
    else:
        second: Any = Blip2Processor.from_pretrained(str(parts.second_stage))
        processor = InstructBlipProcessor(
            second.image_processor,
            second.tokenizer,
            first_processor.tokenizer,
            num_query_tokens=second.num_query_tokens or first_processor.num_query_tokens,
            end_token=second.end_token,
        )
        model, report = start_instruction_tuning(parts.second_stage, parts.first_stage, processor)
    logger.info("%s begins with:\n%s", type(model).__name__, report)
    return cast_whole(model, dtype), processor


def cast_whole(model: Any, dtype: Any) -> Any:
    """The model in a dtype, but for what it keeps in float32 in half precision, as `from_pretrained` does."""
    if dtype == "auto":
        return model
    kept = set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    for name, parameter in model.named_parameters():
        if not kept.intersection(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


def _first_stage(parts: PartsArguments, dtype: Any) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(parts.bert)
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": DECODER_TOKEN})
    vision: Any = load_vision_tower(str(parts.vision), dtype=dtype)
    image_processor = _image_processor_of(str(parts.vision), vision)
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=parts.num_query_tokens)
    model = Blip2ForPreTraining.from_vision_bert_pretrained(
        vision, parts.bert, num_query_tokens=parts.num_query_tokens, processor=processor
    )
    return cast_whole(model, dtype), processor


def _llava(parts: PartsArguments, dtype: Any) -> tuple[Any, Any]:
    vision: Any
    if PreTrainedConfig.get_config_dict(str(parts.vision))[0].get("model_type") == "llava":
        # Transformers' towers do not find themselves under the name that LLaVA has for them.
        vision = LlavaForConditionalGeneration.from_pretrained(str(parts.vision), dtype=dtype).vision_tower
    else:
        vision = load_vision_tower(str(parts.vision), dtype=dtype)
    # LLaVA leaves out CLIP's class token; SigLIP has none to leave out.
    has_class_token = any(name.endswith(("class_embedding", "cls_token")) for name, _ in vision.named_parameters())
    strategy = "default" if has_class_token else "full"
    image_processor = _image_processor_of(str(parts.vision), vision)
    text, tokenizer = _language_model_of(str(parts.text), dtype)
    if tokenizer.pad_token is None:
        # As LLaVA does, where there is one; otherwise a new token.
        tokenizer.add_special_tokens({"pad_token": tokenizer.unk_token or PAD_TOKEN})
    is_qformer = parts.projector_type == "qformer"
    queries = parts.num_query_tokens if is_qformer else None
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy=strategy,
        num_query_tokens=queries,
    )
    if not is_qformer:
        processor.num_additional_image_tokens = _tokens_beside_patches(vision, processor.image_size)
    model = LlavaForConditionalGeneration.from_vision_text_pretrained(
        vision,
        text,
        projector_type=parts.projector_type,
        num_query_tokens=queries,
        processor=processor,
        vision_feature_layer=parts.vision_feature_layer,
        vision_feature_select_strategy=strategy,
    )
    return cast_whole(model, dtype), processor


@torch.no_grad()
def _tokens_beside_patches(vision: Any, size: tuple[int, int]) -> int:
    """Class token and registers: what a tower gives for an image beside its patches."""
    weight = next(vision.parameters())
    image = torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device)
    tokens = vision(pixel_values=image).last_hidden_state.shape[1]
    return tokens - (size[0] // vision.config.patch_size) * (size[1] // vision.config.patch_size)


def _language_model_of(source: str, dtype: Any) -> tuple[Any, Any]:
    """A language model with its tokenizer, also out of a model of this package."""
    if PreTrainedConfig.get_config_dict(source)[0].get("model_type") in FAMILIES:
        family, model_class = family_of(source)
        tokenizer = family.processor_class.from_pretrained(source).tokenizer
        return model_class.from_pretrained(source, dtype=dtype).language_model, tokenizer
    return load_language_model(source, dtype=dtype), AutoTokenizer.from_pretrained(source, padding_side="left")


def _image_processor_of(source: str, vision: Any) -> Any:
    """The vision tower's own, or where it comes without one, which is logged, that of BLIP-2 for images of its size."""
    # Models of this package first: early 5.x wants torchvision for AutoImageProcessor, theirs need none.
    if PreTrainedConfig.get_config_dict(source)[0].get("model_type") in FAMILIES:
        return family_of(source)[0].processor_class.from_pretrained(source).image_processor
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(source)
    except OSError as error:
        size = vision.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        logger.warning(
            "no image processor was found for the vision tower %s, images are resized to %d x %d and normalised with the mean "
            "and deviation of CLIP; if it was trained with others, put its preprocessor_config.json beside it (%s)",
            source,
            height,
            width,
            str(error).partition("\n")[0],
        )
        return BlipImageProcessorPil(size={"height": height, "width": width})


def _tokenizer_of(text: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(text)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return tokenizer


__all__ = ["DECODER_TOKEN", "PAD_TOKEN", "cast_whole", "compose"]
