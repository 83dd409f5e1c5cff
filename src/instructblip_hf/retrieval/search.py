"""The best items of an index, exactly: score = the largest cosine of a row of the item and a row of the query.

An image has a row for each query of the Q-Former, a text has one. First all items are scored by their 8-bit codes
(`codes`), which gives each item an interval that its score lies in for certain. An item whose interval ends below the
k-th highest lower end cannot be among the best k. Those left, mostly a few dozen, are scored in float64 by the features
themselves. So the result is that of scoring everything in float64, and only a part of the index is read: the codes.

Shards are mapped from the disk and looked at one at a time, or their codes are read into memory; what else grows with the
index are three numbers an item.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .codes import QueryCodes, has_integer_product
from .index import FeatureIndex, Shard


_SCAN_ITEMS = 8192  # scored by codes at a time where they are in memory
_CHUNK_ITEMS = 256  # scored in float64 at a time: 16 MB with 32 rows of 256


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    Args:
        names (`tuple[str, ...]`): Names of it in the index: several where files have the same content.
        cosine (`float`): The largest cosine.
        matching (`float`, *optional*): The matching head's logit, where it was asked.
    """

    names: tuple[str, ...]
    cosine: float
    matching: float | None = None

    @property
    def score(self) -> float:
        """What hits are ordered by: cosine, and matching logit where there is one."""
        return self.cosine + (self.matching or 0.0)


class FeatureSearch:
    """Searches an index.

    Args:
        index (`FeatureIndex`): The index, which must not be written meanwhile.
        preload (`bool`, *optional*, defaults to `False`): Read the codes into memory, 8 kB an image, rather than map them.
            For many searches: what is only mapped can leave the memory again.

    Raises:
        ValueError: If a shard is missing or damaged.

    Attributes:
        uses_codes (`bool`): Whether codes are looked at first. Without an exact product of 8-bit integers all items are
            scored in float64, which takes about ten times as long.
    """

    def __init__(self, index: FeatureIndex, preload: bool = False) -> None:
        self.facts = index.facts
        self._shards: list[Shard] = list(index.shards())
        starts, count = {}, 0
        for shard in self._shards:
            starts[shard.name] = count
            count += len(shard.codes)
        self._names: dict[int, list[str]] = {}
        for item in index.items.values():
            self._names.setdefault(starts[item.shard] + item.row, []).append(item.name)
        self._starts = torch.tensor([*starts.values()], dtype=torch.int64)
        self._is_there = torch.zeros(count, dtype=torch.bool)
        self._is_there[torch.tensor(sorted(self._names), dtype=torch.int64)] = True
        self.uses_codes = has_integer_product()
        self._codes = [(shard.codes, shard.scales) for shard in self._shards]
        if preload and self._codes:
            codes, scales = (torch.cat(parts) for parts in zip(*self._codes))
            self._codes = list(zip(codes.split(_SCAN_ITEMS), scales.split(_SCAN_ITEMS)))
        self._lengths = torch.cat([shard.lengths for shard in self._shards] or [torch.empty(0)])
        self._rests = torch.cat([shard.rests for shard in self._shards] or [torch.empty(0)])

    def __len__(self) -> int:
        """Number of different contents."""
        return len(self._names)

    def top(self, query: torch.Tensor, k: int) -> list[Hit]:
        """The best k items; fewer where the index has fewer.

        Args:
            query (`torch.Tensor`): Shape (rows, size) or (size,): features of a text, or of an image.
            k (`int`): How many.

        Returns:
            `list[Hit]`: Best first; equal scores in the order of the index.
        """
        query = self._checked(query, k)
        k = min(k, len(self))
        if k == 0:
            return []
        candidates = self._candidates(query, k)
        scores = self.exact_scores(query, candidates)
        order = torch.argsort(scores, descending=True, stable=True)[:k]
        places = candidates[order].tolist()
        return [Hit(tuple(sorted(self._names[place])), score) for place, score in zip(places, scores[order].tolist())]

    def exact_scores(self, query: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Scores of single items by their features, in float64.

        Args:
            query (`torch.Tensor`): Shape (rows, size).
            places (`torch.Tensor`): Of items, ascending.

        Returns:
            `torch.Tensor`: Shape (places,), float64.
        """
        columns = query.double().t()  # [size, query rows]
        scores = []
        shards = torch.searchsorted(self._starts, places, right=True) - 1
        for number in shards.unique().tolist():
            rows = places[shards == number] - self._starts[number]
            for chunk in rows.split(_CHUNK_ITEMS):
                features = self._shards[number].features[chunk].double()  # [items, rows, size]
                scores.append((features @ columns).flatten(1).amax(1))
        return torch.cat(scores)

    def _checked(self, query: torch.Tensor, k: int) -> torch.Tensor:
        query = query.unsqueeze(0) if query.dim() == 1 else query
        if query.dim() != 2 or query.shape[1] != self.facts.size:
            raise ValueError(
                f"query has the shape {tuple(query.shape)}; the index has rows of {self.facts.size} numbers"
            )
        if not query.isfinite().all():
            raise ValueError("query is not finite: nothing can be found by it")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        return query

    def _candidates(self, query: torch.Tensor, k: int) -> torch.Tensor:
        """Places of all items that can be among the best k, ascending."""
        if not self.uses_codes:
            return self._is_there.nonzero().flatten()
        coded = QueryCodes(query)
        scores = torch.cat([coded.scores(*part) for part in self._codes]).double()  # [items]
        bounds = coded.bounds(self._lengths, self._rests)
        lower = torch.where(self._is_there, scores - bounds, -torch.inf)
        threshold = lower.topk(k).values[-1]
        return ((scores + bounds >= threshold) & self._is_there).nonzero().flatten()


BACKENDS = ("torch", "faiss")


def open_search(index: FeatureIndex, backend: str = "torch", preload: bool = False) -> FeatureSearch:
    """A search of an index.

    Args:
        index (`FeatureIndex`): The index.
        backend (`str`, *optional*, defaults to `"torch"`): Or ``"faiss"``, which finds the same.
        preload (`bool`, *optional*, defaults to `False`): As for `FeatureSearch`; FAISS has all in memory.

    Raises:
        ImportError: If FAISS is asked for and not installed.
        ValueError: If the backend is another, or a shard is missing or damaged.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(BACKENDS)}")
    if backend == "torch":
        return FeatureSearch(index, preload)

    from .faiss_search import FaissSearch

    return FaissSearch(index)


__all__ = ["BACKENDS", "FeatureSearch", "Hit", "open_search"]
