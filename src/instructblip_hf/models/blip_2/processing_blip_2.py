"""Processor of BLIP-2: images and prompts for the language model, or images and texts for the Q-Former.

Class name and files are those of transformers, so folders are exchanged in both directions. With the language model's
tokenizer it serves `Blip2ForConditionalGeneration`; with the Q-Former's (BERT's, and ``[DEC]`` as its BOS token) it
serves the models that compare images and texts.
"""

from __future__ import annotations

from typing import Any

from ..chat import DEFAULT_CHAT_TEMPLATE
from ..processing_base import VisionLanguageProcessor


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
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_query_tokens: int | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        self.image_token = self._adopt_image_token(tokenizer)
        self.num_query_tokens = num_query_tokens
        super().__init__(
            image_processor,
            tokenizer,
            chat_template=chat_template if chat_template is not None else DEFAULT_CHAT_TEMPLATE,
        )


__all__ = ["Blip2Processor"]
