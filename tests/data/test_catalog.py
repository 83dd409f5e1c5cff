"""The catalog: the paper's 26 datasets, and the table that the documentation shows of them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instructblip_hf.cli.app import app
from instructblip_hf.data.catalog import DATASETS, dataset_spec, markdown_table, split_spec
from instructblip_hf.data.schema import SLOTS, check_example
from official_formats import write_dataset


ROOT = Path(__file__).parents[2]
# Paper, figure 2 and section 2.2.
HELD_OUT_CATEGORIES = {"visual_reasoning", "video_qa", "conversational_qa", "image_classification"}


def test_the_catalog_has_what_the_paper_counts():
    assert len(DATASETS) == 26
    assert {spec.category for spec in DATASETS.values()} == set(SLOTS)
    assert len(SLOTS) == 11
    roles = [spec.role for spec in DATASETS.values()]
    assert (roles.count("held-in"), roles.count("held-out")) == (13, 13)
    for spec in DATASETS.values():
        assert spec.role == "held-out" or spec.category not in HELD_OUT_CATEGORIES


@pytest.mark.parametrize("name", DATASETS)
def test_entries_are_complete(name):
    spec = DATASETS[name]
    assert spec.homepage.startswith("https://")
    assert spec.licence
    assert spec.images
    assert (spec.evaluated_on is None) == (spec.metric is None)
    assert spec.evaluated_on is None or spec.evaluated_on in spec.splits
    if spec.role == "held-in":
        assert "train" in spec.splits
        assert spec.splits["train"].labelled
    else:
        assert spec.metric
    for split in spec.splits.values():
        assert split.files
        assert all(split.files)
        assert split.rows is None or split.about is None
        assert split.rows is not None or not split.verified


def test_unknown_names_are_named_with_those_there_are():
    with pytest.raises(KeyError, match=r"no dataset 'coco' in the catalog; it has coco_caption, "):
        dataset_spec("coco")
    with pytest.raises(KeyError, match="gqa has no split 'dev'; it has train, val, testdev, test"):
        split_spec("gqa", "dev")


def test_the_documentation_shows_the_table_as_it_is():
    """If this fails: put what ``instructblip data list --markdown`` prints between the two markers."""
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    shown = text.split("<!-- catalog -->\n")[1].split("\n<!-- end of catalog -->")[0]
    assert shown == markdown_table()


def test_the_command_shows_every_dataset():
    result = CliRunner().invoke(app, ["data", "list"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *DATASETS]
    assert "val 4,500, test ~10,600" in result.output
    catalog = json.loads(CliRunner().invoke(app, ["data", "list", "--json"]).output)
    assert list(catalog) == list(DATASETS)
    assert catalog["okvqa"]["splits"]["train"]["rows"] == 9009
    markdown = CliRunner().invoke(app, ["data", "list", "--markdown"]).output
    assert markdown == markdown_table() + "\n"


def test_the_documented_commands_and_code_work(tmp_path):
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    commands = [line.split("  #")[0].split() for line in text.splitlines() if line.startswith("instructblip data ")]
    for name in ("vqav2", "textvqa", "coco_caption"):
        write_dataset(name, tmp_path / name)
    (tmp_path / "coco_caption" / "val2014").rename(tmp_path / "val2014")
    assert sum("verify" in command for command in commands) == 4
    for command in commands:
        arguments = [
            word.replace("/data/coco_caption", "COPY").replace("/data/coco", str(tmp_path)) for word in command
        ]
        arguments = [word.replace("COPY", str(tmp_path / "coco_caption")) for word in arguments]
        arguments = [word.replace("/data", str(tmp_path)) for word in arguments]
        partial = ["--partial"] if "verify" in command else []
        result = CliRunner().invoke(app, [*arguments[1:], *partial])
        assert result.exit_code == 0, result.output
    code = text.split("```python\n")[1].split("```")[0].replace("/data", str(tmp_path))
    names: dict = {}
    exec(code, names)
    assert names["example"]["ocr_tokens"] == ["stop", "5"]
    assert names["images"][0].mode == "RGB"


GOOD = {
    "id": "1",
    "dataset": "okvqa",
    "category": "knowledge_qa",
    "images": [],
    "answers": ["a"],
    "question": "q?",
    "options": ["a", "b"],
    "correct_option": 0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "vqa"}, "category is 'vqa'; allowed are image_captioning"),
        ({"question": ""}, "has no question"),
        ({"caption": "c"}, "has the slot caption, which knowledge_qa does not have"),
        ({"correct_option": 2}, "correct_option is 2 for 2 options"),
        ({"category": "video_qa"}, "has the slot options"),
        ({"category": "conversational_qa"}, "has no caption"),
    ],
)
def test_an_example_with_the_wrong_slots_is_refused(change, message):
    check_example(GOOD)
    with pytest.raises(ValueError, match=f"1: {message}"):
        check_example({**GOOD, **change})
    with pytest.raises(ValueError, match="has no answers"):
        check_example({key: value for key, value in GOOD.items() if key != "answers"})
