"""Processor of InstructBLIP: images and instructions for the language model and for the Q-Former.

The instruction is tokenised twice (section 2.3 of the paper): for the language model after the placeholders of the
image, and for the Q-Former, which reads it beside its queries. Class name and files are those of transformers, so
folders are exchanged in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..chat import DEFAULT_CHAT_TEMPLATE
from ..processing_base import NO_LIMIT, VisionLanguageProcessor


# BERT's positions, for Q-Former tokenizers that were saved without a limit.
_BERT_POSITIONS = 512


class InstructBlipProcessor(VisionLanguageProcessor):
    """Turns images and text into inputs of `InstructBlipForConditionalGeneration`, and its outputs into text.

    Args:
        image_processor (`BaseImageProcessor`): Resizes and normalises RGB images.
        tokenizer (`PreTrainedTokenizerBase`):
            Of the language model. `<image>` is added to it as a special token where it has no image token.
        qformer_tokenizer (`PreTrainedTokenizerBase`): Of the Q-Former, with CLS and SEP tokens.
        num_query_tokens (`int`, *optional*):
            Queries of the Q-Former, the number of placeholders an image has in the prompt. Needed wherever images
            and text come together.
        chat_template (`str` or `dict[str, str]`, *optional*, defaults to `DEFAULT_CHAT_TEMPLATE`):
            Jinja template for `apply_chat_template`, saved and loaded with the processor.
        max_qformer_length (`int`, *optional*):
            Most tokens of an instruction in the Q-Former, CLS and SEP included; LAVIS trains with 128. By default,
            and at most, ``qformer_tokenizer.model_max_length`` (512 where that is not set). Longer text is cut.
        end_token (`str`, *optional*):
            What ends an answer, one token of the language model; by default the tokenizer's end token. BLIP-2's models
            with OPT, which InstructBLIP may start from, end theirs with a newline.

    Raises:
        ValueError: If ``end_token`` is not one token.
    """

    qformer_tokenizer: Any

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        qformer_tokenizer: Any,
        num_query_tokens: int | None = None,
        chat_template: str | dict[str, str] | None = None,
        max_qformer_length: int | None = None,
        end_token: str | None = None,
    ) -> None:
        self.end_token = end_token
        self.image_token = self._adopt_image_token(tokenizer)
        self.num_query_tokens = num_query_tokens
        self.max_qformer_length = max_qformer_length
        super().__init__(
            image_processor,
            tokenizer,
            qformer_tokenizer,
            chat_template=chat_template if chat_template is not None else DEFAULT_CHAT_TEMPLATE,
        )
        _ = self.end_token_id  # an end token that cannot be one is told here

    @property
    def model_input_names(self) -> list[str]:
        """Names of all inputs the processor can make."""
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        return [*names, "qformer_input_ids", "qformer_attention_mask"]

    def _instruction_inputs(self, instructions: Sequence[str], image_counts: Sequence[int]) -> dict[str, Any]:
        if self.qformer_tokenizer.cls_token is None:
            raise ValueError(
                "qformer_tokenizer has no CLS token, so it is not the Q-Former's (BERT's in published checkpoints); "
                "in a saved processor it is in the folder qformer_tokenizer/"
            )
        limits = [self.qformer_tokenizer.model_max_length, self.max_qformer_length]
        limit = min((value for value in limits if value is not None and value < NO_LIMIT), default=_BERT_POSITIONS)
        repeated = [text for text, count in zip(instructions, image_counts) for _ in range(count)]
        encoding = self.qformer_tokenizer(
            repeated,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=limit,
            return_attention_mask=True,
            return_token_type_ids=False,
        )
        return {
            "qformer_input_ids": encoding["input_ids"],
            "qformer_attention_mask": encoding["attention_mask"],
        }


__all__ = ["InstructBlipProcessor"]
