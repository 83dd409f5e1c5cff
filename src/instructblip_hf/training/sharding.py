"""What weights that are spread over processes need: FSDP2 through accelerate, and ZeRO-3 through DeepSpeed.

Both take a whole model and deal its weights out when training starts. Until then everything here works as on one
process: freezing, LoRA, casting, features of the vision tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from .lora import CHECKPOINT_WRAPPER


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Models opened within have all of their weights on each process, under ZeRO-3 too.

    Once there are arguments of a training with ZeRO-3, transformers' `from_pretrained` leaves each process a part.

    Args:
        args (`TrainingArguments`): Of the training.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    configuration = getattr(args, "hf_deepspeed_config", None) or args.deepspeed_plugin.dschf
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(configuration)


def check_whole(model: nn.Module) -> None:
    """Refuses a model that ZeRO-3 has dealt out already.

    Raises:
        ValueError: If it has.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "model has its weights spread over processes by ZeRO-3 already: open it before the TrainingArguments are "
            "made, or within `with whole_weights(args):` of instructblip_hf.training.sharding"
        )


def gather_in_own_dtypes(plugin: Any) -> None:
    """Has FSDP2 hand out weights in the dtypes they are kept in; see `autocast_of` for what is computed in.

    accelerate would otherwise cast under ``bf16: true`` weights and gradients, and whatever a layer or the model
    returns, the loss as well, to bfloat16.

    Args:
        plugin (`FullyShardedDataParallelPlugin`): Of accelerate's state, changed in place.
    """
    if plugin.fsdp_version == 2:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin.mixed_precision_policy = MixedPrecisionPolicy()


def autocast_of(accelerator: Any) -> AbstractContextManager[Any]:
    """Autocast as on one process under FSDP2, where accelerate itself leaves it out; nothing otherwise.

    Args:
        accelerator (`Accelerator`): Of the training.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(accelerator.mixed_precision))
    if dtype is None or not accelerator.is_fsdp2:
        return nullcontext()
    return torch.autocast(accelerator.device.type, dtype)


def share_tied_embeddings(model: nn.Module) -> None:
    """Puts one module in the place of embeddings that have one weight, as T5's encoder and decoder and their model do.

    accelerate shards the model's input embedding by itself and everything else together, and FSDP2 refuses a weight
    that is in two groups. Names, weights and results stay as they are.

    Args:
        model (`nn.Module`): Changed in place.
    """
    first: dict[torch.Tensor, nn.Embedding] = {}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Embedding:
                kept = first.setdefault(child.weight, child)
                if kept is not child and _options(kept) == _options(child):
                    setattr(parent, name, kept)


def share_tied_copies(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """Has names of one weight share one tensor again, where gathering made a copy for each; it would be saved as often.

    Args:
        model (`nn.Module`): Whose parameters say what is tied.
        state_dict (`dict[str, torch.Tensor]`): Its gathered weights, changed in place.
    """
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        name = name.replace(CHECKPOINT_WRAPPER, "")
        if name in state_dict:
            state_dict[name] = state_dict[first.setdefault(parameter, name)]


def _options(embedding: nn.Embedding) -> tuple[Any, ...]:
    """What an embedding computes with besides its weight."""
    return (embedding.padding_idx, embedding.max_norm, embedding.norm_type, embedding.scale_grad_by_freq)


__all__ = [
    "autocast_of",
    "check_whole",
    "gather_in_own_dtypes",
    "share_tied_copies",
    "share_tied_embeddings",
    "whole_weights",
]
