"""Weights handed from one stage of training to the next: BLIP-2's first stage to its second, both to InstructBLIP.

The stages have the same modules under nearly the same names; what one of them lacks is new in it or left behind, and the
report says which is which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


# Of BLIP-2's layout, by the place that InstructBLIP has for it.
_RENAMED = (
    ("qformer.layernorm.", "qformer.embeddings.layernorm."),
    ("embeddings.word_embeddings.", "qformer.embeddings.word_embeddings."),
    ("embeddings.position_embeddings.", "qformer.embeddings.position_embeddings."),
)
# Tables of words, of which the next stage may have more rows.
_VOCABULARIES = ("word_embeddings.weight",)


@dataclass(frozen=True)
class HandOver:
    """What a model took of others.

    Args:
        taken (`dict[str, tuple[str, str]]`): For each tensor of the model that was filled, the class it came from and its
            name there.
        new (`tuple[str, ...]`): Tensors of the model that no source has; they are as they were.
        left (`tuple[str, ...]`): Tensors of the sources that the model has no place for.
    """

    taken: dict[str, tuple[str, str]]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        by_source = Counter((source, _component(name)) for name, (source, _) in self.taken.items())
        lines += [
            f"taken from {source}: {component} ({count} tensors)" for (source, component), count in by_source.items()
        ]
        for what, names in (("new", self.new), ("left behind", self.left)):
            lines += [f"{what}: {part} ({count} tensors)" for part, count in Counter(map(_component, names)).items()]
        return "\n".join(lines)


@torch.no_grad()
def hand_over(target: nn.Module, *sources: nn.Module, **parts: nn.Module) -> HandOver:
    """Copies weights of the sources into a model, by name; an earlier source comes before a later one.

    Args:
        target (`nn.Module`): A model of this package; changed in place.
        sources (`nn.Module`): Models of this package, of the stages before.
        parts (`nn.Module`): Modules that are in the model already, by the name they have there, for the report.

    Returns:
        [`HandOver`]: What came from where. Modules that the model shares with a source count as taken.

    Raises:
        ValueError: If a tensor has another shape than its namesake; nothing is copied then. A vocabulary may be larger
            in the model.
    """
    own = target.state_dict(keep_vars=True)
    taken: dict[str, tuple[str, str]] = {}
    left: list[str] = []
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    for source in sources:
        for name, value in source.state_dict().items():
            place = next((new for new in _places(name) if new in own), None)
            if place is None:
                left.append(name)
            elif place not in taken:
                parameter = own[place]
                rows = parameter[: len(value)] if place.endswith(_VOCABULARIES) else parameter
                if rows.shape != value.shape:
                    raise ValueError(
                        f"{place} of {type(target).__name__} has shape {tuple(parameter.shape)}, {name} of "
                        f"{type(source).__name__} {tuple(value.shape)}"
                    )
                taken[place] = (type(source).__name__, name)
                if rows.data_ptr() != value.data_ptr():
                    copies.append((rows, value))
    for rows, value in copies:
        rows.copy_(value)
    for part, module in parts.items():
        taken.update({f"{part}.{name}": (type(module).__name__, name) for name in module.state_dict()})
    return HandOver(taken, tuple(name for name in own if name not in taken), tuple(left))


def _places(name: str) -> Iterable[str]:
    yield name
    for old, new in _RENAMED:
        if name.startswith(old):
            yield new + name.removeprefix(old)


def _component(name: str) -> str:
    parts = name.split(".")
    if (
        parts[-2:] in (["word_embeddings", "weight"], ["position_embeddings", "weight"])
        and "language_model" not in parts
    ):
        return "embeddings of text"
    if parts[0] == "qformer" and ("intermediate" in parts or ("output" in parts and "attention" not in name)):
        return "qformer, feed-forward layers of text"
    return parts[0]


__all__ = ["HandOver", "hand_over"]
