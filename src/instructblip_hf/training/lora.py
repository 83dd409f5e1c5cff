"""LoRA layers inside a model of this package: whether there are any, and the weights with them merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."
"""What FSDP's activation checkpointing puts into the names of modules, but not into those of weights."""


def has_lora(model: nn.Module) -> bool:
    """Whether any layer of the model carries a LoRA update (made by `apply_freezing`)."""
    return any(hasattr(module, "lora_A") and hasattr(module, "get_delta_weight") for module in model.modules())


def merged_state_dict(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The model's weights under their original names, with every LoRA update added. The model is not changed.

    Args:
        model (`nn.Module`): A model with LoRA layers injected by `apply_freezing`.
        state_dict (`Mapping[str, torch.Tensor]`, *optional*):
            Its weights where they are spread over processes and had to be gathered; empty where they went to another.

    Returns:
        `dict[str, torch.Tensor]`: What `model.state_dict()` would hold had the merged weights been trained directly.

    Raises:
        ValueError: If an update sits on quantised weights, which cannot be merged without losing precision.
    """
    merged = {}
    adapters: dict[str, Any] = {
        name.replace(CHECKPOINT_WRAPPER, ""): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    state = model.state_dict() if state_dict is None else state_dict
    for name, tensor in state.items():
        owner = next((a for a in _prefixes(name) if a in adapters), None)
        if owner is None:
            merged[name] = tensor
            continue
        rest = name[len(owner) + 1 :]
        if not rest.startswith("base_layer."):
            continue
        if rest == "base_layer.weight":
            if not tensor.is_floating_point():
                raise ValueError(f"{owner} has quantised weights ({tensor.dtype}); load it unquantised to merge LoRA")
            layer = adapters[owner]
            for adapter in layer.active_adapters:
                # In float32, as PEFT computes it on a CPU.
                down, up = (state[f"{owner}.{part}.{adapter}.weight"].float() for part in ("lora_A", "lora_B"))
                tensor = tensor + (up @ down * layer.scaling[adapter]).to(tensor.dtype)
        merged[f"{owner}.{rest.removeprefix('base_layer.')}"] = tensor
    return merged


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
