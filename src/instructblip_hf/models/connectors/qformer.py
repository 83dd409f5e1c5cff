"""Layers of the querying transformer (Q-Former): BLIP-2, arXiv 2301.12597 section 3.1; InstructBLIP, section 2.3.

Learned queries and, in InstructBLIP, the tokens of the instruction share self-attention; the queries alone attend
to the image. Queries and text have feed-forward layers of their own. Parameter names are those of published
checkpoints (LAVIS `Qformer.py` in transformers' naming).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions

from ...kernels import cross_attention, dropout_add_layer_norm, packed_attention
from ..attention import attend, fuses_norm, kernel_choice
from .packed_text import PackedText
from .shared_images import SharedImages


class QFormerEmbeddings(nn.Module):
    """Queries (batch, queries, hidden) and instruction ids (batch, text) to normalised states, queries first."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.has_text = config.use_qformer_text_input
        if self.has_text:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.max_positions = config.max_position_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        query_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        states = []
        if query_embeds is not None:
            states.append(query_embeds)
        if input_ids is not None:
            if not self.has_text:
                raise ValueError("this Q-Former has use_qformer_text_input=False and takes no input_ids")
            check_text_length(input_ids, self.max_positions)
            if position_ids is None:
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
            states.append(self.word_embeddings(input_ids) + self.position_embeddings(position_ids))
        if not states:
            raise ValueError("the Q-Former needs query_embeds, input_ids or both")
        embeddings = torch.cat(states, dim=1) if len(states) > 1 else states[0]
        return self.dropout(self.layernorm(embeddings.to(self.layernorm.weight.dtype)))


def check_text_length(input_ids: torch.Tensor, max_positions: int) -> None:
    """Raises a `ValueError` for text that is longer than the Q-Former has positions."""
    if input_ids.shape[1] > max_positions:
        raise ValueError(
            f"the Q-Former's text has {input_ids.shape[1]} tokens, the Q-Former at most {max_positions} positions; the "
            "processor cuts it where it knows the limit (model_max_length of the Q-Former's tokenizer)"
        )


