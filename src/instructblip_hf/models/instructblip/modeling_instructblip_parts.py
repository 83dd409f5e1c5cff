"""InstructBLIP's own parts as models: the vision tower and the Q-Former, each usable and loadable on its own."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions

from ..attention import check_attentions_available
from ..composition import load_part
from ..connectors.qformer import QFormerEmbeddings, QFormerEncoder
from ..connectors.qformer_from_bert import bert_shape, copy_bert_weights
from ..connectors.shared_images import SharedImages
from ..modeling_base import StrictLoadingMixin
from ..vision_towers.eva_vit import EvaVitEmbeddings, EvaVitEncoder
from .configuration_instructblip import InstructBlipQFormerConfig, InstructBlipVisionConfig


NO_SPLIT_MODULES = ["EvaVitEmbeddings", "EvaVitLayer", "QFormerEmbeddings", "QFormerLayer"]


class InstructBlipPart(StrictLoadingMixin, PreTrainedModel):
    """What the vision tower and the Q-Former share as models of their own."""

    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _no_split_modules = NO_SPLIT_MODULES


class InstructBlipVisionModel(InstructBlipPart):
    """EVA-CLIP ViT with a final LayerNorm over every token (LAVIS `eva_vit.py` and `ln_vision`).

    Loads from a folder of its own, and out of a full checkpoint.
    """

    config: InstructBlipVisionConfig
    config_class = InstructBlipVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [r"^(qformer|language_projection|language_model)\.", r"^query_tokens$"]

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = EvaVitEmbeddings(config)
        self.encoder = EvaVitEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EvaVitEmbeddings):
            init.trunc_normal_(module.class_embedding, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embedding, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def image_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """States before the last layer norm, which [`InstructBlipForConditionalGeneration.forward`] takes in place of
        pixels.

        Args:
            pixel_values (`torch.Tensor`): Shape (images, 3, height, width).

        Returns:
            `torch.Tensor`: Shape (images, 1 + patches, hidden).
        """
        states, _, _ = self.encoder(self.embeddings(pixel_values), output_hidden_states=False, output_attentions=False)
        return states

    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode images.

        Args:
            pixel_values (`torch.Tensor`): Shape (images, 3, height, width).
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Resample the positions for images of another size than ``config.image_size``.
            output_hidden_states (`bool`, *optional*): Also return the state before and after every block.
            output_attentions (`bool`, *optional*): Also return every block's attention; needs eager attention.
            return_dict (`bool`, *optional*): `False` for a tuple.

        Returns:
            `BaseModelOutputWithPooling`: ``last_hidden_state`` (images, 1 + patches, hidden), class token first;
            ``pooler_output`` (images, hidden), the class token normalised once more, as published models have it.

        Raises:
            ValueError: If the images have another size and ``interpolate_pos_encoding`` is not set.
        """
        output_hidden_states = value_or_default(output_hidden_states, self.config.output_hidden_states)
        output_attentions = value_or_default(output_attentions, self.config.output_attentions)
        check_attentions_available(self.config, output_attentions)
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        hidden_states, all_hidden_states, attentions = self.encoder(
            hidden_states, output_hidden_states, output_attentions
        )
        hidden_states = self.post_layernorm(hidden_states)
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=self.post_layernorm(hidden_states[:, 0]),
            hidden_states=all_hidden_states,
            attentions=attentions,
        )
        return outputs if value_or_default(return_dict, self.config.return_dict) else outputs.to_tuple()


