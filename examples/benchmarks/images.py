"""Vision tower and Q-Former, by batch and by size of the image: stock, LAVIS's, and this package's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Case
from lavis_models import features
from options import Options

from models import Pair, image_tensor, text_tensors


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    theirs = options.lavis.instruct(pair.stock) if options.lavis is not None else None
    batches = [1, 4] if options.device == "cpu" else [1, 8, 64]
    for batch in batches if not options.is_quick else [2]:
        yield _case(options, pair, theirs, "batch", batch, 224)
    for size in [336, 448] if not options.is_quick else [238]:
        theirs = options.lavis.instruct(pair.stock, size) if options.lavis is not None else None
        yield _case(options, pair, theirs, "size", 1, size)


def _case(options: Options, pair: Pair, theirs: Any, axis: str, batch: int, size: int) -> Case:
    tensors = {
        **text_tensors(batch, 32, options.device, "qformer_input_ids"),
        "pixel_values": image_tensor(batch, options.device, size),
    }

    def runner(model: Any, **extra: Any) -> Callable[[], torch.Tensor]:
        @torch.no_grad()
        def run() -> torch.Tensor:
            return model.get_image_features(**tensors, interpolate_pos_encoding=size != 224, **extra).pooler_output

        return run

    @torch.no_grad()
    def lavis() -> torch.Tensor:
        return features(
            theirs, tensors["pixel_values"], tensors["qformer_input_ids"], tensors["qformer_attention_mask"]
        )

    variants = {"stock": runner(pair.stock)}
    if theirs is not None:
        variants["LAVIS"] = lavis
    variants["ours"] = runner(pair.ours, queries_only=True)
    return Case(
        "vision tower and Q-Former",
        {"batch": batch, "size": size},
        axis,
        variants,
        tensors=tensors,
        modules=(*pair.modules, *([theirs] if theirs is not None else [])),
        missing={} if theirs is not None else {"LAVIS": "no --lavis"},
    )
