"""Building the configurations of the parts that a model is composed of."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def sub_config(
    name: str, value: dict[str, Any] | PreTrainedConfig | None, default: type[PreTrainedConfig]
) -> PreTrainedConfig:
    """One part's configuration; stock transformers' class of our type is turned into ours.

    Args:
        name (`str`): Of the part, for errors.
        value (`dict` or `PreTrainedConfig`, *optional*): What was given.
        default (`type`): Class of the configuration where none is named.

    Raises:
        ValueError: If ``value`` names a ``model_type`` that transformers does not know.
    """
    if value is None:
        return default()
    if isinstance(value, PreTrainedConfig):
        if value.model_type != default.model_type or isinstance(value, default):
            return value
        attn_implementation = value._attn_implementation
        converted = default.from_dict(value.to_dict())
        converted._attn_implementation = attn_implementation
        return converted
    model_type = value.get("model_type", default.model_type)
    if model_type == default.model_type:
        return default(**value)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{name} has model_type {model_type!r}, which transformers does not know")
    return CONFIG_MAPPING[model_type](**value)


def is_decoder_only(text_config: PreTrainedConfig) -> bool:
    """The rule of the published checkpoints: a type with a causal head is used as a decoder-only model."""
    return text_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


__all__ = ["is_decoder_only", "sub_config"]
