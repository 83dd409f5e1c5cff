"""The EVA-CLIP vision transformer as a model of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..attention import check_attentions_available
from ..model_part import ModelPart, value_or_default
from .configuration_eva_vit import EvaVitConfig
from .eva_vit import EvaVitEmbeddings, EvaVitEncoder


class EvaVitModel(ModelPart):
    """EVA-CLIP ViT with a final LayerNorm over every token (LAVIS `eva_vit.py` and `ln_vision`).

    The families give it their configuration class and say which keys of their checkpoints belong to its neighbours.
    """

    config: EvaVitConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: EvaVitConfig) -> None:
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
        """States before the last layer norm, which the families' ``forward`` takes in place of pixels.

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


__all__ = ["EvaVitModel"]
