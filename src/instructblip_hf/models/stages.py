"""From one stage of training to the next: one call that builds the model and says what it took from where.

BLIP-2's first stage (Q-Former with heads) is followed by its second (Q-Former with a language model), and that by
instruction tuning, whose Q-Former reads again (Li et al. 2023, section 3; Dai et al. 2023, section 2.3).
"""

from __future__ import annotations

import copy
import os
from typing import Any

from transformers import PreTrainedModel

from .blip_2 import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2Processor
from .composition import kept_attention
from .hand_over import HandOver, hand_over
from .instructblip import InstructBlipForConditionalGeneration, InstructBlipProcessor


def start_second_stage(
    first_stage: Any,
    text: str | os.PathLike[str] | PreTrainedModel,
    processor: Blip2Processor | None = None,
    image_token_index: int | None = None,
    text_kwargs: dict[str, Any] | None = None,
) -> tuple[Blip2ForConditionalGeneration, HandOver]:
    """The start of BLIP-2's second stage: vision tower, queries and Q-Former of the first, and a language model.

    The Q-Former's parts for text and the heads stay behind; the projection is new. The vision tower is shared with
    ``first_stage``.

    Args:
        first_stage ([`Blip2ForImageTextRetrieval`], [`Blip2ForPreTraining`], `str` or `os.PathLike`):
            A model of the first stage, or its folder or Hub id.
        text (`str`, `os.PathLike` or `PreTrainedModel`):
            Causal or sequence-to-sequence language model with its head: OPT, FlanT5, LLaMA, Vicuna, ...
        processor ([`Blip2Processor`], *optional*):
            With the language model's tokenizer; gives the placeholder's token id, and what generation stops at.
        image_token_index (`int`, *optional*): Token id of the placeholder, in place of ``processor``.
        text_kwargs (`dict`, *optional*): For loading the language model.

    Returns:
        `tuple`: The model, in evaluation mode, and a [`HandOver`] that says what it took.

    Raises:
        KeyError: If a checkpoint lacks weights.
        ValueError: If options contradict.
    """
    if processor is not None and processor.end_token_id is None:
        raise ValueError(
            "the processor's tokenizer has no end token, so it is the Q-Former's, of the first stage: the second needs a "
            "Blip2Processor with the language model's tokenizer"
        )
    if not isinstance(first_stage, PreTrainedModel):
        first_stage = Blip2ForImageTextRetrieval.from_pretrained(first_stage)
    qformer_config = copy.deepcopy(first_stage.config.qformer_config)
    qformer_config.use_qformer_text_input = False
    model = Blip2ForConditionalGeneration.from_vision_text_pretrained(
        first_stage.vision_model,
        text,
        num_query_tokens=first_stage.config.num_query_tokens,
        processor=processor,
        image_token_index=image_token_index,
        qformer_config=qformer_config,
        text_kwargs=text_kwargs,
    )
    if processor is not None:
        _stop_at(model, processor.end_token_id)
    return model, hand_over(model, first_stage, language_model=model.language_model)


def start_instruction_tuning(
    second_stage: Any, first_stage: Any, processor: InstructBlipProcessor | None = None
) -> tuple[InstructBlipForConditionalGeneration, HandOver]:
    """The start of instruction tuning: BLIP-2 after its second stage, its Q-Former able to read again.

    Vision tower, queries, projection and language model are the second stage's, and so are the layers that queries and
    text share. What it has not, the embeddings and feed-forward layers of text, comes from the first. The same model is
    where BLIP-2's finetuning on questions starts, which its Q-Former reads (arXiv 2301.12597, section 4.3). The language
    model is shared with ``second_stage``.

    Args:
        second_stage ([`Blip2ForConditionalGeneration`], `str` or `os.PathLike`): Model, folder or Hub id.
        first_stage ([`Blip2ForImageTextRetrieval`], [`Blip2ForPreTraining`], `str` or `os.PathLike`):
            Model, folder or Hub id.
        processor ([`InstructBlipProcessor`], *optional*):
            Gives the size that the Q-Former's vocabulary grows to where its tokenizer is larger, and what generation
            stops at.

    Returns:
        `tuple`: The model, in evaluation mode, and a [`HandOver`] that says what came from where.

    Raises:
        KeyError: If a checkpoint lacks weights.
        ValueError: If shapes differ.
    """
    if not isinstance(second_stage, PreTrainedModel):
        second_stage = Blip2ForConditionalGeneration.from_pretrained(second_stage)
    if not isinstance(first_stage, PreTrainedModel):
        first_stage = Blip2ForImageTextRetrieval.from_pretrained(first_stage)
    theirs = second_stage.config
    language_model = second_stage.language_model
    has_own_tower = isinstance(second_stage.vision_model, Blip2ForConditionalGeneration.vision_class)
    parts = (language_model,) if has_own_tower else (language_model, second_stage.vision_model)
    with kept_attention(*parts):
        config = InstructBlipForConditionalGeneration.config_class(
            vision_config=_options(theirs.vision_config) if has_own_tower else second_stage.vision_model.config,
            qformer_config={**_options(first_stage.config.qformer_config), "use_qformer_text_input": True},
            text_config=language_model.config,
            num_query_tokens=theirs.num_query_tokens,
            image_token_index=theirs.image_token_index,
        )
    model = InstructBlipForConditionalGeneration(
        config,
        vision_model=None if has_own_tower else second_stage.vision_model,
        language_model=language_model,
    )
    report = hand_over(model, second_stage, first_stage)
    if processor is not None:
        model._fit_qformer(model.qformer, processor)
        _stop_at(model, processor.end_token_id)
    return model.eval(), report


def _stop_at(model: Any, end_token_id: int | None) -> None:
    """Has generation stop at what training teaches; stock transformers looks into the language model's configuration."""
    model.generation_config.eos_token_id = end_token_id
    model.config.text_config.eos_token_id = end_token_id


def _options(config: Any) -> dict[str, Any]:
    """Options of a part's configuration, for the other family's."""
    return {name: value for name, value in config.to_dict().items() if name != "model_type"}


__all__ = ["start_instruction_tuning", "start_second_stage"]
