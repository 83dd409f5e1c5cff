"""Image-text retrieval on Flickr30k and COCO, as LAVIS evaluates BLIP-2: cosine, matching of the best, recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.schema import Example
from ..data.sources.datasets import CatalogDataset
from ..retrieval.encoding import RetrievalEncoder
from ..retrieval.reranking import K_TEST, retrieval_scores, similarities
from .metrics import retrieval_recall


RETRIEVAL_DATASETS = ("flickr30k", "coco_caption")
"""Datasets of the catalog with several captions an image and Karpathy's splits."""


def evaluate_retrieval(
    encoder: RetrievalEncoder,
    examples: CatalogDataset | Sequence[Example],
    k: int = K_TEST,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """R@1, R@5 and R@10 of images searching captions and captions searching images.

    Args:
        encoder (`RetrievalEncoder`): The model.
        examples (`CatalogDataset` or `Sequence[Example]`): A row an image, with all its captions as ``answers``.
        k (`int`, *optional*, defaults to 128): Pairs of each image and of each caption that are matched; 0 for the cosine
            alone.
        batch_size (`int`, *optional*, defaults to 16): Images that go through the model at once.
        progress (`bool`, *optional*, defaults to `True`): Whether there are progress bars.

    Returns:
        `dict`: Of `retrieval_recall`, and ``k``.

    Raises:
        ValueError: If a row has not one image and a caption, naming it, or an image cannot be read.
    """
    peek = getattr(examples, "peek", examples.__getitem__)
    rows = [peek(index) for index in range(len(examples))]
    for row in rows:
        if len(row["images"]) != 1 or not row["answers"]:
            raise ValueError(
                f"{row['dataset']} {row['id']} has {len(row['images'])} images and {len(row['answers'])} captions; "
                "retrieval needs one image and its captions"
            )
    captions = [caption for row in rows for caption in row["answers"]]
    image_of = [number for number, row in enumerate(rows) for _ in row["answers"]]
    ends = np.cumsum([len(row["answers"]) for row in rows]).tolist()
    captions_of = [range(end - len(row["answers"]), end) for end, row in zip(ends, rows)]
    images = _Images(examples)
    if k == 0:
        similarity = similarities(encoder, images, captions, batch_size, progress).numpy()
        of_images, of_texts = similarity, similarity.T
    else:
        of_images, of_texts = retrieval_scores(encoder, images, captions, k, batch_size, progress)
    directions = ["image_to_text"] * len(rows) + ["text_to_image"] * len(captions)
    targets = [*captions_of, *([image] for image in image_of)]
    return {**retrieval_recall([*of_images, *of_texts], directions, targets), "k": k}


class _Images(Sequence[Any]):
    """The image of each row, found when it is asked for."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[index]["images"][0]


__all__ = ["RETRIEVAL_DATASETS", "evaluate_retrieval"]
