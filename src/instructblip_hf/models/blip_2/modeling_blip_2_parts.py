"""BLIP-2's own parts: the vision tower and the Q-Former as models, and the text embeddings that stand beside it.

Unlike InstructBLIP's, this Q-Former takes embeddings and normalises them: the published layout keeps the text
embeddings of the first stage outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from ..connectors.qformer import QFormerEncoder, check_text_length
from ..connectors.qformer_model import QFormerModel
from ..vision_towers.eva_vit_model import EvaVitModel
from .configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig


_OTHER_PARTS = (
    r"^(language_projection|language_model|vision_projection|text_projection|itm_head|cls)\.",
    r"^embeddings\.(word|position)_embeddings\.",
    r"^(query_tokens|temp)$",
)


class Blip2VisionModel(EvaVitModel):
    """BLIP-2's vision tower, an [`EvaVitModel`].

    Loads from a folder of its own, and out of a full checkpoint.
    """

    config: Blip2VisionConfig
    config_class = Blip2VisionConfig
    _keys_to_ignore_on_load_unexpected = [*_OTHER_PARTS, r"^qformer\."]


class Blip2TextEmbeddings(nn.Module):
    """Token ids (batch, text) to the sum of word and position embeddings (batch, text, hidden), not normalised."""

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        check_text_length(input_ids, self.position_embeddings.num_embeddings)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        return self.word_embeddings(input_ids) + self.position_embeddings(position_ids)


class Blip2QFormerModel(QFormerModel):
    """Q-Former on embeddings: queries, and beside or without them text (BLIP-2, arXiv 2301.12597, section 3.1).

    Loads from a folder of its own, and out of a full checkpoint.
    """

    config: Blip2QFormerConfig
    config_class = Blip2QFormerConfig
    main_input_name = "query_embeds"
    layernorm_name = "layernorm"
    _keys_to_ignore_on_load_unexpected = [*_OTHER_PARTS, r"^vision_model\."]

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = QFormerEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """`None`: it takes embeddings."""
        return None

    def forward(
        self,
        query_embeds: torch.Tensor,
        query_length: int | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        encoder_index: torch.Tensor | None = None,
        encoder_keys_and_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        queries_only: bool = False,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Run queries, text embeddings or both.

        Args:
            query_embeds (`torch.Tensor`): Shape (batch, queries + text, hidden), not normalised, queries first.
            query_length (`int`, *optional*): How many of them are queries; by default all.
            attention_mask (`torch.Tensor`, *optional*): Over queries and text, see [`QFormerModel.encode`].
            encoder_hidden_states, encoder_attention_mask, output_hidden_states, output_attentions, return_dict,
            encoder_index, encoder_keys_and_values, queries_only: As in [`QFormerModel.encode`].

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`: ``last_hidden_state`` (batch, queries + text, hidden).

        Raises:
            ValueError: If the queries have no image to read, or there is text and the Q-Former has no layers for it
                (``use_qformer_text_input=False``).
        """
        query_length = query_embeds.shape[1] if query_length is None else query_length
        if query_length < query_embeds.shape[1] and not self.config.use_qformer_text_input:
            raise ValueError("this Q-Former has use_qformer_text_input=False and takes no text")
        # The Q-Former may be kept in float32 between parts in half precision.
        dtype = self.layernorm.weight.dtype
        if encoder_hidden_states is not None:
            encoder_hidden_states = encoder_hidden_states.to(dtype)
        return self.encode(
            self.dropout(self.layernorm(query_embeds.to(dtype))),
            query_length,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            output_hidden_states,
            output_attentions,
            return_dict,
            encoder_index,
            encoder_keys_and_values,
            queries_only,
        )


__all__ = ["Blip2QFormerModel", "Blip2TextEmbeddings", "Blip2VisionModel"]
