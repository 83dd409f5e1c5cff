"""Vision tower and connector compiled, where transformers compiles the steps of generation: with a cache of fixed size.

transformers' ``generate`` compiles the language model's steps on an accelerator, by default with CUDA graphs. In a short
answer about an image the launches of the vision tower and the Q-Former take as long; here they are compiled likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import CompileConfig

from .language_models.padded_prompts import settled_options


INSTRUCTION_MULTIPLE = 32
"""Lengths of instructions that a compiled Q-Former reads are multiples of it."""

_COMPILES_BY_ITSELF = ("cuda", "xpu")


def compile_config_for(model: Any, options: Mapping[str, Any]) -> CompileConfig | None:
    """How vision tower and connector are to be compiled; `None` for not at all.

    It is transformers' rule for the steps of ``generate``, as far as it concerns all parts: a cache of fixed size, an
    accelerator, no ``disable_compile``, no weights that wait in the memory of the CPU or on disk.

    Args:
        model (`VisionLanguageModel`): Model; its ``generation_config`` counts for what ``options`` leave out.
        options (`Mapping[str, Any]`): Options of ``generate``.
    """
    option = settled_options(options, model.generation_config)
    if option("cache_implementation") != "static" or option("disable_compile") or torch.is_grad_enabled():
        return None
    config: CompileConfig = option("compile_config") or CompileConfig()
    if model.device.type not in _COMPILES_BY_ITSELF and not config._compile_all_devices:
        return None
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return None if places & {"cpu", "disk"} and len(places) > 1 else config


def pad_instructions(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Instructions of few lengths, for a Q-Former that is compiled.

    Args:
        input_ids (`torch.LongTensor`): Shape (rows, text).
        attention_mask (`torch.Tensor`, *optional*): Same shape; by default all ones.
        max_length (`int`): Positions of the Q-Former, up to which is padded.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    length = input_ids.shape[1]
    sides = (0, max(0, min(-length % INSTRUCTION_MULTIPLE, max_length - length)))
    return nn.functional.pad(input_ids, sides), nn.functional.pad(attention_mask, sides)


class CompiledCalls:
    """Parts of a model as compiled functions, kept from call to call. Copies and pickles of a model begin without."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[nn.Module, CompileConfig, Callable[..., Any]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledCalls, ()

    def of(self, part: nn.Module, config: CompileConfig | None) -> Callable[..., Any]:
        """The part itself, or compiled.

        Args:
            part (`nn.Module`): Vision tower or connector.
            config (`CompileConfig`, *optional*): How; `None` for not at all.

        Returns:
            `Callable`: To be called as the part is. What is compiled is given tensors on the part's device, as CUDA graphs
            read nothing of the CPU's memory, and returns memory of its own: a graph's is written anew by the next run.
        """
        if config is None:
            return part
        kept = self._kept.get(id(part))
        if kept is None or kept[1] != config:
            kept = part, config, torch.compile(part.__call__, **config.to_dict())
            self._kept[id(part)] = kept
        compiled, device = kept[2], next(part.parameters()).device

        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))
            return pytree.tree_map_only(torch.Tensor, torch.clone, compiled(*args, **kwargs))

        return call


__all__ = ["INSTRUCTION_MULTIPLE", "CompiledCalls", "compile_config_for", "pad_instructions"]
