"""Losses by objective, for the logs of models whose loss is a sum: which part of it falls, and which does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


PREFIX = "loss_"
"""Names of outputs that are a part of the loss begin with it: ``loss_itc``, ``loss_itm``, ``loss_itg``."""


class ObjectiveLosses:
    """Means over batches, by objective, since they were last taken. Empty for models with a single loss."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._batches = 0

    @torch.no_grad()
    def add(self, outputs: Any) -> None:
        """Counts a batch in. Nothing is copied from the device, so nothing waits for it.

        Args:
            outputs (`ModelOutput`): Of the model; its scalars under `PREFIX` are taken.
        """
        if not isinstance(outputs, Mapping):
            return
        parts = {name: value for name, value in outputs.items() if name.startswith(PREFIX)}
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._batches += bool(parts)

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means so far over all processes, by output name; and begins anew.

        Args:
            accelerator (`accelerate.Accelerator`): Of the trainer. Every process has to call.
        """
        sums, batches = self._sums, self._batches
        self._sums, self._batches = {}, 0
        means = {name: accelerator.reduce(value / batches, reduction="mean") for name, value in sorted(sums.items())}
        return {name: float(value) for name, value in means.items()}


__all__ = ["PREFIX", "ObjectiveLosses"]
