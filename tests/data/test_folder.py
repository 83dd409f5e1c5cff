"""Folders of a user's own images: both layouts, and what is wrong with them."""

import json

import pytest

from instructblip_hf.data.folder import FolderDataset
from instructblip_hf.data.jsonl import RowFileError
from instructblip_hf.data.sources.datasets import open_images
from official_formats import write_image, write_jsonl


def test_captions_beside_images_also_in_folders(tmp_path):
    for name in ("b.png", "a.JPG", "deep/er/c.webp"):
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" The caption of {name}.\n", encoding="utf-8")
    dataset = FolderDataset(tmp_path, name="mine")
    assert [row["answers"] for row in dataset] == [
        ["The caption of a.JPG."],
        ["The caption of b.png."],
        ["The caption of deep/er/c.webp."],
    ]
    row = dataset[2]
    assert (row["dataset"], row["category"], row["id"]) == ("mine", "image_captioning", "deep/er/c.webp")
    assert open_images(row)[0].mode == "RGB"


def test_questions_beside_images(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    (tmp_path / "a.json").write_text('{"question": "What?", "answer": "A cat."}')
    (tmp_path / "b.json").write_text('{"question": "Who?", "answers": ["Ann", "Bo"]}')
    first, second = FolderDataset(tmp_path, category="image_qa")
    assert (first["question"], first["answers"]) == ("What?", ["A cat."])
    assert second["answers"] == ["Ann", "Bo"]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_metadata_as_datasets_has_it(tmp_path, ending):
    write_image(tmp_path / "x" / "a.png")
    write_image(tmp_path / "b.png")
    if ending == "jsonl":
        write_jsonl(
            tmp_path / "metadata.jsonl", [{"file_name": "x/a.png", "text": "A."}, {"file_name": "b.png", "text": "B."}]
        )
    else:
        (tmp_path / "metadata.csv").write_text('file_name,text\nx/a.png,A.\nb.png,"B."\n')
    dataset = FolderDataset(tmp_path)
    assert [row["answers"] for row in dataset] == [["A."], ["B."]]
    assert dataset[0]["images"] == [tmp_path / "x" / "a.png"]


def test_training_rows_stay_what_they_are(tmp_path):
    write_image(tmp_path / "a.png")
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "prompt": "Say it.", "completion": "It."}])
    (row,) = FolderDataset(tmp_path)
    assert (row["prompt"], row["completion"], row["images"]) == ("Say it.", "It.", [tmp_path / "a.png"])


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    for name in ("alone.png", "bad.png", "empty.png", "number.png"):
        write_image(tmp_path / name)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.txt").write_text(" ")
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "text.txt").write_text("no image")
    with pytest.raises(RowFileError) as error:
        FolderDataset(tmp_path)
    assert sorted(error.value.problems) == [
        "alone.png: has no .txt or .json of the same name beside it",
        "bad.json: not readable as JSON: Expecting property name enclosed in double quotes in line 1",
        "empty.txt: has no text, caption, answer or completion",
        "number.json: must hold an object or a list",
        "text.txt: has no image of the same name beside it",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "A."}, "metadata.jsonl:1: has no file_name"),
        ({"file_name": "../a.png", "text": "A."}, "leaves the image folder"),
        ({"file_name": "none.png", "text": "A."}, "there is no none.png"),
        ({"file_name": "a.png"}, "has no text, caption, answer or completion"),
        ({"file_name": "a.png", "text": 5}, "must be a list of texts"),
    ],
)
def test_rows_of_metadata_are_checked(tmp_path, row, message):
    write_image(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(RowFileError, match=message):
        FolderDataset(tmp_path)


def test_a_folder_without_images_and_an_unknown_category(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        FolderDataset(tmp_path)
    with pytest.raises(ValueError, match="category is 'vqa'; allowed are image_captioning"):
        FolderDataset(tmp_path, category="vqa")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        FolderDataset(tmp_path / "none")
    write_image(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"answer": "A cat."}')
    with pytest.raises(RowFileError, match="has no question"):
        FolderDataset(tmp_path, category="image_qa")
