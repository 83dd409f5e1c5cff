"""Processor of LLaVA: images and prompts for the language model, conversations, and answers back into text.

Class name, files and fields are those of transformers, so folders are exchanged in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..chat import DEFAULT_CHAT_TEMPLATE
from ..chat_templates import end_of_answer, find_chat_template
from ..conversation_rows import encode_conversation_rows
from ..processing_base import VisionLanguageProcessor
from ..training_rows import TrainingRows


class LlavaProcessor(VisionLanguageProcessor):
    """Turns images and text into inputs of LLaVA, and its outputs into text.

    Args:
        image_processor (`BaseImageProcessor`): Resizes, crops and normalises RGB images.
        tokenizer (`PreTrainedTokenizerBase`):
            Of the language model. `<image>` is added to it as a special token where it has no image token.
        patch_size (`int`, *optional*): Width of the vision tower's patches, in pixels.
        vision_feature_select_strategy (`str`, *optional*): As in the model's configuration; `"default"` leaves out one
            token of the tower.
        chat_template (`str` or `dict[str, str]`, *optional*, defaults to `DEFAULT_CHAT_TEMPLATE`):
            Jinja template for `apply_chat_template` or a name in `CHAT_TEMPLATES`, like `"v1"`; saved and loaded with the
            processor. Training learns what it has inside of ``{% generation %}``.
        image_token (`str`, *optional*, defaults to `"<image>"`): Where the tokenizer has none of its own.
        num_additional_image_tokens (`int`, *optional*, defaults to 0):
            Tokens of the tower beside those of patches: 1 for CLIP's class token.
        num_query_tokens (`int`, *optional*):
            Where the connector is a Q-Former: its queries, the number of placeholders an image has.
        split_at_images (`bool`, *optional*, defaults to `False`):
            Whether text between images is tokenised apart, as LLaVA's own code does. It makes a difference for LLaMA's
            tokenizer with ``legacy=False``, which then marks the first word after an image; stock transformers does not.

    Raises:
        ValueError: If ``chat_template`` is neither a template nor a name of one.
    """

    images_before_bos = False

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | dict[str, str] | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 0,
        num_query_tokens: int | None = None,
        split_at_images: bool = False,
    ) -> None:
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.image_token = self._adopt_image_token(tokenizer, image_token)
        self.num_additional_image_tokens = num_additional_image_tokens
        self.num_query_tokens = num_query_tokens
        self.split_at_images = split_at_images
        super().__init__(image_processor, tokenizer, chat_template=_templates(chat_template))

    @property
    def tokens_per_image(self) -> int:
        """Placeholder tokens that stand for one image in the prompt.

        Raises:
            ValueError: If ``patch_size`` is not set, or the image processor gives images of different sizes.
        """
        if self.num_query_tokens is not None:
            return self.num_query_tokens
        if self.patch_size is None:
            raise ValueError(
                "patch_size of the processor is None: set it to the vision tower's config.patch_size, so that prompts get "
                "as many placeholders an image as there are features"
            )
        height, width = self.image_size
        tokens = (height // self.patch_size) * (width // self.patch_size) + self.num_additional_image_tokens
        return tokens - 1 if self.vision_feature_select_strategy == "default" else tokens

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model gets, in pixels.

        Raises:
            ValueError: If the image processor gives images of different sizes.
        """
        crops = getattr(self.image_processor, "do_center_crop", False)
        name = "crop_size" if crops else "size"
        size: Any = getattr(self.image_processor, name)
        given = size if isinstance(size, Mapping) else vars(size)
        height, width = given.get("height"), given.get("width")
        if height is None or width is None:
            raise ValueError(
                f"{name} of the image processor is {size}; LLaVA needs images of one size: crop_size with "
                "do_center_crop=True, or a size with height and width"
            )
        return height, width

    def mark_images(self, text: str, images: int) -> str:
        """A prompt with `<image>` and a line break in front for each image, where no marker is written."""
        if self.image_token in text:
            return text
        return f"{self.image_token}\n" * images + text

    @property
    def stop_strings(self) -> list[str]:
        """Text that ends an answer where the chat template has no end token for it, for ``model.generate``.

        ``###`` of the template `v0`, a line break of `plain`; empty where the tokenizer's end token ends answers, and where
        the template does not tell, like that of the published folders, which writes a blank behind an answer.
        """
        end_token = self.tokenizer.eos_token
        end = end_of_answer(self._find_chat_template(None), eos_token=end_token, image_token=self.image_token)
        told = end is not None and end_token not in end and (end.strip() or "\n" in end)
        return [end] if end is not None and told else []

    def _encode_rows(self, examples: Sequence[Mapping[str, Any]], **options: Any) -> TrainingRows:
        """Tokens and labels of rows, tokenised as a whole."""
        return encode_conversation_rows(self, examples, **options)


def _templates(given: str | dict[str, str] | None) -> str | dict[str, str]:
    if isinstance(given, dict):
        return {name: find_chat_template(template) for name, template in given.items()}
    return DEFAULT_CHAT_TEMPLATE if given is None else find_chat_template(given)


__all__ = ["LlavaProcessor"]
