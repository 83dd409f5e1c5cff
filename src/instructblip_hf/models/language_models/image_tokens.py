"""Image features as tokens: for what of transformers takes token ids alone, its continuous batching.

Every feature gets an id behind the vocabulary, and for the length of a call the embedding of words knows what it stands for.
Different images have different ids, so keys and values are never shared between prompts that only look alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class EmbeddingWithImages(nn.Module):
    """An embedding of words with more rows, for image features.

    Args:
        words (`nn.Module`): The language model's own.
        features (`torch.Tensor`): Shape (features, hidden).
        first_id (`int`): Id of the first feature; ids below it are words.
    """

    def __init__(self, words: nn.Module, features: torch.Tensor, first_id: int) -> None:
        super().__init__()
        self.words, self.features, self.first_id = words, features, first_id

    @property
    def weight(self) -> Any:
        """Of the words."""
        return self.words.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (..., hidden)."""
        is_image = input_ids >= self.first_id
        words: torch.Tensor = self.words(input_ids.masked_fill(is_image, 0))
        images = self.features[(input_ids - self.first_id).clamp(0, len(self.features) - 1)]
        return torch.where(is_image.unsqueeze(-1), images.to(words.dtype), words)


@contextlib.contextmanager
def image_tokens(language_model: Any, features: torch.Tensor, first_id: int) -> Iterator[None]:
    """Within it ids from `first_id` on stand for features."""
    words = language_model.get_input_embeddings()
    if not len(features):
        yield
        return
    language_model.set_input_embeddings(EmbeddingWithImages(words, features, first_id))
    try:
        yield
    finally:
        language_model.set_input_embeddings(words)


def prompts_of_ids(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, is_image: torch.Tensor, first_id: int
) -> list[list[int]]:
    """Each row's tokens without padding, its placeholders numbered from `first_id` on in reading order.

    Args:
        input_ids (`torch.LongTensor`): Shape (batch, tokens).
        attention_mask (`torch.Tensor`): Shape (batch, tokens).
        is_image (`torch.BoolTensor`): Shape (batch, tokens): where image features stand.
        first_id (`int`): Of the first feature.
    """
    numbered = input_ids.clone()
    numbered[is_image] = first_id + torch.arange(int(is_image.sum()), device=input_ids.device)
    return [row[kept].tolist() for row, kept in zip(numbered, attention_mask.bool())]


__all__ = ["EmbeddingWithImages", "image_tokens", "prompts_of_ids"]
