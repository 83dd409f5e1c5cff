"""What becomes of every tensor: where it comes from, what it is called in the target, how it is made.

A plan is made of names, shapes and types alone, and nothing is written before all of them fit: a tensor without a place,
a place without a tensor and a shape that differs are told by name, all at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .kinds import Kind
from .lavis_keys import (
    FUSED_BIAS,
    KEY_BIAS,
    LANGUAGE_MODEL_BUFFERS,
    QUERY_BIAS,
    VALUE_BIAS,
    Rule,
    rules_of,
    to_lavis,
    to_ours,
    translate,
    why_left_out,
)
from .stored_tensors import StoredTensor


AS_IT_IS = "as it is"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the target.

    Args:
        name (`str`): Its name there.
        shape (`tuple[int, ...]`): Its shape there.
        dtype (`torch.dtype`): Its type there.
        sources (`tuple[StoredTensor, ...]`): What it is made of.
        how (`str`): How it is made, in words.
        make (`Callable`): Makes it of the sources' tensors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[StoredTensor, ...]
    how: str = AS_IT_IS
    make: Callable[..., torch.Tensor] = lambda tensor: tensor

    def load(self) -> torch.Tensor:
        """The tensor."""
        return self.make(*(source.load() for source in self.sources)).to(self.dtype)

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass
class Plan:
    """All tensors of a target.

    Args:
        tensors (`list[PlannedTensor]`): What is written.
        left_out (`list`): Stored tensors that are not, each with the reason.
        problems (`list[str]`): Why it cannot be done, if it cannot.
        kept (`dict[str, PlannedTensor]`): What a LAVIS file has no place for and keeps beside its weights: rows of the
            vocabulary, by LAVIS's names, and key biases.
    """

    tensors: list[PlannedTensor] = field(default_factory=list)
    left_out: list[tuple[StoredTensor, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: dict[str, PlannedTensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """Names and shapes that a model of our layout has.

    Args:
        shapes (`dict[str, tuple[int, ...]]`): Of every parameter and stored buffer.
        tied (`dict[str, str]`): Names that are other names of a parameter, and that one's name.
        vocabulary (`tuple[str, ...]`): Of the language model, the tensors with a row for each token.
    """

    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    vocabulary: tuple[str, ...]


def model_spec(kind: Kind, config: Any) -> ModelSpec:
    """Names and shapes of a model of ``kind``, from its class, without its weights."""
    with torch.device("meta"):
        model = kind.model()(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    vocabulary: list[str] = []
    if kind.language_model:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        names = {id(module): name for name, module in model.named_modules() if module is not None}
        ends_named = [f"{names[id(module)]}.weight" for module in ends if module is not None]
        bias = [name.replace(".weight", ".bias") for name in ends_named]
        vocabulary = [name for name in (*ends_named, *bias) if name in shapes]
    return ModelSpec(shapes, dict(model.all_tied_weights_keys), tuple(vocabulary))


# --- from LAVIS -------------------------------------------------------------------------------------------------------


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
    assigned = dict(assigned)
    for name, other in spec.tied.items():
        if name in assigned and other not in assigned:
            assigned[other] = assigned.pop(name)
    for name, sources in assigned.items():
        other = spec.tied.get(name, name)
        if name not in spec.shapes:
            plan.problems += [_no_place(sources[0], name)]
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


def _no_place(source: StoredTensor, name: str) -> str:
    return f"{source.name} of {source.file}, of shape {shown(source.shape)}, has no place: the model has no {name}"


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
    make: Callable[..., torch.Tensor] = _identity
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
            how, make = f"{new} more rows, each the mean of the others", _Grown(wanted[0])
        shape = wanted
    if shape != wanted:
        names = " and ".join(source.name for source in sources)
        return f"{names} of {first.file} is of shape {shown(shape)}; {name} is of shape {shown(wanted)}"
    if own != first.dtype:
        how = f"{how}, to {str(own).removeprefix('torch.')}"
    return PlannedTensor(name, wanted, own, sources, how, make)


# --- to LAVIS ---------------------------------------------------------------------------------------------------------


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
    stored = dict(stored)
    for name, other in spec.tied.items():
        if name in stored and other not in stored:
            stored[other] = replace(stored.pop(name), name=other)
    for name, tensor in stored.items():
        if name not in spec.shapes:
            if re.fullmatch(r".*(\.position_ids|\.rotary_emb\.inv_freq)", name):
                plan.left_out.append((tensor, "computed, not stored"))
            else:
                plan.problems.append(_no_place(tensor, name))
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


# --- how tensors are made ---------------------------------------------------------------------------------------------


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _fuse(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([query, torch.zeros_like(query), value])


@dataclass(frozen=True)
class _Fused:
    key: torch.Tensor

    def __call__(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([query, self.key.to(query.dtype), value])


@dataclass(frozen=True)
class _Part:
    start: int
    length: int

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        # A copy: a file of torch.save holds the whole storage of what is saved.
        return tensor[self.start : self.start + self.length].clone()


@dataclass(frozen=True)
class _Grown:
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


def shown(shape: Sequence[int]) -> str:
    """A shape as it is written in messages."""
    return " x ".join(map(str, shape)) if shape else "a single number"


__all__ = [
    "ModelSpec",
    "Plan",
    "PlannedTensor",
    "add_language_model",
    "assign_names",
    "model_spec",
    "plan_folder",
    "plan_lavis",
]
