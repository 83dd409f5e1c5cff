"""`ImageCache`: what a model computes of images and what does not depend on the question, so that it is computed once.

That is the vision tower's features, and behind them as much as the family allows. InstructBLIP's queries read the
instruction before they read the image, so of its Q-Former only the keys and values of cross-attention are the image's
alone; they are most of the work of cross-attention. Where no instruction is read, in BLIP-2 and LLaVA, all that stands in
the prompt for an image is.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn


def parts_of(model: Any) -> tuple[nn.Module, nn.Module]:
    """The vision tower and the connector of a model of this package, also of one that is wrapped."""
    tower, connector = (getattr(model, name) for name in model.image_side[:2])
    return tower, connector


WeightsVersion = tuple[int, int, tuple[Any, ...]]
"""What [`weights_version`] returns."""


def weights_version(parts: Iterable[nn.Module | nn.Parameter]) -> WeightsVersion:
    """How many weights there are, how often they have been changed in place, by the counters that torch keeps, and which
    adapters are at work.

    It costs no look at the values. Changes through ``.data``, as in the merging of adapters, are not counted.
    """
    count = changes = 0
    adapters: list[Any] = []
    for part in parts:
        for parameter in parameters_of(part):
            count += 1
            changes += 0 if parameter.is_inference() else parameter._version
        for module in part.modules() if isinstance(part, nn.Module) else ():
            is_off = getattr(module, "disable_adapters", None)  # peft's layers; transformers' models have a method
            if isinstance(is_off, bool):
                adapters.append((is_off, tuple(getattr(module, "active_adapters", ()))))
    return count, changes, tuple(adapters)


def parameters_of(part: nn.Module | nn.Parameter) -> Iterable[nn.Parameter]:
    """The weights of a module, or the one that is given."""
    return part.parameters() if isinstance(part, nn.Module) else (part,)


@dataclass(frozen=True, eq=False)
class CacheOrigin:
    """Which parts of which model computed a cache, and the state of their weights.

    Args:
        tower (`weakref.ref`): The vision tower.
        connector (`weakref.ref`): The connector.
        tower_version (`tuple`, *optional*): `None` where the features were given.
        connector_version (`tuple`, *optional*): Of what computed all that is kept beside the features.
    """

    tower: weakref.ref[nn.Module]
    connector: weakref.ref[nn.Module]
    tower_version: WeightsVersion | None
    connector_version: WeightsVersion | None


@dataclass(frozen=True, eq=False)
class ImageCache:
    """Images as a model keeps them, in rows; made by ``model.encode_images``.

    Example:

    ```python
    >>> cache = model.encode_images(pixel_values)  # two images
    >>> inputs = processor(text=["what color is it ?", "where is it ?", "what is it ?"], images=..., padding=True)
    >>> model.generate(**questions, image_cache=cache, image_index=torch.tensor([0, 0, 1]))
    ```

    Args:
        image_embeds (`torch.Tensor`): Shape (images, image tokens, width), what the connector reads.
        keys, values (`tuple[torch.Tensor]`, *optional*): Of every layer of the Q-Former with cross-attention, each of
            shape (images, image tokens, Q-Former hidden); none where ``features`` are there.
        features (`torch.Tensor`, *optional*): Shape (images, tokens an image, language model hidden): what stands in the
            prompt, of a connector that reads no instruction.
        origin ([`CacheOrigin`], *optional*): What computed it.
    """

    image_embeds: torch.Tensor
    keys: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor, ...] = ()
    features: torch.Tensor | None = None
    origin: CacheOrigin | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_embeds)

    def __reduce__(self) -> Any:
        raise TypeError(
            "an ImageCache belongs to a model in memory and cannot be saved; features on disk are kept by 'instructblip "
            "features' (docs/fast_training.md), or save its image_embeds and call model.encode_images(image_embeds=...)"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.image_embeds.device

    def select(self, rows: torch.Tensor | Sequence[int] | slice) -> ImageCache:
        """Some of the images, or some several times.

        Args:
            rows (`torch.LongTensor`, `Sequence[int]` or `slice`): Which; a slice shares memory with the whole.

        Returns:
            [`ImageCache`]

        Raises:
            IndexError: If there is no such image.
        """
        if isinstance(rows, slice):
            return self._each(lambda tensor: tensor[rows])
        index = torch.as_tensor(rows, dtype=torch.long, device=self.device)
        return self._each(lambda tensor: tensor[index])

    @staticmethod
    def cat(caches: Sequence[ImageCache]) -> ImageCache:
        """Images of several caches of one model, one after the other.

        Args:
            caches (`Sequence[ImageCache]`): At least one.

        Returns:
            [`ImageCache`]: A cache that holds copies.

        Raises:
            ValueError: If there is none, or they are of several models, or of weights that have changed in between, or
                differ in what they keep.
        """
        if not caches:
            raise ValueError("caches is empty; there must be at least one")
        first = caches[0]
        for number, cache in enumerate(caches[1:], start=1):
            if (len(cache.keys), cache.features is None) != (len(first.keys), first.features is None):
                raise ValueError(
                    f"cache {number} keeps other things than cache 0: both are to be made with the same vision_only, and in "
                    "the same mode of the model"
                )
            if not _same_origin(cache.origin, first.origin):
                raise ValueError(
                    f"cache {number} is of another model than cache 0, or its weights have changed in between"
                )
        joined = [torch.cat(tensors) for tensors in zip(*(cache._tensors() for cache in caches))]
        # Rows whose features were given say nothing of the tower's weights, others do.
        origins = [cache.origin for cache in caches if cache.origin is not None]
        told = [origin for origin in origins if origin.tower_version is not None]
        return replace(first._with(joined), origin=next(iter([*told, *origins]), None))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ImageCache:
        """A cache on another device or in another precision, such as a model has been moved to."""
        return self._each(lambda tensor: tensor.to(device=device, dtype=dtype))

    # --- for the models --------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        """Sees that a model may read it.

        Raises:
            ValueError: If it is of another model, or of the vision tower before its weights changed; or if the tower is to
                train and gets no gradient through it.
        """
        tower: nn.Module = model.image_tower
        if not self._is_of(model):
            raise ValueError(
                f"image_cache was made by another model than this {type(model).__name__}; each makes its own, with "
                "model.encode_images(...)"
            )
        if self.origin is None or self.origin.tower_version is None:
            return
        if weights_version([tower]) != self.origin.tower_version:
            raise ValueError(
                "image_cache is of the vision tower as it was before its weights changed: make a new one, with "
                "model.encode_images(...)"
            )
        trains = model.training and torch.is_grad_enabled() and not self.image_embeds.requires_grad
        if trains and any(parameter.requires_grad for parameter in tower.parameters()):
            raise ValueError(
                "the vision tower trains, and image_cache was made without gradients: freeze the tower, or call "
                "model.encode_images(...) in every step, outside of torch.no_grad()"
            )

    def still_holds(self, kept: torch.Tensor, parts: Sequence[nn.Module | nn.Parameter]) -> bool:
        """Whether something kept is what these weights would compute, gradients included.

        Args:
            kept (`torch.Tensor`): Keys, or features.
            parts (`Sequence[nn.Module | nn.Parameter]`): What computed it.
        """
        trains = any(one.requires_grad for part in parts for one in parameters_of(part))
        if trains and torch.is_grad_enabled() and not kept.requires_grad:
            return False
        return self.origin is not None and weights_version(parts) == self.origin.connector_version

    def check_precision(self, kept: torch.Tensor, part: nn.Module, name: str) -> None:
        """Sees that something kept is in the precision in which a part would compute it now; under autocast in any.

        Args:
            kept (`torch.Tensor`): Keys, or features.
            part (`nn.Module`): The linear layer that computes it; one that is quantised says nothing.
            name (`str`): Of that part, for the message.

        Raises:
            ValueError: If it is not.
        """
        weight = next(part.parameters())  # before those of adapters, whose precision does not count
        differs = weight.is_floating_point() and kept.dtype != weight.dtype
        if differs and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(
                f"image_cache is in {kept.dtype}, the {name} in {weight.dtype}: image_cache.to(dtype={weight.dtype})"
            )

    def _is_of(self, model: Any) -> bool:
        origin = self.origin
        return origin is not None and (origin.tower(), origin.connector()) == parts_of(model)

    def _tensors(self) -> list[torch.Tensor]:
        features = [] if self.features is None else [self.features]
        return [self.image_embeds, *self.keys, *self.values, *features]

    def _with(self, tensors: Sequence[torch.Tensor]) -> ImageCache:
        layers = len(self.keys)
        return replace(
            self,
            image_embeds=tensors[0],
            keys=tuple(tensors[1 : 1 + layers]),
            values=tuple(tensors[1 + layers : 1 + 2 * layers]),
            features=None if self.features is None else tensors[-1],
        )

    def _each(self, change: Any) -> ImageCache:
        return self._with([change(tensor) for tensor in self._tensors()])


def _same_origin(one: CacheOrigin | None, other: CacheOrigin | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.tower() is other.tower()
        and one.connector() is other.connector()
        and one.connector_version == other.connector_version
        and (None in (one.tower_version, other.tower_version) or one.tower_version == other.tower_version)
    )


def check_image_cache(cache: Any, model: Any, **other_images: Any) -> None:
    """Sees that ``image_cache`` is one, that a model may read it, and that images are not given in a second way.

    Raises:
        ValueError: If that is not so.
    """
    if not isinstance(cache, ImageCache):
        raise ValueError(
            f"image_cache must be an ImageCache, from model.encode_images(...), got {type(cache).__name__}"
        )
    given = [name for name, value in other_images.items() if value is not None]
    if given:
        raise ValueError(f"image_cache and {', '.join(given)} are both given; the cache stands in their place")
    cache.check(model)


__all__ = ["CacheOrigin", "ImageCache", "check_image_cache", "parameters_of", "parts_of", "weights_version"]
