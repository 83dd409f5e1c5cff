"""Kept features in a recipe: opened by its ``data.image_features``, and handed to the datasets that open images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import TrainingArguments

from ...data.jsonl import RowFileDataset
from ...data.mixture import MixtureDataset
from ...data.sources.datasets import open_images
from ...data.streaming import IndexedSource, StreamMixture
from ...data.templates import InstructionDataset
from ..recipe import Recipe
from .batches import ImageFeatures
from .tower import autocast_dtype


def open_image_features(recipe: Recipe, model: Any, processor: Any, args: TrainingArguments) -> ImageFeatures:
    """The kept features that a recipe names by ``data.image_features``.

    Args:
        recipe (`Recipe`): Of `load_recipe`.
        model (`PreTrainedModel`): Not wrapped yet.
        processor (`ProcessorMixin`): The model's.
        args (`TrainingArguments`): The recipe's.

    Raises:
        ValueError: As `ImageFeatures`, and if the recipe names no folder.
    """
    folder, dtype = recipe.data.image_features, recipe.data.image_features_dtype
    if folder is None:
        raise ValueError("the recipe names no folder for features: data.image_features is not set")
    return ImageFeatures(
        model,
        processor.image_processor,
        folder,
        dtype=getattr(torch, dtype) if dtype is not None else None,
        autocast=autocast_dtype(args),
    )


def open_images_with(dataset: Any, open_image: Callable[[Any], Any]) -> None:
    """Has the datasets of a recipe open images by `open_image`; those that hold images in memory have none to open.

    Args:
        dataset (`Any`): Of `open_dataset`; changed in place.
        open_image (`Callable`): In place of `load_image`.
    """
    opener = partial(open_images, open_image=open_image)
    if isinstance(dataset, StreamMixture):
        for name, source in dataset.sources.items():
            if isinstance(source, IndexedSource):
                open_images_with(source.dataset, open_image)
            elif source.open_images is open_images:
                dataset.sources[name] = replace(source, open_images=opener)
        return
    for part in dataset.datasets.values() if isinstance(dataset, MixtureDataset) else [dataset]:
        if isinstance(part, RowFileDataset):
            part.open_image = open_image
        elif isinstance(part, InstructionDataset) and part.open_images is open_images:
            part.open_images = opener


__all__ = ["open_image_features", "open_images_with"]
