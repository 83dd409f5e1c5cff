"""The model of a recipe without its weights: of configurations alone, in the dtypes and with the LoRA that it trains with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from ...models.blip_2 import Blip2ForPreTraining
from ...models.composition import load_vision_tower
from ...models.families import family_of
from ...models.language_models.label_losses import assume_logits_at_labels
from ...models.llava import LlavaForConditionalGeneration
from ...models.stages import start_instruction_tuning, start_second_stage
from ...models.vision_towers.resizing import resize_images
from ..arguments import ModelArguments, PartsArguments
from ..composition import cast_whole, compose
from ..freezing import FreezingReport, apply_freezing, check_component
from ..precision import cast_frozen
from ..recipe import Recipe
from .without_values import weights_left_out


def skeleton_of(recipe: Recipe, args: TrainingArguments) -> tuple[Any, FreezingReport, list[str]]:
    """Model of a recipe, what trains of it, and notes on what could not be known. Within `tensors_without_values`.

    Raises:
        OSError: If a configuration is not there.
        ValueError: For a policy that does not fit the model.
    """
    notes: list[str] = []
    with weights_left_out():
        model = _load(recipe.model, notes)
        model.tie_weights()
        if recipe.model.image_size is not None:
            resize_images(model, recipe.model.image_size)
        for name in recipe.model.reinitialize:
            check_component(model, name)
        if recipe.model.frozen_dtype is not None:
            cast_frozen(model, recipe.freezing, getattr(torch, recipe.model.frozen_dtype))
        report = apply_freezing(model, recipe.freezing)
    if hasattr(model, "language_model"):
        assume_logits_at_labels(model.language_model)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    return model, report, notes


def _load(arguments: ModelArguments, notes: list[str]) -> Any:
    dtype = arguments.dtype if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    if arguments.parts is None:
        return _load_whole(arguments, dtype)
    parts = PartsArguments(**arguments.parts)
    try:
        model, _ = compose(parts, dtype)
    except (ImportError, OSError, ValueError) as error:
        model = _compose_without_tokenizers(parts, dtype)
        reason = " ".join(str(error).split())[:200]
        notes.append(
            "the parts have no tokenizer or image processor that can be read, so embeddings of words may be a few rows "
            f"short ({reason})"
        )
    if arguments.attn_implementation is not None:
        model.set_attn_implementation(arguments.attn_implementation)
    return model


def _load_whole(arguments: ModelArguments, dtype: Any) -> Any:
    options: dict[str, Any] = {"revision": arguments.revision} if arguments.revision is not None else {}
    family, model_class = family_of(str(arguments.path), **options)
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    config = model_class.config_class.from_pretrained(arguments.path, **options)
    if not arguments.qformer_instruction:
        config.qformer_config.use_qformer_text_input = False
    return model_class.from_pretrained(arguments.path, config=config, dtype=dtype, **options)


def _compose_without_tokenizers(parts: PartsArguments, dtype: Any) -> Any:
    """As `compose`, where the folders of parts hold configurations alone."""
    model: Any
    if parts.names == ("vision", "bert"):
        vision = load_vision_tower(str(parts.vision), dtype=dtype)
        model = Blip2ForPreTraining.from_vision_bert_pretrained(vision, parts.bert, parts.num_query_tokens)
    elif parts.is_llava:
        model = LlavaForConditionalGeneration.from_vision_text_pretrained(
            str(parts.vision),
            str(parts.text),
            projector_type=parts.projector_type,
            num_query_tokens=parts.num_query_tokens if parts.projector_type == "qformer" else None,
            vision_feature_layer=parts.vision_feature_layer,
            vision_kwargs={"dtype": dtype},
            text_kwargs={"dtype": dtype},
        )
    elif parts.text is not None:
        model, _ = start_second_stage(parts.first_stage, parts.text, text_kwargs={"dtype": dtype})
    else:
        model, _ = start_instruction_tuning(parts.second_stage, parts.first_stage)
    return cast_whole(model, dtype)


__all__ = ["skeleton_of"]
