"""Rows a second from JPEG files and text to batches for training: stock's processor against this package's collator, by workers.

Both make batches of 8 of the same rows, with labels; all tensors must be equal. Stock's processor makes no labels, so that its
side has the lines which a user of it writes. Time is that on the clock, since workers are processes of their own: let the
machine be quiet. Workers have started before it runs and stay (``persistent_workers``); what starting them takes, with one
batch, is a table of its own.
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
from frozen_training import write_work
from harness import Case, wall_seconds
from options import Options
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from instructblip_hf import InstructBlipProcessor
from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.sources.shapes_world import build_tokenizer


BATCH = 8


def cases(options: Options, pair: Any = None) -> Iterator[Case]:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    write_work(Path(folder.name), 32, 32 if options.is_quick else 512)
    rows = json.loads((Path(folder.name) / "rows.json").read_text(encoding="utf-8"))
    parts = (
        transformers.BlipImageProcessorPil(size={"height": 224, "width": 224}),
        build_tokenizer(),
        build_tokenizer(for_qformer=True, model_max_length=128),
    )
    collators = {
        "stock": Stock(transformers.InstructBlipProcessor(*parts, num_query_tokens=32)),
        "ours": VisionLanguageCollator(InstructBlipProcessor(*parts, num_query_tokens=32)),
    }
    for workers in [0, 1, 2] if not options.is_quick else [0, 1]:
        epochs = {name: _epoch(_loader(rows, collator, workers)) for name, collator in collators.items()}
        yield Case("data loading", {"workers": workers}, "workers", epochs, 0, _unlike, wall_seconds, items=len(rows))
    for workers in [1, 2] if not options.is_quick else []:
        starts = {name: _start(rows, collator, workers) for name, collator in collators.items()}
        subject = "data loading, start of the workers and a batch"
        yield Case(subject, {"workers": workers}, "workers", starts, 0, _unlike, wall_seconds)


class Stock:
    """Stock's processor for images and prompts, and what makes rows for training of that: answers behind, and labels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        from PIL import Image

        images = [Image.open(row["images"][0]).convert("RGB") for row in rows]
        batch = self.processor(images=images, text=[row["prompt"] for row in rows], padding=True, return_tensors="pt")
        tokenizer = self.processor.tokenizer
        answers = tokenizer(
            [row["completion"] + tokenizer.eos_token for row in rows], add_special_tokens=False
        ).input_ids
        prompts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        both = [(prompt, torch.tensor(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
        whole = [torch.cat(pair) for pair in both]
        labels = [torch.cat([torch.full_like(prompt, -100), answer]) for prompt, answer in both]
        batch["input_ids"] = pad_sequence(whole, batch_first=True, padding_value=tokenizer.pad_token_id)
        batch["attention_mask"] = pad_sequence([torch.ones_like(ids) for ids in whole], batch_first=True)
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=-100)
        return batch


def _loader(rows: list[Any], collate: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(rows, BATCH, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]


def _epoch(loader: DataLoader[Any]) -> Callable[[], list[dict[str, torch.Tensor]]]:
    return lambda: [dict(batch) for batch in loader]


def _start(rows: list[Any], collate: Any, workers: int) -> Callable[[], list[dict[str, torch.Tensor]]]:
    return lambda: [dict(next(iter(_loader(rows, collate, workers))))]


def _unlike(expected: list[dict[str, torch.Tensor]], found: list[dict[str, torch.Tensor]]) -> float:
    """0 if all tensors of all batches are equal, else 1."""
    return float(
        len(expected) != len(found)
        or any(
            one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one)
            for one, other in zip(expected, found, strict=True)
        )
    )
