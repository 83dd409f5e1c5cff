"""Images of another size, for good: a vision tower's positions resampled once, as BLIP-2 finetunes at 364 and 490 pixels.

``interpolate_pos_encoding`` resamples in every pass and leaves the weights as they are; here the tower becomes one for
images of the new size, as LAVIS's loader makes it (`eva_vit.py`, ``interpolate_pos_embed``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .eva_vit_model import EvaVitModel


@torch.no_grad()
def resize_images(model: Any, image_size: int, processor: Any = None) -> None:
    """Makes a model take images of another size; whatever its positions were trained at, they are resampled bicubically.

    Args:
        model (`PreTrainedModel`): With a ``vision_model`` of the EVA kind; changed in place, its configuration too.
        image_size (`int`): Side of the images in pixels, a multiple of the side of a patch.
        processor (`ProcessorMixin`, *optional*): Whose image processor is to make images of that size.

    Raises:
        ValueError: If the tower is of another kind, or the size is no multiple of its patches'.
    """
    tower = model.vision_model
    if not isinstance(tower, EvaVitModel):
        raise ValueError(
            f"image_size: the vision tower is a {type(tower).__name__}, whose positions this package does not resample; "
            "give it weights for that size"
        )
    embeddings = tower.embeddings
    height, width = embeddings.patch_size
    if image_size % height or image_size % width:
        raise ValueError(f"image_size is {image_size}; it must be a multiple of the patches' side, {height}x{width}")
    grid = (image_size // height, image_size // width)
    if grid != embeddings.grid:
        positions = embeddings.positions(grid).clone()
        requires_grad = embeddings.position_embedding.requires_grad
        embeddings.position_embedding = nn.Parameter(positions, requires_grad=requires_grad)
        embeddings.grid = grid
        embeddings.image_size = (image_size, image_size)
        for config in (tower.config, model.config.vision_config):
            config.image_size = image_size
    if processor is not None:
        size = {"height": image_size, "width": image_size}
        processor.image_processor.size = size
        if getattr(processor.image_processor, "do_center_crop", False):
            processor.image_processor.crop_size = size


__all__ = ["resize_images"]
