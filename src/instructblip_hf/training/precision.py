"""Weights that do not train in 16 bits, those that train as they are: half the memory of frozen parts.

LAVIS trains InstructBLIP so: the vision tower and the language model in 16 bits, the Q-Former in float32. A layer's
weights meet in one operation, so a layer that trains stays whole; and where parts of different dtypes meet, inputs are
cast on the way in, so that a model computes with and without autocast.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .freezing import FreezingPolicy, component_words, word_of


logger = logging.getLogger(__name__)


def cast_frozen(model: nn.Module, policy: str | Mapping[str, str] | FreezingPolicy, dtype: torch.dtype) -> None:
    """Casts the weights that a policy does not train. To be called once, before or after `apply_freezing`.

    Weights that a model wants in float32 stay so as in `from_pretrained`: those of ``_keep_in_fp32_modules`` (T5's
    ``wo``) where `dtype` is float16, those of ``_keep_in_fp32_modules_strict`` always. Buffers and quantised weights
    stay as they are. What is under LoRA is cast, LoRA's own weights are not.

    Args:
        model (`nn.Module`): Changed in place.
        policy (`str`, `Mapping[str, str]` or `FreezingPolicy`): Which weights train, as for `apply_freezing`.
        dtype (`torch.dtype`): Of the weights that do not.

    Raises:
        ValueError: If `dtype` is not a floating-point one, or the policy does not fit the model.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; weights that do not train can be in a floating-point dtype")
    words = component_words(model, FreezingPolicy.of(policy))
    kept = _kept_in_float32(model, dtype)
    before = after = 0
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        own = {f"{prefix}{name}": parameter for name, parameter in module.named_parameters(recurse=False)}
        # The word of a LoRA update's own weights is that of the layer under it, but they train.
        stays = any(word_of(name, words) == "train" or "lora_" in name for name in own)
        for name, parameter in own.items():
            before += parameter.numel() * parameter.element_size()
            if parameter.is_floating_point() and not stays and not kept.intersection(name.split(".")):
                parameter.data = parameter.data.to(dtype)
            after += parameter.numel() * parameter.element_size()
    _cast_inputs_where_dtypes_meet(model, words)
    logger.info("weights that do not train in %s: %.1f MB of %.1f MB", dtype, after / 1e6, before / 1e6)


def _kept_in_float32(model: nn.Module, dtype: torch.dtype) -> set[str]:
    """Parts of the names of weights that stay in float32."""
    kept: set[str] = set()
    if dtype == torch.float16:
        kept.update(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype in (torch.float16, torch.bfloat16):
        kept.update(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return kept


def _cast_inputs_where_dtypes_meet(model: nn.Module, words: Mapping[str, str]) -> None:
    """Has each component take inputs of any dtype. One inside of another also returns what its surroundings compute in;
    what the model itself calls goes on to the next component, which casts for itself."""
    modules = dict(model.named_modules())
    for name in _components(model, words):
        module = modules[name]
        module.register_forward_pre_hook(_inputs_in_own_dtype, with_kwargs=True)
        outer = name.rpartition(".")[0]
        while "." in outer and outer not in words:
            outer = outer.rpartition(".")[0]
        surroundings = _dtype_outside(modules[outer], module) if outer else None
        if surroundings is not None:
            module.register_forward_hook(_OutputsIn(surroundings))


def _components(model: nn.Module, words: Mapping[str, str]) -> list[str]:
    """Modules with weights that the policy names, or names a weight of, and the model's own modules."""
    modules = dict(model.named_modules())
    names = [name if name in modules else name.rpartition(".")[0] for name in words]
    for name, child in model.named_children():
        inside = [f"{name}.{inner}" for inner, module in child.named_children() if _has_weights(module)]
        # Stock LLaVA's components are one level deeper, and what holds them computes nothing.
        if not inside or not all(inner in words for inner in inside):
            names.append(name)
    return [name for name in dict.fromkeys(names) if name and _has_weights(modules[name])]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _inputs_in_own_dtype(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if dtype is None:
        return args, kwargs
    return tuple(_to(value, dtype) for value in args), {name: _to(value, dtype) for name, value in kwargs.items()}


class _OutputsIn:
    """Hook that gives a module's outputs another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        if isinstance(outputs, tuple):
            return tuple(_to(value, self.dtype) for value in outputs)
        if isinstance(outputs, dict):
            for name, value in outputs.items():
                outputs[name] = _to(value, self.dtype)
            return outputs
        return _to(outputs, self.dtype)


def _to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    if type(value) in (tuple, list):
        return type(value)(_to(item, dtype) for item in value)
    return value


def _dtype_outside(outer: nn.Module, inner: nn.Module) -> torch.dtype | None:
    inside = {id(parameter) for parameter in inner.parameters()}
    return next((p.dtype for p in outer.parameters() if p.is_floating_point() and id(p) not in inside), None)


__all__ = ["cast_frozen"]
