"""Batches without images on several processes: the image side runs all the same, on a blank image that counts nothing.

Processes that train together have to agree on what they compute. Where a batch of one process has images and that of
another has none, DDP waits for gradients that do not come, and FSDP and ZeRO-3 gather the weights of a layer on one
process while the other is layers ahead: the run hangs (LLaVA's issue 699). So a batch without images sends a blank
image through the same modules. Its features are cut to none before they meet the prompt, which keeps them in the graph
with gradients of exactly zero, and leaves logits and loss as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def needs_blank_image(model: Any) -> bool:
    """Whether a batch without images has to go through the image side.

    In training, if anything on the image side trains, on any number of processes: an optimiser step is then the same
    whether its rows are spread over processes or over accumulated batches. Otherwise only where the weights are
    sharded, in evaluation and generation too, because gathering them takes all processes.

    Args:
        model (`VisionLanguageModel`): Its ``image_side`` and ``query_tokens`` are looked at.
    """
    if model.training and torch.is_grad_enabled() and any(p.requires_grad for p in _image_side_parameters(model)):
        return True
    return is_sharded(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the weights each: FSDP of either version, or ZeRO-3."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def blank_image(model: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Arguments of ``get_image_features`` for one image of zeros; it is run through what trains or is sharded.

    A vision tower that is frozen as a whole, and whole on each process, is left out: zeros stand for its features.

    Args:
        model (`VisionLanguageModel`): Its ``image_tower`` and ``image_embeds_size`` are looked at.
        device (`torch.device`): Of the batch.
    """
    inputs: dict[str, torch.Tensor] = {}
    tower = model.image_tower
    if is_sharded(model) or any(parameter.requires_grad for parameter in tower.parameters()):
        size = tower.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        inputs["pixel_values"] = torch.zeros(1, 3, height, width, device=device)
    else:
        inputs["image_embeds"] = torch.zeros(1, 1, model.image_embeds_size, device=device)
    floating = (parameter.dtype for parameter in tower.parameters() if parameter.is_floating_point())
    return {name: value.to(next(floating)) for name, value in inputs.items()}


def _image_side_parameters(model: Any) -> Any:
    if "query_tokens" in model._parameters:
        yield model.query_tokens
    for name in model.image_side:
        yield from getattr(model, name).parameters()


__all__ = ["blank_image", "is_sharded", "needs_blank_image"]
