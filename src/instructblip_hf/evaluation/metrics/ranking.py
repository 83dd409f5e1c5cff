"""Ranking: mean reciprocal rank, recall at k, mean rank and NDCG (VisDial; retrieval).

VisDial (Das et al. 2017, https://arxiv.org/abs/1611.08669) ranks 100 candidate answers. Its evaluator sorts the scores,
so that among equal scores the order of the candidates decides, or chance. A model that scores all alike would be given
whatever place the right answer has in the file. By default equal scores count here as their expected value over all
orders among them, as in `sklearn.metrics.ndcg_score` and Mann-Whitney's AUC; without equal scores all ways agree.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .rows import check_columns, mean, row_name


TIES = ("expected", "order", "worst")
"""What equal scores count: the mean over all their orders, in the order of the candidates, or the right ones last."""


def ranking_scores(
    scores: Sequence[Sequence[float]] | np.ndarray,
    targets: Sequence[Sequence[int]],
    ks: Sequence[int] = (1, 5, 10),
    ties: str = "expected",
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Mean reciprocal rank, mean rank and recall at k of the best-ranked right candidate of each row.

    Args:
        scores (`Sequence[Sequence[float]]` or `np.ndarray` of shape `(rows, candidates)`): The higher, the better.
            Rows may have different numbers of candidates.
        targets (`Sequence[Sequence[int]]`): Indices of the right candidates of each row: one for VisDial, the five
            captions of an image for retrieval.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): Recall at each: the share of rows with a right
            candidate among the first k.
        ties (`str`, *optional*, defaults to `"expected"`): One of `TIES`.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Returns:
        `dict`: ``mrr``, ``mean_rank`` (from 1), ``recall_at_K`` for each k, ``count``.

    Raises:
        ValueError: If there are no rows, a score is NaN, a target is missing or outside of its candidates, a k is
            below 1, or ``ties`` is another.
    """
    check_columns(scores=scores, targets=targets)
    _check_ties(ties)
    low = [k for k in ks if k < 1]
    if low:
        raise ValueError(f"ks has {low[0]}; a k is at least 1")
    reciprocals, ranks = [], []
    hits: dict[int, list[float]] = {k: [] for k in ks}
    for row, (row_scores, right) in enumerate(zip(scores, targets)):
        places, weights = _places(_checked(row_scores, row, ids), right, ties, row_name(row, ids))
        reciprocals.append(float(weights @ (1 / places)))
        ranks.append(float(weights @ places))
        for k in ks:
            hits[k].append(float(weights[places <= k].sum()))
    recalls = {f"recall_at_{k}": mean(values) for k, values in hits.items()}
    return {"mrr": mean(reciprocals), "mean_rank": mean(ranks), **recalls, "count": len(ranks)}


def ndcg(
    scores: Sequence[Sequence[float]] | np.ndarray,
    relevance: Sequence[Sequence[float]] | np.ndarray,
    ties: str = "expected",
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """VisDial's normalised discounted cumulative gain.

    Gains are the relevances themselves, the discount of place i (from 1) is log2(i + 1), and only the first k places
    count, where k is the number of candidates of the row with a relevance other than 0.

    Args:
        scores (`Sequence[Sequence[float]]` or `np.ndarray` of shape `(rows, candidates)`): The higher, the better.
        relevance (`Sequence[Sequence[float]]` or `np.ndarray` of the same shape): Relevance of each candidate, from 0.
        ties (`str`, *optional*, defaults to `"expected"`): One of `TIES`.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Returns:
        `dict`: ``ndcg`` and ``count``.

    Raises:
        ValueError: If there are no rows, a score is NaN, a relevance is negative, a row has another number of
            relevances, or none above 0 (VisDial's evaluator divides 0 by 0 there).
    """
    check_columns(scores=scores, relevance=relevance)
    _check_ties(ties)
    values = []
    for row, (row_scores, row_relevance) in enumerate(zip(scores, relevance)):
        predicted = _checked(row_scores, row, ids)  # [candidates]
        gains = np.asarray(row_relevance, dtype=np.float64)  # [candidates]
        if gains.shape != predicted.shape:
            raise ValueError(f"{row_name(row, ids)} has {gains.size} relevances for {predicted.size} candidates")
        if not (gains >= 0).all() or not gains.any():
            raise ValueError(f"relevance of {row_name(row, ids)} is negative, NaN, or 0 for every candidate")
        places = int(np.count_nonzero(gains))
        discounts = 1 / np.log2(np.arange(places) + 2)  # [places]
        best = float(np.sort(gains)[::-1][:places] @ discounts)
        values.append(float(_ordered_gains(predicted, gains, ties)[:places] @ discounts) / best)
    return {"ndcg": mean(values), "count": len(values)}


def _places(scores: np.ndarray, targets: Sequence[int], ties: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The places that the best right candidate can have, from 1, and the probability of each."""
    right = np.unique(np.asarray(targets, dtype=np.int64))
    if not right.size or right[0] < 0 or right[-1] >= scores.size:
        raise ValueError(f"targets of {name} are {list(targets)} for {scores.size} candidates")
    best = scores[right].max()
    above = int((scores > best).sum())
    tied = np.flatnonzero(scores == best)
    rights = int((scores[right] == best).sum())
    if ties == "expected":
        # The first of `rights` among `tied` in random order stands at place j if all others of them stand behind it.
        first = np.arange(1, len(tied) - rights + 2)
        behind = np.array([math.comb(len(tied) - int(place), rights - 1) for place in first], dtype=object)
        return above + first, np.array([ways / math.comb(len(tied), rights) for ways in behind], dtype=np.float64)
    place = 1 + int(np.flatnonzero(np.isin(tied, right))[0]) if ties == "order" else len(tied) - rights + 1
    return np.array([above + place]), np.ones(1)


def _ordered_gains(scores: np.ndarray, gains: np.ndarray, ties: str) -> np.ndarray:
    """Gains by predicted place, first place first."""
    if ties == "worst":
        return gains[np.lexsort((gains, -scores))]
    if ties == "expected":
        # A candidate of several with equal scores gains what they gain on average.
        _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
        gains = (np.bincount(group, weights=gains) / sizes)[group]
    return gains[np.argsort(-scores, kind="stable")]


def _checked(row_scores: Sequence[float] | np.ndarray, row: int, ids: Sequence[Hashable] | None) -> np.ndarray:
    values = np.asarray(row_scores, dtype=np.float64)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError(f"scores of {row_name(row, ids)} are empty, nested or NaN")
    return values


def _check_ties(ties: str) -> None:
    if ties not in TIES:
        raise ValueError(f"ties is {ties!r}; allowed are {', '.join(TIES)}")


__all__ = ["TIES", "ndcg", "ranking_scores"]
