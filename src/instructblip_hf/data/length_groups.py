"""Draws of a mixture in an order in which micro-batches hold rows of similar length, so that less of them is padding.

The rows of W optimiser steps are sorted by the length of their text and dealt out to the micro-batches of these steps.
With W = 1 each step has the rows that it would have anyway, and the same loss up to the order of summation. With more,
micro-batches are more alike, while a step still mixes all lengths.

Grouped by modality too, rows of text alone are sorted before those with images, so that of each window at most one
micro-batch, over all processes, holds both, and the others encode images for all their rows or for none. LLaVA's trainer
does this with whole steps (``group_by_modality_length`` of ``llava/train/llava_trainer.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .image_groups import peek
from .mixture import MixtureDataset
from .permutations import keyed_order


IMAGE_CHARACTERS = 128
"""What an image counts: 32 placeholders of about 4 characters."""


def text_length(content: Mapping[str, Any]) -> int:
    """A row's length in characters, images included: an estimate that needs no tokenizer and opens no image."""
    length = sum(map(_characters, (content.get(name) for name in ("prompt", "completion", "messages"))))
    images = content.get("images")
    return length + IMAGE_CHARACTERS * (len(images) if images is not None else int(content.get("image") is not None))


def has_images(content: Mapping[str, Any]) -> bool:
    """Whether a row has an image or a video."""
    return bool(content.get("images")) or content.get("image") is not None or content.get("video") is not None


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return _characters(value.get("content")) + _characters(value.get("text"))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 0


class LengthGroupedSampler:
    """Numbers of draws of a `MixtureDataset` for a loader that accelerate deals out, grouped by length.

    Batch ``i`` of the loader is of process ``i mod world_size``, and an optimiser step takes
    ``accumulation * world_size`` batches: batches that processes compute at the same time are of similar length too.
    Draws of the same image (`Mixture.group_by_image`) stay together. The order is a function of the mixture and the
    arguments, so that a resumed run goes on with the very next row, also inside of a window.

    Args:
        dataset (`MixtureDataset`): Its mixture says by ``group_by_length`` how many steps a window has.
        length (`int`): Draws of an epoch, over all processes.
        batch_size (`int`): Rows of a micro-batch.
        accumulation (`int`, *optional*, defaults to 1): Micro-batches of a step, for each process.
        world_size (`int`, *optional*, defaults to 1): Number of processes.
        skipped_steps (`int`, *optional*, defaults to 0):
            Steps of epoch 0 that the caller is going to skip: windows that end before are left as they are, which
            saves reading their texts.

    Raises:
        ValueError: If the mixture is not grouped by length, or `length` is not a whole number of steps.
        TypeError: If a dataset of the mixture cannot give rows without opening images.
    """

    def __init__(
        self,
        dataset: MixtureDataset,
        length: int,
        batch_size: int,
        accumulation: int = 1,
        world_size: int = 1,
        skipped_steps: int = 0,
    ) -> None:
        window = dataset.mixture.group_by_length
        if window < 1:
            raise ValueError(f"group_by_length of the mixture is {window}; it must be at least 1")
        step = batch_size * accumulation * world_size
        if length % step or not length:
            raise ValueError(f"length is {length}; it must be a multiple of the rows of a step, {step}, and above 0")
        self.dataset, self.length, self.batch_size = dataset, length, batch_size
        self.skipped_draws = skipped_steps * step
        self.epoch = 0
        self._slot = batch_size * world_size
        self._window = window * step
        # Rows that stay together.
        self._unit = math.gcd(dataset.mixture.group_by_image, batch_size)
        for name, rows in dataset.datasets.items():
            try:
                peek(rows, 0)
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from error

    def set_epoch(self, epoch: int) -> None:
        """Lets the next iteration begin at draw ``epoch * length``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length
        for start in range(0, self.length, self._window):
            stop = min(start + self._window, self.length)
            if self.epoch == 0 and stop <= self.skipped_draws:
                yield from range(first + start, first + stop)
            else:
                yield from self._arrange(first + start, first + stop)

    def _arrange(self, start: int, stop: int) -> Iterator[int]:
        keys = [
            max(self._key(number) for number in range(unit, unit + self._unit))
            for unit in range(start, stop, self._unit)
        ]
        order = sorted(range(len(keys)), key=lambda unit: keys[unit])
        in_slot = self._slot // self._unit
        slots = [order[place : place + in_slot] for place in range(0, len(order), in_slot)]
        for slot in keyed_order(len(slots), "lengths", self.dataset.mixture.seed, start):
            for unit in slots[slot]:
                yield from range(start + unit * self._unit, start + (unit + 1) * self._unit)

    def _key(self, number: int) -> tuple[bool, int]:
        name, row, epoch = self.dataset.mixture.draw(number)
        content = peek(self.dataset.datasets[name], row, epoch)
        return self.dataset.mixture.group_by_modality and has_images(content), text_length(content)


__all__ = ["IMAGE_CHARACTERS", "LengthGroupedSampler", "has_images", "text_length"]
