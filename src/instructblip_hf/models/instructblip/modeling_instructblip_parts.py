"""InstructBLIP's own parts as models: the vision tower and the Q-Former, each usable and loadable on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from ..connectors.qformer import QFormerEmbeddings, QFormerEncoder
from ..connectors.qformer_model import QFormerModel
from ..vision_towers.eva_vit_model import EvaVitModel
from .configuration_instructblip import InstructBlipQFormerConfig, InstructBlipVisionConfig


class InstructBlipVisionModel(EvaVitModel):
    """InstructBLIP's vision tower, an [`EvaVitModel`].

    Loads from a folder of its own, and out of a full checkpoint.
    """

    config: InstructBlipVisionConfig
    config_class = InstructBlipVisionConfig
    _keys_to_ignore_on_load_unexpected = [r"^(qformer|language_projection|language_model)\.", r"^query_tokens$"]


class InstructBlipQFormerModel(QFormerModel):
    """Q-Former: queries, the instruction beside them, and cross-attention to the image (section 2.3).

    Loads from a folder of its own, and out of a full checkpoint.
    """

    config: InstructBlipQFormerConfig
    config_class = InstructBlipQFormerConfig
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
        encoder_keys_and_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        queries_only: bool = False,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Run queries, text or both.

        Args:
            input_ids (`torch.LongTensor`, *optional*): Shape (batch, text), the instruction.
            attention_mask (`torch.Tensor`, *optional*): Over queries and text, see [`QFormerModel.encode`].
            position_ids (`torch.LongTensor`, *optional*): Shape (batch, text); by default 0, 1, 2, ...
            query_embeds (`torch.Tensor`, *optional*): Shape (batch, queries, hidden).
            encoder_hidden_states, encoder_attention_mask, output_hidden_states, output_attentions, return_dict,
            encoder_index, encoder_keys_and_values, queries_only: As in [`QFormerModel.encode`].

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`: ``last_hidden_state`` (batch, queries + text, hidden).

        Raises:
            ValueError: If there is neither text nor a query, the text is longer than the positions, or the
                queries have no image to read.
        """
        states = self.embeddings(input_ids, query_embeds, position_ids)
        return self.encode(
            states,
            query_embeds.shape[1] if query_embeds is not None else 0,
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


__all__ = ["InstructBlipQFormerModel", "InstructBlipVisionModel"]
