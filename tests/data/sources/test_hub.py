"""The same datasets out of repositories of `datasets`: same functions, same examples."""

import io

import pytest
from PIL import Image

from instructblip_hf.data.answers import choose_answer
from instructblip_hf.data.sources.datasets import CatalogDataset, HubDataset, hub_examples, open_images
from official_formats import TEN_ANSWERS, write_dataset


datasets = pytest.importorskip("datasets")


def png(color):
    data = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def make(rows):
    features = datasets.Dataset.from_list(rows).features
    features["image"] = datasets.Image()
    return datasets.Dataset.from_list(rows, features=features)


def test_vqav2_rows_with_images_inside():
    answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": k} for k, answer in enumerate(TEN_ANSWERS)]
    rows = [
        {"image": png(color), "question": f"What is {color}?", "question_id": k, "image_id": 9, "answers": answers}
        for k, color in enumerate(("red", "blue"))
    ]
    dataset = HubDataset("vqav2", make(rows))
    assert len(dataset) == 2
    assert dataset[1]["question"] == "What is blue?"
    assert dataset[1]["answers"] == TEN_ANSWERS
    assert open_images(dataset[1])[0].getpixel((0, 0)) == (0, 0, 255)
    assert dataset[-1] == dataset[1]
    with pytest.raises(IndexError):
        dataset[2]


def test_rows_of_several_questions_are_counted_one_by_one():
    rows = [
        {"image": png("red"), "questions": ["a?", "b?"], "answers": ["1", "2"], "image_id": "x"},
        {"image": png("blue"), "questions": ["c?"], "answers": ["3"], "image_id": "y"},
    ]
    dataset = HubDataset("ocr_vqa", make(rows), columns={"id": "image_id"})
    assert [dataset[index]["id"] for index in range(len(dataset))] == ["x-0", "x-1", "y-0"]
    assert [dataset[index]["question"] for index in range(3)] == ["a?", "b?", "c?"]
    assert open_images(dataset[2])[0].getpixel((0, 0)) == (0, 0, 255)


def test_scienceqa_rows_without_ids_and_without_image():
    common = {"question": "q?", "choices": ["a", "b"], "answer": 1, "hint": "h", "lecture": "", "subject": "physics"}
    dataset = HubDataset("scienceqa", make([{**common, "image": png("red")}, {**common, "image": None}]))
    assert [dataset[index]["id"] for index in range(2)] == ["0", "1"]
    assert len(open_images(dataset[0])) == 1
    assert dataset[1]["images"] == []
    assert dataset[1]["context"] == "h"


def test_streamed_rows_give_the_same_examples():
    rows = [{"image": png("red"), "text": "t", "label": k, "id": k} for k in (0, 1)]
    examples = list(hub_examples("hateful_memes", make(rows).to_iterable_dataset()))
    assert [example["answers"] for example in examples] == [["no"], ["yes"]]
    assert choose_answer(examples[1]["answers"]) == "yes"


def test_columns_of_other_names_and_bad_rows():
    rows = [{"image": png("red"), "q": "Where?", "qid": 3, "answer": "here"}]
    with pytest.raises(ValueError, match="gqa, row 0: has no question"):
        HubDataset("gqa", make(rows))
    dataset = HubDataset("gqa", make(rows), columns={"question": "q", "id": "qid"})
    assert (dataset[0]["id"], dataset[0]["question"], dataset[0]["answers"]) == ("3", "Where?", ["here"])
    with pytest.raises(KeyError, match="no dataset"):
        list(hub_examples("nothing", rows))


@pytest.mark.parametrize(
    "name", ["vqav2", "gqa", "vsr", "vizwiz", "textvqa", "hateful_memes", "llava_detail", "aokvqa"]
)
def test_the_file_reader_and_the_repository_give_the_same(name, tmp_path):
    """The rows of the files, as a repository without images would hold them."""
    from instructblip_hf.data.catalog import split_spec
    from instructblip_hf.data.sources.files import find_files, find_optional
    from instructblip_hf.data.sources.table import SOURCES

    write_dataset(name, tmp_path)
    spec = split_spec(name, "train")
    located = SOURCES[name].rows(find_files(tmp_path, spec.files), "train", find_optional(tmp_path, spec.optional))
    repository = datasets.Dataset.from_list([dict(row) for _, row in located])
    files = list(CatalogDataset(name, tmp_path))
    assert list(hub_examples(name, repository, split="train", image_root=tmp_path)) == files
    assert list(HubDataset(name, repository, split="train", image_root=tmp_path)) == files
    with pytest.raises(ValueError, match=f"{name}, row 0: names files in place of images"):
        HubDataset(name, repository, split="train")[0]
