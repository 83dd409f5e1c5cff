"""Searching an index of 100,000 images exactly: how long it takes, and whether the result is that of scoring everything.

    OMP_NUM_THREADS=2 python examples/benchmarks/retrieval.py
    OMP_NUM_THREADS=2 python examples/benchmarks/retrieval.py --sides codes faiss float32

Features are drawn, not computed from images: what a search costs depends on their number and on how close together the
scores are. "spread" features have independent directions. "crowded" ones have most of their length in common, as those of
real models have: rows of two images have a cosine of about 0.7. A query is a row of the index with as much noise added.

The index is written to a folder (--folder; 2.5 GB for 100,000 images, removed afterwards), so that what is timed is what
a program does that opens an index (which reads the codes into memory) and searches it. Every query is searched once before
timing; the time of a query is the best of several. Hits are compared with those of scoring everything in float64, and
nothing is timed unless they are the same. "codes" is `FeatureSearch`, "faiss" `FaissSearch`, and "float32" a product of all
features with the query in float32, whose hits are not compared.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instructblip_hf.retrieval import FeatureIndex, open_search
from instructblip_hf.retrieval.index import SHARD_ITEMS
from instructblip_hf.retrieval.table import Facts


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


def brute_force(index: FeatureIndex, queries: list[torch.Tensor], k: int) -> list[list[str]]:
    """Names of the best for each query, all scored in float64."""
    columns = torch.stack(queries, dim=1).double()
    scores = torch.cat(
        [(shard.features.double() @ columns).amax(1) for shard in index.shards()]
    )  # [images, queries], of [images, rows, queries]
    order = torch.argsort(scores, dim=0, descending=True, stable=True)[:k]
    return [[f"{place}.jpg" for place in column] for column in order.t().tolist()]


def all_in_float32(index: FeatureIndex, query: torch.Tensor, k: int) -> torch.Tensor:
    """Places of the best by float32 scores of all."""
    scores = [(shard.features.float().flatten(0, 1) @ query).view(-1, ROWS).amax(1) for shard in index.shards()]
    return torch.cat(scores).topk(k).indices


def rows_of_table(
    index: FeatureIndex, kind: str, queries: list[torch.Tensor], k: int, sides: list[str], repeats: int
) -> Iterator[str]:
    """Lines of the table, a side each."""
    expected = None
    for side in sides:
        begin = time.perf_counter()
        search: Any = None
        if side == "float32":
            search_for: Callable[[torch.Tensor], Any] = partial(all_in_float32, index, k=k)
        else:
            search = open_search(FeatureIndex(index.folder), "torch" if side == "codes" else side, preload=True)
            search_for = partial(search.top, k=k)
        opening = time.perf_counter() - begin
        again = "all"
        if search is not None:
            expected = expected or brute_force(index, queries, k)
            for query, names in zip(queries, expected):
                if [hit.names[0] for hit in search.top(query, k)] != names:
                    raise SystemExit(f"{side} finds other images than scoring everything: nothing is timed")
            numbers = [len(search._candidates(query.unsqueeze(0), k)) for query in queries]
            again = f"{statistics.median(numbers):.0f} (at most {max(numbers):,})"
        times = [seconds(partial(search_for, query), repeats) for query in queries]
        yield (
            f"| {kind} | {side} | {opening:.1f} | {again} | {min(times):.3f} | {statistics.median(times):.3f} | "
            f"{max(times):.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact search of an index.")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--features", nargs="+", default=list(SHARED), choices=list(SHARED))
    parser.add_argument("--sides", nargs="+", default=["codes"], choices=["codes", "faiss", "float32"])
    parser.add_argument("--folder", type=Path, help="for the index; a temporary folder by default")
    arguments = parser.parse_args()
    print(f"{arguments.images:,} images, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| features | side | open, s | scored again | fastest query, s | median query, s | slowest query, s |")
    print("|---|---|---|---|---|---|---|")
    for kind in arguments.features:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            index, queries = write_index(folder, kind, arguments.images)
            queries = queries[:: max(1, len(queries) // arguments.queries)][: arguments.queries]
            for line in rows_of_table(index, kind, queries, arguments.k, arguments.sides, arguments.repeats):
                print(line, flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
