"""The matching head on what the cosine found: the best of a search again, and the scores of a whole test set.

Both follow LAVIS (`compute_sim_matrix` of its BLIP-2 models): the score of a pair is its matching logit plus its cosine,
and only the best k by cosine are matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .encoding import RetrievalEncoder
from .search import Hit


K_TEST = 128
"""Pairs of an image, and of a text, that LAVIS matches."""

UNMATCHED = -100.0
"""LAVIS's score of all other pairs."""

_CHUNK_IMAGES = 16


def rerank_images(
    encoder: RetrievalEncoder, text: str, hits: Sequence[Hit], images: Sequence[Any], batch_size: int = 16
) -> list[Hit]:
    """Orders images found for a text by matching logit and cosine.

    Args:
        encoder (`RetrievalEncoder`): The model.
        text (`str`): What was searched.
        hits (`Sequence[Hit]`): What was found.
        images (`Sequence`): The image of each hit, of whatever `load_image` takes.
        batch_size (`int`, *optional*, defaults to 16): Images that go through the model at once.

    Raises:
        ValueError: If an image cannot be read.
    """
    matching: list[float] = []
    for start in range(0, len(hits), batch_size):
        batch = images[start : start + batch_size]
        _, states = encoder.encode_images(encoder.pixels(batch))
        matching += encoder.match(states, [text] * len(batch)).tolist()
    return _ordered(hits, matching)


def rerank_texts(
    encoder: RetrievalEncoder, states: torch.Tensor, hits: Sequence[Hit], batch_size: int = 16
) -> list[Hit]:
    """Orders texts found for an image by matching logit and cosine.

    Args:
        encoder (`RetrievalEncoder`): The model.
        states (`torch.Tensor`): Of the image, shape (1, image tokens, hidden), of `RetrievalEncoder.encode_images`.
        hits (`Sequence[Hit]`): What was found; the name of each is the text.
        batch_size (`int`, *optional*, defaults to 16): Texts that go through the model at once.
    """
    matching: list[float] = []
    for start in range(0, len(hits), batch_size):
        texts = [hit.names[0] for hit in hits[start : start + batch_size]]
        matching += encoder.match(states, texts, torch.zeros(len(texts), dtype=torch.long)).tolist()
    return _ordered(hits, matching)


def _ordered(hits: Sequence[Hit], matching: Sequence[float]) -> list[Hit]:
    matched = [replace(hit, matching=logit) for hit, logit in zip(hits, matching)]
    return sorted(matched, key=lambda hit: -hit.score)


def retrieval_scores(
    encoder: RetrievalEncoder,
    images: Sequence[Any],
    texts: Sequence[str],
    k: int = K_TEST,
    batch_size: int = 16,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all images with all texts in both directions, as LAVIS computes them for a test set.

    A pair that is among the best k of its image and among those of its text is matched once, and images are encoded a
    second time for matching rather than kept: 5,000 images' states would take 7 GB in float32.

    Args:
        encoder (`RetrievalEncoder`): The model.
        images (`Sequence`): Of whatever `load_image` takes; opened when they are encoded.
        texts (`Sequence[str]`): The texts.
        k (`int`, *optional*, defaults to 128): How many of each row are matched; the others have the score -100.
        batch_size (`int`, *optional*, defaults to 16): Images, and 4 times as many texts or pairs, that go through the
            model at once.
        progress (`bool`, *optional*, defaults to `True`): Whether there are progress bars.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Shapes (images, texts) and (texts, images), float32.

    Raises:
        ValueError: If there are no images or texts, k is below 1, or an image cannot be read.
    """
    if not len(images) or not len(texts) or k < 1:
        raise ValueError(f"{len(images)} images, {len(texts)} texts and k {k}; there must be at least one of each")
    similarity = similarities(encoder, images, texts, batch_size, progress)  # [images, texts]
    of_images, of_texts = _best(similarity, k), _best(similarity.t(), k).t()  # [images, texts]
    matched = of_images | of_texts
    scores = torch.full(similarity.shape, UNMATCHED)
    total = int(matched.sum())
    with tqdm(total=total, unit="pair", desc="matching", disable=not progress) as bar:
        for start in range(0, len(images), batch_size):
            pairs = matched[start : start + batch_size].nonzero()  # [pairs, 2]
            _, states = encoder.encode_images(encoder.pixels(_part(images, start, batch_size)))
            for chunk in pairs.split(4 * batch_size):
                logits = encoder.match(states, [texts[place] for place in chunk[:, 1].tolist()], chunk[:, 0])
                places = (chunk[:, 0] + start, chunk[:, 1])
                scores[places] = logits + similarity[places]
                bar.update(len(chunk))
    nothing = torch.tensor(UNMATCHED)
    image_to_text = torch.where(of_images, scores, nothing)
    text_to_image = torch.where(of_texts, scores, nothing).t().contiguous()
    return image_to_text.numpy(), text_to_image.numpy()


def similarities(
    encoder: RetrievalEncoder, images: Sequence[Any], texts: Sequence[str], batch_size: int = 16, progress: bool = True
) -> torch.Tensor:
    """Cosines of the best query of every image with every text: shape (images, texts), float32.

    Args:
        encoder (`RetrievalEncoder`): The model.
        images (`Sequence`): Of whatever `load_image` takes.
        texts (`Sequence[str]`): The texts.
        batch_size (`int`, *optional*, defaults to 16): As for `retrieval_scores`.
        progress (`bool`, *optional*, defaults to `True`): Whether there are progress bars.
    """
    steps = range(0, len(texts), 4 * batch_size)
    of_texts = torch.cat(
        [
            encoder.encode_texts(texts[start : start + 4 * batch_size])
            for start in tqdm(steps, desc="texts", unit="batch", disable=not progress)
        ]
    )  # [texts, size]
    rows = []
    with tqdm(total=len(images), unit="image", desc="images", disable=not progress) as bar:
        for start in range(0, len(images), batch_size):
            features, _ = encoder.encode_images(encoder.pixels(_part(images, start, batch_size)))
            for part in features.split(_CHUNK_IMAGES):
                rows.append((part @ of_texts.t()).amax(1))  # [images, texts], of [images, queries, texts]
            bar.update(len(features))
    return torch.cat(rows)


def _part(images: Sequence[Any], start: int, count: int) -> list[Any]:
    return [images[number] for number in range(start, min(start + count, len(images)))]


def _best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Which are among the best k of their row."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(1, scores.topk(min(k, scores.shape[1])).indices, True)


__all__ = ["K_TEST", "UNMATCHED", "rerank_images", "rerank_texts", "retrieval_scores", "similarities"]
