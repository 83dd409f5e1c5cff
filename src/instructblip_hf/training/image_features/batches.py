"""Batches with features in the place of pixels: read where batches are made, completed before the model is called.

The collator, perhaps in a worker process without a model, reads the features that are there and makes pixels of the
other images. The trainer has the tower compute those, keeps them, and hands all features to the model. Every distinct
image of a batch is there once; ``image_index`` says which is meant where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...utils.image_content import ContentReader, ImageContent
from .store import FeatureStore
from .tower import FrozenTower


MISSING_KEYS = "missing_image_keys"
"""Under which a batch has the keys of the images in its ``pixel_values``, of shape (images, 32), as bytes."""

PLACES = "image_places"
"""Under which such a batch says where its distinct images are, in the order of the rows: shape (images,), counted
through those with features and then through those with pixels."""


class FeatureReader:
    """The images of a batch as inputs of the model: features where there are some, pixels elsewhere.

    Args:
        store (`FeatureStore`): Where features are.
        image_processor (`BaseImageProcessor`): Makes pixels of images.
        argument (`str`): Under which the model takes features, see `FrozenTower`.
    """

    def __init__(self, store: FeatureStore, image_processor: Any, argument: str) -> None:
        self.store = store
        self.image_processor = image_processor
        self.argument = argument
        self.content = ContentReader()

    def open_image(self, source: Any) -> ImageContent:
        """For datasets, in the place of `load_image`: decodes an image only if there are no features of it.

        Raises:
            ValueError: As `load_image`.
        """
        content = self.content(source)
        if self.store.key(content.digest) in self.store:
            return content
        return ImageContent(content.digest, content.load())

    def __call__(self, image_lists: Sequence[Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Inputs for the images of rows.

        Args:
            image_lists (`Sequence[Sequence]`): The images of each row, of any kind that `load_image` takes, or opened
                by `open_image`.

        Returns:
            Every distinct image once: its features under ``argument``, shape (images found, tokens, hidden), or where
            there are none its ``pixel_values``, shape (images missing, 3, height, width), with `MISSING_KEYS` and
            `PLACES`. Where images repeat also ``image_index``, shape (images in the rows,).

        Raises:
            ValueError: If an image cannot be read, naming its row in the batch.
        """
        occurrences: list[str] = []
        images: dict[str, ImageContent] = {}
        for row, sources in enumerate(image_lists):
            for index, source in enumerate(sources):
                try:
                    content = self.content(source)
                except ValueError as error:
                    raise ValueError(f"image {index} of row {row}: {error}") from error
                key = self.store.key(content.digest)
                occurrences.append(key)
                images.setdefault(key, content)
        found = {key: features for key in images if (features := self.store.get(key)) is not None}
        missing = [key for key in images if key not in found]
        inputs: dict[str, torch.Tensor] = {}
        if found:
            inputs[self.argument] = torch.stack(list(found.values()))
        if missing:
            loaded = [images[key].load() for key in missing]
            inputs["pixel_values"] = self.image_processor(loaded, return_tensors="pt")["pixel_values"]
            inputs[MISSING_KEYS] = torch.tensor([list(bytes.fromhex(key)) for key in missing], dtype=torch.uint8)
            places = {key: place for place, key in enumerate([*found, *missing])}
            inputs[PLACES] = torch.tensor([places[key] for key in images])
        if len(images) < len(occurrences):
            order = {key: place for place, key in enumerate(images)}
            inputs["image_index"] = torch.tensor([order[key] for key in occurrences])
        return inputs


