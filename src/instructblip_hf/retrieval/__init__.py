"""Images found by text and texts by image: features stored once, searched exactly, the best re-ranked (BLIP-2)."""

from __future__ import annotations

import importlib
from typing import Any


_PUBLIC_NAMES = {
    "FeatureIndex": "index",
    "FeatureSearch": "search",
    "Hit": "search",
    "IndexReport": "building",
    "RetrievalEncoder": "encoding",
    "index_images": "building",
    "index_texts": "building",
    "open_search": "search",
    "rerank_images": "reranking",
    "rerank_texts": "reranking",
    "retrieval_scores": "reranking",
}

__all__ = sorted(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
