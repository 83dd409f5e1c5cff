"""Losses by objective, for the logs of models whose loss is a sum: which part of it falls, and which does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


PREFIX = "loss_"
"""Names of outputs that are a part of the loss begin with it: ``loss_itc``, ``loss_itm``, ``loss_itg``."""


class ObjectiveLosses:
    """Means over rows, by objective, since they were last taken. Empty for models with a single loss."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._rows = 0

    def clear(self) -> None:
        """Begins anew."""
        self._sums, self._rows = {}, 0

    @torch.no_grad()
    def add(self, outputs: Any, rows: int) -> None:
        """Counts a batch in. Nothing is copied from the device, so nothing waits for it.

        Args:
            outputs (`ModelOutput`): Of the model; its scalars under `PREFIX` are taken.
            rows (`int`): Rows of the batch, which its losses are means over.
        """
        if not isinstance(outputs, Mapping):
            return
        parts = {name: value for name, value in outputs.items() if name.startswith(PREFIX)}
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float() * rows
        self._rows += rows if parts else 0

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means so far over all processes, by output name; and begins anew.

        Args:
            accelerator (`accelerate.Accelerator`): Of the trainer. Every process has to call.
        """
        sums, rows = self._sums, self._rows
        self.clear()
        names = sorted(sums)
        if not names:
            return {}
        device = accelerator.device
        values = torch.stack([*(sums[name].to(device) for name in names), torch.tensor(float(rows), device=device)])
        *totals, count = accelerator.reduce(values, reduction="sum").tolist()
        return {name: total / count for name, total in zip(names, totals)}


__all__ = ["PREFIX", "ObjectiveLosses"]
