"""The same search with FAISS in the place of the 8-bit codes, and the same result.

FAISS finds rows, and an item has several: the items of its best rows, in their order, are the items by the largest score of
their rows. How many rows that takes is not known before, so as many more are asked for until no item that is missing can
be among the best k: FAISS sums float32 in an order of its own, which errs by at most a known part of the lengths. What is
left is scored in float64 as ever.

It reads features into an index of its own in memory (float16 as float16), twice what the codes need. docs/retrieval.md
compares the two.
"""

from __future__ import annotations

from typing import Any

import torch

from .index import FeatureIndex
from .search import FeatureSearch


_FLOAT32_UNIT = 2.0**-24
_FIRST_ROWS = 8  # for each item that is wanted


class FaissSearch(FeatureSearch):
    """Searches an index with FAISS.

    Args:
        index (`FeatureIndex`): The index.

    Raises:
        ImportError: If FAISS is not installed.
        ValueError: If a shard is missing or damaged.
    """

    def __init__(self, index: FeatureIndex) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError(
                "the faiss backend needs the package faiss-cpu: pip install 'instructblip-hf[faiss]'; without it the "
                "search is exact too"
            ) from error
        super().__init__(index)
        size = self.facts.size
        if self.facts.stored_in == "float16":
            kind = faiss.ScalarQuantizer.QT_fp16
            self._rows: Any = faiss.IndexScalarQuantizer(size, kind, faiss.METRIC_INNER_PRODUCT)
            self._rows.is_trained = True  # numbers of 16 bits have nothing to learn
        else:
            self._rows = faiss.IndexFlatIP(size)
        for shard in self._shards:
            self._rows.add(shard.features.float().flatten(0, 1).numpy())

    def _candidates(self, query: torch.Tensor, k: int) -> torch.Tensor:
        queries = query.float().contiguous()
        operations = queries.shape[1] + 2
        relative = operations * _FLOAT32_UNIT / (1 - operations * _FLOAT32_UNIT)
        longest = float(query.double().norm(dim=-1).max()) * float(self._lengths.double().max())
        bound = 1.001 * relative * longest
        wanted = _FIRST_ROWS * k
        while True:
            wanted = min(wanted, self._rows.ntotal)
            scores, rows = (torch.from_numpy(found) for found in self._rows.search(queries.numpy(), wanted))
            places = rows.flatten() // self.facts.rows
            best = torch.full((len(self._is_there),), -torch.inf, dtype=torch.float64)
            best.scatter_reduce_(0, places, scores.flatten().double(), "amax")
            best[~self._is_there] = -torch.inf
            threshold = best.topk(k).values[-1] - 2 * bound
            # Rows that FAISS left out score at most what the last one does that it found.
            if wanted == self._rows.ntotal or scores[:, -1].max() < threshold:
                return ((best >= threshold) & self._is_there).nonzero().flatten()
            wanted *= 4


__all__ = ["FaissSearch"]
