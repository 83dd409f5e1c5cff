"""Row files: good rows in every form, and every way in which rows can be wrong, named by file and line."""

import json
import os

import pytest
from PIL import Image

from instructblip_hf.data.jsonl import SHOWN_PROBLEMS, RowFileDataset


MESSAGES = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red"}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, color in (("a.png", "red"), ("images/b.png", "blue")):
        Image.new("RGB", (8, 6), color).save(tmp_path / name)
    return tmp_path


def write(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_rows_of_every_form(folder):
    path = write(
        folder,
        {"image": "a.png", "prompt": "what ?", "completion": "red", "id": 7},
        "",
        {"images": ["a.png", "images/b.png"], "prompt": "compare", "completion": "red, blue"},
        {"images": [], "prompt": "no image here", "completion": "none"},
        {"image": "images/b.png", "messages": MESSAGES},
    )
    dataset = RowFileDataset(path)
    assert len(dataset) == 4
    row = dataset[0]
    assert set(row) == {"images", "prompt", "completion"}
    assert (row["prompt"], row["completion"]) == ("what ?", "red")
    assert row["images"][0].mode == "RGB"
    assert row["images"][0].getpixel((0, 0)) == (255, 0, 0)
    assert [image.getpixel((0, 0)) for image in dataset[1]["images"]] == [(255, 0, 0), (0, 0, 255)]
    assert dataset[2]["images"] == []
    assert dataset[3]["messages"] == MESSAGES


def test_csv_with_byte_order_mark_commas_and_line_breaks(folder):
    path = folder / "rows.csv"
    path.write_bytes('\ufeffimage,prompt,completion\na.png,"what, then ?","red\nor so"\n'.encode())
    row = RowFileDataset(path)[0]
    assert (row["prompt"], row["completion"]) == ("what, then ?", "red\nor so")


def test_another_image_root(folder):
    path = write(folder, {"image": "b.png", "prompt": "p", "completion": "c"})
    assert RowFileDataset(path, image_root=folder / "images")[0]["images"][0].getpixel((0, 0)) == (0, 0, 255)


GOOD = {"image": "a.png", "prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "a.png", ', "not readable as JSON"),
        ("[1, 2]", "must be an object with the keys image, prompt and completion, not list"),
        ({"prompt": "p", "completion": "c"}, "has neither image nor images"),
        ({**GOOD, "images": ["a.png"]}, "has both image and images"),
        ({**GOOD, "image": "nope.png"}, "there is no image 'nope.png'"),
        ({**GOOD, "image": 3}, "an image must be a path, not 3"),
        ({**GOOD, "image": ""}, "an image must be a path"),
        ({**GOOD, "image": "../secret.png"}, "leaves the image folder"),
        ({**GOOD, "image": "/etc/hostname"}, "leaves the image folder"),
        ({**GOOD, "image": "https://example.org/a.png"}, "is an address; download it"),
        ({"images": "a.png", "prompt": "p", "completion": "c"}, "images must be a list of paths"),
        ({"image": "a.png", "prompt": "p"}, "has no completion"),
        ({"image": "a.png", "prompt": "p", "completions": "c"}, "is 'completions' meant to be it?"),
        ({"image": "a.png", "prompt": 5, "completion": "c"}, "prompt must be text, not 5"),
        ({"image": "a.png", "prompt": "p", "completion": " "}, "the completion is empty"),
        ({**GOOD, "messages": MESSAGES}, "messages beside prompt or completion"),
        ({"image": "a.png", "messages": []}, "messages must be a list of turns"),
        ({"image": "a.png", "messages": [{"role": "user"}]}, "needs role and content"),
        ({"image": "a.png", "messages": [{"role": "bot", "content": "x"}]}, "has the role 'bot'"),
        ({"image": "a.png", "messages": MESSAGES[:1]}, "the last message is not the assistant's"),
    ],
)
def test_bad_rows_name_file_and_line(folder, row, message):
    path = write(folder, GOOD, row)
    with pytest.raises(ValueError, match=r"^rows\.jsonl:2: ") as caught:
        RowFileDataset(path)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_link_out_of_the_root_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    Image.new("RGB", (4, 4)).save(outside)
    os.symlink(outside, folder / "link.png")
    with pytest.raises(ValueError, match="leaves the image folder"):
        RowFileDataset(write(folder, {**GOOD, "image": "link.png"}))


def test_all_problems_are_counted_and_the_first_are_shown(folder):
    path = write(folder, *[{**GOOD, "image": f"{i}.png"} for i in range(SHOWN_PROBLEMS + 3)])
    with pytest.raises(ValueError, match="and 3 more") as caught:
        RowFileDataset(path)
    assert len(caught.value.problems) == SHOWN_PROBLEMS + 1


def test_bytes_that_are_no_text(folder):
    path = folder / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match="rows.jsonl:2: not UTF-8"):
        RowFileDataset(path)


def test_an_image_that_is_none_is_named_when_it_is_opened(folder):
    (folder / "broken.png").write_text("no image")
    dataset = RowFileDataset(write(folder, GOOD, {**GOOD, "image": "broken.png"}))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: .*broken\.png"):
        dataset[1]


def test_csv_with_too_many_fields(folder):
    path = folder / "rows.csv"
    path.write_text("image,prompt,completion\na.png,p,c,d\na.png,p\n")
    with pytest.raises(ValueError, match="rows.csv:2: has more fields") as caught:
        RowFileDataset(path)
    assert "rows.csv:3: has no completion" in caught.value.problems


def test_nothing_there(folder):
    with pytest.raises(ValueError, match="has no rows"):
        RowFileDataset(write(folder, ""))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        RowFileDataset(folder / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="image_root"):
        RowFileDataset(write(folder, GOOD), image_root=folder / "none")
