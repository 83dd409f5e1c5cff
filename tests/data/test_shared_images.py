"""Rows on one image in a batch: the image is given once, whatever it was handed in as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.utils.same_images import distinct_images
from tiny_shapes import tiny_processor


def picture(seed: int, size: tuple[int, int] = (9, 8)) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (*size, 3), dtype=np.uint8))


def rows_of(images_by_row: list[list[Any]]) -> list[dict[str, Any]]:
    return [
        {"images": images, "prompt": f"{'what ' * (number + 1)}?", "completion": "red"}
        for number, images in enumerate(images_by_row)
    ]


def sources(folder: Path) -> dict[str, Any]:
    first, second = picture(0), picture(1)
    for name, image in (("a", first), ("b", second), ("copy", first)):
        image.save(folder / f"{name}.png")
    a, b = folder / "a.png", folder / "b.png"
    return {
        "paths": [[a], [b], [str(a)], [], [a]],
        "objects": [[first], [second], [first], [], [first]],
        "equal pixels": [[picture(0)], [second], [picture(0)], [], [np.asarray(first)]],
        "another file of equal pixels": [[a], [b], [folder / "copy.png"], [], [first]],
        "bytes and dicts": [[a.read_bytes()], [{"path": str(b)}], [{"bytes": a.read_bytes()}], [], [{"path": a}]],
    }


@pytest.mark.parametrize(
    "kind", ["paths", "objects", "equal pixels", "another file of equal pixels", "bytes and dicts"]
)
def test_an_image_of_several_rows_is_given_once(kind: str, tmp_path: Path) -> None:
    rows = rows_of(sources(tmp_path)[kind])
    plain = VisionLanguageCollator(tiny_processor())(rows)
    shared = VisionLanguageCollator(tiny_processor(), share_images=True)(rows)
    assert shared["image_index"].tolist() == [0, 1, 0, 0]
    assert torch.equal(shared["pixel_values"][shared["image_index"]], plain["pixel_values"])
    assert shared["pixel_values"].shape[0] == 2
    for name in plain.keys() - {"pixel_values"}:
        assert torch.equal(shared[name], plain[name]), name


def test_no_index_without_repeats_and_one_through_rows_with_several_images() -> None:
    images = [picture(seed) for seed in range(3)]
    collate = VisionLanguageCollator(tiny_processor(), share_images=True)
    assert "image_index" not in collate(rows_of([[images[0]], [images[1]]]))
    assert "image_index" not in collate(rows_of([[], []]))
    batch = collate(rows_of([[images[0], images[1]], [images[2], images[0]]]))
    assert batch["image_index"].tolist() == [0, 1, 2, 0]


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import instructblip_hf.models.processing_base as module

    opened: list[Any] = []
    load = module.load_image
    monkeypatch.setattr(
        module, "load_image", lambda source, **options: opened.append(source) or load(source, **options)
    )
    collate = VisionLanguageCollator(tiny_processor(), share_images=True)
    collate(rows_of(sources(tmp_path)["paths"]))
    assert len(opened) == 2


def test_size_and_every_pixel_count() -> None:
    image = picture(0)
    other = image.copy()
    other.putpixel((3, 3), (1, 2, 3))
    # The same bytes in another shape.
    turned = Image.frombytes("RGB", (9, 8), image.tobytes())
    distinct, index = distinct_images([image, other, turned, image.copy()])
    assert index == [0, 1, 2, 0]
    assert distinct == [image, other, turned]
