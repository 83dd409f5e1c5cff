"""Attention shared by the vision tower and the Q-Former, behind transformers' `AttentionInterface`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, the reference that every other implementation is compared with.

    Args:
        module (`nn.Module`): Caller, for its training flag.
        query (`torch.Tensor`): Shape (batch, heads, queries, head size).
        key (`torch.Tensor`): Shape (batch, heads, keys, head size).
        value (`torch.Tensor`): Shape (batch, heads, keys, head size).
        attention_mask (`torch.Tensor`, *optional*): Additive, broadcast to (batch, heads, queries, keys).
        scaling (`float`): Factor on the scores.
        dropout (`float`, *optional*, defaults to 0.0): Dropout of the probabilities.

    Returns:
        `tuple`: Output of shape (batch, queries, heads, head size) and probabilities (batch, heads, queries, keys).
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by the implementation that ``module.config`` names; shapes as in [`eager_attention`].

    ``module`` carries ``config``, ``scaling`` and ``is_causal``, as implementations registered with
    transformers expect.
    """
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    return implementation(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout if module.training else 0.0,
        scaling=module.scaling,
    )


def check_attentions_available(config: Any, output_attentions: bool) -> None:
    """Raise where attention probabilities are asked of an implementation that never forms them.

    Raises:
        ValueError: If ``output_attentions`` is set and the implementation is not eager.
    """
    if output_attentions and config._attn_implementation not in (None, "eager"):
        raise ValueError(
            f"output_attentions=True needs attn_implementation='eager' for {config.model_type}, "
            f"got {config._attn_implementation!r}; set it at loading or with model.set_attn_implementation('eager')"
        )


__all__ = ["attend", "check_attentions_available", "eager_attention"]
