"""What becomes of every tensor: where it comes from, what it is called in the target, how it is made.

A plan is made of names, shapes and types alone, and nothing is written before all of them fit: a tensor without a place,
a place without a tensor and a shape that differs are told by name, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from .kinds import Kind
from .stored_tensors import StoredTensor


AS_IT_IS = "as it is"
Named = TypeVar("Named")


def identity(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor."""
    return tensor


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
    make: Callable[..., torch.Tensor] = identity

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


def by_first_names(tensors: Mapping[str, Named], spec: ModelSpec) -> dict[str, Named]:
    """The same, with weights that have several names under the first one, where only another one is there."""
    named = dict(tensors)
    # The head last, whatever order a version of transformers has: what is called shared may have weights of its own there.
    for name in sorted(spec.tied, key=spec.vocabulary.__contains__):
        first = spec.tied[name]
        if name in named and first not in named:
            named[first] = named.pop(name)
    return named


def no_place(source: StoredTensor, name: str) -> str:
    """What is wrong with a tensor whose name the model does not have."""
    return f"{source.name} of {source.file}, of shape {shown(source.shape)}, has no place: the model has no {name}"


def shown(shape: Sequence[int]) -> str:
    """A shape as it is written in messages."""
    return " x ".join(map(str, shape)) if shape else "a single number"


__all__ = [
    "AS_IT_IS",
    "ModelSpec",
    "Plan",
    "PlannedTensor",
    "by_first_names",
    "identity",
    "model_spec",
    "no_place",
    "shown",
]