class QFormerMultiHeadAttention(nn.Module):
    """Self-attention, or attention from queries to image features of width ``config.encoder_hidden_size``."""

    def __init__(self, config: Any, is_cross_attention: bool = False) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}"
            )
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        source_size = config.encoder_hidden_size if is_cross_attention else config.hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(source_size, config.hidden_size)
        self.value = nn.Linear(source_size, config.hidden_size)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return self._split_heads(states).transpose(1, 2)  # [batch, heads, tokens, head size]

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        # Without rows, as of text alone beside images that nobody asks about, -1 would have no meaning.
        return states.unflatten(-1, (states.shape[-1] // self.head_dim, self.head_dim))

    def keys_and_values(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of (batch, tokens, source size), each (batch, tokens, hidden)."""
        return self.key(source), self.value(source)

    def forward(
        self,
        hidden_states: torch.Tensor,
        source: Any,
        attention_mask: torch.Tensor | None,
        shared: SharedImages | None = None,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        packed: PackedText | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.query(hidden_states)
        if key is None or value is None:
            key, value = self.keys_and_values(source)
        if shared is not None and shared.kernel_index is not None and attention_mask is None:
            return self._attend_indexed(query, key, value, shared), None
        if shared is not None:
            query, key, value = shared.gather_queries(query), shared.copy_keys(key), shared.copy_keys(value)
        if packed is not None:
            return self._attend_packed(query, key, value, packed), None
        output, probabilities = attend(
            self,
            self._heads(query),
            self._heads(key),
            self._heads(value),
            attention_mask,
            self.config.attention_probs_dropout_prob,
        )
        if shared is not None:
            output = shared.scatter_outputs(output)
            probabilities = shared.scatter_probabilities(probabilities) if probabilities is not None else None
        return output.flatten(2), probabilities

    def _attend_packed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedText
    ) -> torch.Tensor:
        """Self-attention of a packed buffer, each (tokens, hidden)."""
        states = (self._split_heads(one) for one in (query, key, value))
        output = packed_attention(
            *states,
            rows=packed.rows,
            num_queries=packed.num_queries,
            text_offsets=packed.offsets,
            max_text=packed.max_text,
            scaling=self.scaling,
            dropout_p=self.config.attention_probs_dropout_prob if self.training else 0.0,
            implementation=kernel_choice(self.config),
        )
        return output.flatten(1)

    def _attend_indexed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shared: SharedImages
    ) -> torch.Tensor:
        """Attention of (rows, queries, hidden) to images (images, tokens, hidden) through their index, without a copy."""
        output = cross_attention(
            *(self._split_heads(one) for one in (query, key, value)),
            image_index=shared.kernel_index,
            scaling=self.scaling,
            dropout_p=self.config.attention_probs_dropout_prob if self.training else 0.0,
            implementation=kernel_choice(self.config),
        )
        return output.flatten(2)


class QFormerResidual(nn.Module):
    """Projection, dropout, residual and LayerNorm: the end of every sub-layer."""

    def __init__(self, config: Any, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        projected, norm = self.dense(hidden_states), self.LayerNorm
        if fuses_norm(self.config, norm, projected):
            dropout_p = self.dropout.p if self.dropout.training else 0.0
            return dropout_add_layer_norm(
                projected, residual, norm.weight, norm.bias, norm.eps, dropout_p, implementation="triton"
            )
        return norm(self.dropout(projected) + residual)


class QFormerAttention(nn.Module):
    """Attention sub-layer with its residual."""

    def __init__(self, config: Any, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.attention = QFormerMultiHeadAttention(config, is_cross_attention)
        self.output = QFormerResidual(config, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        source: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        shared: SharedImages | None = None,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        packed: PackedText | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, probabilities = self.attention(
            hidden_states, hidden_states if source is None else source, attention_mask, shared, key, value, packed
        )
        return self.output(attended, hidden_states), probabilities


class QFormerIntermediate(nn.Module):
    """First half of a feed-forward sub-layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation_fn(self.dense(hidden_states))


class QFormerLayer(GradientCheckpointingLayer):
    """Shared self-attention, cross-attention of the queries in every n-th layer, two feed-forward streams."""

    def __init__(self, config: Any, layer_index: int) -> None:
        super().__init__()
        self.attention = QFormerAttention(config)
        self.has_cross_attention = layer_index % config.cross_attention_frequency == 0
        if self.has_cross_attention:
            self.crossattention = QFormerAttention(config, is_cross_attention=True)
        if config.use_qformer_text_input:
            self.intermediate = QFormerIntermediate(config)
            self.output = QFormerResidual(config, config.intermediate_size)
        self.intermediate_query = QFormerIntermediate(config)
        self.output_query = QFormerResidual(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        query_length: int,
        shared: SharedImages | None = None,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        queries_only: bool = False,
        packed: PackedText | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if packed is not None:
            return self._forward_packed(
                hidden_states, encoder_hidden_states, encoder_attention_mask, shared, key, value, queries_only, packed
            )
        source = None
        if queries_only:  # the text is read, and nothing is made of it
            source, hidden_states = hidden_states, hidden_states[:, :query_length]
            if attention_mask is not None and attention_mask.dim() == 4:
                attention_mask = attention_mask[..., :query_length, :]
        hidden_states, self_probabilities = self.attention(hidden_states, source, attention_mask)
        queries, text = hidden_states[:, :query_length], hidden_states[:, query_length:]
        cross_probabilities = None
        streams = []
        if query_length:
            queries, cross_probabilities = self._read_image(
                queries, encoder_hidden_states, encoder_attention_mask, shared, key, value
            )
            streams.append(queries)
        if text.shape[1]:
            streams.append(self.output(self.intermediate(text), text))
        output = torch.cat(streams, dim=1) if len(streams) > 1 else streams[0]
        return output, self_probabilities, cross_probabilities

    def _read_image(
        self,
        queries: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        shared: SharedImages | None,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Cross-attention, where this layer has it, and the feed-forward layer of (rows, queries, hidden)."""
        probabilities = None
        if self.has_cross_attention:
            if encoder_hidden_states is None and key is None:
                raise ValueError("encoder_hidden_states are needed: the queries attend to the image")
            queries, probabilities = self.crossattention(
                queries, encoder_hidden_states, encoder_attention_mask, shared, key, value
            )
        return self.output_query(self.intermediate_query(queries), queries), probabilities

    def _forward_packed(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        shared: SharedImages | None,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        queries_only: bool,
        packed: PackedText,
    ) -> tuple[torch.Tensor, None, None]:
        """The layer on (rows * queries + text tokens, hidden)."""
        hidden_states, _ = self.attention(hidden_states, packed=packed)
        queries, text = packed.split(hidden_states)
        streams = []
        if packed.num_queries:
            queries, _ = self._read_image(queries, encoder_hidden_states, encoder_attention_mask, shared, key, value)
            streams.append(queries.flatten(0, 1))
        if not queries_only:
            streams.append(self.output(self.intermediate(text), text))
        return torch.cat(streams), None, None


class QFormerEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([QFormerLayer(config, index) for index in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        query_length: int = 0,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        shared: SharedImages | None = None,
        keys_and_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        queries_only: bool = False,
        packed: PackedText | None = None,
    ) -> BaseModelOutputWithCrossAttentions:
        all_hidden_states: tuple[torch.Tensor, ...] | None = (hidden_states,) if output_hidden_states else None
        attentions: tuple[torch.Tensor, ...] | None = () if output_attentions else None
        cross_attentions: tuple[torch.Tensor, ...] | None = () if output_attentions else None
        kept = iter(keys_and_values or ())
        for number, layer in enumerate(self.layer, start=1):
            key, value = next(kept) if keys_and_values and layer.has_cross_attention else (None, None)
            hidden_states, self_probabilities, cross_probabilities = layer(
                hidden_states,
                encoder_hidden_states,
                attention_mask,
                encoder_attention_mask,
                query_length,
                shared,
                key,
                value,
                queries_only and number == len(self.layer),
                packed,
            )
            if all_hidden_states is not None:
                all_hidden_states += (hidden_states,)
            if attentions is not None and cross_attentions is not None:
                attentions += (self_probabilities,)
                if cross_probabilities is not None:
                    cross_attentions += (cross_probabilities,)
        return BaseModelOutputWithCrossAttentions(
            last_hidden_state=hidden_states,
            hidden_states=all_hidden_states,
            attentions=attentions,
            cross_attentions=cross_attentions,
        )


__all__ = ["QFormerAttention", "QFormerEmbeddings", "QFormerEncoder", "QFormerLayer", "check_text_length"]
