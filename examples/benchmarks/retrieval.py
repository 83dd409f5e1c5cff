"""Searching an index of 100,000 images exactly: how long it takes, and whether the result is that of scoring everything.

    OMP_NUM_THREADS=2 python examples/benchmarks/retrieval.py
    OMP_NUM_THREADS=2 python examples/benchmarks/retrieval.py --faiss flat fp16

Features are drawn, not computed from images: what a search costs depends on their number and on how close together the
scores are. "spread" features have independent directions. "crowded" ones have most of their length in common, as those of
real models do: two images' rows have a cosine of about 0.7. Queries are rows of the index with noise added.

The index is written to a folder (--folder; 2.5 GB for 100,000 images, removed afterwards), so that what is timed is what
`instructblip search` does with mapped files. Every query is searched once before timing, so that the codes are in memory,
and the best of several repeats is taken for each. Hits are compared with those of scoring everything in float64.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from instructblip_hf.retrieval import FeatureIndex, FeatureSearch
from instructblip_hf.retrieval.index import SHARD_ITEMS, Facts


ROWS, SIZE = 32, 256
SHARED = {"spread": 0.0, "crowded": 0.84}  # part of a row's length in the direction that all have in common


def unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=-1)


def draw(kind: str, images: int, generator: torch.Generator, common: torch.Tensor) -> torch.Tensor:
    """Features of some images, shape (images, rows, size)."""
    own = unit(torch.randn(images, 1, SIZE, generator=generator))
    rest = unit(torch.randn(images, ROWS, SIZE, generator=generator))
    share = SHARED[kind]
    varied = unit(own + rest) * (1 - share**2) ** 0.5
    return unit(varied + share * common)


def write_index(folder: Path, kind: str, images: int) -> tuple[FeatureIndex, list[torch.Tensor]]:
    """An index of drawn features, and queries."""
    generator = torch.Generator().manual_seed(0)
    common = unit(torch.randn(SIZE, generator=generator))
    facts = Facts("images", "drawn", "0", "0", "float32", "float16", ROWS, SIZE, str(folder))
    index = FeatureIndex.create(folder, facts)
    queries = []
    for start in range(0, images, SHARD_ITEMS):
        count = min(SHARD_ITEMS, images - start)
        features = draw(kind, count, generator, common)
        index.add([(f"{number}.jpg", 0, 0, str(number)) for number in range(start, start + count)], features)
        noise = unit(torch.randn(SIZE, generator=generator))
        queries.append(unit(unit(features[0, 0] - SHARED[kind] * common) + noise + SHARED[kind] * common))
    return FeatureIndex(folder), queries


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The best of several."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def brute_force(search: FeatureSearch, query: torch.Tensor, k: int) -> list[tuple[tuple[str, ...], float]]:
    """Names and scores of the best, all scored in float64."""
    scores = search.exact_scores(query.unsqueeze(0), torch.arange(len(search)))
    order = torch.argsort(scores, descending=True, stable=True)[:k]
    return [((f"{place}.jpg",), float(scores[place])) for place in order.tolist()]


def measure(kind: str, images: int, folder: Path, k: int, count: int, repeats: int) -> str:
    """A line of the table."""
    index, queries = write_index(folder, kind, images)
    queries = queries[:: max(1, len(queries) // count)][:count]
    opening = seconds(lambda: FeatureSearch(FeatureIndex(folder)), 1)
    search = FeatureSearch(index)
    for query in queries:
        found = [(hit.names, hit.cosine) for hit in search.top(query, k)]
        if found != brute_force(search, query, k):
            raise SystemExit(f"hits of {kind} features are not those of scoring everything: nothing is timed")
    candidates = [len(search._candidates(query.unsqueeze(0), k)) for query in queries]
    times = [seconds(lambda query=query: search.top(query, k), repeats) for query in queries]
    return (
        f"| {kind} | {images:,} | {statistics.median(candidates):.0f} (at most {max(candidates):,}) | {opening:.2f} | "
        f"{statistics.median(times):.3f} | {max(times):.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact search of an index.")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", default=list(SHARED), choices=list(SHARED))
    parser.add_argument("--folder", type=Path, help="for the index; a temporary folder by default")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(f"| features | images | scored again | open, s | search, s (median of {arguments.queries}) | slowest, s |")
    print("|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            line = measure(kind, arguments.images, folder, arguments.k, arguments.queries, arguments.repeats)
            print(line, flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
