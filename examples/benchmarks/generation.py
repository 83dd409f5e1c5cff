"""Answers: greedy ones, and beams, by batch. Tokens must be equal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from harness import Case, unlike
from options import Options

from models import Pair, image_tensor, prompt


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    batches = [1, 4] if options.device == "cpu" else [1, 8, 32]
    for batch in batches if not options.is_quick else [2]:
        yield _case(options, pair, "generation, 32 tokens", batch, {"max_new_tokens": 32, "min_new_tokens": 32})
    for batch in batches if not options.is_quick else [2]:
        beams = {"num_beams": 5, "max_new_tokens": 5, "min_new_tokens": 5}
        yield _case(options, pair, "generation, 5 beams, 5 tokens", batch, beams)


def _case(options: Options, pair: Pair, subject: str, batch: int, decoding: dict[str, Any]) -> Case:
    tensors = {**prompt(batch, 32, options.device), "pixel_values": image_tensor(batch, options.device)}

    def runner(model: Any, **extra: Any) -> Any:
        @torch.no_grad()
        def run() -> torch.Tensor:
            return model.generate(**tensors, do_sample=False, **decoding, **extra)

        return run

    variants = {"stock": runner(pair.stock), "ours": runner(pair.ours)}
    if options.device == "cuda" and "num_beams" not in decoding:
        variants["ours, static cache"] = runner(pair.ours, cache_implementation="static")
    return Case(subject, {"batch": batch}, "batch", variants, 0, unlike, tensors=tensors, modules=pair.modules)
