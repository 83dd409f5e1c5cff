"""The losses of BLIP-2's first stage (arXiv 2301.12597, section 3.2; LAVIS `blip2_qformer.py`).

Functions of similarities and logits, without a model: contrastive targets, hard negatives, sums to divide by counts.
"""

from __future__ import annotations

import torch
from torch import nn

from ...constants import IGNORE_INDEX


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Half precision in float32, for softmax; wider types as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def contrastive_targets(is_positive: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Targets of the contrastive loss: alike for all that belong to a row, smoothed over all.

    With one positive a row this is cross-entropy's own label smoothing; with several, LAVIS's soft targets of retrieval
    finetuning.

    Args:
        is_positive (`torch.BoolTensor`): Shape (rows, all).
        label_smoothing (`float`): Share that is spread over all.

    Returns:
        `torch.Tensor`: Shape (rows, all), every row sums to 1.
    """
    positives = is_positive.float()
    targets = positives / positives.sum(1, keepdim=True)
    return (1 - label_smoothing) * targets + label_smoothing / targets.shape[1]


def contrastive_sum(similarity: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of rows of scaled similarities against [`contrastive_targets`], summed; both (rows, all)."""
    return -(nn.functional.log_softmax(at_least_float32(similarity), dim=1) * targets).sum()


@torch.no_grad()
def sample_negatives(similarity: torch.Tensor, is_positive: torch.Tensor) -> torch.Tensor:
    """A hard negative for every row: the more similar, the likelier; never one that belongs to the row.

    Args:
        similarity (`torch.Tensor`): Shape (rows, all), scaled by the temperature.
        is_positive (`torch.BoolTensor`): Shape (rows, all).

    Returns:
        `torch.LongTensor`: Shape (rows,); -1 for a row that everything belongs to.
    """
    # Where similarities are no numbers any negative will do: the loss is no number either, and is dealt with as such.
    similarity = torch.nan_to_num(at_least_float32(similarity))
    weights = similarity.masked_fill(is_positive, -torch.inf).softmax(dim=1)
    has_negative = ~is_positive.all(dim=1)
    drawn = torch.multinomial(weights.where(has_negative[:, None], weights.new_ones(())), 1).squeeze(1)
    return drawn.where(has_negative, -1)


def generation_sum(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of text, smoothed and summed over the labels that are not -100, and their number.

    Args:
        logits (`torch.Tensor`): Shape (rows, tokens, vocabulary); position t predicts token t + 1.
        labels (`torch.LongTensor`): Shape (rows, tokens), aligned with the inputs.
        label_smoothing (`float`): Share that is spread over the vocabulary.
    """
    targets = labels[:, 1:].to(logits.device)
    total = nn.functional.cross_entropy(
        at_least_float32(logits[:, :-1]).flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total, (targets != IGNORE_INDEX).sum()


__all__ = ["at_least_float32", "contrastive_sum", "contrastive_targets", "generation_sum", "sample_negatives"]
