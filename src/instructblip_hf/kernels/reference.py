"""The operations in plain torch: what runs where Triton does not, and what the kernels are compared with.

All of them can be differentiated by autograd, on any device and in any floating type. Without a seed dropout is
torch's own; with one it keeps what the kernels keep.
"""

from __future__ import annotations

import torch
from torch import nn

from .philox import keep_attention, keep_elements


Seed = int | torch.Tensor | None
MOST_PADDING = 2.0
"""Room for as many questions as the most-asked image has, over rows: above it keys and values are copied."""
MOST_QUERIES_IN_STEPS = 64
"""Queries a row up to which half precision is trained in steps on a CPU."""


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    scaling: float,
    dropout_p: float = 0.0,
    seed: Seed = None,
) -> torch.Tensor:
    """Attention of rows to their own keys.

    Args:
        query (`torch.Tensor`): Shape (rows, queries, heads, head size).
        key (`torch.Tensor`): Shape (rows, keys, heads, head size).
        value (`torch.Tensor`): Shape (rows, keys, heads, head size).
        key_mask (`torch.BoolTensor`, *optional*): Shape (rows, keys), `True` where a key counts.
        scaling (`float`): Factor on the scores.
        dropout_p (`float`, *optional*, defaults to 0.0): Dropout of the probabilities.
        seed (`int` or `torch.Tensor`, *optional*): Of dropout; without it torch's generator.

    Returns:
        `torch.Tensor`: Shape (rows, queries, heads, head size); zero where no key counts.
    """
    query, key, value = (
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
    )  # [rows, heads, tokens, size]
    mask = None
    reads_nothing = None
    if key_mask is not None:
        reads_nothing = ~key_mask.any(-1)
        # A row of scores that are all masked has no softmax; such a row reads everything, and its output is cleared.
        mask = (key_mask | reads_nothing[:, None])[:, None, None, :]
    # On a CPU torch's fused backward of half precision is slower than its products, unless queries are many.
    half = query.dtype in (torch.bfloat16, torch.float16) and query.shape[2] <= MOST_QUERIES_IN_STEPS
    slow = half and query.device.type == "cpu"
    if (dropout_p and seed is not None) or (slow and torch.is_grad_enabled() and query.requires_grad):
        output = _attend_in_steps(query, key, value, mask, scaling, dropout_p, seed)
    else:
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scaling
        )
    output = output.transpose(1, 2)
    if reads_nothing is not None:
        output = output.masked_fill(reads_nothing[:, None, None, None], 0.0)
    return output.contiguous()


