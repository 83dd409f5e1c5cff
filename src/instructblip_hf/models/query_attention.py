"""Where the queries of a Q-Former look: its cross-attention over the image, laid out on the image's patches.

In InstructBLIP the queries have read the instruction beside them (section 2.3 of the paper), so that the same image
gives other maps for other instructions; in BLIP-2 the maps are the image's alone. Works for every model that holds a
Q-Former, with any vision tower whose tokens end with the patches in reading order.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .connectors.qformer_model import QFormerModel


@dataclass
class QueryAttention:
    """Attention of the queries over one image. What a query spends on patches and other tokens adds up to 1.

    Attributes:
        maps (`torch.Tensor`): Shape (queries, rows, columns), float32 on the CPU: the share of each patch.
        others (`torch.Tensor`): Shape (queries, other tokens): the share of the tower's class and register tokens.
        image (`PIL.Image.Image`): The image as the model saw it, resized and cropped, which the maps lie over.
    """

    maps: torch.Tensor
    others: torch.Tensor
    image: Image.Image


def qformer_of(model: Any) -> QFormerModel | None:
    """The Q-Former that a model holds, or `None`."""
    return next((module for module in model.modules() if isinstance(module, QFormerModel)), None)


def reads_instruction(model: Any) -> bool:
    """Whether the Q-Former of a model, if it has one, reads the instruction beside its queries."""
    qformer = qformer_of(model)
    if qformer is None or "qformer_input_ids" not in inspect.signature(model.get_image_features).parameters:
        return False
    return bool(qformer.config.use_qformer_text_input)


@torch.no_grad()
def query_attention(
    model: Any, processor: Any, image: Any, instruction: str = "", layer: int | None = None
) -> QueryAttention:
    """Where each query of a model's Q-Former looks in an image, the mean over the heads.

    Args:
        model (`PreTrainedModel`): With a Q-Former, in evaluation mode, with any implementation of attention.
        processor (`ProcessorMixin`): Its processor.
        image: An image of any kind that `load_image` takes.
        instruction (`str`, *optional*, defaults to `""`): What the Q-Former reads beside the queries, where it does.
        layer (`int`, *optional*):
            Which of the layers with cross-attention, from 0, negative from the end; by default the mean over them.

    Returns:
        [`QueryAttention`]: ``maps`` of shape (queries, rows, columns).

    Raises:
        ValueError: If the model has no Q-Former or no such layer, or the tokens of its vision tower are no patch grid.
    """
    qformer = qformer_of(model)
    if qformer is None:
        raise ValueError(f"{type(model).__name__} has no Q-Former, whose queries could look at an image")
    text = {"text": instruction} if reads_instruction(model) else {}
    inputs = processor(images=image, **text, return_tensors="pt").to(model.device, model.dtype)
    taken = set(inspect.signature(model.get_image_features).parameters)
    with _recorded(qformer) as recorded:
        model.get_image_features(**{name: value for name, value in inputs.items() if name in taken})
    layers = torch.stack([one[0].float().mean(0) for one in recorded]).cpu()  # [layers, queries, image tokens]
    if layer is None:
        attention = layers.mean(0)
    elif -len(layers) <= layer < len(layers):
        attention = layers[layer]
    else:
        raise ValueError(f"layer is {layer}; the Q-Former has {len(layers)} with cross-attention, numbered from 0")
    height, width = inputs["pixel_values"].shape[-2:]
    patch_size = getattr(model.config.vision_config, "patch_size", None)
    rows, columns = patch_grid(attention.shape[1], height, width, patch_size)
    first = attention.shape[1] - rows * columns
    return QueryAttention(
        maps=attention[:, first:].unflatten(1, (rows, columns)),
        others=attention[:, :first],
        image=_seen_image(inputs["pixel_values"][0], processor.image_processor),
    )


def patch_grid(tokens: int, height: int, width: int, patch_size: int | Sequence[int] | None) -> tuple[int, int]:
    """Rows and columns of patches among a vision tower's tokens; tokens beyond them come first.

    Args:
        tokens (`int`): Tokens an image.
        height, width (`int`): Of the images, in pixels.
        patch_size (`int` or `tuple[int, int]`, *optional*): Pixels a patch; without it the patches are a square.

    Returns:
        `tuple[int, int]`: Rows and columns. A tower that merges patches has so many fewer.

    Raises:
        ValueError: If there is no such grid.
    """
    if patch_size is None:
        side = math.isqrt(tokens)
        if tokens - side * side > 1:
            raise ValueError(
                f"{tokens} tokens of a vision tower without patch_size are no square, nor one and a class"
            )
        return side, side
    down, across = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, columns = height // down, width // across
    merged = 1
    while rows * columns > tokens * merged * merged:
        merged *= 2
    if rows % merged or columns % merged or (merged > 1 and rows * columns != tokens * merged * merged):
        raise ValueError(
            f"{tokens} tokens of the vision tower are no grid of the {rows}x{columns} patches of an image of "
            f"{height}x{width} pixels"
        )
    return rows // merged, columns // merged


@contextlib.contextmanager
def _recorded(qformer: QFormerModel) -> Iterator[list[torch.Tensor]]:
    """Fills a list with the cross-attentions of the Q-Former's next pass, each (images, heads, queries, image tokens)."""
    recorded: list[torch.Tensor] = []

    def ask(module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**options, "output_attentions": True}

    def record(module: Any, arguments: Any, output: Any) -> None:
        recorded.extend(output.cross_attentions)

    implementation = qformer.config._attn_implementation
    hooks = [qformer.register_forward_pre_hook(ask, with_kwargs=True), qformer.register_forward_hook(record)]
    # Other implementations never form the probabilities.
    qformer.config._attn_implementation = "eager"
    try:
        yield recorded
    finally:
        qformer.config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()


def _seen_image(pixels: torch.Tensor, image_processor: Any) -> Image.Image:
    values = pixels.float().cpu()  # [3, height, width]
    if getattr(image_processor, "do_normalize", False):
        mean, std = (torch.tensor(getattr(image_processor, name)) for name in ("image_mean", "image_std"))
        values = values * std[:, None, None] + mean[:, None, None]
    if getattr(image_processor, "do_rescale", True):
        values = values / (image_processor.rescale_factor * 255)
    bytes_ = (values.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    return Image.fromarray(bytes_)


__all__ = ["QueryAttention", "patch_grid", "qformer_of", "query_attention", "reads_instruction"]
