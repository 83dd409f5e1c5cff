"""InstructBLIP (Dai et al., 2023, arXiv 2305.06500): an instruction-aware Q-Former between a ViT and an LLM.

Walk: images go through the vision tower; learned queries, beside the tokens of the instruction, read them in the
Q-Former (section 2.3 of the paper); a linear projection takes the queries into the language model, where they stand
in the place of placeholder tokens. Class names, module names and parameter names are transformers' own, so
checkpoints are exchanged in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import CompileConfig, GenerationMixin
from transformers.utils import ModelOutput

from ..compiled_calls import compile_config_for, pad_instructions
from ..image_cache import ImageCache
from ..modeling_qformer import QFormerImageFeatures, QFormerLanguageModel, QFormerLanguageModelOutput
from .configuration_instructblip import InstructBlipConfig
from .modeling_instructblip_parts import InstructBlipQFormerModel, InstructBlipVisionModel


@dataclass
class InstructBlipForConditionalGenerationModelOutput(QFormerLanguageModelOutput):
    """Output of [`InstructBlipForConditionalGeneration`], a [`QFormerLanguageModelOutput`]."""


class InstructBlipForConditionalGeneration(QFormerLanguageModel, GenerationMixin):
    """InstructBLIP with any vision tower and any causal or sequence-to-sequence language model.

    Example:

    ```python
    >>> from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor, bundled_checkpoint
    >>> model = InstructBlipForConditionalGeneration.from_pretrained(bundled_checkpoint())
    >>> processor = InstructBlipProcessor.from_pretrained(bundled_checkpoint())
    >>> inputs = processor(images="scene.png", text="what color is the circle ?", return_tensors="pt")
    >>> processor.batch_decode(model.generate(**inputs, return_full_text=False), skip_special_tokens=True)
    ```
    """

    config: InstructBlipConfig
    config_class = InstructBlipConfig
    vision_class = InstructBlipVisionModel
    qformer_class = InstructBlipQFormerModel
    output_class = InstructBlipForConditionalGenerationModelOutput
    # In float16 the queries keep the precision they were trained in; the T5 parts that overflow are named by T5.
    _keep_in_fp32_modules = ["query_tokens"]
    _of_features_alone: ClassVar[dict[str, Any]] = {"queries_only": True}

    @staticmethod
    def _fit_qformer(qformer: Any, processor: Any) -> None:
        if qformer.config.use_qformer_text_input:
            qformer.resize_token_embeddings(max(len(processor.qformer_tokenizer), qformer.config.vocab_size))

    # --- images ---------------------------------------------------------------------------------------------------

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        image_index: torch.Tensor | None = None,
        image_cache: ImageCache | None = None,
        queries_only: bool = False,
        compile_config: CompileConfig | None = None,
    ) -> QFormerImageFeatures:
        """Vision tower, Q-Former and projection.

        Args:
            pixel_values (`torch.Tensor`, *optional*):
                Shape (images, 3, height, width), or (batch, frames, 3, height, width) for video.
            qformer_input_ids (`torch.LongTensor`, *optional*):
                Shape (images, text): for every image the instruction of its sample. For video also (batch, text).
                Needed unless the Q-Former has ``use_qformer_text_input=False``.
            qformer_attention_mask (`torch.Tensor`, *optional*): Same shape; by default all ones.
            image_embeds (`torch.Tensor`, *optional*):
                Shape (images, image tokens, vision hidden): features of the vision tower, in place of pixels.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            output_hidden_states (`bool`, *optional*): Also of vision tower and Q-Former.
            output_attentions (`bool`, *optional*): Also of vision tower and Q-Former; needs eager attention.
            image_index (`torch.LongTensor`, *optional*):
                Shape (images in the text,), in reading order: for each the row of ``pixel_values`` or
                ``image_embeds`` that it is, which then hold every image once, however often it is asked about. By
                default one each.
            image_cache ([`ImageCache`], *optional*):
                What [`encode_images`] kept of the images, in place of pixels and features; ``image_index`` then names its
                rows.
            queries_only (`bool`, *optional*, defaults to `False`):
                Whether nobody reads what the Q-Former makes of the text: its last layer then leaves it out, and
                ``qformer_outputs.last_hidden_state`` holds the queries alone.
            compile_config (`CompileConfig`, *optional*):
                Compiles vision tower and Q-Former, whose instructions are padded then; ``generate`` gives it with a cache of
                fixed size. Not for training.

        Returns:
            [`QFormerImageFeatures`]: ``pooler_output`` has shape (images, queries, language model hidden), with
            ``image_index`` (images in the text, queries, language model hidden).

        Raises:
            ValueError: If not one of pixels, features and a cache is given, the cache is of another model, an image lacks its instruction, or
                ``image_index`` does not fit or comes with video.
        """
        if compile_config is not None and qformer_input_ids is not None:
            qformer_input_ids, qformer_attention_mask = pad_instructions(
                qformer_input_ids, qformer_attention_mask, self.config.qformer_config.max_position_embeddings
            )
        return self._get_image_features(
            pixel_values,
            image_embeds,
            interpolate_pos_encoding,
            output_hidden_states,
            output_attentions,
            image_index,
            image_cache,
            compile_config,
            queries_only,
            input_ids=qformer_input_ids,
            attention_mask=qformer_attention_mask,
        )

    @property
    def reads_instruction(self) -> bool:
        return bool(self.config.qformer_config.use_qformer_text_input)

    def _instructions(
        self,
        images: int,
        frames: int,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """The Q-Former's text for every image, its mask with the queries' ones in front, and its positions."""
        if not self.config.qformer_config.use_qformer_text_input:
            return {}
        if input_ids is None:
            raise ValueError(
                "qformer_input_ids are needed: this Q-Former reads the instruction (use_qformer_text_input=True)"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if frames > 1 and input_ids.shape[0] * frames == images:
            input_ids = input_ids.repeat_interleave(frames, dim=0)
            attention_mask = attention_mask.repeat_interleave(frames, dim=0)
        if input_ids.shape[0] != images:
            raise ValueError(
                f"qformer_input_ids has {input_ids.shape[0]} rows for {images} images; it has one row an image, the "
                "instruction of the sample that the image belongs to"
            )
        query_mask = attention_mask.new_ones(images, self.config.num_query_tokens)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.cat([query_mask, attention_mask], dim=1),
            # Counted over the mask: collators of stock pipelines pad instructions on the language model's side.
            "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0).to(input_ids.device),
        }

    def _blank_instruction(self, device: torch.device) -> dict[str, torch.Tensor]:
        if not self.config.qformer_config.use_qformer_text_input:
            return {}
        return {"qformer_input_ids": torch.zeros(1, 1, dtype=torch.long, device=device)}

    # --- forward --------------------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        image_index: torch.Tensor | None = None,
        image_cache: ImageCache | None = None,
        image_states: torch.Tensor | None = None,
        logits_at_labels: bool = False,
        **kwargs: Any,
    ) -> InstructBlipForConditionalGenerationModelOutput | tuple[Any, ...]:
        """Logits, and with labels the loss, for a batch whose rows hold no, one or several images.

        Args:
            pixel_values (`torch.Tensor`, *optional*):
                Shape (images, 3, height, width), all images of the batch in reading order, or
                (batch, frames, 3, height, width) for video.
            qformer_input_ids (`torch.LongTensor`, *optional*): Shape (images, text), see [`get_image_features`].
            qformer_attention_mask (`torch.Tensor`, *optional*): Shape (images, text).
            input_ids (`torch.LongTensor`, *optional*):
                Shape (batch, tokens), with ``config.num_query_tokens`` placeholders for each of a row's images.
            attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens); by default all ones.
            decoder_input_ids (`torch.LongTensor`, *optional*): Shape (batch, target tokens), for T5 and the like.
            decoder_attention_mask (`torch.Tensor`, *optional*): Shape (batch, target tokens).
            inputs_embeds (`torch.Tensor`, *optional*): Shape (batch, tokens, hidden), in place of ``input_ids``.
            labels (`torch.LongTensor`, *optional*):
                Shape (batch, tokens) for a causal model, (batch, target tokens) for a sequence-to-sequence one;
                -100 is left out.
            image_embeds (`torch.Tensor`, *optional*): Vision features in place of pixels, see [`get_image_features`].
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            output_hidden_states (`bool`, *optional*): Of all three parts.
            output_attentions (`bool`, *optional*): Of all three parts; needs eager attention.
            return_dict (`bool`, *optional*): `False` for a tuple.
            image_index (`torch.LongTensor`, *optional*):
                Shape (images in the text,), for rows that share images, see [`get_image_features`].
            image_cache ([`ImageCache`], *optional*):
                Images that have been encoded, in place of pixels, see [`encode_images`]. Outputs have no
                ``vision_outputs`` then.
            image_states (`torch.Tensor`, *optional*):
                States of the vision tower before its last layer norm, in place of pixels, shape (images, image tokens,
                vision hidden). See [`InstructBlipVisionModel.image_states`]; other towers have none.
            logits_at_labels (`bool`, *optional*, defaults to `False`):
                For training: the loss alone, and ``label_losses``. Logits are computed where there are labels, a chunk
                at a time, and not returned, which saves most of the language model's memory at its head.
            kwargs: For the language model; ``num_items_in_batch`` for the loss.

        Returns:
            [`InstructBlipForConditionalGenerationModelOutput`]

        Raises:
            ValueError: If placeholders and images do not match, an image lacks its instruction, images are given in two
                ways, or ``logits_at_labels`` comes without labels or does not suit the language model.
        """
        images = {
            "pixel_values": pixel_values,
            "qformer_input_ids": qformer_input_ids,
            "qformer_attention_mask": qformer_attention_mask,
            "image_embeds": image_embeds,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            "image_index": image_index,
            "image_cache": image_cache,
        }
        return self._forward(
            images,
            image_states,
            input_ids,
            attention_mask,
            inputs_embeds,
            output_hidden_states,
            output_attentions,
            return_dict,
            labels,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            logits_at_labels=logits_at_labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_full_text: bool = True,
        image_index: torch.Tensor | None = None,
        image_cache: ImageCache | None = None,
        **generate_kwargs: Any,
    ) -> torch.Tensor | ModelOutput:
        """Answer. The images are encoded once, also for beams and several sequences.

        Args:
            pixel_values, qformer_input_ids, qformer_attention_mask, input_ids, attention_mask, inputs_embeds,
            image_embeds, interpolate_pos_encoding: As in [`forward`]. Without ``input_ids`` the prompt is the image
                alone, one image a row. Batches for a causal model are padded on the left.
            return_full_text (`bool`, *optional*, defaults to `True`):
                Whether a causal model's sequences start with the prompt, as stock transformers returns them.
                `False` returns the completion alone. Sequence-to-sequence models never return the prompt.
            image_index (`torch.LongTensor`, *optional*), image_cache ([`ImageCache`], *optional*): As in [`forward`].
            generate_kwargs: As for `transformers.GenerationMixin.generate`; defaults are ``generation_config``'s.

        Returns:
            `torch.LongTensor` of shape (batch * num_return_sequences, tokens), or a `ModelOutput` where
            ``return_dict_in_generate`` is set.

        Raises:
            ValueError: As in [`forward`].
        """
        input_ids, inputs_embeds = self.embed_prompt(
            input_ids,
            inputs_embeds,
            pixel_values=pixel_values,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            image_embeds=image_embeds,
            interpolate_pos_encoding=interpolate_pos_encoding,
            image_index=image_index,
            image_cache=image_cache,
            compile_config=compile_config_for(self, generate_kwargs),
        )
        return self.generate_from_embeddings(
            inputs_embeds, attention_mask, input_ids, return_full_text, **generate_kwargs
        )


__all__ = [
    "InstructBlipForConditionalGeneration",
    "InstructBlipForConditionalGenerationModelOutput",
]
