"""Answers: greedy ones, and beams, by batch: stock, LAVIS's own method, and this package's. Tokens must be equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Case, unlike
from lavis_models import Tokens
from options import Options

from models import Pair, image_tensor, prompt


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    theirs = options.lavis.instruct(pair.stock) if options.lavis is not None else None
    batches = [1, 4] if options.device == "cpu" else [1, 8, 32]
    for batch in batches if not options.is_quick else [2]:
        yield _case(options, pair, theirs, "generation, 32 tokens", batch, 1, 32)
    for batch in batches if not options.is_quick else [2]:
        yield _case(options, pair, theirs, "generation, 5 beams, 5 tokens", batch, 5, 5)


def _case(options: Options, pair: Pair, theirs: Any, subject: str, batch: int, beams: int, tokens: int) -> Case:
    tensors = {**prompt(batch, 32, options.device), "pixel_values": image_tensor(batch, options.device)}
    prompt_ids = tensors["input_ids"]

    def runner(model: Any, **extra: Any) -> Callable[[], torch.Tensor]:
        @torch.no_grad()
        def run() -> torch.Tensor:
            length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            ids = model.generate(**tensors, do_sample=False, num_beams=beams, **length, **extra)
            return ids[:, prompt_ids.shape[1] :]

        return run

    def lavis() -> torch.Tensor:
        theirs.tokenizer = theirs.llm_tokenizer = Tokens(tensors["qformer_input_ids"])
        length = prompt_ids.shape[1] + tokens  # today's transformers takes the prompt off again
        answers = theirs.generate(
            {"image": tensors["pixel_values"], "prompt": [""] * batch},
            num_beams=beams,
            max_length=length,
            min_length=length,
            repetition_penalty=1.0,
        )
        return torch.tensor([[int(word) for word in answer.split()] for answer in answers], device=prompt_ids.device)

    # On a GPU steps are compiled with it, which transformers does for greedy search alone.
    fixed = {"cache_implementation": "static"} if options.device == "cuda" and beams == 1 else None
    variants = {"stock": runner(pair.stock)}
    if fixed is not None:
        variants["stock, static cache"] = runner(pair.stock, **fixed)
    if theirs is not None:
        variants["LAVIS"] = lavis
    variants["ours"] = runner(pair.ours)
    if fixed is not None:
        variants["ours, static cache"] = runner(pair.ours, **fixed)
    return Case(
        subject,
        {"batch": batch},
        "batch",
        variants,
        0,
        unlike,
        tensors=tensors,
        modules=(*pair.modules, *([theirs] if theirs is not None else [])),
        missing={} if theirs is not None else {"LAVIS": "no --lavis"},
    )
