"""Scenes of the shapes world and how they are drawn.

A scene is one to four objects of different colours on a jittered 3x3 grid of a 56x56 picture. An object is one of
six shapes in two sizes, or a digit, drawn from a 5x7 font or taken from a pool of handwritten ones. Everything is a
pure function of a `numpy.random.Generator`, so that a scene is determined by a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np


IMAGE_SIZE = 56
GRID = 3
CELL_PIXELS = 18
GLYPH_PIXELS = 17
"""Height and width of the mask in which one object is drawn, its centre in the middle."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 220, 50),
    "purple": (160, 60, 200),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
NOUNS = (*SHAPES, "digit")
SIZES = ("small", "large")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CELLS = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""Names of the grid's cells in reading order."""

_FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 10000 11110 00001 00001 11110",
    "01110 10000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 00100 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00001 01110",
)
_RADIUS = {"small": 4.5, "large": 7.0}
_JITTER = {"small": 3, "large": 1}
_COUNT_PROBABILITIES = (0.15, 0.3, 0.3, 0.25)


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Args:
        cell (`int`): Grid cell in reading order, 0 to 8; its name is ``CELLS[cell]``.
        noun (`str`): One of `NOUNS`.
        color (`str`): A key of `COLORS`.
        size (`str`): One of `SIZES`; digits are always large.
        digit (`int`, *optional*): The number shown, 0 to 9, when ``noun`` is ``"digit"``.
    """

    cell: int
    noun: str
    color: str
    size: str
    digit: int | None = None

    @property
    def name(self) -> str:
        """Colour and noun, as captions and questions speak of the object: ``"red circle"``."""
        return f"{self.color} {self.noun}"

    @property
    def place(self) -> str:
        """Name of the cell: ``"top left"``."""
        return CELLS[self.cell]

    @property
    def row(self) -> int:
        """Grid row, 0 at the top."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """Grid column, 0 at the left."""
        return self.cell % GRID


@dataclass(frozen=True)
class Scene:
    """Objects in reading order of their cells, at most one a cell.

    Args:
        objects (`tuple[SceneObject, ...]`): The objects.
    """

    objects: tuple[SceneObject, ...]

    def with_noun(self, noun: str) -> list[SceneObject]:
        """Objects of that shape, or all digits for ``"digit"``."""
        return [item for item in self.objects if item.noun == noun]

    def with_color(self, color: str) -> list[SceneObject]:
        """Objects of that colour."""
        return [item for item in self.objects if item.color == color]

    def at(self, cell: int) -> SceneObject | None:
        """The object in a cell, `None` where the cell is empty."""
        return next((item for item in self.objects if item.cell == cell), None)


class GlyphSource(Protocol):
    """Anything that can draw a digit: see `HandwrittenDigits`."""

    def glyph(self, digit: int, rng: np.random.Generator) -> np.ndarray:
        """Opacity of one picture of ``digit``, float in [0, 1], shape (17, 17)."""
        ...  # pragma: no cover


def sample_scene(
    rng: np.random.Generator,
    num_objects: int | None = None,
    unique_colors: bool = True,
    digit_share: float = 0.22,
) -> Scene:
    """Draws a scene.

    Args:
        rng (`numpy.random.Generator`): Source of randomness.
        num_objects (`int`, *optional*): How many objects; by default 1 to 4, two and three being the most frequent.
        unique_colors (`bool`, *optional*, defaults to `True`): Whether no two objects share a colour. The crowded
            scenes on which the vision tower is pre-trained repeat colours.
        digit_share (`float`, *optional*, defaults to 0.22): Probability that an object is a digit.

    Returns:
        `Scene`: The objects, in reading order.

    Raises:
        ValueError: If ``num_objects`` do not fit the grid or, with ``unique_colors``, the six colours.
    """
    if num_objects is None:
        num_objects = int(rng.choice(4, p=_COUNT_PROBABILITIES)) + 1
    limit = len(COLORS) if unique_colors else GRID * GRID
    if not 0 <= num_objects <= limit:
        raise ValueError(f"num_objects={num_objects} is not between 0 and {limit}")
    cells = sorted(rng.permutation(GRID * GRID)[:num_objects].tolist())
    palette = list(COLORS)
    if unique_colors:
        colors = rng.permutation(len(palette))[:num_objects]
    else:
        colors = rng.integers(len(palette), size=num_objects)
    objects = []
    for cell, color in zip(cells, colors):
        if rng.random() < digit_share:
            objects.append(SceneObject(cell, "digit", palette[color], "large", int(rng.integers(10))))
        else:
            noun = SHAPES[rng.integers(len(SHAPES))]
            objects.append(SceneObject(cell, noun, palette[color], SIZES[rng.integers(2)]))
    return Scene(tuple(objects))


def render(scene: Scene, rng: np.random.Generator, glyphs: GlyphSource | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene on a dark, noisy background.

    Args:
        scene (`Scene`): What to draw.
        rng (`numpy.random.Generator`): Places objects inside their cells and draws background, shade and noise.
        glyphs (`GlyphSource`, *optional*): Where pictures of digits come from; by default the built-in font.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: The picture, uint8 RGB of shape (56, 56, 3), and for each pixel the
        index of the object that covers it or -1, int64 of shape (56, 56).
    """
    canvas = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), float(rng.integers(0, 60)))
    owner = np.full((IMAGE_SIZE, IMAGE_SIZE), -1, dtype=np.int64)
    half = GLYPH_PIXELS // 2
    for index, item in enumerate(scene.objects):
        if item.digit is not None and glyphs is not None:
            opacity = glyphs.glyph(item.digit, rng)
        else:
            opacity = _mask(item.noun, item.size, item.digit)
        jitter = _JITTER[item.size]
        center_y = CELL_PIXELS // 2 + CELL_PIXELS * item.row + int(rng.integers(-jitter, jitter + 1)) + 1
        center_x = CELL_PIXELS // 2 + CELL_PIXELS * item.column + int(rng.integers(-jitter, jitter + 1)) + 1
        shade = np.array(COLORS[item.color]) + rng.normal(0, 10, 3)
        top, left = center_y - half, center_x - half
        rows = slice(max(top, 0), min(top + GLYPH_PIXELS, IMAGE_SIZE))
        columns = slice(max(left, 0), min(left + GLYPH_PIXELS, IMAGE_SIZE))
        opacity = opacity[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        alpha = opacity[..., None]  # [rows, columns, 1]
        canvas[rows, columns] = canvas[rows, columns] * (1 - alpha) + shade * alpha
        owner[rows, columns][opacity > 0.4] = index
    canvas += rng.normal(0, 7, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), owner


def patch_owners(owner: np.ndarray, patch_size: int = 8, min_pixels: int = 3) -> np.ndarray:
    """The object that covers most of each patch: the dense labels of the vision tower's pre-training.

    Args:
        owner (`numpy.ndarray`): Object index of each pixel, -1 for none, as `render` returns it.
        patch_size (`int`, *optional*, defaults to 8): Height and width of a patch in pixels.
        min_pixels (`int`, *optional*, defaults to 3): A patch with fewer covered pixels counts as background.

    Returns:
        `numpy.ndarray`: Object index or -1 for each patch in reading order, int64 of shape (patches,).
    """
    side = owner.shape[0] // patch_size
    patches = owner.reshape(side, patch_size, side, patch_size).transpose(0, 2, 1, 3).reshape(side * side, -1)
    num_objects = int(owner.max()) + 1
    if num_objects == 0:
        return np.full(side * side, -1, dtype=np.int64)
    counts = (patches[:, :, None] == np.arange(num_objects)).sum(1)  # [patches, objects]
    return np.where(counts.sum(1) >= min_pixels, counts.argmax(1), -1)


class HandwrittenDigits:
    """The 1,797 handwritten digits bundled with scikit-learn, as glyphs (Alpaydin and Kaynak, UCI, 1998).

    The pictures are split once and for all: of each digit, every fourth one belongs to the ``"test"`` pool, the rest
    to ``"train"``, so that an evaluation shows handwriting that no training picture held.

    Args:
        split (`str`): ``"train"`` or ``"test"``.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If ``split`` is neither of the two.
    """

    def __init__(self, split: str) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r} is not one of 'train', 'test'")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                "handwritten=True needs scikit-learn's digits: pip install 'instructblip_hf[world]'"
            ) from error
        from PIL import Image

        bundle = load_digits()
        self.indices: dict[int, list[int]] = {}
        """For each digit, the positions of this pool's pictures in scikit-learn's bundle."""
        self._glyphs: dict[int, np.ndarray] = {}
        for digit in range(10):
            positions = np.flatnonzero(bundle.target == digit)
            is_test = np.arange(len(positions)) % 4 == 3
            chosen = positions[is_test if split == "test" else ~is_test]
            self.indices[digit] = chosen.tolist()
            stack = np.zeros((len(chosen), GLYPH_PIXELS, GLYPH_PIXELS))
            for slot, pixels in enumerate(bundle.images[chosen]):  # pixels: [8, 8], 0 to 16
                picture = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize(
                    (16, 16), Image.Resampling.BILINEAR
                )
                stack[slot, :16, :16] = np.asarray(picture) / 255
            self._glyphs[digit] = stack

    def glyph(self, digit: int, rng: np.random.Generator) -> np.ndarray:
        """Opacity of a random picture of ``digit`` from this pool, float in [0, 1], shape (17, 17)."""
        stack = self._glyphs[digit]
        return stack[rng.integers(len(stack))]


