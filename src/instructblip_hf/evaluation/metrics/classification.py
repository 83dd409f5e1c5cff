"""Area under the ROC curve (HatefulMemes).

The probability that a row of the positive class scores above one of the negative class, ties counting one half: the
Mann-Whitney statistic, equal to the trapezoidal area under the curve.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .rows import check_columns, named, row_name


def roc_auc(scores: Sequence[float], labels: Sequence[int], ids: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Area under the ROC curve.

    Args:
        scores (`Sequence[float]`): How strongly each row is predicted to be of the positive class; any scale.
            Equal scores count one half, so constant scores give 0.5.
        labels (`Sequence[int]`): 1 for the positive class, 0 for the negative.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Returns:
        `dict`: ``roc_auc``, ``count`` and ``positives``.

    Raises:
        ValueError: If there are no rows, a score is NaN, a label is another, or one class has no rows.
    """
    count = check_columns(scores=scores, labels=labels)
    strangers = [row_name(row, ids) for row in range(count) if labels[row] not in (0, 1)]
    if strangers:
        raise ValueError(f"labels are neither 0 nor 1 for {named(strangers)}")
    values = np.asarray(scores, dtype=np.float64)  # [rows]
    nans = [row_name(int(row), ids) for row in np.flatnonzero(np.isnan(values))]
    if nans:
        raise ValueError(f"scores are NaN for {named(nans)}")
    positive = np.asarray(labels) == 1
    positives = int(positive.sum())
    if positives in (0, count):
        raise ValueError(f"{positives} of {count} rows are positive: the curve needs rows of both classes")
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    # Twice the mean rank of each group of equal scores: integers, so the sum below is exact.
    doubled_ranks = 2 * np.cumsum(sizes) - sizes + 1
    doubled_sum = int(doubled_ranks[group][positive].sum())
    above = doubled_sum - positives * (positives + 1)
    return {"roc_auc": above / (2 * positives * (count - positives)), "count": count, "positives": positives}


__all__ = ["roc_auc"]
