"""Random crops and flips of training images, as BLIP-2 is trained (arXiv 2301.12597, section 3.4).

A crop takes a random share of the image's area at a random aspect ratio, and half of the images are mirrored (LAVIS
`blip_processors.py`, ``blip2_image_train``); the image processor then makes the model's size of it. What is done to an
image depends on the seed and on what is drawn alone, so that processes, workers and resumed runs agree.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..utils.images import load_image


_ATTEMPTS = 10


@dataclass(frozen=True)
class CropAndFlip:
    """Random crops and flips of the images of rows.

    Args:
        seed (`int`, *optional*, defaults to 0): Seed of the run.
        scale (`tuple[float, float]`, *optional*, defaults to `(0.5, 1.0)`): Least and most of the area that is kept.
        ratio (`tuple[float, float]`, *optional*, defaults to `(0.75, 1.333)`): Least and most width over height of a crop.
        flip (`float`, *optional*, defaults to 0.5): Share of images that are mirrored.

    Raises:
        ValueError: If a share is not between 0 and 1, or a range is empty.
    """

    seed: int = 0
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be a range between 0 and 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}; it must be a range of positive numbers")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; it must be between 0 and 1")

    def rows(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with their images changed; a mixture's rows anew in every draw, others always alike.

        Args:
            examples (`Sequence[Mapping]`): Rows in TRL's form, with ``"images"`` or ``"image"``.

        Raises:
            ValueError: If an image cannot be read, naming its row in the batch.
        """
        changed = []
        for index, example in enumerate(examples):
            row = dict(example)
            sources = row.pop("image", None)
            sources = row.get("images") or ([] if sources is None else [sources])
            draw = row.get("draw", f"{row.get('id')}/{row.get('completion')}")
            try:
                row["images"] = [self(load_image(image), f"{draw}/{place}") for place, image in enumerate(sources)]
            except ValueError as error:
                raise ValueError(f"row {index}: {error}") from error
            changed.append(row)
        return changed

    def __call__(self, image: Image.Image, draw: str) -> Image.Image:
        """One image; the same crop for the same ``draw``."""
        key = f"{self.seed}/{draw}/{image.width}x{image.height}".encode()
        rng = random.Random(hashlib.blake2b(key, digest_size=16).digest())
        box = self._box(image.width, image.height, rng)
        image = image.crop(box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < self.flip else image

    def _box(self, width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
        for _ in range(_ATTEMPTS):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left, top = rng.randint(0, width - crop_width), rng.randint(0, height - crop_height)
                return left, top, left + crop_width, top + crop_height
        # An image so long that no crop of such a ratio fits: the middle of it, of the nearest ratio.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        crop_width, crop_height = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


__all__ = ["CropAndFlip"]
