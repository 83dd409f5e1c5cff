"""Many requests with answers of different lengths: padded batches, and continuous batching of as many rows at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from harness import Case, unlike
from options import Options

from models import IMAGE_TOKEN, QUERIES, Pair, image_tensor, ragged_text


IMAGES, ROWS = 4, 8
END_TOKENS = 5
"""Of so many tokens one ends an answer, as random weights end none by themselves: with `mid` answers have 1 to 64 tokens."""


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    for requests in [24] if options.device == "cpu" else [64, 256]:
        yield _case(options, pair, requests if not options.is_quick else 12, 64 if not options.is_quick else 8)


def _case(options: Options, pair: Pair, requests: int, tokens: int) -> Case:
    model = pair.ours
    text = ragged_text(requests, 24, 80, options.device)
    words = torch.cat([text["input_ids"].new_full((requests, QUERIES), IMAGE_TOKEN), text["input_ids"]], dim=1)
    mask = torch.cat([text["attention_mask"].new_ones(requests, QUERIES), text["attention_mask"]], dim=1)
    order = mask.argsort(dim=1, stable=True)  # padding comes to stand on the left
    inputs = {"input_ids": words.gather(1, order), "attention_mask": mask.gather(1, order)}
    inputs |= {f"qformer_{name}": value for name, value in text.items()}
    tensors = {"pixels": image_tensor(IMAGES, options.device)}
    vocabulary = model.config.text_config.vocab_size
    config = {"eos_token_id": list(range(7, vocabulary, END_TOKENS)), "do_sample": False, "max_new_tokens": tokens}
    index = torch.arange(requests) % IMAGES
    kept: dict[torch.dtype, Any] = {}

    def images(start: int) -> dict[str, Any]:
        dtype = tensors["pixels"].dtype
        if dtype not in kept:
            kept[dtype] = model.encode_images(tensors["pixels"])
        return {"image_cache": kept[dtype], "image_index": index[start : start + ROWS]}

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, requests, ROWS):
            batch = {name: value[start : start + ROWS] for name, value in inputs.items()}
            longest, most = _longest(batch["attention_mask"]), _longest(batch["qformer_attention_mask"])
            for name in ("input_ids", "attention_mask"):
                batch[name] = batch[name][:, -longest:]
                batch[f"qformer_{name}"] = batch[f"qformer_{name}"][:, :most]
            yield {**batch, **images(start)}

    @torch.no_grad()
    def padded() -> list[list[int]]:
        answers: list[list[int]] = []
        for batch in batches():
            answers += model.generate(**batch, **config, return_full_text=False).tolist()
        return [_ended(answer, config["eos_token_id"]) for answer in answers]

    @torch.no_grad()
    def together() -> list[list[int]]:
        collected = [request for batch in batches() for request in model.encode_requests(**batch)]
        own = copy.deepcopy(model.generation_config)
        own.update(**config)
        answers = model.generate_batch(requests=collected, generation_config=own, rows_at_once=ROWS)
        return [_ended(answer.generated_tokens, config["eos_token_id"]) for answer in answers]

    return Case(
        f"many requests, up to {tokens} tokens, {ROWS} rows at once",
        {"requests": requests},
        "requests",
        {"padded batches": padded, "continuous batching": together},
        0,
        unlike,
        tensors=tensors,
        modules=pair.modules,
        items=requests,
    )


def _longest(mask: torch.Tensor) -> int:
    return int(mask.sum(1).max())


def _ended(answer: list[int], ends: list[int]) -> list[int]:
    place = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[: place + 1]
