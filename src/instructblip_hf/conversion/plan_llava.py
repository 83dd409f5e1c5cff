"""The plan of a LLaVA folder in our layout, from the tensors of LLaVA's own code and of the parts it leaves out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.llava import LlavaConfig, LlavaForConditionalGeneration
from .llava_original import OriginalLlava, read_adapter, read_projector_file, read_trainables
from .plan import AS_IT_IS, Plan, PlannedTensor, no_place, shown
from .plan_folder import Grown
from .stored_tensors import StoredTensor, read_weight_folder


_COMPUTED = re.compile(r"(\.position_ids|\.rotary_emb\.inv_freq)$")
# What else a CLIP checkpoint holds.
_OTHER_PARTS_OF_CLIP = re.compile(r"^(text_model\.|text_projection|visual_projection|logit_scale)")
_CONNECTOR = {
    "weight": "linear_1.weight",
    "bias": "linear_1.bias",
    "0.weight": "linear_1.weight",
    "0.bias": "linear_1.bias",
    "2.weight": "linear_2.weight",
    "2.bias": "linear_2.bias",
}
_IDENTITY = "multi_modal_projector.linear_2."


@dataclass(frozen=True)
class LlavaTensors:
    """Tensors by our names, as the model has them in memory.

    Args:
        found (`dict[str, StoredTensor]`): What is taken as it is.
        updates (`dict[str, tuple[StoredTensor, StoredTensor]]`): LoRA's matrices, by the name of the weight.
        scaling (`float`): What their product is multiplied with.
        left_out (`list`): Stored tensors that are not taken, each with the reason.
    """

    found: dict[str, StoredTensor]
    updates: dict[str, tuple[StoredTensor, StoredTensor]]
    scaling: float
    left_out: list[tuple[StoredTensor, str]]


def read_llava_tensors(original: OriginalLlava, llm: Path | None, tower: Path | None) -> LlavaTensors:
    """All tensors that a model is made of, from LLaVA's folder, the language model's and the vision tower's.

    Raises:
        ConversionError: If a file cannot be read.
    """
    result = LlavaTensors({}, {}, 1.0, [])
    if original.kind == "model":
        _add(result, read_weight_folder(original.folder))
    elif original.kind == "lora":
        # What trained takes the place of what the language model's folder has.
        _add(result, read_trainables(original.folder))
        updates, scaling = read_adapter(original.folder)
        named = {_name(name) or name: pair for name, pair in updates.items()}
        result = LlavaTensors(result.found, named, scaling, result.left_out)
    else:
        _add(result, read_projector_file(original.folder))
    if llm is not None:
        _add(result, read_weight_folder(llm))
    if tower is not None:
        in_clip = {}
        for name, tensor in read_weight_folder(tower).items():
            if _OTHER_PARTS_OF_CLIP.match(name):
                result.left_out.append((tensor, "not of the vision tower"))
            else:
                in_clip[f"model.vision_tower.vision_tower.{name}"] = tensor
        _add(result, in_clip)
    return result


def _add(result: LlavaTensors, tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        if _COMPUTED.search(name):
            result.left_out.append((tensor, "computed"))
            continue
        own = _name(name)
        if own is None:
            own = f"? {name}"
        if own in result.found:
            result.left_out.append((tensor, f"{result.found[own].file} has it too, and comes first"))
        else:
            result.found[own] = tensor


def _name(name: str) -> str | None:
    """Our name in memory; `None` for a tensor that no LLaVA has."""
    if name.startswith("model.mm_projector."):
        own = _CONNECTOR.get(name.removeprefix("model.mm_projector."))
        return None if own is None else f"multi_modal_projector.{own}"
    if name.startswith("model.vision_tower.vision_tower."):
        rest = name.removeprefix("model.vision_tower.vision_tower.").removeprefix("vision_model.")
        return f"vision_tower.{rest}"
    if name == "model.image_newline":
        return None
    return f"language_model.{name}" if name.startswith(("model.", "lm_head.")) else None


def plan_llava(tensors: LlavaTensors, config: LlavaConfig, dtype: torch.dtype | None) -> Plan:
    """The plan of a folder, with all problems.

    Args:
        tensors ([`LlavaTensors`]): What there is.
        config ([`LlavaConfig`]): Of the folder; its vocabulary may be larger than the files'.
        dtype (`torch.dtype`, *optional*): Of all weights; by default each tensor keeps its own.
    """
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = dict(model.all_tied_weights_keys)
    plan = Plan(left_out=list(tensors.left_out))
    for name, source in tensors.found.items():
        if name not in shapes or (config.projector_type == "linear" and name.startswith(_IDENTITY)):
            plan.problems.append(no_place(source, name.removeprefix("? ")))
            continue
        planned = _planned(name, source, tensors, shapes[name], dtype)
        plan.tensors += [planned] if isinstance(planned, PlannedTensor) else []
        plan.problems += [planned] if isinstance(planned, str) else []
    plan.problems += [
        f"{pair[0].name} of {pair[0].file} changes {name}, which is nowhere"
        for name, pair in tensors.updates.items()
        if name not in tensors.found
    ]
    if config.projector_type == "linear":
        plan.tensors += _identity(shapes, tensors, dtype)
    made = {tensor.name for tensor in plan.tensors}
    missing = [name for name in shapes if name not in made and tied.get(name) not in made]
    for part, option in (("language_model.", "llm"), ("vision_tower.", "vision_tower")):
        absent = [name for name in missing if name.startswith(part)]
        if absent and not any(name.startswith(part) for name in made):
            plan.problems.append(f"the {part[:-1].replace('_', ' ')} is missing: give its folder ({option})")
            missing = [name for name in missing if name not in absent]
    plan.problems += [f"nothing in the files makes {name} of shape {shown(shapes[name])}" for name in missing]
    plan.tensors = [_as_published(tensor, config) for tensor in plan.tensors]
    return plan


def _planned(
    name: str, source: StoredTensor, tensors: LlavaTensors, wanted: tuple[int, ...], dtype: torch.dtype | None
) -> PlannedTensor | str:
    own = dtype if dtype is not None and source.dtype.is_floating_point else source.dtype
    how: str = AS_IT_IS
    make: Any = None
    sources: tuple[StoredTensor, ...] = (source,)
    shape = source.shape
    vocabulary = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    if name in tensors.updates:
        sources = (source, *tensors.updates[name])
        how, make = "with its LoRA update", _Merged(tensors.scaling)
    elif name in vocabulary and shape[1:] == wanted[1:] and shape[0] < wanted[0]:
        how, make = f"{wanted[0] - shape[0]} more rows, each the mean of the others", Grown(wanted[0])
        shape = wanted
    if shape != wanted:
        return f"{source.name} of {source.file} is of shape {shown(shape)}; {name} is of shape {shown(wanted)}"
    if own != source.dtype:
        how = f"{how}, to {str(own).removeprefix('torch.')}"
    options = {} if make is None else {"make": make}
    return PlannedTensor(name, wanted, own, sources, how, **options)


def _identity(
    shapes: Mapping[str, tuple[int, ...]], tensors: LlavaTensors, dtype: torch.dtype | None
) -> list[PlannedTensor]:
    """The second layer that stock transformers wants behind a single one."""
    first = tensors.found.get("multi_modal_projector.linear_1.weight")
    own = dtype or (first.dtype if first is not None else torch.float32)
    values = {"weight": torch.eye, "bias": torch.zeros}
    planned = []
    for name, value in values.items():
        size = shapes[_IDENTITY + name][0]

        def make(value: Any = value, size: int = size) -> torch.Tensor:
            made: torch.Tensor = value(size)
            return made

        planned.append(
            PlannedTensor(
                _IDENTITY + name, shapes[_IDENTITY + name], own, (), "an identity, for stock transformers", make
            )
        )
    return planned


def _as_published(tensor: PlannedTensor, config: LlavaConfig) -> PlannedTensor:
    """With the name that it has in published folders, where CLIP's tower is wrapped."""
    name = tensor.name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if not tensor.name.startswith("vision_tower."):
        return tensor
    return PlannedTensor(name, tensor.shape, tensor.dtype, tensor.sources, tensor.how, tensor.make)


@dataclass(frozen=True)
class _Merged:
    """A weight with its LoRA update, computed in float32 and rounded once."""

    scaling: float

    def __call__(self, weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return (weight.float() + self.scaling * (up.float() @ down.float())).to(weight.dtype)


__all__ = ["LlavaTensors", "plan_llava", "read_llava_tensors"]
