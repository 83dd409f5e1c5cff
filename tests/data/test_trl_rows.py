"""Rows for TRL: form by form, checked against the tokens that our own collator makes of the row as it is."""

import json
import pickle

import pytest
from PIL import Image

from instructblip_hf.data.jsonl import RowFileDataset
from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.data.trl_rows import FORMS, trl_dataset, trl_row
from tiny_processors import our_processor


PICTURE = Image.new("RGB", (28, 28), "red")
QUESTION, ANSWER = "what color is the circle ?", "red"
TURNS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "what is left of the square ?"},
    {"role": "assistant", "content": "a blue circle"},
]
ROWS = {
    "text": {"images": [PICTURE], "prompt": QUESTION, "completion": ANSWER, "dataset": "colors"},
    "one image": {"image": PICTURE, "prompt": QUESTION, "completion": ANSWER},
    "no image": {"prompt": QUESTION, "completion": ANSWER},
    "markers": {
        "images": [PICTURE] * 3,
        "prompt": "<image> <image>left of <image> what ?",
        "completion": " green ",
    },
    "messages": {"images": [PICTURE] * 2, "messages": TURNS},
    "image part": {
        "images": [PICTURE],
        "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "image"}]}, TURNS[1]],
    },
    "prompt of messages": {"images": [PICTURE], "prompt": TURNS[:1], "completion": TURNS[1:2]},
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("form", FORMS)
def test_a_row_keeps_its_tokens_and_labels(name, form):
    processor = our_processor()
    row, converted = ROWS[name], trl_row(ROWS[name], form)
    assert set(converted) == {"images", *form.split("_")}
    expected, found = processor.encode_examples([row]), processor.encode_examples([converted])
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    if name == "messages" and form == "prompt_completion":
        # The last answer alone.
        kept = processor.tokenizer.decode([label for label in found["labels"][0].tolist() if label >= 0])
        assert kept == "a blue circle </s>"
    else:
        assert found["labels"].tolist() == expected["labels"].tolist()
    for key in ("pixel_values", "qformer_input_ids"):
        assert (key in found) == (key in expected)
        if key in expected:
            assert found[key].tolist() == expected[key].tolist()


def test_another_marker():
    rows = [{"images": [PICTURE], "prompt": "left of <picture>, not <image>", "completion": ANSWER}]
    (row,) = trl_dataset(rows, image_token="<picture>")
    kinds = [part["type"] for part in row["messages"][0]["content"]]
    assert kinds == ["text", "image", "text"]
    assert row["messages"][0]["content"][2]["text"] == ", not <image>"


def test_every_content_has_one_schema():
    for row in ROWS.values():
        for message in trl_row(row)["messages"]:
            assert all(set(part) == {"type", "text"} for part in message["content"])


@pytest.mark.parametrize(
    ("row", "form", "words"),
    [
        (ROWS["text"], "chat", ["chat", "messages", "prompt_completion"]),
        ({**ROWS["text"], "qformer_text": "what ?"}, "messages", ["qformer_text", "VisionLanguageCollator"]),
        ({"images": [], "prompt": "what ?"}, "messages", ["completion", "images, prompt"]),
        (
            {"images": [PICTURE], "prompt": "<image> <image> what ?", "completion": "red"},
            "messages",
            ["1 images", "2"],
        ),
        ({"images": [], "messages": TURNS[:1]}, "messages", ["must end with an answer"]),
        ({"prompt": TURNS[:3], "completion": TURNS[3:]}, "messages", ["prompt_completion"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": PICTURE}]}, TURNS[1]]},
            "messages",
            ["image of its own"],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, TURNS[1]]}, "messages", ["audio"]),
    ],
)
def test_what_a_row_cannot_be(row, form, words):
    with pytest.raises(ValueError, match=".*".join(words)):
        trl_row(row, form)


@pytest.fixture
def file(tmp_path):
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "prompt": QUESTION, "completion": "blue"},
        {"images": [], "prompt": "what ?", "completion": "a square"},
        {"images": ["a.png"], "messages": TURNS},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return RowFileDataset(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_opens_rows_when_they_are_asked_for(file, form):
    dataset = trl_dataset(file, form)
    assert len(dataset) == 3
    assert [dataset[index] for index in range(3)] == [trl_row(file[index], form) for index in range(3)]
    shuffled = dataset.shuffle(seed=1).select(range(2))
    assert all(row in [trl_row(file[index], form) for index in range(3)] for row in shuffled)
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]
    (file.image_root / "a.png").unlink()
    with pytest.raises(ValueError, match=r"rows\.jsonl:1"):
        dataset[0]


def test_a_mixture_in_the_order_of_its_draws(file):
    mixture = MixtureDataset({"rows": file, "again": file}, Mixture({"rows": 3, "again": 3}), length=8)
    assert list(trl_dataset(mixture)) == [trl_row(mixture[number]) for number in range(8)]
    with pytest.raises(ValueError, match="form is 'rows'"):
        trl_dataset(mixture, "rows")
