"""Losses by dataset, for the logs of training on a mixture: which datasets learn, and which do not any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..constants import IGNORE_INDEX


DATASET_INDEX = "dataset_index"
"""Under which a batch says what dataset each row is of; -1 for none that is counted."""


@dataclass
class NamingCollator:
    """A collator whose batches also say what dataset their rows are of.

    Args:
        collator (`Callable`): Makes the batch.
        names (`Sequence[str]`): The datasets, in the order of their indices.
    """

    collator: Callable[[list[Any]], Any]
    names: Sequence[str]

    def __call__(self, rows: list[Mapping[str, Any]]) -> Any:
        """The batch, with `DATASET_INDEX` of shape (rows,)."""
        batch = self.collator(list(rows))
        indices = {name: index for index, name in enumerate(self.names)}
        batch[DATASET_INDEX] = torch.tensor([indices.get(row.get("dataset", ""), -1) for row in rows])
        return batch


def without_augmentation(collator: Any) -> Any:
    """The collator for rows that are evaluated: as it is, but for an `augmentation` of images."""
    if isinstance(collator, NamingCollator):
        return replace(collator, collator=without_augmentation(collator.collator))
    return replace(collator, augmentation=None) if getattr(collator, "augmentation", None) is not None else collator


class DatasetLosses:
    """Means over label tokens, by dataset, since they were last taken.

    Args:
        names (`Sequence[str]`): The datasets, in the order of their indices.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._sums: torch.Tensor | None = None

    @torch.no_grad()
    def add(
        self, losses: torch.Tensor, labels: torch.Tensor, datasets: torch.Tensor, is_encoder_decoder: bool
    ) -> None:
        """Counts a batch in. Nothing is copied from the device, so nothing waits for it.

        Args:
            losses (`torch.Tensor`): Shape (labels,), of every label in reading order, see `losses_of_labels`.
            labels (`torch.LongTensor`): Shape (rows, tokens), -100 where there is nothing to predict.
            datasets (`torch.LongTensor`): Shape (rows,), see `DATASET_INDEX`.
            is_encoder_decoder (`bool`): Whether the language model is sequence-to-sequence.
        """
        targets = _targets(labels, is_encoder_decoder).to(losses.device)
        rows = datasets.to(losses.device)[:, None].expand_as(targets)[targets != IGNORE_INDEX]  # [labels]
        counted = rows >= 0
        if self._sums is None:
            self._sums = self._zeros(losses.device)
        values = torch.stack([losses, torch.ones_like(losses)], dim=1)
        self._sums.index_add_(0, rows[counted], values[counted])

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means so far over all processes, by dataset, of those that had labels; and begins anew.

        Args:
            accelerator (`accelerate.Accelerator`): Of the trainer. Every process has to call.
        """
        sums = self._sums if self._sums is not None else self._zeros(accelerator.device)
        self._sums = None
        totals = accelerator.reduce(sums.to(accelerator.device), reduction="sum").tolist()
        return {name: loss / count for name, (loss, count) in zip(self.names, totals) if count}

    def _zeros(self, device: torch.device) -> torch.Tensor:
        """Sums and numbers of tokens, of shape (datasets, 2)."""
        return torch.zeros(len(self.names), 2, device=device)


@torch.no_grad()
def losses_of_labels(logits: torch.Tensor, labels: torch.Tensor, is_encoder_decoder: bool) -> torch.Tensor:
    """Loss of every label that is not -100, in reading order, of shape (labels,).

    Args:
        logits (`torch.Tensor`): Shape (rows, tokens, vocabulary).
        labels (`torch.LongTensor`): Shape (rows, tokens). Those of a causal model stand at their own tokens, one after
            the logits that predict them.
        is_encoder_decoder (`bool`): Whether the language model is sequence-to-sequence.
    """
    targets = _targets(labels, is_encoder_decoder).to(logits.device)
    chosen = targets != IGNORE_INDEX
    return nn.functional.cross_entropy(
        logits[:, : targets.shape[1]][chosen].float(), targets[chosen], reduction="none"
    )


def _targets(labels: torch.Tensor, is_encoder_decoder: bool) -> torch.Tensor:
    return labels if is_encoder_decoder else labels[:, 1:]


__all__ = ["DATASET_INDEX", "DatasetLosses", "NamingCollator", "losses_of_labels", "without_augmentation"]
