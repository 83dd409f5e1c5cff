"""Several questions on an image: stock and LAVIS, which repeat the image, and this package, which reads it once or keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Case
from lavis_models import features
from options import Options

from instructblip_hf import InstructBlipForConditionalGeneration
from models import Pair, image_tensor, text_tensors


TEXT = 32


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    theirs = options.lavis.instruct(pair.stock) if options.lavis is not None else None
    for case in (_whole, _qformer_alone):
        for questions in options.questions if not options.is_quick else [2]:
            yield case(options, pair, theirs, questions)


def _whole(options: Options, pair: Pair, theirs: Any, questions: int) -> Case:
    """Vision tower, Q-Former and projection."""
    tensors = {**_text(questions, options.device), "pixels": image_tensor(1, options.device)}
    index = torch.zeros(questions, dtype=torch.long, device=options.device)

    @torch.no_grad()
    def stock() -> torch.Tensor:
        return _features(pair.stock, tensors, pixel_values=tensors["pixels"].expand(questions, -1, -1, -1))

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return _features(pair.ours, tensors, pixel_values=tensors["pixels"], image_index=index)

    @torch.no_grad()
    def lavis() -> torch.Tensor:
        text = (tensors["qformer_input_ids"], tensors["qformer_attention_mask"])
        return features(theirs, tensors["pixels"].expand(questions, -1, -1, -1), *text)

    variants: dict[str, Callable[[], Any]] = {"stock": stock, "LAVIS": lavis, "ours": ours}
    return _point("questions an image", questions, variants, tensors, pair, theirs)


def _qformer_alone(options: Options, pair: Pair, theirs: Any, questions: int) -> Case:
    """Image features are there on both sides; this package also keeps the keys and values of cross-attention."""
    generator = torch.Generator().manual_seed(4)
    embeds = torch.randn(1, 257, pair.ours.image_embeds_size, generator=generator).to(options.device)
    tensors = {**_text(questions, options.device), "embeds": embeds}
    index = torch.zeros(questions, dtype=torch.long, device=options.device)
    kept: dict[torch.dtype, Any] = {}

    @torch.no_grad()
    def stock() -> torch.Tensor:
        states = pair.stock.qformer(
            input_ids=tensors["qformer_input_ids"],
            attention_mask=torch.ones(questions, pair.stock.query_tokens.shape[1] + TEXT, device=options.device),
            query_embeds=pair.stock.query_tokens.expand(questions, -1, -1),
            encoder_hidden_states=tensors["embeds"].expand(questions, -1, -1),
        ).last_hidden_state[:, : pair.stock.query_tokens.shape[1]]
        return pair.stock.language_projection(states)

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return _features(pair.ours, tensors, image_embeds=tensors["embeds"], image_index=index)

    @torch.no_grad()
    def ours_kept() -> torch.Tensor:
        dtype = tensors["embeds"].dtype
        if dtype not in kept:
            kept[dtype] = pair.ours.encode_images(image_embeds=tensors["embeds"])
        return _features(pair.ours, tensors, image_cache=kept[dtype], image_index=index)

    @torch.no_grad()
    def lavis() -> torch.Tensor:
        text = (tensors["qformer_input_ids"], tensors["qformer_attention_mask"])
        return features(theirs, None, *text, tensors["embeds"].expand(questions, -1, -1))

    variants: dict[str, Callable[[], Any]] = {
        "stock": stock,
        "LAVIS": lavis,
        "ours": ours,
        "ours, image kept": ours_kept,
    }
    return _point("questions an image, Q-Former alone", questions, variants, tensors, pair, theirs)


def _point(
    subject: str,
    questions: int,
    variants: dict[str, Callable[[], Any]],
    tensors: dict[str, torch.Tensor],
    pair: Pair,
    theirs: Any,
) -> Case:
    modules, missing = pair.modules, {}
    if theirs is None:
        del variants["LAVIS"]
        missing["LAVIS"] = "no --lavis"
    else:
        modules += (theirs,)
    return Case(
        subject,
        {"questions": questions},
        "questions",
        variants,
        tensors=tensors,
        modules=modules,
        missing=missing,
    )


def _features(model: Any, tensors: dict[str, torch.Tensor], **images: Any) -> torch.Tensor:
    text: dict[str, Any] = {name: value for name, value in tensors.items() if name.startswith("qformer_")}
    if isinstance(model, InstructBlipForConditionalGeneration):
        text["queries_only"] = True  # as generate and ranking ask for them
    return model.get_image_features(**images, **text).pooler_output


def _text(questions: int, device: str) -> dict[str, torch.Tensor]:
    return text_tensors(questions, TEXT, device, "qformer_input_ids")