@cache
def _mask(noun: str, size: str, digit: int | None) -> np.ndarray:
    """Opacity, 0 or 1, of a drawn shape or digit; shape (17, 17)."""
    half = GLYPH_PIXELS // 2
    if digit is not None:
        bits = np.array([[int(bit) for bit in row] for row in _FONT[digit].split()], dtype=float)  # [7, 5]
        mask = np.zeros((GLYPH_PIXELS, GLYPH_PIXELS))
        mask[1:15, 3:13] = np.kron(bits, np.ones((2, 2)))
        return mask
    radius = _RADIUS[size]
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    distance = np.hypot(x, y)
    far, near = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    outlines: dict[str, np.ndarray] = {
        "circle": distance <= radius,
        "square": far <= 0.88 * radius,
        "triangle": (y <= 0.8 * radius) & (y >= -radius) & (abs(x) <= 0.55 * (y + radius)),
        "cross": (far <= radius) & (near <= 0.3 * radius),
        "ring": (distance <= radius) & (distance >= 0.55 * radius),
        "diamond": abs(x) + abs(y) <= 1.1 * radius,
    }
    return outlines[noun].astype(float)


def name_objects(objects: Sequence[SceneObject]) -> str:
    """The world's caption, ``"red circle, blue digit"``: objects in the order of `COLORS`, wherever they are.

    Listing them in reading order takes a small model several times as long to learn, and says no more.
    """
    palette = list(COLORS)
    return ", ".join(item.name for item in sorted(objects, key=lambda item: palette.index(item.color)))
