"""Rows of a dataset to batches, for Trainer and for a plain `DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .augmentation import CropAndFlip


@dataclass
class VisionLanguageCollator:
    """Collates rows of images, prompts and completions by the processor's ``encode_examples``.

    Args:
        processor (`ProcessorMixin`): A processor of this package.
        is_encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether the language model is sequence-to-sequence, as ``model.config.is_encoder_decoder`` says.
        max_prompt_length (`int`, *optional*): Most tokens before the last answer, placeholders included.
        max_completion_length (`int`, *optional*): Most tokens of the last answer, end token included.
        max_length (`int`, *optional*): Most tokens of a whole row, for processors that tokenise rows as a whole.
        pad_to_multiple_of (`int`, *optional*): Pads rows to such a length.
        return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.
        share_images (`bool`, *optional*, defaults to `False`):
            Whether an image of several rows is given once, with ``image_index``. Models of this package take it,
            stock transformers' do not.
        image_inputs (`Callable`, *optional*):
            Makes model inputs of the images of all rows, a list for each, in place of the image processor.
        augmentation ([`CropAndFlip`], *optional*): Changes the images of rows first.
    """

    processor: Any
    is_encoder_decoder: bool = False
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    share_images: bool = False
    image_inputs: Callable[[Sequence[Sequence[Any]]], Mapping[str, Any]] | None = None
    augmentation: CropAndFlip | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        """A batch of rows, see `InstructBlipProcessor.encode_examples` for rows, shapes and errors."""
        if self.augmentation is not None:
            examples = self.augmentation.rows(examples)
        return self.processor.encode_examples(
            examples,
            is_encoder_decoder=self.is_encoder_decoder,
            max_prompt_length=self.max_prompt_length,
            max_completion_length=self.max_completion_length,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors=self.return_tensors,
            share_images=self.share_images,
            image_inputs=self.image_inputs,
        )


@dataclass
class ImageTextCollator:
    """Collates rows of an image and its caption by the processor's ``encode_captions``, for BLIP-2's first stage.

    Args:
        processor (`Blip2Processor`): With the Q-Former's tokenizer.
        max_length (`int`, *optional*, defaults to 32): Most tokens of a caption, `[CLS]` and `[SEP]` included.
        same_image_targets (`bool`, *optional*, defaults to `False`):
            Whether rows of the same image share their captions as targets.
        image_inputs (`Callable`, *optional*): As in [`VisionLanguageCollator`].
        augmentation ([`CropAndFlip`], *optional*):
            Changes the images of rows first; which of them are the same is seen before that.
    """

    processor: Any
    max_length: int = 32
    same_image_targets: bool = False
    image_inputs: Callable[[Sequence[Sequence[Any]]], Mapping[str, Any]] | None = None
    augmentation: CropAndFlip | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        """A batch of rows, see `Blip2Processor.encode_captions` for rows, shapes and errors."""
        image_ids = self.processor.image_numbers(examples) if self.same_image_targets else None
        if self.augmentation is not None:
            examples = self.augmentation.rows(examples)
        return self.processor.encode_captions(
            examples, max_length=self.max_length, image_ids=image_ids, image_inputs=self.image_inputs
        )


__all__ = ["ImageTextCollator", "VisionLanguageCollator"]
