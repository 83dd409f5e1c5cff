"""Bytes of a model's weights, those of 4 and 8 bits as bitsandbytes keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share theirs (QLoRA's double quantisation)."""

# Two tables of values, and what was subtracted from the scales, in float32.
_NF4_TABLES = (16 + 256 + 1) * 4


def weight_bytes(model: nn.Module, quantization: str | None = None) -> dict[str, int]:
    """Bytes of each parameter.

    Args:
        model (`nn.Module`): With its weights in the dtypes that they train in; those to be quantised are not yet.
        quantization (`str`, *optional*): ``"nf4"`` or ``"int8"``.
    """
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    if quantization is not None:
        for name, layer in _quantized(model):
            rows, numbers = layer.weight.shape[0], layer.weight.numel()
            if quantization == "int8":
                sizes[name] = numbers + 4 * rows
            else:
                scales = -(-numbers // NF4_BLOCK)
                sizes[name] = (numbers + 1) // 2 + scales + 4 * -(-scales // NF4_OUTER_BLOCK) + _NF4_TABLES
    return sizes


def _quantized(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers of the language model but its head, and but those it keeps in float32; not LoRA's own."""
    kept = {"lm_head", *(getattr(model, "_keep_in_fp32_modules", None) or ())}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        parts = name.split(".")
        is_kept = kept.intersection(parts) or any(part.startswith("lora_") for part in parts)
        if isinstance(module, nn.Linear) and parts[0] == "language_model" and not is_kept:
            yield names[id(module.weight)], module


__all__ = ["weight_bytes"]
