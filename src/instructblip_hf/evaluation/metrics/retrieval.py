"""Recall at 1, 5 and 10 of image-text retrieval, in both directions (Flickr30k, COCO), under LAVIS's names.

``txt`` is images searching texts, where an image counts as a hit if any of its captions is among the first k, and ``img``
texts searching images. Right candidates that share their score with wrong ones count as behind them, so that those that a
re-ranking left out with one score for all are no hits; LAVIS leaves their order to its sort. Without equal scores, and
wherever k is within what was re-ranked, both ways agree.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .ranking import ranking_scores
from .rows import check_columns, row_name


DIRECTIONS = {"image_to_text": "txt", "text_to_image": "img"}
KS = (1, 5, 10)


def retrieval_recall(
    scores: Sequence[Sequence[float]] | np.ndarray,
    directions: Sequence[str],
    targets: Sequence[Sequence[int]],
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """R@1, R@5 and R@10 in both directions, as fractions.

    Args:
        scores (`Sequence[Sequence[float]]`): Of each row's candidates: of all texts for an image, of all images for a text.
        directions (`Sequence[str]`): ``"image_to_text"`` or ``"text_to_image"`` of each row.
        targets (`Sequence[Sequence[int]]`): The right candidates of each row: captions of an image, the image of a text.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Returns:
        `dict`: ``txt_r1``, ``txt_r5``, ``txt_r10`` and their mean ``txt_r_mean``; ``img_...`` likewise; ``r_mean``, the
        mean of both means; ``images`` and ``texts``, the numbers of rows.

    Raises:
        ValueError: If a direction is another or has no rows, or as `ranking_scores`.
    """
    check_columns(scores=scores, directions=directions, targets=targets)
    for row, direction in enumerate(directions):
        if direction not in DIRECTIONS:
            raise ValueError(
                f"direction of {row_name(row, ids)} is {direction!r}; allowed are {', '.join(DIRECTIONS)}"
            )
    result: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for direction, name in DIRECTIONS.items():
        rows = [row for row, found in enumerate(directions) if found == direction]
        if not rows:
            raise ValueError(f"there are no rows of the direction {direction}")
        recalls = ranking_scores(
            [scores[row] for row in rows],
            [targets[row] for row in rows],
            KS,
            "worst",
            None if ids is None else [ids[row] for row in rows],
        )
        result.update({f"{name}_r{k}": recalls[f"recall_at_{k}"] for k in KS})
        result[f"{name}_r_mean"] = sum(result[f"{name}_r{k}"] for k in KS) / len(KS)
        counts[name] = len(rows)
    result["r_mean"] = (result["txt_r_mean"] + result["img_r_mean"]) / 2
    return {**result, "images": counts["txt"], "texts": counts["img"]}


__all__ = ["DIRECTIONS", "KS", "retrieval_recall"]
