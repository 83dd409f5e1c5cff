"""Loading the parts that a model is composed of, each whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def load_part(source: str | os.PathLike[str], auto_class: Any = AutoModel, **kwargs: Any) -> PreTrainedModel:
    """Load one part by an Auto class.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        auto_class (*optional*, defaults to `AutoModel`): Auto class to load with.
        kwargs: For its ``from_pretrained``.

    Returns:
        `PreTrainedModel`

    Raises:
        KeyError: If the checkpoint lacks weights of the part; it names them.
    """
    model, info = auto_class.from_pretrained(source, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        raise KeyError(
            f"{source} lacks weights of {type(model).__name__}: {', '.join(sorted(map(str, info['missing_keys'])))}"
        )
    return model


def load_vision_tower(source: str | os.PathLike[str] | PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
    """Vision tower from a folder or Hub id, also out of an image-text checkpoint; a model is returned as it is.

    Raises:
        KeyError: If the checkpoint lacks weights of the tower.
    """
    if isinstance(source, PreTrainedModel):
        return source
    config = kwargs.pop("config", None) or AutoConfig.from_pretrained(source)
    return load_part(source, config=getattr(config, "vision_config", config), **kwargs)


def load_language_model(source: str | os.PathLike[str] | PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
    """Causal or sequence-to-sequence language model with its head; a model is returned as it is.

    Raises:
        KeyError: If the checkpoint lacks weights of the model.
    """
    if isinstance(source, PreTrainedModel):
        return source
    config = kwargs.pop("config", None) or AutoConfig.from_pretrained(source)
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return load_part(source, AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM, config=config, **kwargs)


def placeholder_of(language_model: PreTrainedModel, processor: Any, image_token_index: int | None) -> tuple[int, int]:
    """Token id of the image placeholder, and how many rows the language model's embedding needs.

    Args:
        language_model (`PreTrainedModel`): Its embedding is looked at.
        processor (`ProcessorMixin`, *optional*): Gives the id, and the size of its tokenizer.
        image_token_index (`int`, *optional*): The id, in place of the processor; by default a new row.

    Raises:
        ValueError: If both are given.
    """
    embeddings: Any = language_model.get_input_embeddings()
    if processor is not None:
        if image_token_index is not None:
            raise ValueError("give either processor or image_token_index")
        index: int = processor.image_token_id
        return index, max(index + 1, len(processor.tokenizer))
    index = embeddings.weight.shape[0] if image_token_index is None else image_token_index
    return index, index + 1


def grow_embeddings(model: PreTrainedModel, needed: int) -> None:
    """Lets a model's embedding grow to as many rows as are needed; a larger one stays as it is."""
    embeddings: Any = model.get_input_embeddings()
    if needed > embeddings.weight.shape[0]:
        model.resize_token_embeddings(needed)


@contextlib.contextmanager
def kept_attention(*parts: PreTrainedModel) -> Iterator[None]:
    """Keeps the attention of parts while a composite configuration is made of theirs, which would reset it."""
    attention = [part.config._attn_implementation for part in parts]
    yield
    for part, implementation in zip(parts, attention):
        part.config._attn_implementation = implementation


__all__ = [
    "grow_embeddings",
    "kept_attention",
    "load_language_model",
    "load_part",
    "load_vision_tower",
    "placeholder_of",
]
