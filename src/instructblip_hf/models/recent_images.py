"""The images that were asked about lately, so that the next question about one of them finds it encoded.

For whoever asks: conversations, evaluations, pipelines. An image is known by its pixels, wherever it comes from.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..utils.images import load_image
from ..utils.same_images import image_key
from .image_cache import ImageCache, weights_version


MOST_BYTES = 2**28
"""Of images that are kept, by default: about 50 of InstructBLIP with ViT-g in bfloat16, 5.4 MB each."""


class RecentImages:
    """Encodes images of questions, each once as long as it is asked about.

    Example:

    ```python
    >>> recent = RecentImages(model, processor)
    >>> inputs = processor(images=images, text=questions, image_inputs=recent, padding=True, return_tensors="pt")
    >>> model.generate(**inputs)
    ```

    Args:
        model (`VisionLanguageModel`):
            A model of this package, in evaluation mode. When its image side changes (weights, adapters, precision, place, or
            mode), what is kept is forgotten.
        processor (`ProcessorMixin`): Its processor.
        most_bytes (`int`, *optional*, defaults to 268435456): So much is kept, the latest first; images of one batch are
            there together in any case.
        images_at_once (`int`, *optional*):
            The vision tower runs on so many images at a time, with blank ones beside them where fewer are new. Then what is
            kept of an image does not depend on which others came with it. By default on all that are new.

    Raises:
        ValueError: If ``most_bytes`` or ``images_at_once`` is out of range.
    """

    def __init__(
        self, model: Any, processor: Any, most_bytes: int = MOST_BYTES, images_at_once: int | None = None
    ) -> None:
        if most_bytes < 0:
            raise ValueError(f"most_bytes is {most_bytes}; it must be at least 0")
        if images_at_once is not None and images_at_once < 1:
            raise ValueError(f"images_at_once is {images_at_once}; it must be at least 1")
        self.model, self.processor = model, processor
        self.most_bytes, self.images_at_once = most_bytes, images_at_once
        self._rows: OrderedDict[str, ImageCache] = OrderedDict()
        self._joined: tuple[tuple[str, ...], ImageCache] | None = None
        self._state: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Copies, also those in workers that read data, begin without images: these belong to the model here."""
        return {"model": self.model, "processor": self.processor, "most_bytes": self.most_bytes} | {
            "images_at_once": self.images_at_once
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, image_lists: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Inputs of the model for the images of prompts.

        Args:
            image_lists (`Sequence[Sequence]`): The images of each prompt, of any kind that `load_image` takes.

        Returns:
            `dict`: ``image_cache`` with every distinct image once, and ``image_index`` (images of the prompts,).

        Raises:
            ValueError: If an image cannot be read, naming its prompt.
        """
        images: dict[str, Any] = {}
        occurrences: list[str] = []
        for sample, sources in enumerate(image_lists):
            for place, source in enumerate(sources):
                try:
                    image = load_image(source)
                except ValueError as error:
                    raise ValueError(f"image {place} of sample {sample}: {error}") from error
                key = image_key(image)
                images.setdefault(key, image)
                occurrences.append(key)

        def pixels_of(places: Sequence[int]) -> torch.Tensor:
            loaded = list(images.values())
            pixels: torch.Tensor = self.processor.image_processor(
                [loaded[place] for place in places], return_tensors="pt"
            )["pixel_values"]
            return pixels

        return self.inputs(occurrences, list(images), pixels_of)

    def inputs(
        self,
        occurrences: Sequence[str],
        distinct: Sequence[str],
        pixels_of: Callable[[Sequence[int]], torch.Tensor],
    ) -> dict[str, Any]:
        """As [`__call__`], of images that are known by something else.

        Args:
            occurrences (`Sequence[str]`): What each image of the prompts is known by.
            distinct (`Sequence[str]`): The same, every image once.
            pixels_of (`Callable`): Pixels, shape (images, 3, height, width), of images by their places in ``distinct``.
        """
        with self._lock:
            state = self._state_of_model()
            if state != self._state:
                self.clear()
                self._state = state
            missing = [place for place, key in enumerate(distinct) if key not in self._rows]
            if missing:
                # In the order of the batch: features of pixels that are encoded together belong to their places.
                for place, row in zip(missing, self._encode(pixels_of(missing)), strict=True):
                    self._rows[distinct[place]] = row
            for key in distinct:
                self._rows.move_to_end(key)
            wanted = tuple(distinct)
            if self._joined is None or self._joined[0] != wanted or missing:
                rows = [self._rows[key] for key in wanted]
                self._joined = (wanted, rows[0] if len(rows) == 1 else ImageCache.cat(rows))
            cache = self._joined[1]
            self._forget(keep=len(distinct))
            order = {key: place for place, key in enumerate(wanted)}
            return {"image_cache": cache, "image_index": torch.tensor([order[key] for key in occurrences])}

    def clear(self) -> None:
        """Forgets all images."""
        self._rows.clear()
        self._joined = None

    def __len__(self) -> int:
        """Number of images that are kept."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the images that are kept one by one; those of the last batch are there a second time."""
        return sum(row.nbytes for row in self._rows.values())

    def _state_of_model(self) -> Any:
        """All that what is kept depends on, beside the pixels."""
        model = self.model
        own = [one for one in model._parameters.values() if one is not None]
        parts = [getattr(model, name) for name in model.image_side]
        places = [(part.training, *((p.dtype, p.device) for p in part.parameters())) for part in parts]
        return tuple(id(part) for part in parts), weights_version([*own, *parts]), model.training, places

    # Outside of inference mode, so that what is kept may be read by a pass with gradients later on.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, pixels: torch.Tensor) -> list[ImageCache]:
        """A cache of each image."""
        pixels = pixels.to(self.model.device, self.model.dtype)
        at_once = self.images_at_once or len(pixels)
        rows: list[ImageCache] = []
        for part in pixels.split(at_once):
            blank = part.new_zeros(at_once - len(part), *part.shape[1:])
            cache = self.model.encode_images(torch.cat([part, blank]) if len(blank) else part)
            # Copies, so that one that is kept does not keep its neighbours.
            rows += [cache.select([place]) for place in range(len(part))]
        return rows

    def _forget(self, keep: int) -> None:
        size = self.nbytes
        while size > self.most_bytes and len(self._rows) > keep:
            _, row = self._rows.popitem(last=False)
            size -= row.nbytes
        if size > self.most_bytes:
            self.clear()


__all__ = ["MOST_BYTES", "RecentImages"]
