"""`instructblip merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import user_errors
from .loading import check_dtype, reach_hub


def run_merge(adapter: str, output: Path, base: str | None, dtype: str) -> None:
    """Adds an adapter to its base and says where the model is."""
    with user_errors():
        check_dtype(dtype)
        options: dict[str, Any] = {} if Path(adapter).is_dir() else reach_hub(adapter)

        import torch

        from ..training.adapters import merge_adapter

        merge_adapter(adapter, output, base, getattr(torch, dtype), **options)
    print(f"saved to   {output}")
    print(f'try it:    instructblip ask IMAGE "question" --model {output}')
