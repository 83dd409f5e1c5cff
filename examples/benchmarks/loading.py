"""Rows a second from JPEG files and text to a batch of tensors: stock's processor against this package's collator, by workers.

Both make batches of 8 of the same rows; the pixels and the tokens that both make must be equal. Time is that on the clock,
since workers are processes of their own: let the machine be quiet.
"""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from frozen_training import SIZES, write_work
from harness import Case, wall_seconds
from options import Options

from instructblip_hf import InstructBlipProcessor
from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.sources.shapes_world import build_tokenizer


BATCH = 8


def cases(options: Options, pair: Any = None) -> Iterator[Case]:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    write_work(Path(folder.name), SIZES["mid"], 1, 1 if options.is_quick else 4)
    rows = json.loads((Path(folder.name) / "rows.json").read_text(encoding="utf-8"))
    parts = (
        transformers.BlipImageProcessorPil(size={"height": 224, "width": 224}),
        build_tokenizer(),
        build_tokenizer(for_qformer=True, model_max_length=128),
    )
    stock = _Stock(transformers.InstructBlipProcessor(*parts, num_query_tokens=32))
    ours = _Ours(VisionLanguageCollator(InstructBlipProcessor(*parts, num_query_tokens=32)))
    for workers in [0, 1, 2] if not options.is_quick else [0]:
        variants = {"stock": _runner(rows, stock, workers), "ours": _runner(rows, ours, workers)}
        yield Case(
            "data loading", {"workers": workers, "rows": len(rows)}, "workers", variants, 1e-6, _unlike, wall_seconds
        )


class _Stock:
    """Prompts alone: stock's processor makes no labels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        from PIL import Image

        images = [Image.open(row["images"][0]).convert("RGB") for row in rows]
        texts = [f"{row['prompt']} {row['completion']}" for row in rows]
        return self.processor(images=images, text=texts, padding=True, return_tensors="pt")


class _Ours:
    """Prompts, answers and labels, as training reads them."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        return self.collator(rows)


def _runner(rows: list[Any], collate: Any, workers: int) -> Callable[[], list[torch.Tensor]]:
    def run() -> list[torch.Tensor]:
        loader = torch.utils.data.DataLoader(
            rows,
            batch_size=BATCH,
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        return [batch["pixel_values"] for batch in loader]

    return run


def _unlike(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Largest difference of pixels."""
    return max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
