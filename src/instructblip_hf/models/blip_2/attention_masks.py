"""The self-attention masks of BLIP-2's first stage (arXiv 2301.12597, section 3.2 and figure 2).

A mask is added to the scores: 0 where a position (row) may look at another (column), the most negative number of the
type where it may not. Queries stand first, then text. Padding is looked at by nobody.
"""

from __future__ import annotations

import torch


def uni_modal_mask(text_mask: torch.Tensor, queries: int, dtype: torch.dtype) -> torch.Tensor:
    """Queries see queries, text sees text: image-text contrastive learning (ITC).

    Args:
        text_mask (`torch.Tensor`): Shape (batch, text), 1 on tokens and 0 on padding.
        queries (`int`): Number of queries.
        dtype (`torch.dtype`): Of the scores.

    Returns:
        `torch.Tensor`: Shape (batch, 1, queries + text, queries + text).
    """
    return _additive(_uni_modal(text_mask, queries), dtype)


def bi_directional_mask(text_mask: torch.Tensor, queries: int, dtype: torch.dtype) -> torch.Tensor:
    """Everything sees everything: image-text matching (ITM). Arguments and shape as in [`uni_modal_mask`]."""
    length = queries + text_mask.shape[1]
    return _additive(_with_queries(text_mask, queries)[:, None, :].expand(-1, length, -1), dtype)


def multimodal_causal_mask(text_mask: torch.Tensor, queries: int, dtype: torch.dtype) -> torch.Tensor:
    """Queries see queries, text sees the queries and the text before it: image-grounded text generation (ITG).

    Arguments and shape as in [`uni_modal_mask`].
    """
    return _additive(_multimodal_causal(text_mask, queries), dtype)


def contrastive_and_generative_mask(text_mask: torch.Tensor, queries: int, dtype: torch.dtype) -> torch.Tensor:
    """ITC and ITG in one pass over queries, the text to compare and the text to generate.

    The two texts do not see each other, and in both masks the queries see themselves alone: every position has the
    state that it has in the pass of its own objective.

    Args:
        text_mask, queries, dtype: As in [`uni_modal_mask`].

    Returns:
        `torch.Tensor`: Shape (batch, 1, queries + 2 * text, queries + 2 * text).
    """
    text = text_mask.shape[1]
    compared, generated = _uni_modal(text_mask, queries), _multimodal_causal(text_mask, queries)
    allowed = compared.new_zeros(len(text_mask), queries + 2 * text, queries + 2 * text)
    allowed[:, : queries + text, : queries + text] = compared
    allowed[:, queries + text :, :queries] = generated[:, queries:, :queries]
    allowed[:, queries + text :, queries + text :] = generated[:, queries:, queries:]
    return _additive(allowed, dtype)


def _with_queries(text_mask: torch.Tensor, queries: int) -> torch.Tensor:
    return torch.cat([text_mask.new_ones(len(text_mask), queries), text_mask], dim=1).bool()


def _uni_modal(text_mask: torch.Tensor, queries: int) -> torch.Tensor:
    counts = _with_queries(text_mask, queries)
    is_query = torch.arange(counts.shape[1], device=counts.device) < queries
    return counts[:, None, :] & (is_query[:, None] == is_query[None, :])


def _multimodal_causal(text_mask: torch.Tensor, queries: int) -> torch.Tensor:
    counts = _with_queries(text_mask, queries)
    position = torch.arange(counts.shape[1], device=counts.device)
    seen = (position[None, :] < queries) | ((position[None, :] <= position[:, None]) & (position[:, None] >= queries))
    return counts[:, None, :] & seen


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


__all__ = ["bi_directional_mask", "contrastive_and_generative_mask", "multimodal_causal_mask", "uni_modal_mask"]
