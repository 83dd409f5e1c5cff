"""Q-Former and projection: stock, LAVIS's, compiled, and this package's, by batch and by length of the instruction.

The vision tower's features are there on all sides; what comes out is what stands in the prompt. Keys and values of all
layers are a table of their own: layer by layer, which is what every side does, and as one product of all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Case, relative_error
from lavis_models import features
from options import Options

from models import QUERIES, Pair, ragged_text, text_tensors


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    theirs = options.lavis.instruct(pair.stock) if options.lavis is not None else None
    batches = [1, 8] if options.device == "cpu" else [1, 8, 64, 256]
    for batch in batches if not options.is_quick else [2]:
        yield _case(options, pair, theirs, "batch", batch, 32)
    for text in [8, 128] if not options.is_quick else []:
        yield _case(options, pair, theirs, "text", 8, text)
    yield _ragged(options, pair, theirs, 32 if not options.is_quick else 3)
    for batch in batches if not options.is_quick else [2]:
        yield _keys_and_values(options, pair, batch)


def _case(options: Options, pair: Pair, theirs: Any, axis: str, batch: int, text: int) -> Case:
    tensors = {**text_tensors(batch, text, options.device), "image": _image(pair, batch, options.device)}
    whole = torch.ones(batch, QUERIES + text, dtype=torch.long, device=options.device)
    variants, missing, modules = _variants(options, pair, theirs, tensors, whole)
    return Case(
        "qformer", {"batch": batch, "text": text}, axis, variants, tensors=tensors, modules=modules, missing=missing
    )


def _ragged(options: Options, pair: Pair, theirs: Any, batch: int) -> Case:
    """Instructions of 4 to 76 tokens, as those of InstructBLIP's datasets; on one image, whose projections are shared."""
    text = ragged_text(batch, 21, 76, options.device)
    tensors = {**text, "image": _image(pair, batch, options.device)}
    whole = torch.cat([text["attention_mask"].new_ones(batch, QUERIES), text["attention_mask"]], dim=1)
    variants, missing, modules = _variants(options, pair, theirs, tensors, whole)
    return Case(
        "qformer, ragged text", {"batch": batch}, "batch", variants, tensors=tensors, modules=modules, missing=missing
    )


def _keys_and_values(options: Options, pair: Pair, batch: int) -> Case:
    """The weights lie in one piece beforehand, so that the product has the best of it; it comes out as views for attention."""
    qformer = pair.ours.qformer
    layers = qformer.key_and_value_layers()
    with torch.no_grad():
        tensors = {
            "image": _image(pair, batch, options.device),
            "weight": torch.cat([layer.weight for layer in layers]),
            "bias": torch.cat([layer.bias for layer in layers]),
        }

    @torch.no_grad()
    def by_layer() -> list[torch.Tensor]:
        return [one for both in qformer.keys_and_values(tensors["image"]) for one in both]

    @torch.no_grad()
    def one_product() -> tuple[torch.Tensor, ...]:
        states = torch.nn.functional.linear(tensors["image"], tensors["weight"], tensors["bias"])
        return states.chunk(len(layers), dim=-1)  # each [batch, image tokens, hidden]

    return Case(
        "keys and values of all layers",
        {"batch": batch},
        "batch",
        {"layer by layer": by_layer, "one product": one_product},
        compare=lambda expected, found: max(relative_error(one, other) for one, other in zip(expected, found)),
        tensors=tensors,
        modules=pair.modules,
    )


def _variants(
    options: Options, pair: Pair, theirs: Any, tensors: dict[str, torch.Tensor], mask: torch.Tensor
) -> tuple[dict[str, Callable[[], Any]], dict[str, str], tuple[Any, ...]]:
    @torch.no_grad()
    def lavis() -> torch.Tensor:
        return features(theirs, None, tensors["input_ids"], mask[:, QUERIES:], tensors["image"])

    variants: dict[str, Callable[[], Any]] = {"stock": _runner(pair.stock, pair.stock.qformer, tensors, mask)}
    missing = {}
    modules: tuple[Any, ...] = pair.modules
    if theirs is None:
        missing["LAVIS"] = "no --lavis"
    else:
        modules += (theirs,)
        variants["LAVIS"] = lavis
    if options.compile:
        compiled = torch.compile(pair.stock.qformer, mode="reduce-overhead" if options.device == "cuda" else None)
        variants["stock, compiled"] = _runner(pair.stock, compiled, tensors, mask)
    else:
        missing["stock, compiled"] = "no --compile"

    @torch.no_grad()
    def ours() -> torch.Tensor:
        text = {"qformer_input_ids": tensors["input_ids"], "qformer_attention_mask": mask[:, QUERIES:]}
        return pair.ours.get_image_features(image_embeds=tensors["image"], queries_only=True, **text).pooler_output

    variants["ours"] = ours
    return variants, missing, modules


def _runner(
    model: Any, qformer: Any, tensors: dict[str, torch.Tensor], mask: torch.Tensor
) -> Callable[[], torch.Tensor]:
    @torch.no_grad()
    def run() -> torch.Tensor:
        rows = len(mask)
        states = qformer(
            input_ids=tensors["input_ids"],
            attention_mask=mask,
            query_embeds=model.query_tokens.expand(rows, -1, -1),
            encoder_hidden_states=tensors["image"],
            encoder_attention_mask=mask.new_ones(tensors["image"].shape[:2]),
            return_dict=True,
        ).last_hidden_state
        return model.language_projection(states[:, :QUERIES])

    return run


def _image(pair: Pair, batch: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 257, pair.ours.image_embeds_size, generator=generator).to(device)
