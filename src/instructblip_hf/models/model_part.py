"""What the vision towers and Q-Formers of this package share as models of their own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from .strict_loading import StrictLoadingMixin


NO_SPLIT_MODULES = ["EvaVitEmbeddings", "EvaVitLayer", "QFormerEmbeddings", "QFormerLayer"]
"""Modules that a device map keeps whole."""


class ModelPart(StrictLoadingMixin, PreTrainedModel):
    """A part of a composite model, usable and loadable on its own: from its own folder, and out of a full checkpoint."""

    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _no_split_modules = NO_SPLIT_MODULES


def value_or_default(value: bool | None, fallback: bool | None) -> bool:
    """An option of a call, or where it is not given the configuration's."""
    return bool(fallback if value is None else value)


def as_input_of(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """States in the type of a linear layer's weights, where parts differ in precision; as they are for quantised ones."""
    dtype = layer.weight.dtype
    return states.to(dtype) if dtype.is_floating_point else states


__all__ = ["NO_SPLIT_MODULES", "ModelPart", "as_input_of", "value_or_default"]