class InstructBlipQFormerModel(InstructBlipPart):
    """Q-Former: queries, the instruction beside them, and cross-attention to the image (section 2.3).

    Loads from a folder of its own, and out of a full checkpoint.
    """

    config: InstructBlipQFormerConfig
    config_class = InstructBlipQFormerConfig
    base_model_prefix = "qformer"
    _keys_to_ignore_on_load_unexpected = [
        r"^(vision_model|language_projection|language_model)\.",
        r"^query_tokens$",
    ]

    def __init__(self, config: InstructBlipQFormerConfig) -> None:
        super().__init__(config)
        self.embeddings = QFormerEmbeddings(config)
        self.encoder = QFormerEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        query_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        encoder_index: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Run queries, text or both.

        Args:
            input_ids (`torch.LongTensor`, *optional*): Shape (batch, text), the instruction.
            attention_mask (`torch.Tensor`, *optional*):
                Shape (batch, queries + text), 1 where a position counts; or an additive float mask of shape
                (batch, 1, queries + text, queries + text).
            position_ids (`torch.LongTensor`, *optional*): Shape (batch, text); by default 0, 1, 2, ...
            query_embeds (`torch.Tensor`, *optional*): Shape (batch, queries, hidden).
            encoder_hidden_states (`torch.Tensor`, *optional*): Shape (batch, image tokens, image hidden), or with
                ``encoder_index`` (images, image tokens, image hidden).
            encoder_attention_mask (`torch.Tensor`, *optional*): Shape (batch, image tokens) or (images, image tokens).
            output_hidden_states (`bool`, *optional*): Also return the states before and after every layer.
            output_attentions (`bool`, *optional*): Also return self- and cross-attentions; needs eager attention.
            return_dict (`bool`, *optional*): `False` for a tuple.
            encoder_index (`torch.LongTensor`, *optional*):
                Shape (batch,), the image that each row reads, so that rows share its keys and values.

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`: ``last_hidden_state`` (batch, queries + text, hidden).

        Raises:
            ValueError: If there is neither text nor a query, the text is longer than the positions, or the
                queries have no image to read.
        """
        output_hidden_states = value_or_default(output_hidden_states, self.config.output_hidden_states)
        output_attentions = value_or_default(output_attentions, self.config.output_attentions)
        check_attentions_available(self.config, output_attentions)
        states = self.embeddings(input_ids, query_embeds, position_ids)
        query_length = query_embeds.shape[1] if query_embeds is not None else 0
        self_mask: Any = None
        if attention_mask is not None:
            self_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=states, attention_mask=attention_mask
            )
        shared = None
        if encoder_index is not None and encoder_hidden_states is not None:
            shared = SharedImages.of(encoder_index.to(states.device), encoder_hidden_states.shape[0])
        cross_mask: Any = None
        if encoder_attention_mask is not None and encoder_hidden_states is not None:
            queries = states[:, :query_length]
            if shared is not None:
                queries = shared.like_gathered(queries)
                encoder_attention_mask = shared.copy_keys(encoder_attention_mask)
            cross_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=queries,
                attention_mask=encoder_attention_mask,
                # Of these the shape alone is read, and the mask may have a row for every row of queries.
                encoder_hidden_states=encoder_hidden_states[:1].expand(len(queries), -1, -1),
            )
        encoded = self.encoder(
            states,
            encoder_hidden_states,
            self_mask,
            cross_mask,
            query_length,
            output_hidden_states,
            output_attentions,
            shared,
        )
        outputs = BaseModelOutputWithPoolingAndCrossAttentions(
            pooler_output=encoded.last_hidden_state[:, 0], **encoded
        )
        return outputs if value_or_default(return_dict, self.config.return_dict) else outputs.to_tuple()


def build_qformer(
    source: str | os.PathLike[str] | PreTrainedModel | None,
    image_hidden_size: int,
    config: InstructBlipQFormerConfig | None = None,
) -> InstructBlipQFormerModel:
    """New Q-Former, a given or saved one, or one that starts from a BERT.

    Args:
        source (`str`, `os.PathLike` or `PreTrainedModel`, *optional*): Q-Former or BERT; `None` for a new one.
        image_hidden_size (`int`): Width of the image features.
        config ([`InstructBlipQFormerConfig`], *optional*): Of a new Q-Former, or of one that starts from a BERT,
            whose shape it must have.

    Returns:
        [`InstructBlipQFormerModel`]

    Raises:
        ValueError: If the source is neither, or was made for image features of another width.
        KeyError: If the source lacks weights.
    """
    if source is None:
        config = copy.deepcopy(config) if config is not None else InstructBlipQFormerConfig()
        config.encoder_hidden_size = image_hidden_size
        return InstructBlipQFormerModel(config)
    model = source if isinstance(source, PreTrainedModel) else load_part(source)
    if isinstance(model, InstructBlipQFormerModel):
        if model.config.encoder_hidden_size != image_hidden_size:
            raise ValueError(
                f"the Q-Former was made for image features of width {model.config.encoder_hidden_size}, the vision "
                f"tower's have {image_hidden_size}"
            )
        return model
    if model.config.model_type != "bert":
        raise ValueError(f"qformer is of type {model.config.model_type!r}; it can be a Q-Former or a BERT")
    config = copy.deepcopy(config) if config is not None else InstructBlipQFormerConfig(**bert_shape(model.config))
    config.encoder_hidden_size = image_hidden_size
    qformer = InstructBlipQFormerModel(config)
    copy_bert_weights(model, qformer)
    return qformer


def value_or_default(value: bool | None, fallback: bool | None) -> bool:
    return bool(fallback if value is None else value)


__all__ = ["InstructBlipQFormerModel", "InstructBlipVisionModel", "build_qformer"]
