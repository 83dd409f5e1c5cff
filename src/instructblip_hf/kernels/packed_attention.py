"""Self-attention of rows that are packed one behind the other, so that nothing is computed for padding."""

from __future__ import annotations

import torch

from .attention_op import attention_forward, seed_tensor
from .checks import check_dropout, check_states, in_autocast_type, readable
from .dispatch import use_triton
from .reference import packed_attention_in_torch


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    rows: int,
    num_queries: int,
    text_offsets: torch.Tensor,
    max_text: int,
    scaling: float,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Self-attention of rows that each have as many queries and some text, bidirectional within a row.

    The tokens are those of one buffer for two streams: the queries of all rows first, then the text of all rows.

    Args:
        query (`torch.Tensor`): Shape (rows * num_queries + text tokens, heads, head size); any strides.
        key (`torch.Tensor`): Of the same shape.
        value (`torch.Tensor`): Of the same shape.
        rows (`int`): Number of rows.
        num_queries (`int`): Queries of each row.
        text_offsets (`torch.IntTensor`): Shape (rows + 1,), where each row's text begins in the stream of text; the
            last is the number of text tokens.
        max_text (`int`): Tokens of the longest text, or more.
        scaling (`float`): Factor on the scores.
        dropout_p (`float`, *optional*, defaults to 0.0): Dropout of the probabilities.
        seed (`int` or `torch.Tensor`, *optional*):
            Of dropout, an integer or one int64 on the device; without it torch's generator decides.
        implementation (`str`, *optional*):
            `"triton"` or `"torch"`; `None` for Triton where measurements say that it is faster. Where Triton cannot
            run, torch does, and the reason is logged once.

    Returns:
        `torch.Tensor`: Shape (rows * num_queries + text tokens, heads, head size), contiguous.

    Raises:
        ValueError: If shapes, types or devices do not fit. Offsets on an accelerator are not looked at.
    """
    query, key, value = in_autocast_type(query, key, value)
    check_states({"query": query, "key": key, "value": value}, ("tokens", "heads", "head size"))
    check_dropout(dropout_p, seed)
    for name, states in (("key", key), ("value", value)):
        if states.shape != query.shape:
            raise ValueError(f"{name} has shape {tuple(states.shape)}, query {tuple(query.shape)}; they must be equal")
    if rows < 0 or num_queries < 0 or max_text < 0:
        raise ValueError(f"rows, num_queries and max_text must be at least 0, got {rows}, {num_queries}, {max_text}")
    text_tokens = len(query) - rows * num_queries
    if text_tokens < 0 or text_tokens > rows * max_text:
        raise ValueError(
            f"query has {len(query)} tokens; {rows} rows of {num_queries} queries and at most {max_text} text tokens "
            f"have {rows * num_queries} to {rows * (num_queries + max_text)}"
        )
    if text_offsets.shape != (rows + 1,) or text_offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"text_offsets must be integers of shape ({rows + 1},), got {tuple(text_offsets.shape)} of "
            f"{text_offsets.dtype}"
        )
    if text_offsets.device != query.device:
        raise ValueError(f"text_offsets is on {text_offsets.device}, query on {query.device}")
    if readable(text_offsets):
        _check_offsets(text_offsets.tolist(), text_tokens, max_text)
    heads, size = query.shape[1:]
    shape = {"rows": rows, "queries": num_queries, "text_tokens": text_tokens, "heads": heads, "head_size": size}
    if not use_triton(implementation, "packed_attention", (query, key, value), **shape):
        return packed_attention_in_torch(
            query, key, value, rows, num_queries, text_offsets, max_text, scaling, dropout_p, seed
        )
    kernel_seed = seed_tensor(seed, dropout_p, query.device)
    output, _ = attention_forward(
        query,
        key,
        value,
        None,
        None,
        None,
        None,
        text_offsets,
        kernel_seed,
        rows,
        num_queries,
        max_text,
        scaling,
        dropout_p,
    )
    return output


def _check_offsets(offsets: list[int], text_tokens: int, max_text: int) -> None:
    if offsets[0] != 0 or offsets[-1] != text_tokens:
        raise ValueError(f"text_offsets goes from {offsets[0]} to {offsets[-1]}, the text from 0 to {text_tokens}")
    for row, (start, end) in enumerate(zip(offsets, offsets[1:])):
        if not 0 <= end - start <= max_text:
            raise ValueError(
                f"text_offsets gives row {row} {end - start} tokens; there can be 0 to max_text={max_text}"
            )


__all__ = ["packed_attention"]
