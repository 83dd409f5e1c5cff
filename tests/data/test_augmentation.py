"""Random crops and flips: in range, by the draw alone, and not of what is evaluated."""

import numpy as np
import pytest
from PIL import Image

from instructblip_hf.data.augmentation import CropAndFlip
from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.training.dataset_losses import NamingCollator, without_augmentation


def gradient(width=90, height=60):
    """An image whose pixels say where they are: red across, green down."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([across, down, across * 0], axis=-1).astype(np.uint8))


def test_crops_have_the_shares_and_ratios_they_may_have():
    augmentation, image = CropAndFlip(seed=3), gradient()
    areas, ratios, mirrored = [], [], 0
    for draw in range(1500):
        pixels = np.asarray(augmentation(image, str(draw)))
        height, width, _ = pixels.shape
        red, green = pixels[0, :, 0].astype(int), pixels[:, 0, 1].astype(int)
        assert (np.diff(green) == 1).all()
        assert (np.diff(red) == 1).all() or (np.diff(red) == -1).all(), "a crop in one piece, perhaps mirrored"
        mirrored += red[0] > red[-1]
        areas.append(width * height / (90 * 60))
        ratios.append(width / height)
    assert 0.48 < min(areas) < 0.53
    # The image is 3:2, and the widest crop 4:3, which takes up 8 of its 9 parts.
    assert 0.85 < max(areas) < 0.9
    # Aspect ratios are those of the crop, not of the image, and what does not fit is drawn again.
    assert min(ratios) > 0.74
    assert max(ratios) < 1.36
    assert abs(mirrored / 1500 - 0.5) < 0.05


def test_a_crop_depends_on_seed_and_draw_alone():
    image = gradient()
    same = [CropAndFlip(seed=1)(image, "7").tobytes() for _ in range(2)]
    assert same[0] == same[1]
    assert CropAndFlip(seed=2)(image, "7").tobytes() != same[0]
    assert CropAndFlip(seed=1)(image, "8").tobytes() != same[0]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1000, 2), (2, 1000)])
def test_images_that_no_crop_fits(width, height):
    for draw in range(20):
        cropped = CropAndFlip()(gradient(min(width, 250), min(height, 250)), str(draw))
        assert cropped.width >= 1
        assert cropped.height >= 1


def test_rows_of_a_mixture_are_cropped_anew_in_every_draw():
    class Rows:
        def __len__(self):
            return 2

        def __getitem__(self, row):
            return {"images": [gradient()], "prompt": "p", "completion": str(row)}

    dataset = MixtureDataset({"a": Rows()}, Mixture({"a": 2}), 8)
    rows = CropAndFlip().rows([dataset[number] for number in range(8)])
    assert len({row["images"][0].tobytes() for row in rows}) > 4
    again = CropAndFlip().rows([dataset[5]])
    assert again[0]["images"][0].tobytes() == rows[5]["images"][0].tobytes()
    with pytest.raises(ValueError, match="row 1: "):
        CropAndFlip().rows([dataset[0], {"image": "no-such-file.png", "completion": "a"}])


def test_evaluation_sees_whole_images():
    collator = VisionLanguageCollator(processor=None, augmentation=CropAndFlip())
    assert without_augmentation(collator) == VisionLanguageCollator(processor=None)
    assert collator.augmentation is not None
    named = without_augmentation(NamingCollator(collator, ["a"]))
    assert named.collator.augmentation is None
    assert named.names == ["a"]


@pytest.mark.parametrize("options", [{"scale": (0.0, 1.0)}, {"scale": (0.8, 0.5)}, {"ratio": (2, 1)}, {"flip": 2}])
def test_impossible_ranges_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        CropAndFlip(**options)
