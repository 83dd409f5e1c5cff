"""Vision tower and Q-Former, by batch and by size of the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from harness import Case
from options import Options

from models import Pair, image_tensor, text_tensors


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    batches = [1, 4] if options.device == "cpu" else [1, 8, 64]
    for batch in batches if not options.is_quick else [2]:
        yield _case(options, pair, "batch", batch, 224)
    for size in [336, 448] if not options.is_quick else [238]:
        yield _case(options, pair, "size", 1, size)


def _case(options: Options, pair: Pair, axis: str, batch: int, size: int) -> Case:
    tensors = {
        **text_tensors(batch, 32, options.device, "qformer_input_ids"),
        "pixel_values": image_tensor(batch, options.device, size),
    }

    def runner(model: Any, **extra: Any) -> Any:
        @torch.no_grad()
        def run() -> torch.Tensor:
            return model.get_image_features(**tensors, interpolate_pos_encoding=size != 224, **extra).pooler_output

        return run

    variants = {"stock": runner(pair.stock), "ours": runner(pair.ours, queries_only=True)}
    return Case(
        "vision tower and Q-Former",
        {"batch": batch, "size": size},
        axis,
        variants,
        tensors=tensors,
        modules=pair.modules,
    )
