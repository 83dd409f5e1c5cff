"""Which images belong to which sample: what a caller hands over as ``images`` and ``videos``, as a list for each text."""

from __future__ import annotations

from typing import Any

from ..utils.images import is_single_image, sample_frames


def is_given(collection: Any) -> bool:
    """Whether there is something in it."""
    return collection is not None and len(collection) > 0


def images_of_samples(images: Any, videos: Any, num_frames: int, num_samples: int | None) -> list[list[Any]]:
    """Images of each sample, frames of its video after them. Without texts, one sample holds all of them."""
    samples = _group(images, num_samples, "images")
    if not is_given(videos):
        return samples
    if num_samples == 1 and is_single_image(videos[0]):
        videos = [videos]
    if num_samples is not None and len(videos) != num_samples:
        raise ValueError(
            f"videos holds {len(videos)} videos for {num_samples} texts: give a list of frames for each text, empty "
            "where it has none"
        )
    for index, frames in enumerate(videos):
        if frames is None:
            continue
        if is_single_image(frames):
            raise ValueError(f"video {index} must be a list of frames, got {type(frames).__name__}")
        samples[index if num_samples is not None else 0].extend(sample_frames(frames, num_frames))
    return samples


def _group(images: Any, num_samples: int | None, name: str) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(num_samples or 1)]
    flat = [images] if is_single_image(images) else list(images)
    is_nested = any(not is_single_image(item) for item in flat)
    groups = [
        [] if item is None else [item] if is_single_image(item) else [image for image in item if image is not None]
        for item in flat
    ]
    if num_samples is None or (num_samples == 1 and not is_nested):
        return [[image for group in groups for image in group]]
    if not flat:
        return [[] for _ in range(num_samples)]
    if len(groups) != num_samples:
        raise ValueError(
            f"{name} holds {len(groups)} {'lists of images' if is_nested else 'images'} for {num_samples} texts: give "
            "one image a text, a list of images for each text (empty where it has none), or any number of images with "
            "a single text"
        )
    return groups


__all__ = ["images_of_samples", "is_given"]
