"""Questions about images, answered in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .loading import LoadedModel


BATCH_SIZE = 8


@dataclass
class Question:
    """A question about one image, or about several together.

    Attributes:
        text (`str`): The instruction.
        images (`list[Any]`): Opened images.
        names (`list[str]`): What the user called them.
    """

    text: str
    images: list[Any]
    names: list[str]


def answer(
    loaded: LoadedModel, questions: Sequence[Question], batch_size: int = BATCH_SIZE, **generate_options: Any
) -> Iterator[tuple[Question, str]]:
    """Questions with their answers, in order. An image is encoded once, also when more is asked about it later.

    Args:
        loaded (`LoadedModel`): Who answers.
        questions (`Sequence[Question]`): What is asked.
        batch_size (`int`, *optional*, defaults to 8): Questions answered at a time.
        generate_options: For `generate`, like ``max_new_tokens`` and ``num_beams``.
    """
    recent = loaded.recent_images()
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        inputs = loaded.processor(
            images=[question.images for question in batch],
            text=[loaded.processor.user_turn(question.text, len(question.images)) for question in batch],
            return_tensors="pt",
            image_inputs=recent,
            **padding_options(loaded),
        ).to(loaded.model.device, loaded.model.dtype)
        options = {**loaded.processor.generation_options(), **generate_options}
        ids = loaded.model.generate(**inputs, return_full_text=False, **options)
        yield from zip(batch, loaded.processor.answers(ids))


def padding_options(loaded: LoadedModel) -> dict[str, Any]:
    """Padding for generation."""
    from ..models.language_models.adapter import padding_side

    return {"padding": True, "padding_side": padding_side(loaded.model.config.is_encoder_decoder)}


def is_address(name: str) -> bool:
    """Whether an argument is an address rather than a path."""
    return name.startswith(("http://", "https://", "file://", "data:"))


def open_images(names: Sequence[str]) -> list[Any]:
    """Images by path or address.

    Raises:
        ValueError: If one of them is no readable image, naming it.
    """
    from ..utils.images import load_image

    for name in names:
        if not is_address(name) and not Path(name).is_file():
            raise ValueError(f"there is no image file {name!r}")
    return [load_image(name) for name in names]
