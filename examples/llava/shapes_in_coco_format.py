"""Scenes of the shapes world as a dataset of COCO: pictures, five captions each, and boxes.

    python examples/llava/shapes_in_coco_format.py outputs/shapes-coco --images 3000

The third caption says of every object its size, colour, name, number and place, so that captions and boxes hold all that
the world's questions are about. Scenes are drawn like those of the world's training split, from a stream of their own.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from instructblip_hf.data.sources.shapes_world.scenes import (
    COLORS,
    IMAGE_SIZE,
    NOUNS,
    NUMBERS,
    HandwrittenDigits,
    Scene,
    SceneObject,
    name_objects,
    render,
    sample_scene,
)


CAPTIONS, INSTANCES, IMAGES = "captions.json", "instances.json", "images"
_STREAM = 2
"""Of random numbers; the world's own splits are 0 and 1."""


def write_shapes(folder: Path, images: int, seed: int = 0, handwritten: bool = False) -> None:
    """Writes pictures, ``captions.json`` and ``instances.json``.

    Args:
        folder (`Path`): Where to.
        images (`int`): How many pictures.
        seed (`int`, *optional*, defaults to 0): Of the scenes. The first pictures of more are those of fewer.
        handwritten (`bool`, *optional*, defaults to `False`): Show handwritten digits of scikit-learn, of its training pool.
    """
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    glyphs = HandwrittenDigits("train") if handwritten else None
    files: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number in range(images):
        rng = np.random.default_rng([seed, _STREAM, number])
        scene = sample_scene(rng)
        pixels, owner = render(scene, rng, glyphs)
        name = f"{number:012}.png"
        Image.fromarray(pixels).save(folder / IMAGES / name, compress_level=1)
        files.append({"id": number, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        for caption in captions_of(scene):
            captions.append({"id": len(captions), "image_id": number, "caption": caption})
        for index, item in enumerate(scene.objects):
            box = box_of(owner == index)
            row = {"id": len(boxes), "image_id": number, "category_id": NOUNS.index(item.noun) + 1, "iscrowd": 0}
            boxes.append({**row, "bbox": box, "area": box[2] * box[3]})
    categories = [{"id": number, "name": noun} for number, noun in enumerate(NOUNS, start=1)]
    (folder / CAPTIONS).write_text(json.dumps({"images": files, "annotations": captions}), encoding="utf-8")
    content = {"images": files, "annotations": boxes, "categories": categories}
    (folder / INSTANCES).write_text(json.dumps(content), encoding="utf-8")


def captions_of(scene: Scene) -> list[str]:
    """Five captions of a scene."""
    nouns = Counter(item.noun for item in scene.objects)
    colors = [item.color for item in in_order(scene)]
    plural = "object" if len(scene.objects) == 1 else "objects"
    return [
        name_objects(scene.objects),
        f"there {'is' if len(scene.objects) == 1 else 'are'} {NUMBERS[len(scene.objects)]} {plural}",
        ", ".join(f"a {described(item)}" for item in in_order(scene)),
        ", ".join(f"{NUMBERS[count]} {noun}" for noun, count in nouns.items()),
        f"a dark picture with {' and '.join(colors)} in it",
    ]


def described(item: SceneObject) -> str:
    """All there is to say about an object: ``"large blue digit seven at the center"``."""
    number = f" {NUMBERS[item.digit]}" if item.digit is not None else ""
    return f"{item.size} {item.name}{number} at the {item.place}"


def in_order(scene: Scene) -> list[SceneObject]:
    """The objects in the order of the colours, as the world's captions have them."""
    return sorted(scene.objects, key=lambda item: list(COLORS).index(item.color))


def box_of(mask: np.ndarray) -> list[int]:
    """Left and upper end, width and height of what a mask covers, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--handwritten", action="store_true", help="show handwritten digits")
    options = parser.parse_args()
    write_shapes(options.folder, options.images, options.seed, options.handwritten)
    print(f"{options.images} pictures with captions and boxes in {options.folder}")


if __name__ == "__main__":
    main()
