"""Processor of BLIP-2: images and prompts for the language model, or images and texts for the Q-Former.

Class name and files are those of transformers, so folders are exchanged in both directions. With the language model's
tokenizer it serves `Blip2ForConditionalGeneration`; with the Q-Former's (BERT's, and ``[DEC]`` as its BOS token) it
serves the models that compare images and texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import BatchFeature

from ...utils.image_content import ContentReader
from ..chat import DEFAULT_CHAT_TEMPLATE
from ..processing_base import VisionLanguageProcessor
from .caption_rows import numbers_of_images, read_captions, tokenize_captions


class Blip2Processor(VisionLanguageProcessor):
    """Turns images and text into inputs of BLIP-2's models, and their outputs into text.

    Args:
        image_processor (`BaseImageProcessor`): Resizes and normalises RGB images.
        tokenizer (`PreTrainedTokenizerBase`):
            Of the language model, or of the Q-Former. `<image>` is added to it as a special token where it has no
            image token.
        num_query_tokens (`int`, *optional*):
            Queries of the Q-Former, the number of placeholders an image has in the prompt. Needed wherever images
            and text come together.
        chat_template (`str` or `dict[str, str]`, *optional*, defaults to `DEFAULT_CHAT_TEMPLATE`):
            Jinja template for `apply_chat_template`, saved and loaded with the processor.
        end_token (`str`, *optional*):
            What ends an answer, one token of the language model; by default the tokenizer's end token. BLIP-2's models
            with OPT end captions with a newline (LAVIS `blip2_opt.py`).

    Raises:
        ValueError: If ``end_token`` is not one token.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_query_tokens: int | None = None,
        chat_template: str | dict[str, str] | None = None,
        end_token: str | None = None,
    ) -> None:
        self.end_token = end_token
        self.image_token = self._adopt_image_token(tokenizer)
        self.num_query_tokens = num_query_tokens
        super().__init__(
            image_processor,
            tokenizer,
            chat_template=chat_template if chat_template is not None else DEFAULT_CHAT_TEMPLATE,
        )
        _ = self.end_token_id  # an end token that cannot be one is told here

    def encode_captions(
        self,
        examples: Sequence[Mapping[str, Any]],
        max_length: int = 32,
        timeout: float | None = 20.0,
        return_tensors: str | None = "pt",
        image_ids: Sequence[int] | None = None,
        image_inputs: Callable[[Sequence[Sequence[Any]]], Mapping[str, Any]] | None = None,
    ) -> BatchFeature:
        """Prepare images and their captions for [`Blip2ForPreTraining`]; the tokenizer is the Q-Former's.

        Args:
            examples (`Sequence[Mapping]`):
                Rows in TRL's form with one image in ``"images"`` or ``"image"``; the caption is the ``"completion"``, or
                the last turn of ``"messages"``. Prompts are not read.
            max_length (`int`, *optional*, defaults to 32): Most tokens of a caption, `[CLS]` and `[SEP]` included.
            timeout (`float`, *optional*, defaults to 20.0): Seconds for an image to be downloaded.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"`, `"np"` or `None` for lists.
            image_ids (`Sequence[int]`, *optional*):
                Of [`image_numbers`]: which rows show the same image. Their captions are then right for all of them, as
                LAVIS has it in retrieval finetuning.
            image_inputs (`Callable`, *optional*):
                Makes model inputs of the images of all rows, a list for each, in place of the image processor.

        Returns:
            `BatchFeature`: ``pixel_values`` (rows, 3, height, width); ``input_ids``, ``attention_mask``,
            ``decoder_input_ids`` and ``labels`` (rows, tokens), right-padded; and ``image_ids`` (rows,) where
            they were given.

        Raises:
            ValueError: If a row has not one image and a caption, or the tokenizer is not the Q-Former's.
        """
        images, captions = read_captions(examples)
        data: dict[str, Any] = tokenize_captions(self.tokenizer, captions, max_length)
        if image_ids is not None:
            data["image_ids"] = list(image_ids)
        if image_inputs is not None:
            data.update(image_inputs(images))
        else:
            data.update(self._image_inputs(images, {"return_tensors": return_tensors}, timeout, "row"))
        return BatchFeature(data, tensor_type=return_tensors)

    def image_numbers(self, examples: Sequence[Mapping[str, Any]]) -> list[int]:
        """A number for each row's image: the same for the same content, also in other batches and processes.

        Args:
            examples (`Sequence[Mapping]`): As for [`encode_captions`].

        Raises:
            ValueError: If a row has not one image and a caption, or an image cannot be read.
        """
        images, _ = read_captions(examples)
        reader = self.__dict__.setdefault("_content_reader", ContentReader())
        return numbers_of_images(images, reader)


__all__ = ["Blip2Processor"]