class ImageFeatures:
    """Kept features of a model's frozen vision tower, for `VisionLanguageTrainer`.

    Args:
        model (`PreTrainedModel`): With whole weights, before it is wrapped for several processes.
        image_processor (`BaseImageProcessor`): Makes pixels of images.
        folder (`str` or `Path`): Where features are kept.
        dtype (`torch.dtype`, *optional*): To keep features in. Defaults to what they are computed in.
        autocast (`torch.dtype`, *optional*): Of the training's mixed precision.

    Attributes:
        tower (`FrozenTower`): Computes what is missing.
        store (`FeatureStore`): Where features are.
        reader (`FeatureReader`): For the collator, and for datasets that open images.

    Raises:
        ValueError: If the folder holds something else, or weights are spread over processes.
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        folder: Any,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.tower = FrozenTower(model, autocast)
        facts = _said_by_first_process(lambda: self.tower.facts(image_processor, dtype))
        self.store = FeatureStore(folder, facts)
        self.reader = FeatureReader(self.store, image_processor, self.tower.argument)

    def complete(self, inputs: Any, is_sharded: bool = False, share_images: bool = True) -> Any:
        """A batch with features of all its images; those that were missing are computed and kept.

        Args:
            inputs (`Mapping`): Of a collator with a `FeatureReader`; changed in place. Others are left as they are.
            is_sharded (`bool`, *optional*, defaults to `False`): Whether the tower's weights are spread over
                processes, so that it cannot be called on its own.
            share_images (`bool`, *optional*, defaults to `True`):
                Whether an image that repeats stays there once, with ``image_index``.

        Returns:
            `inputs`, with features of all distinct images in the order of the rows, as without kept features.

        Raises:
            ValueError: If features are missing and cannot be computed here.
            OSError: If they cannot be written.
        """
        argument = self.tower.argument
        keys = inputs.pop(MISSING_KEYS, None)
        features = inputs.pop(argument, None)
        if keys is not None:
            if is_sharded:
                raise ValueError(
                    f"{len(keys)} images of a batch have no features in {self.store.root}, and a tower whose weights "
                    "are spread over processes (FSDP, ZeRO-3) cannot compute them during training: compute them first "
                    "with instructblip features RECIPE"
                )
            computed = self.compute([bytes(key).hex() for key in keys.tolist()], inputs.pop("pixel_values"))
            features = computed if features is None else torch.cat([features, computed])
            features = features[inputs.pop(PLACES)]
        if features is None and is_sharded and "pixel_values" not in inputs:
            # The model would run the tower on a blank image, and wait for processes whose batches have features.
            raise ValueError(
                "a batch of rows without images cannot be trained on beside kept features where weights are spread "
                "over processes (FSDP): leave out data.image_features, or those rows"
            )
        if features is not None:
            if self.tower.autocast is None:
                features = features.to(self.tower.weight_dtype)
            if not share_images and "image_index" in inputs:
                features = features[inputs.pop("image_index")]
            inputs[argument] = features
        return inputs

    def compute(self, keys: Sequence[str], pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of images, computed and kept unless they are by now.

        Args:
            keys (`Sequence[str]`): Of the store.
            pixel_values (`torch.Tensor`): Shape (images, 3, height, width).

        Returns:
            `torch.Tensor`: Shape (images, image tokens, hidden), in the store's precision, where the pixels are.

        Raises:
            OSError: If they cannot be written.
        """
        # Batches are made ahead: the one before this, or another process, may have kept some of them by now.
        known: dict[int, torch.Tensor] = {}
        for place, key in enumerate(keys):
            if key in self.store and (features := self.store.get(key)) is not None:
                known[place] = features
        rest = [place for place in range(len(keys)) if place not in known]
        if rest:
            for place, features in zip(rest, self.tower(pixel_values[rest]).to("cpu", self.store.dtype)):
                self.store.put(keys[place], features)
                known[place] = features
        return torch.stack([known[place] for place in range(len(keys))]).to(pixel_values.device)


def _said_by_first_process(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same for all processes: with FSDP's frugal loading the first one alone has weights at the start."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return make()
    said: list[Any] = [make() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(said, src=0)
    content: dict[str, Any] = said[0]
    return content


__all__ = ["MISSING_KEYS", "FeatureReader", "ImageFeatures"]
