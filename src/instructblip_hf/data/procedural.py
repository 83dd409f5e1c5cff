"""A fixed number of examples of a procedural world, as a map-style dataset."""

from __future__ import annotations

from typing import Any

from .sources.shapes_world import ShapesWorld


class ShapesWorldDataset:
    """The first examples of a `ShapesWorld`, each drawn when it is asked for.

    Args:
        world (`ShapesWorld`): Where the examples come from.
        examples (`int`): How many.

    Raises:
        ValueError: If `examples` is below 1.
    """

    def __init__(self, world: ShapesWorld, examples: int) -> None:
        if examples < 1:
            raise ValueError(f"examples is {examples}; it must be at least 1")
        self.world = world
        self.examples = examples

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.examples <= index < self.examples:
            raise IndexError(f"index {index} is out of range for {self.examples} examples")
        return self.world.example(index % self.examples)


__all__ = ["ShapesWorldDataset"]
