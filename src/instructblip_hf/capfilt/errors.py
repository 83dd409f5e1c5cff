"""What CapFilt stops with, a message that is complete without a traceback."""

from __future__ import annotations


class CapFiltError(RuntimeError):
    """CapFilt cannot go on; shards that were finished before stay."""


__all__ = ["CapFiltError"]
