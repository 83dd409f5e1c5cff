"""The frozen vision tower as a function of pixels: what may be kept of it, and how its weights are known again.

Of the EVA ViT the states before the last layer norm are kept, and the model applies the norm to them. So features stay
right while that norm trains, as in the published models, and under bf16 autocast they are kept without rounding, as the
blocks give bfloat16 and the norm may not. Of other towers ``last_hidden_state`` is kept, and of LLaVA's the states that
its connector reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments


LAST_NORM = "post_layernorm"
"""Module of a tower with ``image_states`` that they stand before."""

# What differs between configurations of one and the same computation.
_NOT_COMPUTED = (
    "architectures",
    "dtype",
    "initializer_factor",
    "initializer_range",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "transformers_version",
    "use_cache",
)


class FrozenTower:
    """The vision tower of a model, for computing features that are kept.

    Args:
        model (`PreTrainedModel`): A model of this package.
        autocast (`torch.dtype`, *optional*): Of the training's mixed precision; `None` for the weights' own.

    Attributes:
        argument (`str`): Argument of the model's ``forward`` that takes the features: ``"image_states"`` or
            ``"image_embeds"``.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None = None) -> None:
        self.module: nn.Module = model.image_tower
        self.autocast = autocast
        self._name: str = model.image_side[0]
        self._chosen_features = getattr(model, "tower_features", None)
        has_states = self._chosen_features is None and hasattr(self.module, "image_states")
        self.argument = "image_states" if has_states else "image_embeds"
        self._kept = f"before {LAST_NORM}" if has_states else "last_hidden_state"
        if self._chosen_features is not None:
            config = model.config
            self._kept = f"states {config.vision_feature_layers}, {config.vision_feature_select_strategy}"

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the frozen weights."""
        return next(parameter for _, parameter in self._frozen_parameters()).dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """What features are computed in."""
        return self.autocast or self.weight_dtype

    def facts(self, image_processor: Any, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """What features depend on beside the image, for a `FeatureStore`.

        Args:
            image_processor (`BaseImageProcessor`): Makes the pixels.
            dtype (`torch.dtype`, *optional*): To store features in; `compute_dtype` by default.

        Raises:
            ValueError: If weights are spread over processes, so that no one of them can tell what they are.
        """
        pixels = {name: value for name, value in image_processor.to_dict().items() if not name.startswith("_")}
        settings: dict[str, Any] = {
            "tower": type(self.module).__name__,
            "weights": self.weights_fingerprint(),
            "kept": self._kept,
            "computed_in": _name(self.compute_dtype),
            "dtype": _name(dtype or self.compute_dtype),
            "image_processor": {**pixels, "image_processor_type": type(image_processor).__name__},
        }
        return settings

    def weights_fingerprint(self) -> str:
        """Of configuration and frozen weights, 32 characters.

        Raises:
            ValueError: As `facts`.
        """
        config: Any = self.module.config
        shown = {
            name: value
            for name, value in config.to_dict().items()
            if name not in _NOT_COMPUTED and not name.startswith("_") and "drop" not in name
        }
        text = json.dumps(shown, sort_keys=True, default=str)
        fingerprint = hashlib.blake2b(text.encode(), digest_size=16)
        for name, tensor in [*self._frozen_parameters(), *self.module.named_buffers()]:
            if hasattr(tensor, "ds_id") or hasattr(tensor, "full_tensor") or tensor.is_meta:
                raise ValueError(
                    f"the vision tower's {name} is spread over processes, so features cannot be told apart by its "
                    "weights; data.image_features needs whole weights at the start: DDP, FSDP or ZeRO-1 and 2"
                )
            fingerprint.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            fingerprint.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return fingerprint.hexdigest()

    def check_frozen(self, frozen_dropout: Collection[str] = ()) -> None:
        """Raises unless everything stays as it is that features are computed with.

        Args:
            frozen_dropout (`Collection[str]`, *optional*): Frozen components of the model whose dropout is on.

        Raises:
            ValueError: Naming what trains or has dropout.
        """
        for name in frozen_dropout:
            if name.partition(".")[0] == self._name:
                raise ValueError(
                    f"features of a vision tower with dropout cannot be kept, and freezing.frozen_dropout names {name}: "
                    "leave it or data.image_features out"
                )
        trained = [name for name, parameter in self._frozen_parameters() if parameter.requires_grad]
        if not trained:
            return
        advice = "leave out data.image_features, or freeze the tower"
        if self._name == "vision_model" and all(name.startswith(f"{LAST_NORM}.") for name in trained):
            advice = "use the freezing preset instructblip-strict, which leaves that norm as it is"
        shown = ", ".join(f"{self._name}.{name}" for name in trained[:3]) + (", ..." if len(trained) > 3 else "")
        raise ValueError(f"features of a vision tower that trains cannot be kept, and {shown} trains: {advice}")

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of images, computed as the training computes them, without gradient and dropout.

        Args:
            pixel_values (`torch.Tensor`): Shape (images, 3, height, width).

        Returns:
            `torch.Tensor`: Shape (images, image tokens, hidden).
        """
        device = next(self.module.parameters()).device
        pixel_values = pixel_values.to(device)
        mixed: Any = contextlib.nullcontext()
        if self.autocast is not None:
            mixed = torch.autocast(device.type, dtype=self.autocast)
        module: Any = self.module
        with torch.no_grad(), mixed, _in_eval(self.module):
            if self._chosen_features is not None:
                features: torch.Tensor = self._chosen_features(pixel_values)
                return features
            if self.argument == "image_states":
                return module.image_states(pixel_values)
            return module(pixel_values=pixel_values, return_dict=True).last_hidden_state

    def _frozen_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.module.named_parameters():
            if self.argument == "image_embeds" or not name.startswith(f"{LAST_NORM}."):
                yield name, parameter


def autocast_dtype(args: TrainingArguments) -> torch.dtype | None:
    """Of a training's mixed precision."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else None


@contextlib.contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["FrozenTower", "autocast_dtype"]
