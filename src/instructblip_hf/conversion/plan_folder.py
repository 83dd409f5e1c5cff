"""The plan of a folder in our layout, from LAVIS's tensors and the language model's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .kinds import Kind
from .lavis_keys import (
    FUSED_BIAS,
    LANGUAGE_MODEL_BUFFERS,
    QUERY_BIAS,
    VALUE_BIAS,
    rules_of,
    to_ours,
    translate,
    why_left_out,
)
from .plan import AS_IT_IS, ModelSpec, Plan, PlannedTensor, identity, no_place, shown
from .stored_tensors import StoredTensor


def assign_names(
    tensors: Mapping[str, StoredTensor], kind: Kind, language_prefix: str | None
) -> tuple[dict[str, tuple[StoredTensor, ...]], Plan]:
    """Our name for each of LAVIS's tensors; those without a name are in the plan, as left out or as problems.

    Args:
        tensors (`Mapping[str, StoredTensor]`): By LAVIS's names.
        kind ([`Kind`]): The model.
        language_prefix (`str`, *optional*): What LAVIS calls its language model.
    """
    rules = rules_of(kind, language_prefix)
    plan = Plan()
    assigned: dict[str, tuple[StoredTensor, ...]] = {}
    for name, tensor in tensors.items():
        if (fused := translate(name, QUERY_BIAS, FUSED_BIAS)) is not None:
            value = translate(name, QUERY_BIAS, VALUE_BIAS) or ""
            if value not in tensors:
                plan.problems.append(f"{name} has no {value} beside it")
            else:
                assigned[fused] = (tensor, tensors[value])
        elif (query := translate(name, VALUE_BIAS, QUERY_BIAS)) is not None:
            if query not in tensors:
                plan.problems.append(f"{name} has no {query} beside it")
        elif (reason := why_left_out(name, kind)) is not None:
            plan.left_out.append((tensor, reason))
        elif (ours := to_ours(name, rules)) is not None:
            assigned[ours] = (tensor,)
        else:
            plan.problems.append(
                f"{name} of {tensor.file}, of shape {shown(tensor.shape)}, has no place in {kind.name}"
            )
    return assigned, plan


def add_language_model(
    assigned: dict[str, tuple[StoredTensor, ...]], plan: Plan, folder: Mapping[str, StoredTensor], spec: ModelSpec
) -> None:
    """Fills in what the language model's folder has; its names may lack the prefix of its base model."""
    prefix = "language_model."
    own = {name.removeprefix(prefix) for name in spec.shapes if name.startswith(prefix)}
    heads = {name.partition(".")[0] for name in own}
    for name, tensor in folder.items():
        found = name if name in own else next((f"{head}.{name}" for head in heads if f"{head}.{name}" in own), None)
        reason = next((why for expression, why in LANGUAGE_MODEL_BUFFERS if re.fullmatch(expression, name)), None)
        if found is None and reason is None:
            plan.problems.append(f"{name} of {tensor.file} has no place in its language model")
        elif found is None:
            plan.left_out.append((tensor, str(reason)))
        elif prefix + found in assigned:
            plan.left_out.append((tensor, f"taken from {assigned[prefix + found][0].file}"))
        else:
            assigned[prefix + found] = (tensor,)


def plan_folder(
    assigned: Mapping[str, tuple[StoredTensor, ...]],
    plan: Plan,
    spec: ModelSpec,
    dtype: torch.dtype | None,
    kept: Mapping[str, torch.Tensor],
) -> Plan:
    """Completes the plan of a folder in our layout.

    Args:
        assigned (`Mapping`): What each tensor of the target is made of.
        plan ([`Plan`]): With what was found so far.
        spec ([`ModelSpec`]): What the model has.
        dtype (`torch.dtype`, *optional*): Type of all floating weights; by default each keeps its own.
        kept (`Mapping[str, torch.Tensor]`): What a file of ours kept beside LAVIS's weights, by our names.
    """
    for name, sources in assigned.items():
        other = spec.tied.get(name, name)
        if name not in spec.shapes:
            plan.problems += [no_place(sources[0], name)]
        elif other != name and _same(sources[0], assigned[other][0]):
            plan.left_out.append((sources[0], f"the same weights as {assigned[other][0].name}"))
        else:
            # Weights that a configuration calls shared and that differ are not shared, FlanT5's head for one.
            planned = _planned(name, sources, spec, dtype, kept.get(name))
            plan.tensors += [planned] if isinstance(planned, PlannedTensor) else []
            plan.problems += [planned] if isinstance(planned, str) else []
    absent = [name for name in spec.shapes if name not in assigned and spec.tied.get(name) not in assigned]
    language = [name for name in absent if name.startswith("language_model.")]
    if language and not any(name.startswith("language_model.") for name in assigned):
        plan.problems.append(
            f"the language model is missing, {len(language)} tensors: name its folder (llm); LAVIS's files do not hold "
            "one that was frozen"
        )
        absent = [name for name in absent if name not in language]
    plan.problems += [f"nothing in the files makes {name} of shape {shown(spec.shapes[name])}" for name in absent]
    return plan


def _same(first: StoredTensor, second: StoredTensor) -> bool:
    return (first.shape, first.dtype) == (second.shape, second.dtype) and torch.equal(first.load(), second.load())


def _planned(
    name: str,
    sources: tuple[StoredTensor, ...],
    spec: ModelSpec,
    dtype: torch.dtype | None,
    kept: torch.Tensor | None,
) -> PlannedTensor | str:
    """A tensor of the folder, or what is wrong with it."""
    first, wanted = sources[0], spec.shapes[name]
    own = dtype if dtype is not None and first.dtype.is_floating_point else first.dtype
    how: str = AS_IT_IS
    make: Callable[..., torch.Tensor] = identity
    shape = first.shape
    if len(sources) == 2:
        how, make, shape = "query bias, zeros for the key bias, value bias", _fuse, (3 * first.shape[0],)
        if kept is not None:
            how, make = "query bias, the key bias that the file keeps beside LAVIS's, value bias", _Fused(kept)
    elif name in spec.vocabulary and shape[1:] == wanted[1:] and shape[0] < wanted[0]:
        new = wanted[0] - shape[0]
        if kept is not None and kept.shape[0] == new:
            how, make = f"{new} more rows, which the file keeps beside LAVIS's", _Appended(kept)
        else:
            how, make = f"{new} more rows, each the mean of the others", Grown(wanted[0])
        shape = wanted
    if shape != wanted:
        names = " and ".join(source.name for source in sources)
        return f"{names} of {first.file} is of shape {shown(shape)}; {name} is of shape {shown(wanted)}"
    if own != first.dtype:
        how = f"{how}, to {str(own).removeprefix('torch.')}"
    return PlannedTensor(name, wanted, own, sources, how, make)


def _fuse(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([query, torch.zeros_like(query), value])


@dataclass(frozen=True)
class _Fused:
    key: torch.Tensor

    def __call__(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([query, self.key.to(query.dtype), value])


@dataclass(frozen=True)
class Grown:
    """A table of words with as many rows; new ones are the mean of the others."""

    rows: int

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        # The mean is never the largest logit, and a row of zeros may be.
        mean = tensor.mean(0, dtype=torch.float32, keepdim=True).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(self.rows - tensor.shape[0], *tensor.shape[1:])])


@dataclass(frozen=True)
class _Appended:
    rows: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, self.rows.to(tensor.dtype)])


__all__ = ["Grown", "add_language_model", "assign_names", "plan_folder"]
