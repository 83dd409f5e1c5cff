"""Image paths stay in the user's image folder, and what is missing is named."""

import pytest

from instructblip_hf.data.jsonl import RowFileError
from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.data.sources.fields import OneOf
from instructblip_hf.data.sources.paths import resolve_path
from official_formats import write_dataset, write_image, write_json


@pytest.fixture
def root(tmp_path):
    write_image(tmp_path / "secret.png")
    write_image(tmp_path / "root" / "a" / "b.png")
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/etc/passwd", ".", "", "../root2/x.png"])
def test_a_path_that_leaves_the_folder_is_refused(root, name):
    with pytest.raises(ValueError, match="leaves the image folder"):
        resolve_path(root, name)
    # Also where another choice is inside.
    with pytest.raises(ValueError, match="leaves the image folder"):
        resolve_path(root, OneOf(("a/b.png", name)))


@pytest.mark.parametrize("name", ["http://example.com/a.png", "file:///etc/passwd"])
def test_addresses_are_refused(root, name):
    with pytest.raises(ValueError, match="is an address"):
        resolve_path(root, name)


def test_paths_inside_are_found_also_absolute_or_through_links(root):
    assert resolve_path(root, "a/b.png") == root / "a" / "b.png"
    assert resolve_path(root, "a/x/../b.png") == root / "a" / "b.png"
    assert resolve_path(root, str(root / "a" / "b.png")) == root / "a" / "b.png"
    (root / "linked").symlink_to(root.parent)
    assert resolve_path(root, "linked/secret.png").is_file()


def test_the_first_of_several_that_is_there_is_taken(root):
    assert resolve_path(root, OneOf(("c.png", "a/b.png"))) == root / "a" / "b.png"
    with pytest.raises(FileNotFoundError, match=r"there is no c\.png or d\.png in"):
        resolve_path(root, OneOf(("c.png", "d.png")))


def test_a_dataset_with_such_a_path_is_refused_before_any_image_is_opened(tmp_path):
    write_dataset("web_capfilt", tmp_path)
    write_json(
        tmp_path / "annotation.json", [{"image": "cc/0.jpg", "caption": "a"}, {"image": "../x", "caption": "b"}]
    )
    with pytest.raises(RowFileError, match=r"annotation\.json\[1\]: image '\.\./x' leaves the image folder"):
        CatalogDataset("web_capfilt", tmp_path)


@pytest.mark.parametrize("image", [{"path": "/etc/passwd"}, {"bytes": None, "path": "../x"}, 5, ["a"], {"a": 1}])
def test_a_file_of_rows_names_images_by_path_alone(tmp_path, image):
    write_json(tmp_path / "annotation.json", [{"image": image, "caption": "a"}])
    with pytest.raises(RowFileError, match=r"annotation\.json\[0\]: image must be a path"):
        CatalogDataset("web_capfilt", tmp_path)


def test_a_missing_image_names_the_row_when_it_is_asked_for(tmp_path):
    write_dataset("gqa", tmp_path)
    dataset = CatalogDataset("gqa", tmp_path, "testdev")
    (tmp_path / "images" / "2370799.jpg").unlink()
    with pytest.raises(ValueError, match=r"gqa testdev 0001: there is no images/2370799\.jpg"):
        dataset[0]
