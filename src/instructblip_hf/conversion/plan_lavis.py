"""The plan of a LAVIS file, from the tensors of a folder in our layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .kinds import Kind
from .lavis_keys import FUSED_BIAS, KEY_BIAS, QUERY_BIAS, VALUE_BIAS, Rule, rules_of, to_lavis, translate
from .plan import AS_IT_IS, ModelSpec, Plan, PlannedTensor, no_place, shown
from .stored_tensors import StoredTensor


def plan_lavis(
    stored: Mapping[str, StoredTensor],
    spec: ModelSpec,
    kind: Kind,
    language_prefix: str | None,
    trimmed: bool,
    vocabulary_rows: int | None,
    drop_key_bias: bool,
) -> Plan:
    """Plan of a LAVIS file.

    Args:
        stored (`Mapping[str, StoredTensor]`): Tensors of a folder in our layout.
        spec ([`ModelSpec`]): What its model has.
        kind ([`Kind`]): The model.
        language_prefix (`str`, *optional*): What LAVIS calls its language model.
        trimmed (`bool`): Whether vision tower and language model stay out, as in LAVIS's files of frozen ones.
        vocabulary_rows (`int`, *optional*): How many rows of the language model's vocabulary LAVIS has.
        drop_key_bias (`bool`): Whether key biases of the vision tower that are not zero are kept beside LAVIS's weights.
    """
    rules = rules_of(kind, language_prefix)
    plan = Plan()
    for name, tensor in stored.items():
        if name not in spec.shapes:
            if re.fullmatch(r".*(\.position_ids|\.rotary_emb\.inv_freq)", name):
                plan.left_out.append((tensor, "computed, not stored"))
            else:
                plan.problems.append(no_place(tensor, name))
        elif tensor.shape != spec.shapes[name]:
            plan.problems.append(
                f"{name} of {tensor.file} is of shape {shown(tensor.shape)}; by the configuration it is "
                f"{shown(spec.shapes[name])}"
            )
        else:
            rows = vocabulary_rows if name in spec.vocabulary else None
            _add_lavis(plan, tensor, rules, trimmed, rows, drop_key_bias)
    for name, other in spec.tied.items():
        lavis = to_lavis(name, rules)
        written = next((tensor for tensor in plan.tensors if tensor.sources[0].name == other), None)
        if name not in stored and lavis is not None and written is not None:
            how = f"the same weights as {written.name}"
            plan.tensors.append(PlannedTensor(lavis, written.shape, written.dtype, written.sources, how, written.make))
    absent = [name for name in spec.shapes if name not in stored and spec.tied.get(name) not in stored]
    plan.problems += [f"the folder lacks {name}, of shape {shown(spec.shapes[name])}" for name in absent]
    return plan


def _add_lavis(
    plan: Plan,
    tensor: StoredTensor,
    rules: Sequence[Rule],
    trimmed: bool,
    vocabulary_rows: int | None,
    drop_key_bias: bool,
) -> None:
    name = tensor.name
    is_frozen = name.startswith("language_model.") or (
        name.startswith("vision_model.") and not name.startswith("vision_model.post_layernorm.")
    )
    if trimmed and is_frozen:
        part = "language model" if name.startswith("language_model.") else "vision tower"
        plan.left_out.append((tensor, f"trimmed: LAVIS takes a frozen {part} from its own files"))
    elif translate(name, FUSED_BIAS, QUERY_BIAS) is not None:
        _split_bias(plan, tensor, drop_key_bias)
    elif (lavis := to_lavis(name, rules)) is None:
        plan.problems.append(f"{name} of {tensor.file}, of shape {shown(tensor.shape)}, has no name in LAVIS's files")
    elif vocabulary_rows is not None and vocabulary_rows < tensor.shape[0]:
        more = tensor.shape[0] - vocabulary_rows
        how = f"the first {vocabulary_rows} rows; {more} more are kept beside LAVIS's"
        plan.tensors.append(_part(lavis, tensor, 0, vocabulary_rows, how))
        plan.kept[lavis] = _part(lavis, tensor, vocabulary_rows, more)
    else:
        plan.tensors.append(PlannedTensor(lavis, tensor.shape, tensor.dtype, (tensor,)))


def _split_bias(plan: Plan, tensor: StoredTensor, drop_key_bias: bool) -> None:
    """Query and value bias apart; LAVIS's tower has no key bias, which adds the same to all scores of a query."""
    third = tensor.shape[0] // 3
    query, key, value = (translate(tensor.name, FUSED_BIAS, name) or "" for name in (QUERY_BIAS, KEY_BIAS, VALUE_BIAS))
    is_zero = not bool(tensor.load()[third : 2 * third].any())
    if not is_zero and not drop_key_bias:
        plan.problems.append(
            f"the key bias in {tensor.name} is not zero, and LAVIS's vision tower has none; attention is the same without "
            "it, and drop_key_bias leaves it out"
        )
    rest = "the key bias is zero" if is_zero else "the key bias is kept beside LAVIS's"
    plan.tensors.append(_part(query, tensor, 0, third, f"the query bias; {rest}"))
    plan.tensors.append(_part(value, tensor, 2 * third, third, f"the value bias; {rest}"))
    if not is_zero:
        plan.kept[key] = _part(key, tensor, third, third)


def _part(name: str, tensor: StoredTensor, start: int, length: int, how: str = AS_IT_IS) -> PlannedTensor:
    return PlannedTensor(name, (length, *tensor.shape[1:]), tensor.dtype, (tensor,), how, _Part(start, length))


@dataclass(frozen=True)
class _Part:
    start: int
    length: int

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        # A copy: a file of torch.save holds the whole storage of what is saved.
        return tensor[self.start : self.start + self.length].clone()


__all__ = ["plan_lavis"]
