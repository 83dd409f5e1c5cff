"""Running any vision tower on images or on the frames of videos."""

from __future__ import annotations

from typing import Any

import torch


def run_vision_tower(
    vision_model: Any,
    pixel_values: torch.Tensor,
    interpolate_pos_encoding: bool = False,
    output_hidden_states: bool | None = None,
    output_attentions: bool | None = None,
) -> Any:
    """Output of the tower; options that are not set are not handed on, since not every tower has them.

    Args:
        vision_model (`PreTrainedModel`): Any tower.
        pixel_values (`torch.Tensor`): Shape (images, 3, height, width), or (batch, frames, 3, height, width).
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
        output_hidden_states (`bool`, *optional*): Also return the state before and after every block.
        output_attentions (`bool`, *optional*): Also return every block's attention.

    Returns:
        `ModelOutput`: ``last_hidden_state`` has shape (images or frames of all rows, tokens, hidden).
    """
    options: dict[str, Any] = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
    if output_hidden_states is not None:
        options["output_hidden_states"] = output_hidden_states
    if output_attentions is not None:
        options["output_attentions"] = output_attentions
    if pixel_values.dim() == 5:
        pixel_values = pixel_values.flatten(0, 1)
    return vision_model(pixel_values=pixel_values, return_dict=True, **options)


__all__ = ["run_vision_tower"]
