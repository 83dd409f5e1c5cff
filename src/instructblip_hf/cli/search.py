"""`instructblip search`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .answering import open_images
from .errors import fail, user_errors
from .index import load_encoder
from .tables import print_columns


def run_search(
    folder: Path,
    texts: Sequence[str],
    images: Sequence[str],
    top_k: int,
    rerank: int,
    page: Path | None,
    as_json: bool,
    batch_size: int,
    backend: str,
    model: str | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """Searches an index of images by texts, or one of texts by images, and prints or writes what is found."""
    with user_errors():
        from ..retrieval.index import FeatureIndex

        index = FeatureIndex(folder)
        _check_queries(index, texts, images)
        if page is not None:
            from .search_page import check_writable

            check_writable(page)
        opened = open_images(images)
        encoder = load_encoder(folder, model, device, dtype)

        from ..retrieval.building import check_same_model
        from ..retrieval.search import open_search

        check_same_model(index, encoder)
        search = open_search(index, backend, preload=len(texts) + len(images) > 1)
        found = []
        for query, picture in zip([*texts, *images], [None] * len(texts) + opened):
            hits = _search(encoder, index, search, query, picture, max(top_k, rerank), rerank, batch_size)[:top_k]
            found.append((query, hits))
    if as_json:
        for query, hits in found:
            print(json.dumps({"query": query, "hits": [_row(hit) for hit in hits]}, ensure_ascii=False))
    else:
        for number, (query, hits) in enumerate(found):
            if len(found) > 1:
                print(f"{'' if number == 0 else chr(10)}{query}")
            print_columns([("score", "cosine", "matching", index.facts.kind), *map(_cells, hits)])
    if page is not None:
        from .search_page import write_page

        write_page(page, index, found, dict(zip(images, opened)))
        if not as_json:
            print(f"\npage: {page}")


def _check_queries(index: Any, texts: Sequence[str], images: Sequence[str]) -> None:
    kind = index.facts.kind
    if kind == "images" and (images or not texts):
        fail(
            f"{index.folder} is an index of images, which is searched by text: instructblip search {index.folder} "
            '"a text". To find texts for an image, index a file of texts'
        )
    if kind == "texts" and (texts or not images):
        fail(
            f"{index.folder} is an index of texts, which is searched by image: instructblip search {index.folder} "
            "--image IMAGE"
        )


def _search(
    encoder: Any,
    index: Any,
    search: Any,
    query: str,
    picture: Any,
    k: int,
    rerank: int,
    batch_size: int,
) -> list[Any]:
    from ..retrieval.reranking import rerank_images, rerank_texts

    if picture is None:
        hits = search.top(encoder.encode_texts([query])[0], k)
        first = hits[:rerank]
        paths = [index.find_file(hit.names) for hit in first]
        return [*rerank_images(encoder, query, first, paths, batch_size), *hits[rerank:]]
    features, states = encoder.encode_images(encoder.pixels([picture]))
    hits = search.top(features[0], k)
    return [*rerank_texts(encoder, states, hits[:rerank], batch_size), *hits[rerank:]]


def _row(hit: Any) -> dict[str, Any]:
    row = {"name": hit.names[0], "score": hit.score, "cosine": hit.cosine, "matching": hit.matching}
    return row if len(hit.names) == 1 else {**row, "same": list(hit.names[1:])}


def _cells(hit: Any) -> tuple[str, str, str, str]:
    matching = "" if hit.matching is None else f"{hit.matching:.3f}"
    more = f" (and {len(hit.names) - 1} with the same content)" if len(hit.names) > 1 else ""
    return f"{hit.score:.3f}", f"{hit.cosine:.3f}", matching, hit.names[0] + more
