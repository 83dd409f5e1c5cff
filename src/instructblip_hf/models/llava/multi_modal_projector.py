"""LLaVA's connectors: one linear layer (arXiv 2304.08485, section 4.1), two with a GELU (LLaVA 1.5), or a Q-Former."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..blip_2.modeling_blip_2_parts import Blip2QFormerModel
from ..model_part import as_input_of
from .configuration_llava import LlavaConfig


class UnchangedStates(nn.Module):
    """A linear layer that changes nothing, and is not computed; its identity matrix is there to be saved.

    Stock transformers has connectors of two layers alone. With this as the second and no activation between them it
    computes what a single layer does, bit for bit. Buffers, because nothing of it trains.

    Args:
        size (`int`): Width of the states.
        bias (`bool`): Whether there is a bias of zeros.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(size))
        self.register_buffer("bias", torch.zeros(size) if bias else None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def is_unchanged(self) -> bool:
        """Whether what was loaded is the identity."""
        is_identity = torch.equal(self.weight, torch.eye(len(self.weight)).to(self.weight))
        return is_identity and (self.bias is None or not bool(self.bias.any()))


class LlavaMultiModalProjector(nn.Module):
    """Features of the tower (images, tokens, features) to states of the language model (images, tokens, hidden)."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        size, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.image_features_size, size, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2: nn.Module = (
            UnchangedStates(size, bias) if config.projector_type == "linear" else nn.Linear(size, size, bias=bias)
        )

    def forward(
        self, image_features: torch.Tensor, image_index: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, None]:
        states = self.linear_2(self.act(self.linear_1(as_input_of(self.linear_1, image_features))))
        return (states if image_index is None else states[image_index]), None


class LlavaQFormerProjector(nn.Module):
    """BLIP-2's Q-Former in the connector's place: learned queries read the features, a linear layer takes them on."""

    def __init__(self, config: LlavaConfig, qformer: Blip2QFormerModel | None = None) -> None:
        super().__init__()
        width: int = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens or 0, width))
        self.qformer: Any = qformer or Blip2QFormerModel._from_config(config.qformer_config)
        self.language_projection = nn.Linear(width, config.text_config.hidden_size)

    def forward(
        self, image_features: torch.Tensor, image_index: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, Any]:
        rows = image_features.shape[0] if image_index is None else image_index.shape[0]
        outputs = self.qformer(
            query_embeds=self.query_tokens.expand(rows, -1, -1),
            encoder_hidden_states=image_features,
            encoder_index=image_index,
            return_dict=True,
            **options,
        )
        queries = as_input_of(self.language_projection, outputs.last_hidden_state)
        return self.language_projection(queries), outputs


def build_projector(config: LlavaConfig, qformer: Blip2QFormerModel | None = None) -> nn.Module:
    """The connector that ``config.projector_type`` names."""
    if config.projector_type == "qformer":
        return LlavaQFormerProjector(config, qformer)
    return LlavaMultiModalProjector(config)


__all__ = ["LlavaMultiModalProjector", "LlavaQFormerProjector", "UnchangedStates", "build_projector"]
