"""Contents of images: the same for the same image, another for any other, and files read once."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instructblip_hf.utils.image_content import ContentReader, ImageContent


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    image.save(tmp_path / "a.png")
    return image


def test_a_file_is_one_content_however_it_is_given(picture, tmp_path):
    path = tmp_path / "a.png"
    data = path.read_bytes()
    read = ContentReader()
    given = [
        path,
        str(path),
        data,
        {"path": str(path)},
        {"bytes": data, "path": None},
        io.BytesIO(data),
        path.as_uri(),
    ]
    contents = [read(source) for source in given]
    assert len({content.digest for content in contents}) == 1
    for content in contents:
        assert np.array_equal(np.asarray(content.load()), np.asarray(picture))


def test_images_in_memory_go_by_their_pixels(picture):
    read = ContentReader()
    digest = read(picture).digest
    assert read(picture.copy()).digest == digest
    assert read(np.asarray(picture)).digest == digest
    changed = np.asarray(picture).copy()
    changed[5, 7, 2] ^= 1
    others = [
        Image.fromarray(changed),
        Image.fromarray(np.asarray(picture).reshape(8, 6, 3)),
        picture.convert("L"),
    ]
    assert len({digest, *(read(other).digest for other in others)}) == 4


def test_orientation_is_part_of_an_image_in_memory(picture):
    read = ContentReader()
    turned = picture.copy()
    turned.getexif()[0x0112] = 6
    assert read(turned).digest != read(picture).digest


def test_a_file_is_read_again_only_if_it_changed(picture, tmp_path, monkeypatch):
    path, read = tmp_path / "a.png", ContentReader()
    first = read(path)
    opened = []
    own = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: opened.append(self) or own(self, *args, **kwargs))
    assert read(path) == first
    assert not opened
    Image.new("RGB", (3, 3), "red").save(path)
    assert read(path).digest != first.digest
    data = bytearray(path.read_bytes())
    status = path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert read(path).digest == ContentReader()(path).digest


def test_contents_stay_and_unreadable_ones_are_named(tmp_path):
    read = ContentReader()
    content = ImageContent("ab", tmp_path)
    assert read(content) is content
    with pytest.raises(ValueError, match=r"gone\.png"):
        read(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="cannot make an image"):
        read(3)
