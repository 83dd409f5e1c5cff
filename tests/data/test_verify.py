"""Checks of a user's copy: whole ones pass, and each kind of damage is named with what to do."""

import json

import pytest
from typer.testing import CliRunner

from instructblip_hf.cli.app import app
from instructblip_hf.data.catalog import DATASETS
from instructblip_hf.data.verify import verify_dataset
from official_formats import write_dataset, write_jsonl


def verify(*arguments):
    result = CliRunner().invoke(app, ["data", "verify", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.parametrize("name", DATASETS)
def test_a_whole_copy_passes(name, tmp_path):
    counts = write_dataset(name, tmp_path)
    report = verify_dataset(name, tmp_path, partial=True)
    assert report.problems == []
    assert {split.split: split.rows for split in report.splits} == counts
    assert all(split.opened == split.rows for split in report.splits)


def test_a_whole_copy_of_the_published_size_ends_with_0(tmp_path):
    write_dataset("vsr", tmp_path)
    row = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
    write_jsonl(tmp_path / "test.jsonl", [row] * 1222)
    code, output = verify("vsr", tmp_path, "--split", "test")
    assert code == 0
    assert "test  1,222 rows, images of 200 rows opened: whole" in output
    assert "nothing is wrong" in output


def test_fewer_rows_than_published_are_a_problem_unless_a_part_is_meant(tmp_path):
    write_dataset("okvqa", tmp_path)
    code, output = verify("okvqa", tmp_path)
    assert code == 1
    assert "error: train: has 2 rows; published are 9,009" in output
    assert "do: download OpenEnded_mscoco_train2014_questions.json and" in output
    code, output = verify("okvqa", tmp_path, "--partial")
    assert code == 0
    assert "note: has 2 rows; published are 9,009, a part as was said" in output


def test_numbers_that_are_not_verified_only_count_from_far_below(tmp_path):
    write_dataset("hateful_memes", tmp_path)
    row = {"id": 1, "img": "img/42953.png", "text": "t", "label": 1}
    write_jsonl(tmp_path / "dev.jsonl", [{**row, "id": number} for number in range(499)])
    report = verify_dataset("hateful_memes", tmp_path, splits=["dev", "train"])
    assert report.splits[0].problems == []
    assert report.splits[0].notes == ["has 499 rows; published are about 500 (a number that was not verified)"]
    assert report.problems == ["train: has 2 rows; published are about 8,500"]


def test_missing_files_are_named(tmp_path):
    code, output = verify("gqa", tmp_path)
    assert code == 1
    assert f"{tmp_path} has no train_balanced_questions.json" in output.replace("\n", "")
    assert "do: get GQA from https://cs.stanford.edu/people/dorarad/gqa/" in output

    write_dataset("gqa", tmp_path)
    (tmp_path / "val_balanced_questions.json").unlink()
    # What is not there is not asked for, until it is.
    assert verify("gqa", tmp_path, "--partial")[0] == 0
    code, output = verify("gqa", tmp_path, "--partial", "--split", "val")
    assert code == 1
    assert "has no val_balanced_questions.json" in output


def test_half_of_a_split_is_a_problem(tmp_path):
    write_dataset("vqav2", tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    report = verify_dataset("vqav2", tmp_path, partial=True)
    assert report.problems == [f"val: {tmp_path} has no v2_mscoco_val2014_annotations.json"]


def test_malformed_rows_are_named_by_line_and_counted(tmp_path):
    write_dataset("hateful_memes", tmp_path)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([lines[0], "{", *['{"id": 1}'] * 14, lines[1]]))
    report = verify_dataset("hateful_memes", tmp_path, splits=["train"], partial=True)
    assert report.problems[0].startswith("train: train.jsonl:2: not readable as JSON")
    assert report.problems[1] == "train: train.jsonl:3: has no image"
    assert report.problems[-1] == "train: ... 15 malformed rows in all"
    assert len(report.problems) == 11
    assert report.splits[0].rows == 2
    assert "download train.jsonl again" in report.advice[0]


def test_a_damaged_file_is_a_problem_of_its_split(tmp_path):
    write_dataset("textvqa", tmp_path)
    (tmp_path / "TextVQA_0.5.1_val.json").write_text('{"data": [')
    report = verify_dataset("textvqa", tmp_path, partial=True)
    assert [problem[:47] for problem in report.problems] == ["val: TextVQA_0.5.1_val.json:1: not readable as "]


def test_missing_and_unreadable_images_are_named(tmp_path):
    write_dataset("okvqa", tmp_path)
    (tmp_path / "train2014" / "COCO_train2014_000000000001.jpg").unlink()
    (tmp_path / "val2014" / "COCO_val2014_000000000002.jpg").write_bytes(b"cut off")
    # Of a part, rows without images are only noted, but damaged images are not meant by anyone.
    report = verify_dataset("okvqa", tmp_path, partial=True)
    assert [problem.split(":")[0] for problem in report.problems] == ["val"]
    assert "not in an image format" in report.problems[0]
    assert "1 rows without their images, the first: " in report.splits[0].notes[0]

    report = verify_dataset("okvqa", tmp_path)
    assert "questions[0]: there is no train2014/COCO_train2014_000000000001.jpg" in report.problems[0]
    assert any("unpack the images into" in advice for advice in report.advice)
    # Without a look at images only the numbers of rows are wrong.
    report = verify_dataset("okvqa", tmp_path, open_rows=0)
    assert len(report.problems) == 2
    assert report.splits[0].opened == 0


@pytest.mark.parametrize(("images", "opened"), [("all", 40), ("7", 7), ("none", 0)])
def test_how_many_images_are_opened(tmp_path, images, opened):
    write_dataset("hateful_memes", tmp_path)
    row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    write_jsonl(tmp_path / "train.jsonl", [{**row, "id": number} for number in range(40)])
    code, output = verify("hateful_memes", tmp_path, "--split", "train", "--partial", "--images", images, "--json")
    report = json.loads(output)
    assert code == 0
    assert report["is_whole"]
    assert report["splits"][0]["opened"] == opened


def test_images_may_stand_elsewhere(tmp_path):
    write_dataset("gqa", tmp_path / "a")
    (tmp_path / "a" / "images").rename(tmp_path / "images")
    assert verify("gqa", tmp_path / "a", "--split", "train")[0] == 1
    assert verify("gqa", tmp_path / "a", "--partial", "--image-root", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vqa", "."), "there is no dataset 'vqa' in the catalog"),
        (("vqav2", "no-such-folder"), "there is no folder no-such-folder"),
        (("vqav2", ".", "--split", "dev"), "vqav2 has no split 'dev'"),
        (("vqav2", ".", "--images", "some"), "it can be a number, all, or none"),
    ],
)
def test_what_cannot_be_checked_ends_with_2(arguments, message):
    code, output = verify(*arguments)
    assert code == 2
    assert message in output
