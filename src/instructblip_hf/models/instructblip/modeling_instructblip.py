"""InstructBLIP (Dai et al., 2023, arXiv 2305.06500): an instruction-aware Q-Former between a ViT and an LLM.

Walk: images go through the vision tower; learned queries, beside the tokens of the instruction, read them in the
Q-Former (section 2.3 of the paper); a linear projection takes the queries into the language model, where they stand
in the place of placeholder tokens. Class names, module names and parameter names are transformers' own, so
checkpoints are exchanged in both directions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..blank_images import blank_image, needs_blank_image
from ..composition import load_language_model, load_vision_tower
from ..connectors.shared_images import check_image_index
from ..language_models.adapter import run_language_model
from ..modeling_base import VisionLanguageModel
from .configuration_instructblip import InstructBlipConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig
from .modeling_instructblip_parts import (
    NO_SPLIT_MODULES,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
    build_qformer,
    value_or_default,
)


@dataclass
class InstructBlipImageFeatures(ModelOutput):
    """What [`InstructBlipForConditionalGeneration.get_image_features`] returns.

    Args:
        pooler_output (`torch.Tensor`): Shape (images, queries, language model hidden): what the prompt takes up.
        vision_outputs (`BaseModelOutputWithPooling`, *optional*): Of the vision tower; `None` for given features.
        qformer_outputs (`BaseModelOutputWithPoolingAndCrossAttentions`): Of the Q-Former.
    """

    pooler_output: torch.Tensor | None = None
    vision_outputs: ModelOutput | None = None
    qformer_outputs: ModelOutput | None = None


@dataclass
class InstructBlipForConditionalGenerationModelOutput(ModelOutput):
    """Output of [`InstructBlipForConditionalGeneration`].

    Args:
        loss (`torch.Tensor`, *optional*): Scalar, with ``labels``.
        logits (`torch.Tensor`, *optional*): Shape (batch, tokens, vocabulary); target tokens for sequence-to-sequence
            models. `None` with ``logits_at_labels``.
        vision_outputs (`ModelOutput`, *optional*): Of the vision tower, where images were given.
        qformer_outputs (`ModelOutput`, *optional*): Of the Q-Former, where images were given.
        language_model_outputs (`ModelOutput`): Of the language model.
        label_losses (`torch.Tensor`, *optional*): With ``logits_at_labels``: loss of every label, of shape (labels that
            are not -100,) in reading order, without a gradient.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    vision_outputs: ModelOutput | None = None
    qformer_outputs: ModelOutput | None = None
    language_model_outputs: ModelOutput | None = None
    label_losses: torch.Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class InstructBlipForConditionalGeneration(VisionLanguageModel, GenerationMixin):
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
    base_model_prefix = ""
    image_side = ("vision_model", "qformer", "language_projection")
    _no_split_modules = NO_SPLIT_MODULES
    # In float16 the queries keep the precision they were trained in; the T5 parts that overflow are named by T5.
    _keep_in_fp32_modules = ["query_tokens"]

    def __init__(
        self,
        config: InstructBlipConfig,
        vision_model: PreTrainedModel | None = None,
        qformer: InstructBlipQFormerModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_model = vision_model or self.build_vision_tower(config.vision_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = qformer or InstructBlipQFormerModel._from_config(config.qformer_config)
        self.language_projection = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        self.language_model = language_model or self.build_language_model(config)
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike[str] | PreTrainedModel,
        text: str | os.PathLike[str] | PreTrainedModel,
        qformer: str | os.PathLike[str] | PreTrainedModel | None = None,
        num_query_tokens: int = 32,
        processor: Any = None,
        image_token_index: int | None = None,
        qformer_config: InstructBlipQFormerConfig | None = None,
        vision_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
    ) -> InstructBlipForConditionalGeneration:
        """Compose a model of a vision tower, a language model and a Q-Former; the projection and the queries are new.

        Args:
            vision (`str`, `os.PathLike` or `PreTrainedModel`):
                Folder, Hub id or model. Of an image-text checkpoint such as CLIP the vision tower is taken. Any
                tower whose ``last_hidden_state`` has shape (images, tokens, hidden): EVA ViT, CLIP, SigLIP, DINOv2.
            text (`str`, `os.PathLike` or `PreTrainedModel`):
                Causal or sequence-to-sequence language model with its head: OPT, LLaMA, Qwen, Gemma, T5, ...
            qformer (`str`, `os.PathLike` or `PreTrainedModel`, *optional*):
                A Q-Former; or a BERT, whose text weights it then starts from, the queries' feed-forward layers as
                copies of the text's (LAVIS `blip2_qformer.py`). By default a new one of ``qformer_config``.
            num_query_tokens (`int`, *optional*, defaults to 32): Query tokens an image.
            processor ([`InstructBlipProcessor`], *optional*):
                Gives the placeholder's token id, and the sizes that the embeddings of language model and Q-Former
                grow to where its tokenizers are larger.
            image_token_index (`int`, *optional*):
                Token id of the placeholder, in place of ``processor``; by default a new row at the end of the
                language model's embedding.
            qformer_config ([`InstructBlipQFormerConfig`], *optional*): Of a new Q-Former.
            vision_kwargs (`dict`, *optional*): For loading the vision tower.
            text_kwargs (`dict`, *optional*): For loading the language model.

        Returns:
            [`InstructBlipForConditionalGeneration`]: In evaluation mode.

        Raises:
            KeyError: If a part's checkpoint lacks weights.
            ValueError: If the Q-Former was made for image features of another width, or options contradict.
        """
        vision_model = load_vision_tower(vision, **(vision_kwargs or {}))
        language_model = load_language_model(text, **(text_kwargs or {}))
        if processor is not None:
            if image_token_index is not None:
                raise ValueError("give either processor or image_token_index")
            if processor.num_query_tokens not in (None, num_query_tokens):
                raise ValueError(
                    f"num_query_tokens is {num_query_tokens}, the processor's {processor.num_query_tokens}"
                )
            image_token_index = processor.image_token_id
        embeddings: Any = language_model.get_input_embeddings()
        vocabulary = embeddings.weight.shape[0]
        if image_token_index is None:
            image_token_index = vocabulary
        needed = max(image_token_index + 1, len(processor.tokenizer) if processor is not None else 0)

        built_qformer = build_qformer(qformer, vision_model.config.hidden_size, qformer_config)
        if processor is not None and built_qformer.config.use_qformer_text_input:
            rows = max(len(processor.qformer_tokenizer), built_qformer.config.vocab_size)
            built_qformer.resize_token_embeddings(rows)
        parts = (vision_model, built_qformer, language_model)
        attention = [part.config._attn_implementation for part in parts]
        config = cls.config_class(
            vision_config=vision_model.config,
            qformer_config=built_qformer.config,
            text_config=language_model.config,
            num_query_tokens=num_query_tokens,
            image_token_index=image_token_index,
        )
        # A composite configuration resets the attention of its parts, which are models already.
        for part, implementation in zip(parts, attention):
            part.config._attn_implementation = implementation
        model = cls(config, vision_model=vision_model, qformer=built_qformer, language_model=language_model)
        if needed > vocabulary:
            model.resize_token_embeddings(needed)
        return model.eval()

    @staticmethod
    def build_vision_tower(config: PreTrainedConfig) -> PreTrainedModel:
        if isinstance(config, InstructBlipVisionConfig):
            return InstructBlipVisionModel._from_config(config)
        return VisionLanguageModel.build_vision_tower(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            # As LAVIS draws them; equal queries would stay equal for ever.
            init.normal_(self.query_tokens, std=self.config.qformer_config.initializer_range)

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
    ) -> InstructBlipImageFeatures:
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

        Returns:
            [`InstructBlipImageFeatures`]: ``pooler_output`` has shape (images, queries, language model hidden), with
            ``image_index`` (images in the text, queries, language model hidden).

        Raises:
            ValueError: If both or neither of pixels and features are given, an image lacks its instruction, or
                ``image_index`` does not fit or comes with video.
        """
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("give either pixel_values or image_embeds")
        vision_outputs: Any = None
        frames = 1
        if pixel_values is not None:
            if pixel_values.dim() == 5:
                if image_index is not None:
                    raise ValueError(
                        "image_index counts images, and cannot be combined with pixel_values of shape (batch, frames, 3, "
                        "height, width): give frames as images, (frames of all rows, 3, height, width)"
                    )
                frames = pixel_values.shape[1]
                pixel_values = pixel_values.flatten(0, 1)
            options: dict[str, Any] = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
            if output_hidden_states is not None:
                options["output_hidden_states"] = output_hidden_states
            if output_attentions is not None:
                options["output_attentions"] = output_attentions
            vision_outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **options)
        features: Any = image_embeds if vision_outputs is None else vision_outputs.last_hidden_state

        if image_index is not None:
            image_index = check_image_index(image_index, features.shape[0])
        images = features.shape[0] if image_index is None else image_index.shape[0]
        queries = self.query_tokens.expand(images, -1, -1)
        qformer_input_ids, attention_mask = self._instructions(
            qformer_input_ids, qformer_attention_mask, images, frames
        )
        position_ids = None
        if attention_mask is not None:
            # Counted over the mask: collators of stock pipelines pad instructions on the language model's side.
            position_ids = (attention_mask[:, queries.shape[1] :].cumsum(-1) - 1).clamp(min=0)
        qformer_outputs = self.qformer(
            input_ids=qformer_input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            query_embeds=queries,
            encoder_hidden_states=features.to(queries.device),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            encoder_index=image_index,
        )
        query_output = qformer_outputs.last_hidden_state[:, : queries.shape[1]]
        return InstructBlipImageFeatures(
            pooler_output=self.language_projection(query_output),  # [images, queries, language model hidden]
            vision_outputs=vision_outputs,
            qformer_outputs=qformer_outputs,
        )

    def _instructions(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        images: int,
        frames: int,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The Q-Former's text for every image, and its mask with the queries' ones in front."""
        if not self.config.qformer_config.use_qformer_text_input:
            return None, None
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
        return input_ids, torch.cat([query_mask, attention_mask], dim=1)

    def _no_image_features(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Features of no image, shape (0, queries, hidden), in the graph of the image side where that has to run."""
        prompt = input_ids if input_ids is not None else inputs_embeds
        if prompt is None or not needs_blank_image(self):
            return None
        blank: Any = blank_image(self, prompt.device)
        features: Any = self.get_image_features(**blank).pooler_output
        return features[:0]

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
        if image_states is not None:
            if pixel_values is not None or image_embeds is not None:
                raise ValueError("give one of pixel_values, image_embeds and image_states")
            tower: Any = self.vision_model
            image_embeds = tower.post_layernorm(image_states)
        features = None
        if pixel_values is not None or image_embeds is not None:
            features = self.get_image_features(
                pixel_values,
                qformer_input_ids,
                qformer_attention_mask,
                image_embeds,
                interpolate_pos_encoding,
                output_hidden_states,
                output_attentions,
                image_index,
            )
        image_features = (
            features.pooler_output if features is not None else self._no_image_features(input_ids, inputs_embeds)
        )
        inputs_embeds = self.place_image_features(input_ids, inputs_embeds, image_features)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        if output_hidden_states is not None:
            kwargs["output_hidden_states"] = output_hidden_states
        if output_attentions is not None:
            kwargs["output_attentions"] = output_attentions
        if self.training and labels is not None:
            # FSDP's activation checkpointing runs a layer a second time, over the cache that the first one filled.
            kwargs.setdefault("use_cache", False)
        loss, language_model_outputs, label_losses = run_language_model(
            self.language_model,
            self.config.is_encoder_decoder,
            inputs_embeds,
            attention_mask,
            labels=labels,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            logits_at_labels=logits_at_labels,
            **kwargs,
        )
        outputs = InstructBlipForConditionalGenerationModelOutput(
            loss=loss,
            logits=language_model_outputs.get("logits"),
            vision_outputs=features.vision_outputs if features is not None else None,
            qformer_outputs=features.qformer_outputs if features is not None else None,
            language_model_outputs=language_model_outputs,
            label_losses=label_losses,
        )
        return outputs if value_or_default(return_dict, self.config.return_dict) else outputs.to_tuple()

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
            image_index (`torch.LongTensor`, *optional*): As in [`forward`].
            generate_kwargs: As for `transformers.GenerationMixin.generate`; defaults are ``generation_config``'s.

        Returns:
            `torch.LongTensor` of shape (batch * num_return_sequences, tokens), or a `ModelOutput` where
            ``return_dict_in_generate`` is set.

        Raises:
            ValueError: As in [`forward`].
        """
        input_ids, inputs_embeds = self.embed_prompt(
            pixel_values,
            qformer_input_ids,
            qformer_attention_mask,
            input_ids,
            inputs_embeds,
            image_embeds,
            interpolate_pos_encoding,
            image_index,
        )
        return self.generate_from_embeddings(
            inputs_embeds, attention_mask, input_ids, return_full_text, **generate_kwargs
        )

    def embed_prompt(
        self,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        image_index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The prompt as the language model reads it, for [`generate`] and ``rank_candidates``.

        Args:
            pixel_values, qformer_input_ids, qformer_attention_mask, input_ids, inputs_embeds, image_embeds,
            interpolate_pos_encoding, image_index: As in [`generate`].

        Returns:
            `tuple`: ``input_ids``, where they were given or could be made, and embeddings of shape
            (batch, tokens, hidden) with the image features in place.

        Raises:
            ValueError: As in [`forward`].
        """
        image_features: Any = None
        if pixel_values is not None or image_embeds is not None:
            image_features = self.get_image_features(
                pixel_values,
                qformer_input_ids,
                qformer_attention_mask,
                image_embeds,
                interpolate_pos_encoding,
                image_index=image_index,
            ).pooler_output
            if input_ids is None and inputs_embeds is None:
                rows = len(image_features if pixel_values is None or image_index is not None else pixel_values)
                input_ids = self._image_prompt(rows, image_features)
        else:
            image_features = self._no_image_features(input_ids, inputs_embeds)
        return input_ids, self.place_image_features(input_ids, inputs_embeds, image_features)

    def _image_prompt(self, rows: int, image_features: torch.Tensor) -> torch.Tensor:
        """Placeholders and the token that an empty text comes down to: BOS, or for T5 the end token."""
        placeholders = image_features.shape[0] * image_features.shape[1] // rows
        config = self.generation_config
        last = config.eos_token_id if self.config.is_encoder_decoder else config.bos_token_id
        last = last[0] if isinstance(last, list) else last
        if last is None:
            raise ValueError("without input_ids the generation_config needs a bos_token_id (T5: eos_token_id)")
        prompt = [self.config.image_token_id] * placeholders + [last]
        return torch.tensor([prompt] * rows, dtype=torch.long, device=image_features.device)


__all__ = [
    "InstructBlipForConditionalGeneration",
    "InstructBlipForConditionalGenerationModelOutput",
    "InstructBlipImageFeatures",
    "InstructBlipQFormerModel",
    "InstructBlipVisionModel",
]
