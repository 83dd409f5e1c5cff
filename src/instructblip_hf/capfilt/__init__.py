"""CapFilt: captions made for images from the web, and texts that do not fit their image left out (BLIP, BLIP-2)."""

from __future__ import annotations

import importlib
from typing import Any


_PUBLIC_NAMES = {
    "CapFiltError": "errors",
    "CapFiltOptions": "run",
    "CaptionFilter": "filtering",
    "CaptionOptions": "captioning",
    "Captioner": "captioning",
    "FilterOptions": "filtering",
    "capfilt": "run",
    "open_source": "sources",
}

__all__ = sorted(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
