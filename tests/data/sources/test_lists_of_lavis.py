"""The lists that BLIP and LAVIS made of the official files: the same rows."""

import pytest

from instructblip_hf.data.sources.datasets import CatalogDataset, open_images
from official_formats import TEN_ANSWERS, write_dataset, write_frames, write_image, write_json, write_jsonl


def read(name, root, split="train"):
    examples = list(CatalogDataset(name, root, split))
    for example in examples:
        assert open_images(example)
    return examples


def test_coco_and_flickr30k(tmp_path):
    image = "val2014/COCO_val2014_000000000042.jpg"
    write_image(tmp_path / "coco" / image)
    rows = [{"caption": f"Caption {k}.", "image": image, "image_id": "coco_0"} for k in range(2)]
    write_json(tmp_path / "coco" / "coco_karpathy_train.json", rows)
    write_json(tmp_path / "coco" / "coco_karpathy_val.json", [{"image": image, "caption": ["A.", "B."]}])
    train = read("coco_caption", tmp_path / "coco")
    assert [example["answers"] for example in train] == [["Caption 0."], ["Caption 1."]]
    assert len({example["id"] for example in train}) == 2
    assert read("coco_caption", tmp_path / "coco", "val")[0]["answers"] == ["A.", "B."]

    write_image(tmp_path / "flickr" / "flickr30k-images" / "7.jpg")
    write_json(tmp_path / "flickr" / "flickr30k_test.json", [{"image": "flickr30k-images/7.jpg", "caption": ["A."]}])
    assert read("flickr30k", tmp_path / "flickr", "test")[0]["answers"] == ["A."]


@pytest.mark.parametrize(("name", "file"), [("vqav2", "vqa_train.json"), ("okvqa", "okvqa_train.json")])
def test_vqa(tmp_path, name, file):
    image = "train2014/COCO_train2014_000000000009.jpg"
    write_image(tmp_path / image)
    row = {"question_id": 9, "question": "What?", "answer": TEN_ANSWERS, "image": image, "dataset": "vqa"}
    write_json(tmp_path / file, [row])
    (example,) = read(name, tmp_path)
    assert (example["id"], example["question"], example["answers"]) == ("9", "What?", TEN_ANSWERS)
    (example,) = read(f"vqg_{name}", tmp_path)
    assert (example["category"], example["question"]) == ("question_generation", "What?")


def test_aokvqa_with_images_by_path(tmp_path):
    write_dataset("aokvqa", tmp_path / "official")
    row = dict(CatalogDataset("aokvqa", tmp_path / "official")[0])
    write_image(tmp_path / "val2014" / "COCO_val2014_000000000005.jpg")
    published = {
        "image": "val2014/COCO_val2014_000000000005.jpg",
        "question": row["question"],
        "question_id": row["id"],
        "choices": row["options"],
        "correct_choice_idx": 3,
        "direct_answers": str(row["answers"]),
    }
    write_json(tmp_path / "aokvqa_v1p0_train.json", [published])
    (example,) = read("aokvqa", tmp_path)
    # Also where the list of answers is written as Python prints it.
    assert example["answers"] == row["answers"]


def test_gqa_iconqa_scienceqa(tmp_path):
    write_image(tmp_path / "images" / "1.jpg")
    row = {"image": "1.jpg", "question": "Is it?", "question_id": "07", "answer": "yes"}
    write_json(tmp_path / "testdev_balanced_questions.json", [row])
    assert read("gqa", tmp_path, "testdev")[0]["answers"] == ["yes"]

    write_image(tmp_path / "iconqa" / "all_images" / "a.png")
    problem = {"image": "a.png", "question": "How many?", "choices": ["1", "2"], "answer": 1, "question_id": 4}
    write_json(tmp_path / "annotations_test.json", [problem])
    assert read("iconqa", tmp_path, "test")[0]["answers"] == ["2"]

    write_image(tmp_path / "images" / "b.png")
    problem = {"image": "b.png", "question": "Which?", "choices": ["x", "y"], "answer": 0, "hint": "See b."}
    write_json(tmp_path / "problems_test.json", {"12": problem, "13": {**problem, "image": None}})
    (example,) = read("scienceqa", tmp_path, "test_image")
    assert (example["id"], example["context"], example["answers"]) == ("12", "See b.", ["x"])


def test_ocr_vqa_and_nocaps(tmp_path):
    write_dataset("ocr_vqa", tmp_path)
    (tmp_path / "dataset.json").rename(tmp_path / "ocrvqa.json")
    assert len(read("ocr_vqa", tmp_path, "test")) == 6

    write_image(tmp_path / "images" / "3.jpg")
    write_json(tmp_path / "nocaps_test.json", [{"image": "3.jpg", "img_id": 3}])
    assert read("nocaps", tmp_path, "test")[0]["id"] == "3"


@pytest.mark.parametrize("name", ["msvd_qa", "msrvtt_qa"])
def test_videos_by_name(tmp_path, name):
    write_frames(tmp_path / "videos" / "-4wsuPCjDBc_5_15.avi")
    row = {"video": "-4wsuPCjDBc_5_15.avi", "question": "who?", "answer": "squirrel", "question_id": "val0"}
    write_json(tmp_path / "qa_val.json", [row])
    (example,) = read(name, tmp_path, "val")
    assert (example["id"], example["answers"]) == ("val0", ["squirrel"])


def test_msvd_videos_by_their_youtube_names(tmp_path):
    write_dataset("msvd_qa", tmp_path)
    (tmp_path / "frames" / "vid12").rename(tmp_path / "frames" / "-4wsuPCjDBc_5_15")
    (tmp_path / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid12\nother vid13\n")
    assert read("msvd_qa", tmp_path)[0]["video"]["path"].name == "-4wsuPCjDBc_5_15"


def test_ocr_words_of_ones_own_for_ocr_vqa(tmp_path):
    write_dataset("ocr_vqa", tmp_path)
    write_json(tmp_path / "ocr_tokens.json", {"data": [{"image_id": "000000000X", "ocr_tokens": ["Title", "0"]}]})
    assert all(example["ocr_tokens"] == ["Title", "0"] for example in read("ocr_vqa", tmp_path))
    write_json(tmp_path / "ocr_tokens.json", {"data": [{"image_id": "000000000X"}]})
    with pytest.raises(ValueError, match=r"ocr_tokens\.json\.data\[0\]: has no ocr_tokens"):
        CatalogDataset("ocr_vqa", tmp_path)


def test_other_names_of_official_files(tmp_path):
    write_dataset("hateful_memes", tmp_path)
    (tmp_path / "dev.jsonl").rename(tmp_path / "dev_seen.jsonl")
    assert len(read("hateful_memes", tmp_path, "dev")) == 2
    write_image(tmp_path / "a.jpg")
    write_jsonl(tmp_path / "annotation.jsonl", [{"image": "a.jpg", "caption": "a thing"}])
    assert read("web_capfilt", tmp_path)[0]["answers"] == ["a thing"]
