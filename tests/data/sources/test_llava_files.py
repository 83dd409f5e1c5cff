"""Files in LLaVA's format: those that are published, row by row in their published form, and what is wrong with others."""

import json
import logging

import pytest
from PIL import Image
from transformers.utils.chat_template_utils import render_jinja_template

from instructblip_hf.data.jsonl import RowFileError
from instructblip_hf.data.sources.llava_files import LlavaFileDataset
from instructblip_hf.data.sources.llava_instruct import llava_messages
from instructblip_hf.models.chat_templates import CHAT_TEMPLATES


IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def turns(*values):
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


# File, a row as it is published in it, images, and the content of the first turn.
PUBLISHED = {
    "conversation_58k.json": (
        {"id": "000000033471", "image": "000000033471.jpg", "conversations": turns("<image>\nWhat?", "A bus.", "Why?", "It is.")},
        [IMAGE, text("What?")],
    ),
    "llava_instruct_80k.json": (
        {"id": "000000052846", "image": "000000052846.jpg", "conversations": turns("Where?\n<image>", "Here.\n\nAnd there.")},
        [text("Where?"), IMAGE],
    ),
    "chat.json": (
        {"id": "GCC_train_002582585", "image": "GCC_train_002582585.jpg", "conversations": turns("Describe it.\n<image>", "olive oil")},
        [text("Describe it."), IMAGE],
    ),
    "blip_laion_cc_sbu_558k.json": (
        {"id": "004539375", "image": "00453/004539375.jpg", "conversations": turns("Render a summary.\n<image>", "select luxury")},
        [text("Render a summary."), IMAGE],
    ),
    "llava_v1_5_mix665k.json": (
        {"id": "33471", "image": "coco/train2017/000000033471.jpg", "conversations": turns("<image>\nWho?\nAnswer shortly.", "Her")},
        [IMAGE, text("Who?\nAnswer shortly.")],
    ),
    "text_of_mix665k.json": (
        {"id": "wgByO4Y_0", "model": "", "conversations": turns("Write Python.", "```python\n```")},
        [text("Write Python.")],
    ),
    "answer_first_of_mix665k.json": (
        {"id": "x_1", "conversations": [{"from": "gpt", "value": "Earlier."}, *turns("Go on.", "So.")]},
        [text("Go on.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        "<image>\nWhat?",
        "What?\n<image>",
        "Here:\n<image>\nand <image>?",
        "<image>\n<image>\nWhat?",
        "A\n\nB\n<image>\n<image>",
    ],
)
@pytest.mark.parametrize("name", ["v0", "v1", "llava_llama_2"])
def test_templates_write_turns_as_they_are_in_the_file(name, value):
    messages = llava_messages(turns(value, "a cat"), value.count("<image>"))
    texts, _ = render_jinja_template(
        conversations=[messages], chat_template=CHAT_TEMPLATES[name], bos_token="<s>", eos_token="</s>"
    )
    assert value in texts[0]


def write(folder, rows, name="rows.json"):
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("image"), str):
            file = folder / "images" / row["image"]
            if ".." not in row["image"]:
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 3)).save(file)
    (folder / "images").mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_as_published(name, tmp_path):
    row, first = PUBLISHED[name]
    dataset = LlavaFileDataset(write(tmp_path, [row, row], name), tmp_path / "images")
    assert len(dataset) == 2
    example = dataset[1]
    assert example["images"] == ([tmp_path / "images" / row["image"]] if "image" in row else [])
    said = [turn for turn in row["conversations"] if turn["value"] != "Earlier."]
    assert example["messages"][0] == {"role": "user", "content": first}
    assert [message["content"] for message in example["messages"][1:]] == [[text(turn["value"])] for turn in said[1:]]
    assert dataset[0]["id"] != example["id"], "ids come twice in the published files"
    assert dataset.peek(1)["images"] == ([row["image"]] if "image" in row else [])


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    good = PUBLISHED["llava_v1_5_mix665k.json"][0]
    rows = [
        good,
        {**good, "conversations": turns("<image>\nWhat?")},
        {**good, "conversations": turns("<image> <image>\nWhat?", "a")},
        {**good, "image": "../secret.jpg"},
        {key: value for key, value in good.items() if key != "image"},
        "a row",
        {**good, "image": 3},
    ]
    path = write(tmp_path, rows)
    with pytest.raises(RowFileError) as caught:
        LlavaFileDataset(path, tmp_path / "images")
    wrong = ["question without an answer", "has 2 <image> for 1 images", "leaves the image folder"]
    wrong += ["has 1 <image> for 0 images", "must be an object", "image must be a path"]
    assert len(caught.value.problems) == len(wrong)
    for number, (problem, expected) in enumerate(zip(caught.value.problems, wrong), start=1):
        assert problem.startswith(f"rows.json[{number}]: ")
        assert expected in problem


def test_rows_that_may_be_left_out(tmp_path, caplog):
    good = PUBLISHED["llava_v1_5_mix665k.json"][0]
    path = write(tmp_path, [{**good, "conversations": []}, good])
    with caplog.at_level(logging.WARNING):
        dataset = LlavaFileDataset(path, tmp_path / "images", "mix", max_bad_rows=1)
    assert (len(dataset), dataset.bad_rows) == (1, 1)
    assert "mix: 1 malformed rows left out, the first rows.json[0]: has no conversations" in caplog.text


def test_images_that_are_missing_are_told_when_they_are_asked_for(tmp_path):
    path = write(tmp_path, [PUBLISHED["chat.json"][0]])
    dataset = LlavaFileDataset(path)
    with pytest.raises(ValueError, match="rows GCC_train_002582585-0: there is no GCC_train_002582585.jpg"):
        dataset[0]


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        LlavaFileDataset(tmp_path / "no.json")
    with pytest.raises(FileNotFoundError, match="image_root: there is no folder"):
        LlavaFileDataset(write(tmp_path, []), tmp_path / "no")
    with pytest.raises(ValueError, match="has no rows"):
        LlavaFileDataset(write(tmp_path, []))
    with pytest.raises(ValueError, match="does not hold a list"):
        LlavaFileDataset(write(tmp_path, {}))
