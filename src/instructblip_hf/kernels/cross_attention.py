"""Attention from the queries of rows to the patches of images, where many rows may read one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attention_op import attention_forward, seed_tensor
from .checks import check_dropout, check_index, check_states, in_autocast_type
from .dispatch import use_triton
from .reference import cross_attention_in_torch


@dataclass(frozen=True)
class ImageIndex:
    """Which image each row reads, with what the kernel needs of it; made once, it serves every layer.

    Args:
        index (`torch.LongTensor`): Shape (rows,), the image of each row.
        images (`int`): Number of images.
        order (`torch.LongTensor`): Shape (rows,), rows sorted by image.
        starts (`torch.LongTensor`): Shape (images + 1,), where the rows of each image begin in ``order``.
    """

    index: torch.Tensor
    images: int
    order: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(cls, index: torch.Tensor, images: int) -> ImageIndex:
        """The index of rows that read ``images`` images.

        Args:
            index (`torch.LongTensor`): Shape (rows,).
            images (`int`): Number of images.

        Raises:
            ValueError: If it has another shape or type, or names an image that is not there; on an accelerator the
                latter is not looked at, and such rows come out as NaN or as torch's own error.
        """
        check_index(index, images)
        index = index.long()
        in_order, order = torch.sort(index, stable=True)
        starts = torch.searchsorted(in_order, torch.arange(images + 1, device=index.device))
        return cls(index, images, order, starts)


def cross_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    key_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | ImageIndex | None = None,
    scaling: float,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Attention of rows of queries to images, of which several rows may read the same.

    Args:
        query (`torch.Tensor`): Shape (rows, queries, heads, head size); any strides.
        key (`torch.Tensor`): Shape (images, keys, heads, head size); any strides.
        value (`torch.Tensor`): Shape (images, keys, heads, head size); any strides.
        key_mask (`torch.BoolTensor`, *optional*): Shape (images, keys), `True` where a key counts.
        image_index (`torch.LongTensor` or [`ImageIndex`], *optional*):
            Shape (rows,), the image that each row reads; absent, row i reads image i. An [`ImageIndex`] is what to
            hand over when several layers use the same.
        scaling (`float`): Factor on the scores.
        dropout_p (`float`, *optional*, defaults to 0.0): Dropout of the probabilities.
        seed (`int` or `torch.Tensor`, *optional*):
            Of dropout, an integer or one int64 on the device; without it torch's generator decides.
        implementation (`str`, *optional*):
            `"triton"` or `"torch"`; `None` for Triton where measurements say that it is faster. Where Triton cannot
            run, torch does, and the reason is logged once.

    Returns:
        `torch.Tensor`: Shape (rows, queries, heads, head size), contiguous. A row none of whose keys count is zero.

    Raises:
        ValueError: If shapes, types or devices do not fit.
    """
    query, key, value = in_autocast_type(query, key, value)
    check_states({"query": query}, ("rows", "queries", "heads", "head size"))
    check_states({"query": query, "key": key, "value": value}, ("images", "keys", "heads", "head size"))
    check_dropout(dropout_p, seed)
    if key.shape != value.shape:
        raise ValueError(f"key has shape {tuple(key.shape)}, value {tuple(value.shape)}; they must be equal")
    if query.shape[2:] != key.shape[2:]:
        raise ValueError(
            f"query has {query.shape[2]} heads of size {query.shape[3]}, key {key.shape[2]} of size {key.shape[3]}"
        )
    if not key.shape[1]:
        raise ValueError("key has no keys, at least one is needed")
    if key_mask is not None and (key_mask.shape != key.shape[:2] or key_mask.dtype != torch.bool):
        raise ValueError(
            f"key_mask must be boolean of shape {tuple(key.shape[:2])}, got {tuple(key_mask.shape)} of {key_mask.dtype}"
        )
    if image_index is None:
        if len(query) != len(key):
            raise ValueError(
                f"query has {len(query)} rows and key {len(key)} images; without image_index they are equal"
            )
    else:
        rows = len(image_index.index if isinstance(image_index, ImageIndex) else image_index)
        if rows != len(query):
            raise ValueError(f"image_index has {rows} rows, query {len(query)}")
        if isinstance(image_index, ImageIndex) and image_index.images != len(key):
            raise ValueError(f"image_index was made for {image_index.images} images, key has {len(key)}")
    if isinstance(image_index, torch.Tensor):
        image_index = ImageIndex.of(image_index, len(key))
    (rows, queries, heads, size), (images, keys) = query.shape, key.shape[:2]
    shape = {"rows": rows, "images": images, "queries": queries, "keys": keys, "heads": heads, "head_size": size}
    if not use_triton(implementation, "cross_attention", (query, key, value), **shape):
        index = None if image_index is None else image_index.index
        return cross_attention_in_torch(query, key, value, key_mask, index, scaling, dropout_p, seed)
    of_images: tuple[torch.Tensor | None, ...] = (None, None, None)
    if image_index is not None:
        of_images = (image_index.index, image_index.order, image_index.starts)
    kernel_seed = seed_tensor(seed, dropout_p, query.device)
    output, _ = attention_forward(
        query, key, value, key_mask, *of_images, None, kernel_seed, rows, queries, 0, scaling, dropout_p
    )
    return output


__all__ = ["ImageIndex", "cross_attention"]
