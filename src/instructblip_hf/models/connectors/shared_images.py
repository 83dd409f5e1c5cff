"""Several questions on one image: which rows of a batch read which image, and attention that reads it once.

Projecting the image to keys and values is most of the work of cross-attention, so it is done once an image. The
queries of all rows on an image then attend in one go, as one longer row of queries: no copy of keys and values is
made. Attention treats every query by itself, so results are those of the repeated form up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ...kernels import ImageIndex, check_index, fold_places


@dataclass(frozen=True)
class SharedImages:
    """Rows that read images through an index.

    Args:
        index (`torch.LongTensor`): Shape (rows,), the image that each row reads.
        images (`int`): Number of images.
        places (`torch.LongTensor`, *optional*): Shape (rows,), each row's place among ``images * room`` places; `None`
            where the images are asked so unevenly that copies of keys and values cost less.
        room (`int`, *optional*, defaults to 1): Places an image.
        kernel_index ([`ImageIndex`], *optional*): For `kernels.cross_attention`, which copies nothing.
    """

    index: torch.Tensor
    images: int
    places: torch.Tensor | None = None
    room: int = 1
    kernel_index: ImageIndex | None = None

    @classmethod
    def of(cls, index: torch.Tensor, images: int) -> SharedImages:
        """The way to read `images` images that `index` asks for.

        How unevenly they are asked is counted where the index is in the memory of the CPU. Elsewhere that would wait for
        the device, and keys and values are copied, unless there is one image.
        """
        if images == 1 and len(index):
            return cls(index, 1, torch.arange(len(index), device=index.device), len(index))
        if torch.compiler.is_compiling() or index.device.type != "cpu":
            # Counting depends on the values of the index, which a compiled graph does not.
            return cls(index, images)
        folded = fold_places(index, images)
        return cls(index, images) if folded is None else cls(index, images, *folded)

    def to(self, device: torch.device, with_kernels: bool = False) -> SharedImages:
        """With its tensors on a device; ``with_kernels`` where a kernel may read keys and values through the index."""
        places = self.places.to(device) if self.places is not None else None
        index = self.index.to(device)
        # What is folded already reads an image once.
        uses_kernels = with_kernels and places is None and device.type != "cpu"
        kernel_index = ImageIndex.of(index, self.images) if uses_kernels else None
        return replace(self, index=index, places=places, kernel_index=kernel_index)

    def gather_queries(self, query: torch.Tensor) -> torch.Tensor:
        """From (rows, queries, hidden) to (images, room * queries, hidden); rows as they are where copies cost less."""
        if self.places is None:
            return query
        rows = query.new_zeros(self.images * self.room, *query.shape[1:]).index_copy(0, self.places, query)
        return rows.view(self.images, self.room * query.shape[1], query.shape[2])

    def copy_keys(self, states: torch.Tensor) -> torch.Tensor:
        """Keys, values or their mask, of shape (images, ...): as they are, or where queries stay in rows, (rows, ...)."""
        return states.index_select(0, self.index) if self.places is None else states

    def scatter_outputs(self, output: torch.Tensor) -> torch.Tensor:
        """From (images, room * queries, ...) back to (rows, queries, ...)."""
        if self.places is None:
            return output
        rows = output.reshape(self.images * self.room, -1, *output.shape[2:])
        return rows.index_select(0, self.places)

    def scatter_probabilities(self, probabilities: torch.Tensor) -> torch.Tensor:
        """From (images, heads, room * queries, keys) to (rows, heads, queries, keys)."""
        return self.scatter_outputs(probabilities.transpose(1, 2)).transpose(1, 2)

    def like_gathered(self, states: torch.Tensor) -> torch.Tensor:
        """Something of the shape that `gather_queries` makes of (rows, queries, hidden), for mask functions."""
        if self.places is None:
            return states
        return states[:1, :1].expand(self.images, self.room * states.shape[1], -1)


def check_image_index(index: Any, images: int) -> torch.Tensor:
    """The index, once it is known to fit.

    Args:
        index (`torch.LongTensor`): Shape (images in the text,), row of ``pixel_values`` or ``image_embeds`` each reads.
        images (`int`): Number of those rows.

    Returns:
        `torch.LongTensor`: The index.

    Raises:
        ValueError: If it has another shape or type, or names an image that is not there. On an accelerator the latter is
            an error of the device.
    """
    check_index(index, images)
    if index.device.type != "cpu" and len(index) and not torch.compiler.is_compiling():
        # Looking at the values would wait for the device, which is to tell by itself.
        torch._assert_async(((index >= 0) & (index < images)).all())
    return index.long()


__all__ = ["SharedImages", "check_image_index"]
