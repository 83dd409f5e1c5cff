"""What the vision towers and Q-Formers of this package share as models of their own."""

from __future__ import annotations

from transformers import PreTrainedModel

from .modeling_base import StrictLoadingMixin


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


__all__ = ["NO_SPLIT_MODULES", "ModelPart", "value_or_default"]
