"""The EVA-CLIP vision transformer in the form that BLIP-2 and InstructBLIP use.

Pre-norm blocks with one fused query-key-value projection, learned positions, a class token, and every token
returned after a final LayerNorm (LAVIS `eva_vit.py`, with its `ln_vision` as the final norm). Parameter names are
those of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ..attention import attend


def _pair(value: int | Iterable[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


class EvaVitEmbeddings(nn.Module):
    """Patches, class token and learned positions: images (batch, 3, height, width) to (batch, tokens, hidden)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.image_size = _pair(config.image_size)
        self.patch_size = _pair(config.patch_size)
        self.grid = (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1] + 1, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        if not interpolate_pos_encoding and (height, width) != self.image_size:
            raise ValueError(
                f"images of {height}x{width} pixels do not fit a tower made for {self.image_size[0]}x"
                f"{self.image_size[1]}; pass interpolate_pos_encoding=True or resize them"
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)  # [batch, patches, hidden]
        class_token = self.class_embedding.expand(patches.shape[0], -1, -1).to(patches.dtype)
        embeddings = torch.cat([class_token, patches], dim=1)
        return embeddings + self.positions(grid).to(embeddings.dtype)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings for a patch grid (rows, columns), resampled bicubically where it differs from our own."""
        if grid == self.grid:
            return self.position_embedding
        class_position, patch_positions = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        patch_positions = patch_positions.unflatten(1, self.grid).permute(0, 3, 1, 2)  # [1, hidden, rows, columns]
        patch_positions = nn.functional.interpolate(patch_positions, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([class_position, patch_positions.flatten(2).transpose(1, 2)], dim=1)


class EvaVitAttention(nn.Module):
    """Self-attention over image tokens with one fused projection."""

    def __init__(self, config: Any) -> None:
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
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim))  # [batch, tokens, 3, heads, head size]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, tokens, head size]
        output, probabilities = attend(self, query, key, value, None, self.config.attention_dropout)
        return self.projection(output.flatten(2)), probabilities


class EvaVitMLP(nn.Module):
    """Feed-forward layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class EvaVitLayer(GradientCheckpointingLayer):
    """One pre-norm block."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = EvaVitAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EvaVitMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, probabilities = self.self_attn(self.layer_norm1(hidden_states))
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states)), probabilities


class EvaVitEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EvaVitLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self, hidden_states: torch.Tensor, output_hidden_states: bool, output_attentions: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor | None, ...] | None]:
        all_hidden_states: tuple[torch.Tensor, ...] | None = (hidden_states,) if output_hidden_states else None
        all_attentions: tuple[torch.Tensor | None, ...] | None = () if output_attentions else None
        for layer in self.layers:
            hidden_states, probabilities = layer(hidden_states)
            if all_hidden_states is not None:
                all_hidden_states += (hidden_states,)
            if all_attentions is not None:
                all_attentions += (probabilities,)
        return hidden_states, all_hidden_states, all_attentions


__all__ = ["EvaVitEmbeddings", "EvaVitEncoder", "EvaVitLayer"]
