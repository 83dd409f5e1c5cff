"""A batch as the collator of a recipe makes it at its largest: all rows as long as the recipe lets them be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

from ...constants import IGNORE_INDEX
from ...models.blip_2 import Blip2ForPreTraining
from ..image_features.tower import FrozenTower, autocast_dtype
from ..recipe import Recipe


PROMPT_TOKENS = 128
"""Tokens of text before the answer, where neither the recipe nor the caller says how many."""

ANSWER_TOKENS = 128
"""Tokens of the answer, likewise."""

CAPTION_TOKENS = 32
"""Tokens of a caption of BLIP-2's first stage, likewise; what its collator cuts at."""


@dataclass(frozen=True)
class RowLengths:
    """How long a row is.

    Attributes:
        image (`int`): Placeholders of its image.
        prompt (`int`): Tokens of text before the answer.
        answer (`int`): Tokens of the answer.
        assumed (`tuple[str, ...]`): Which of them nobody has said.
    """

    image: int
    prompt: int
    answer: int
    assumed: tuple[str, ...] = ()


def row_lengths(
    model: Any, recipe: Recipe, prompt_tokens: int | None = None, answer_tokens: int | None = None
) -> RowLengths:
    """Lengths of the longest row: of the caller, of the recipe, or assumed.

    Raises:
        ValueError: If a row would have no text.
    """
    prompt, answer = prompt_tokens, answer_tokens
    for name, value in (("prompt_tokens", prompt), ("answer_tokens", answer)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    data, assumed = recipe.data, []
    if isinstance(model, Blip2ForPreTraining):
        return RowLengths(0, 0, answer or data.max_completion_length or CAPTION_TOKENS)
    image = tokens_of_image(model)
    if prompt is None:
        prompt = data.max_prompt_length - image if data.max_prompt_length is not None else None
    if prompt is None:
        prompt = PROMPT_TOKENS
        assumed.append("prompt")
    if answer is None:
        answer = data.max_completion_length
        if answer is None and data.max_length is not None:
            answer = data.max_length - image - prompt
    if answer is None:
        answer = ANSWER_TOKENS
        assumed.append("answer")
    if prompt < 1 or answer < 1:
        raise ValueError(
            f"rows have {image} tokens of the image, {prompt} of the prompt and {answer} of the answer: data.max_length "
            "or data.max_prompt_length leaves no room for text"
        )
    return RowLengths(image, prompt, answer, tuple(assumed))


def tokens_of_image(model: Any) -> int:
    """Placeholders of an image in the prompt."""
    queries = getattr(model.config, "num_query_tokens", None)
    if hasattr(model, "query_tokens") and queries:
        return int(queries)
    with torch.no_grad():
        features: torch.Tensor = model.get_image_features(pixel_values=_pixels(model, 1)).pooler_output
    return features.shape[1]


def largest_batch(
    model: Any, recipe: Recipe, args: TrainingArguments, lengths: RowLengths, rows: int
) -> dict[str, torch.Tensor]:
    """Inputs of ``forward`` for a batch of rows with an image each, labels among them."""
    if recipe.data.image_features is not None:
        tower = FrozenTower(model, autocast_dtype(args))
        dtype = getattr(torch, recipe.data.image_features_dtype) if recipe.data.image_features_dtype else None
        features = tower(_pixels(model, rows))
        inputs = {tower.argument: features.to(dtype or tower.compute_dtype)}
    else:
        inputs = {"pixel_values": _pixels(model, rows)}
    if isinstance(model, Blip2ForPreTraining):
        captions = _text(rows, lengths.answer)
        # Which rows are negatives of which depends on values; here each of its neighbour.
        negatives = (torch.arange(rows) + 1) % rows if rows > 1 else torch.full((1,), -1)
        inputs.update(input_ids=captions, decoder_input_ids=captions.clone(), labels=captions.clone())
        return {**inputs, "negative_images": negatives, "negative_texts": negatives.clone()}
    text = _text(rows, lengths.prompt)
    image_token_id: int = model.config.image_token_id
    # No text may look like an image.
    text[text == image_token_id] = 0 if image_token_id else 1
    placeholders = torch.full((rows, lengths.image), image_token_id)
    prompt, answer = torch.cat([placeholders, text], 1), _text(rows, lengths.answer)
    answer[answer == image_token_id] = 0 if image_token_id else 1
    if model.config.is_encoder_decoder:
        inputs.update(input_ids=prompt, labels=answer)
    else:
        ignored = torch.full_like(prompt, IGNORE_INDEX)
        inputs.update(input_ids=torch.cat([prompt, answer], 1), labels=torch.cat([ignored, answer], 1))
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    qformer_config: Any = getattr(model.config, "qformer_config", None)
    if model.config.model_type == "instructblip" and qformer_config.use_qformer_text_input:
        length = min(lengths.prompt, qformer_config.max_position_embeddings)
        inputs["qformer_input_ids"] = _text(rows, length)
        inputs["qformer_attention_mask"] = torch.ones_like(inputs["qformer_input_ids"])
    return inputs


def _text(rows: int, length: int) -> torch.Tensor:
    return torch.ones(rows, length, dtype=torch.long)


def _pixels(model: Any, images: int) -> torch.Tensor:
    size = model.image_tower.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(images, 3, height, width)


__all__ = ["RowLengths", "largest_batch", "row_lengths", "tokens_of_image"]
