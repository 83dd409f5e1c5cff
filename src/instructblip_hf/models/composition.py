"""Loading the parts that a model is composed of, each whole or not at all."""

from __future__ import annotations

import os
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


__all__ = ["load_language_model", "load_part", "load_vision_tower"]
