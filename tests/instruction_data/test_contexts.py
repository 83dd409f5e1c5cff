"""Captions and boxes read: COCO's files, rows, boxes in numbers, and what is wrong with a file."""

import json

import pytest

from instructblip_hf.instruction_data import BoxedObject, ImageContext, coco_contexts, jsonl_contexts
from tiny_contexts import write_coco


def test_coco(tmp_path):
    contexts = coco_contexts(*write_coco(tmp_path, 2))
    assert [context.image for context in contexts] == ["000000000007.jpg", "000000000008.jpg"]
    first = contexts[0]
    assert first.id == "000000000007"
    assert first.captions == tuple(f"Dog 7, view {k}." for k in range(5))
    # 100.4 / 200, 50 / 100; the right end sticks out by a tenth of a pixel.
    assert first.objects == (BoxedObject("dog", (0.502, 0.5, 1.0, 0.75)),)
    assert first.text(with_boxes=False) == "\n".join(first.captions)
    assert first.text(with_boxes=True).endswith("Dog 7, view 4.\n\ndog: [0.502, 0.5, 1.0, 0.75]")
    assert coco_contexts(tmp_path / "captions.json")[0].objects == ()


def test_coco_of_two_splits(tmp_path, caplog):
    captions, instances = write_coco(tmp_path, 4)
    few = json.loads(instances.read_text())
    few["images"] = few["images"][1:]
    few["annotations"] = [row for row in few["annotations"] if row["image_id"] != 7]
    instances.write_text(json.dumps(few))
    assert [len(context.objects) for context in coco_contexts(captions, instances)] == [0, 1, 1, 1]
    assert f"captions.json: 1 of 4 images are not in {instances}" in caplog.text
    # The image without a caption, and none of the others.
    instances.write_text(json.dumps({**few, "images": few["images"][-1:], "annotations": []}))
    with pytest.raises(ValueError, match=r"captions.json and .*instances.json have no image in common"):
        coco_contexts(captions, instances)


def test_rows(tmp_path):
    row = {"id": "9", "image": "a/b.jpg", "captions": ["One.", "Two."]}
    row["instances"] = [{"category": "donut", "bbox": [0.37, 0.58412, 0.504, 0.709]}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n\n" + json.dumps({"image": "c/d.jpg", "captions": ["Three."]}) + "\n")
    first, second = jsonl_contexts(file)
    assert first == ImageContext(
        "a/b.jpg", ("One.", "Two."), (BoxedObject("donut", (0.37, 0.584, 0.504, 0.709)),), "9"
    )
    assert (second.id, second.text(True)) == ("d", "Three.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"captions": ["a"]}, "line 1: has no image"),
        ({"image": "a"}, "line 1: has no captions"),
        ({"image": "a", "captions": "a"}, "line 1: captions must be a list"),
        ({"image": "a", "captions": []}, "line 1: has no captions"),
        ({"image": "a", "captions": [" "]}, "line 1: a caption must be a text"),
        ({"image": "a", "captions": ["a"], "instances": [{"category": "b"}]}, "line 1: has no bbox"),
        ({"image": "a", "captions": ["a"], "instances": [{"category": "b", "bbox": [0, 0, 9]}]}, "four numbers"),
        ({"image": "a", "captions": ["a"], "instances": [{"category": "b", "bbox": [0, 0, 9, 9]}]}, "from 0 to 1"),
        ({"image": "a", "captions": ["a"], "instances": [{"category": "b", "bbox": [0.5, 0, 0.4, 1]}]}, "left, upper"),
    ],
)
def test_rows_that_are_malformed(tmp_path, row, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        jsonl_contexts(tmp_path / "rows.jsonl")


def test_coco_files_that_are_malformed(tmp_path):
    captions, instances = write_coco(tmp_path, 1)
    content = json.loads(instances.read_text())
    content["annotations"][0]["category_id"] = 3
    instances.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances.json, annotation 0: has no 3"):
        coco_contexts(captions, instances)
    captions.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="captions.json, the file: has no annotations"):
        coco_contexts(captions)
    captions.write_text("[1]")
    with pytest.raises(ValueError, match="captions.json"):
        coco_contexts(captions)
