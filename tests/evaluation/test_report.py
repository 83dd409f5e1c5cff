"""Tables and plots beside the published numbers."""

import json

import pytest

from instructblip_hf.evaluation.published import FINETUNED, ZERO_SHOT, closest_published, published_number
from instructblip_hf.evaluation.report import markdown_table, results_table, science_table, write_report


def one(name, value=0.5, **changes):
    found = {
        "model": {"name": "mine"},
        "task": name,
        "split": "val",
        "rows": 1000,
        "rows_of_split": 1000,
        "metric": "vqa_accuracy",
        "changed": [],
        "bad_rows": 0,
        "unverified": [],
        "value": value,
        "value_of": "accuracy",
        "result": {"accuracy": value},
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def write(folder, *results):
    for result in results:
        (folder / result["task"]).mkdir()
        (folder / result["task"] / "result.json").write_text(json.dumps(result))


def test_the_table(tmp_path):
    published = {"model": "InstructBLIP Vicuna-7B", "value": 49.2, "difference": 0.8}
    caption = {"metric": "caption_scores", "value_of": "cider", "result": {"cider": 1.234, "tokenizer": "treebank"}}
    server = {"value": None, "result": None, "submission": "vizwiz/submission.json"}
    write(
        tmp_path,
        one("gqa", published=published, unverified=["decoding settings"]),
        one("nocaps", 1.234, **caption),
        one("okvqa", rows=10, changed=["prompt", "decoding"], bad_rows=2),
        one("vizwiz", **server),
    )
    results = write_report(tmp_path)
    assert results_table(results) == [
        ["task", "split", "rows", "metric", "value", "InstructBLIP Vicuna-7B", "difference", "notes"],
        ["gqa", "val", "1,000", "vqa accuracy", "50.0", "49.2", "+0.8", "unverified: decoding settings"],
        ["nocaps", "val", "1,000", "CIDEr", "123.4", "", "", "tokenizer treebank, not COCO's"],
        [
            "okvqa",
            "val",
            "10",
            "vqa accuracy",
            "50.0",
            "",
            "",
            "the first of 1,000 rows; 2 malformed rows left out; other prompt and decoding than the protocol's",
        ],
        ["vizwiz", "val", "1,000", "", "", "", "", "answers are on a server: vizwiz/submission.json"],
    ]
    assert markdown_table(results_table(results)) in (tmp_path / "results.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "results.png").stat().st_size > 5000


def test_without_matplotlib_the_rest_is_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    write(tmp_path, one("gqa"))
    write_report(tmp_path)
    assert "no results.png: pictures need matplotlib" in caplog.text
    assert not (tmp_path / "results.png").exists()
    assert (tmp_path / "results.md").is_file()


def test_nothing_to_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="no result in"):
        write_report(tmp_path)


def test_scienceqa_in_its_own_columns():
    result = {
        "accuracy": 0.75,
        "count": 4,
        "by": {
            "subject": {"natural science": {"accuracy": 1.0, "count": 3}},
            "context": {"text": {"accuracy": 0.5, "count": 2}, "image": {"accuracy": 0.75, "count": 4}},
            "grade": {"1-6": {"accuracy": 2 / 3, "count": 3}},
        },
    }
    assert science_table(result) == [
        ["", "NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"],
        ["accuracy", "100.00", "", "", "50.00", "75.00", "", "66.67", "", "75.00"],
        ["questions", "3", "", "", "2", "4", "", "3", "", "4"],
    ]


@pytest.mark.parametrize(
    ("name", "is_encoder_decoder", "expected"),
    [
        ("Salesforce/instructblip-flan-t5-xxl", True, "InstructBLIP FlanT5-XXL"),
        ("Salesforce/instructblip-flan-t5-xl", True, "InstructBLIP FlanT5-XL"),
        ("/models/InstructBLIP_Vicuna_13B", False, "InstructBLIP Vicuna-13B"),
        ("outputs/mine", True, "InstructBLIP FlanT5-XL"),
        ("outputs/mine", False, "InstructBLIP Vicuna-7B"),
    ],
)
def test_which_published_model_is_closest(name, is_encoder_decoder, expected):
    assert closest_published(name, is_encoder_decoder) == expected


def test_published_numbers():
    assert published_number("InstructBLIP Vicuna-7B", "scienceqa") == ZERO_SHOT["InstructBLIP Vicuna-7B"]["scienceqa"]
    finetuned = published_number("InstructBLIP Vicuna-7B", "scienceqa", finetuned=True)
    assert finetuned == FINETUNED["InstructBLIP Vicuna-7B"]["scienceqa"] == 79.5
    with pytest.raises(KeyError, match="table 3 of the paper has no model 'InstructBLIP FlanT5-XL'; it has BLIP-2"):
        published_number("InstructBLIP FlanT5-XL", "okvqa", finetuned=True)
    for is_encoder_decoder in (False, True):
        assert published_number(closest_published("mine", is_encoder_decoder, True), "okvqa", True) is not None
    assert published_number("InstructBLIP Vicuna-7B", "vqav2") is None
    with pytest.raises(KeyError, match="no model 'BLIP-3'; it has BLIP-2 FlanT5-XL"):
        published_number("BLIP-3", "gqa")
