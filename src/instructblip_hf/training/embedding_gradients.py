"""Gradients of embeddings where there are tokens alone.

A batch reads a few hundred rows of a vocabulary of 30,000, but its gradient is a tensor of all of them, new and nearly all
zeros for every micro-batch, which is then added to the one before. On a CPU, where filling memory is slow, that is felt.
torch's sparse gradients have those rows only; here they are added to a dense gradient at once, so
that clipping, optimisers and reports see what they are used to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def trained_embeddings(model: nn.Module) -> list[nn.Embedding]:
    """Embeddings that train and whose weights nothing else reads, such as a language model's head."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        module
        for module in model.modules()
        if type(module) is nn.Embedding
        and module.weight.requires_grad
        and uses[id(module.weight)] == 1
        and module.max_norm is None
        and not module.scale_grad_by_freq
    ]


def keep_dense(embeddings: Sequence[nn.Embedding]) -> None:
    """Has sparse gradients of these embeddings become dense when they come, or be added to dense ones."""
    for embedding in embeddings:
        embedding.weight.register_post_accumulate_grad_hook(_make_dense)


@contextmanager
def sparse_gradients(embeddings: Sequence[nn.Embedding]) -> Iterator[None]:
    """Within it, a forward pass prepares sparse gradients of these embeddings. The backward pass may run outside of it.

    Args:
        embeddings (`Sequence[nn.Embedding]`): Embeddings that `keep_dense` was called with.
    """
    for embedding in embeddings:
        embedding.sparse = True
    try:
        yield
    finally:
        for embedding in embeddings:
            embedding.sparse = False


def _make_dense(weight: torch.Tensor) -> None:
    if weight.grad is not None and weight.grad.is_sparse:
        weight.grad = weight.grad.to_dense()


__all__ = ["keep_dense", "sparse_gradients", "trained_embeddings"]
