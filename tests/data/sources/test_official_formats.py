"""Every dataset of the catalog, read from a copy in its official format."""

import pytest

from instructblip_hf.data.catalog import DATASETS
from instructblip_hf.data.schema import SLOTS, check_example
from instructblip_hf.data.sources.datasets import CatalogDataset, open_images
from instructblip_hf.data.sources.table import SOURCES
from official_formats import write_dataset


def test_every_dataset_of_the_catalog_has_a_source():
    assert set(SOURCES) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_every_split_is_read_whole(name, tmp_path):
    counts = write_dataset(name, tmp_path / name)
    assert set(counts) == set(DATASETS[name].splits)
    for split, count in counts.items():
        dataset = CatalogDataset(name, tmp_path / name, split)
        assert len(dataset) == count
        examples = [dataset[index] for index in range(count)]
        assert len({example["id"] for example in examples}) == count
        for example in examples:
            check_example(example)
            assert example["dataset"] == name
            assert example["category"] == DATASETS[name].category
            if DATASETS[name].splits[split].labelled:
                assert example.get(SLOTS[example["category"]].target)
            frames = open_images(example)
            assert all(frame.mode == "RGB" for frame in frames)
            assert len(frames) == (4 if "video" in example else len(example["images"]))


@pytest.mark.parametrize("name", DATASETS)
def test_files_may_stand_in_an_annotations_folder_and_images_elsewhere(name, tmp_path):
    counts = write_dataset(name, tmp_path / "images")
    annotations = tmp_path / "copy" / "annotations"
    annotations.mkdir(parents=True)
    for file in (tmp_path / "images").iterdir():
        if file.is_file():
            file.rename(annotations / file.name)
    for split, count in counts.items():
        dataset = CatalogDataset(name, tmp_path / "copy", split, image_root=tmp_path / "images")
        assert len(dataset) == count
        assert len(open_images(dataset[0])) == (4 if "video" in dataset[0] else len(dataset[0]["images"]))


def test_splits_can_be_joined(tmp_path):
    write_dataset("okvqa", tmp_path)
    both = CatalogDataset("okvqa", tmp_path, "train+val")
    parts = [CatalogDataset("okvqa", tmp_path, split) for split in ("train", "val")]
    assert list(both) == [example for part in parts for example in part]
    with pytest.raises(KeyError, match="okvqa has no split 'dev'"):
        CatalogDataset("okvqa", tmp_path, "train+dev")


def test_datasets_travel_to_worker_processes(tmp_path):
    import pickle

    write_dataset("ivqa", tmp_path)
    dataset = CatalogDataset("ivqa", tmp_path)
    assert list(pickle.loads(pickle.dumps(dataset))) == list(dataset)
    assert dataset[-1] == dataset[len(dataset) - 1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