def _attend_in_steps(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout_p: float,
    seed: Seed,
) -> torch.Tensor:
    """Attention with heads before tokens, by matrix products; dropout of a seed goes by the place of a probability."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling  # [rows, heads, queries, keys]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = scores.softmax(-1)
    if dropout_p and seed is not None:
        rows, heads, queries, keys = scores.shape
        keep = keep_attention(seed, dropout_p, rows, heads, queries, keys, scores.device)
        probabilities = probabilities * keep / (1 - dropout_p)
    elif dropout_p:
        probabilities = nn.functional.dropout(probabilities, dropout_p)
    return torch.matmul(probabilities, value)


def cross_attention_in_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    image_index: torch.Tensor | None,
    scaling: float,
    dropout_p: float = 0.0,
    seed: Seed = None,
) -> torch.Tensor:
    """Attention to images, through an index where rows share them; arguments of [`~kernels.cross_attention`]."""
    if image_index is None:
        return attend_padded(query, key, value, key_mask, scaling, dropout_p, seed)
    folded = None
    # Whether folding pays is read off the index; on a GPU that would wait, and in a compiled graph it cannot be done.
    # Dropout of a seed belongs to a row, not to a place in a fold.
    if not (query.device.type != "cpu" or torch.compiler.is_compiling() or (dropout_p and seed is not None)):
        folded = fold_places(image_index, key.shape[0])
    if folded is None:
        key, value = key.index_select(0, image_index), value.index_select(0, image_index)
        key_mask = None if key_mask is None else key_mask.index_select(0, image_index)
        return attend_padded(query, key, value, key_mask, scaling, dropout_p, seed)
    places, room = folded
    rows = query.new_zeros(key.shape[0] * room, *query.shape[1:]).index_copy(0, places, query)
    output = attend_padded(
        rows.view(key.shape[0], room * query.shape[1], *query.shape[2:]), key, value, key_mask, scaling, dropout_p
    )  # [images, room * queries, heads, head size]
    return output.view(rows.shape).index_select(0, places)


def fold_places(image_index: torch.Tensor, images: int) -> tuple[torch.Tensor, int] | None:
    """How the queries of rows on one image become one longer row.

    Args:
        image_index (`torch.LongTensor`): Shape (rows,), the image that each row reads; its values are looked at.
        images (`int`): Number of images.

    Returns:
        `tuple`, *optional*: Each row's place among ``images * room``, shape (rows,), and the room, places an image; `None`
        where the images are asked so unevenly that copies of keys and values cost less.
    """
    if not len(image_index):
        return None
    counts = torch.bincount(image_index, minlength=images)
    room = int(counts.max())
    if images * room > MOST_PADDING * len(image_index):
        return None
    by_image = torch.argsort(image_index, stable=True)
    starts = (counts.cumsum(0) - counts)[image_index[by_image]]
    within = torch.empty_like(image_index)
    within[by_image] = torch.arange(len(image_index), device=image_index.device) - starts
    return image_index * room + within, room


def packed_attention_in_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: int,
    num_queries: int,
    text_offsets: torch.Tensor,
    max_text: int,
    scaling: float,
    dropout_p: float = 0.0,
    seed: Seed = None,
) -> torch.Tensor:
    """Self-attention of packed rows; arguments of [`~kernels.packed_attention`]."""
    # Lengths of rows are known without waiting on a CPU alone; dropout of a seed belongs to places among padded rows.
    by_row = query.device.type == "cpu" and rows and not torch.compiler.is_compiling()
    if by_row and not (dropout_p and seed is not None):
        return _attend_row_by_row(query, key, value, rows, num_queries, text_offsets, scaling, dropout_p)
    return _attend_by_padding(query, key, value, rows, num_queries, text_offsets, max_text, scaling, dropout_p, seed)


def _attend_row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: int,
    num_queries: int,
    text_offsets: torch.Tensor,
    scaling: float,
    dropout_p: float,
) -> torch.Tensor:
    """Each row by itself, without padding and without a mask: on a CPU up to five times as fast as padded rows."""
    lengths: list[int] = text_offsets.diff().tolist()

    def by_row(states: torch.Tensor) -> list[torch.Tensor]:
        queries, text = states.split([rows * num_queries, sum(lengths)])
        pairs = zip(queries.split([num_queries] * rows), text.split(lengths))
        return [torch.cat(pair).transpose(0, 1).unsqueeze(0) for pair in pairs]  # [1, heads, tokens, head size]

    outputs = [
        nn.functional.scaled_dot_product_attention(*row, dropout_p=dropout_p, scale=scaling)[0].transpose(0, 1)
        for row in zip(by_row(query), by_row(key), by_row(value))
    ]
    parts = [output.split([num_queries, length]) for output, length in zip(outputs, lengths)]
    return torch.cat([queries for queries, _ in parts] + [text for _, text in parts])


def _attend_by_padding(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: int,
    num_queries: int,
    text_offsets: torch.Tensor,
    max_text: int,
    scaling: float,
    dropout_p: float,
    seed: Seed,
) -> torch.Tensor:
    """By way of padded rows."""
    dense = rows * num_queries
    text_tokens = query.shape[0] - dense
    lengths = text_offsets.diff().long()
    owner = torch.repeat_interleave(
        torch.arange(rows, device=query.device), lengths, output_size=text_tokens
    )  # [text tokens], the row of each
    within = torch.arange(text_tokens, device=query.device) - text_offsets[:-1].long().index_select(0, owner)
    places = owner * max_text + within

    def unpack(states: torch.Tensor) -> torch.Tensor:
        queries = states[:dense].unflatten(0, (rows, num_queries))
        text = states.new_zeros(rows * max_text, *states.shape[1:]).index_copy(0, places, states[dense:])
        return torch.cat([queries, text.unflatten(0, (rows, max_text))], dim=1)  # [rows, tokens, heads, head size]

    key_mask = torch.cat(
        [
            torch.ones(rows, num_queries, dtype=torch.bool, device=query.device),
            torch.arange(max_text, device=query.device) < lengths[:, None],
        ],
        dim=1,
    )
    output = attend_padded(unpack(query), unpack(key), unpack(value), key_mask, scaling, dropout_p, seed)
    queries, text = output[:, :num_queries].flatten(0, 1), output[:, num_queries:].flatten(0, 1)
    return torch.cat([queries, text.index_select(0, places)])


def dropout_add_layer_norm_in_torch(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    dropout_p: float = 0.0,
    seed: Seed = None,
    dense_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """LayerNorm(dropout(x + dense_bias) + residual); arguments of [`~kernels.dropout_add_layer_norm`]."""
    if dense_bias is not None:
        x = x + dense_bias
    if dropout_p and seed is not None:
        keep = keep_elements(seed, dropout_p, x[..., 0].numel(), x.shape[-1], x.device)
        x = x * keep.view(x.shape) / (1 - dropout_p)
    elif dropout_p:
        x = nn.functional.dropout(x, dropout_p)
    return nn.functional.layer_norm(x + residual, weight.shape, weight, bias, eps)


__all__ = [
    "attend_padded",
    "cross_attention_in_torch",
    "dropout_add_layer_norm_in_torch",
    "fold_places",
    "packed_attention_in_torch",
]
