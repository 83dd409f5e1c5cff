"""Malformed rows and files: named by file and line or index, all at once, and never read as something else."""

import json

import pytest

from instructblip_hf.data.answers import choose_answer
from instructblip_hf.data.jsonl import RowFileError
from instructblip_hf.data.sources import files
from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.data.sources.files import streamed_json_rows
from instructblip_hf.data.sources.table import SOURCES, examples_of
from official_formats import LLAVA_TURNS, write_dataset, write_json


IMAGE = "a.png"
DIALOG = {"image_id": 1, "caption": "A man.", "dialog": [{"question": "q?", "answer": "a"}]}
PROBLEM = {"id": "1", "question": "q?", "choices": ["a", "b"], "answer": 1, "image": IMAGE}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("vqav2", {"question_id": 1, "image": IMAGE, "answers": ["a"]}, "has no question"),
        ("vqav2", {"question_id": 1, "image": IMAGE, "question": "  "}, "question is empty"),
        ("vqav2", {"question_id": 1, "image": IMAGE, "question": 5}, "question must be text, not 5"),
        ("vqav2", {"question_id": 1, "image": IMAGE, "question": "q?", "answers": [{"a": 1}]}, "is not an answer"),
        ("vqav2", {"question_id": 1, "question": "q?", "answers": ["a"]}, "has no image"),
        ("vqav2", {"question_id": True, "image": IMAGE, "question": "q?"}, "question_id must be a number or a text"),
        ("vqav2", {"question_id": 1, "image_id": "x", "question": "q?"}, "invalid literal"),
        ("aokvqa", {"question_id": "1", "image": IMAGE, "question": "q?"}, "has no choices"),
        (
            "aokvqa",
            {"question_id": "1", "image": IMAGE, "question": "q?", "choices": ["a"], "correct_choice_idx": 1},
            "correct_choice_idx must be a whole number from 0 to 0, not 1",
        ),
        ("scienceqa", {**PROBLEM, "answer": 2}, "answer must be a whole number from 0 to 1, not 2"),
        ("scienceqa", {**PROBLEM, "answer": "B"}, "answer must be a whole number"),
        ("scienceqa", {**PROBLEM, "choices": []}, "choices is empty"),
        ("scienceqa", {**PROBLEM, "hint": 3}, "hint must be text"),
        ("iconqa", {**PROBLEM, "choices": "ab"}, "choices must be a list of texts, not 'ab'"),
        ("ocr_vqa", {"id": "1", "questions": ["a?", "b?"], "answers": ["a"]}, "has 2 questions and 1 answers"),
        ("ocr_vqa", {"id": "1", "questions": ["a?"], "answers": ["a"], "split": 7}, "split must be 1, 2 or 3, not 7"),
        ("hateful_memes", {"id": 1, "img": IMAGE, "text": "t", "label": 2}, "label must be 0 or 1, not 2"),
        ("vsr", {"id": 1, "image": IMAGE, "caption": "t", "label": "true"}, "label must be 0 or 1, not 'true'"),
        ("visdial", {**DIALOG, "dialog": []}, "has no dialog"),
        (
            "visdial",
            {**DIALOG, "dialog": [{"question": "q?"}, *DIALOG["dialog"]]},
            "turn 1 of its dialog has no answer",
        ),
        (
            "visdial",
            {**DIALOG, "dialog": [{"question": "q?", "answer": "a", "answer_options": ["a"], "gt_index": 3}]},
            "gt_index must be a whole number from 0 to 0, not 3",
        ),
        ("visdial", {**DIALOG, "dialog": [5]}, "is not built as published"),
        ("ivqa", {"video_id": "v", "question": "q?"}, "has none of answer1 to answer5"),
        ("ivqa", {"video_id": "v", "question": "q?", "answer1": "a", "start": "x"}, "start must be a number, not 'x'"),
        (
            "ivqa",
            {"video_id": "v", "question": "q?", "answer1": "a", "start": "9", "end": "3"},
            "has a clip from 9 to 3 seconds",
        ),
        ("web_capfilt", {"url": "http://a/b.jpg", "caption": "c"}, "download the image"),
        ("coco_caption", {"filename": "a.jpg", "filepath": "val2014", "cocoid": 1, "sentences": []}, "has no caption"),
        ("llava_detail", {"id": "1", "image": IMAGE}, "has no conversations"),
        ("llava_detail", {"id": "1", "image": IMAGE, "conversations": LLAVA_TURNS[:1]}, "question without an answer"),
        ("llava_detail", {"id": "1", "image": IMAGE, "conversations": LLAVA_TURNS[1:3]}, "must be from 'human'"),
        ("llava_detail", {"id": "1", "conversations": LLAVA_TURNS}, "has 1 <image> for 0 images"),
        (
            "llava_detail",
            {"id": "1", "image": IMAGE, "conversations": [LLAVA_TURNS[0], {"from": "gpt", "value": " "}]},
            "turn 2 is empty",
        ),
    ],
)
def test_a_malformed_row_is_named_by_its_field(name, row, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        examples_of(name, row)


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_makes_something_of_an_empty_row(name):
    with pytest.raises(ValueError, match=r"has no|has none"):
        examples_of(name, {})


def test_all_problems_of_a_file_are_told_at_once_by_line(tmp_path):
    write_dataset("hateful_memes", tmp_path)
    good = (tmp_path / "train.jsonl").read_text().splitlines()[0]
    (tmp_path / "train.jsonl").write_text(f'{good}\n\n{{"id": 3\n{{"id": 4}}\n[1]\n{good}\n')
    with pytest.raises(RowFileError) as error:
        CatalogDataset("hateful_memes", tmp_path)
    first, *others = error.value.problems
    assert first.startswith("train.jsonl:3: not readable as JSON: ")
    assert others == ["train.jsonl:4: has no image", "train.jsonl:5: must be an object, not list"]


def test_many_problems_are_counted(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"id": 1}\n' * 25)
    with pytest.raises(RowFileError, match=r"\.\.\. and 15 more"):
        CatalogDataset("hateful_memes", tmp_path)


def test_malformed_rows_are_left_out_only_as_far_as_was_said(tmp_path, caplog):
    write_dataset("hateful_memes", tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"id": 1}\n{"id": 2}\n')
    dataset = CatalogDataset("hateful_memes", tmp_path, max_bad_rows=2)
    assert (len(dataset), dataset.bad_rows) == (2, 2)
    assert "hateful_memes train: 2 malformed rows left out, the first train.jsonl:3: has no image" in caplog.text
    with pytest.raises(RowFileError):
        CatalogDataset("hateful_memes", tmp_path, max_bad_rows=1)


def test_blank_answers_are_no_answers(tmp_path):
    write_json(tmp_path / "train.json", [{"image": "a.jpg", "question": "What?", "answers": [{"answer": " "}] * 10}])
    with pytest.raises(RowFileError, match=r"train\.json\[0\]: has no answer"):
        CatalogDataset("vizwiz", tmp_path)
    assert {choose_answer(["", "a", " "], epoch=epoch) for epoch in range(50)} == {"a"}
    with pytest.raises(ValueError, match="all blank"):
        choose_answer([""])


def test_a_question_without_annotation_is_a_problem(tmp_path):
    write_dataset("vqav2", tmp_path)
    file = tmp_path / "v2_mscoco_train2014_annotations.json"
    annotations = json.loads(file.read_text())
    write_json(file, {"annotations": annotations["annotations"][:1]})
    with pytest.raises(RowFileError, match=r"questions\[0\]: v2_mscoco_.* has no annotation of the question_id 10"):
        CatalogDataset("vqav2", tmp_path)


def test_a_row_without_answers_is_a_problem_where_answers_are_published(tmp_path):
    write_json(tmp_path / "train.json", [{"image": "a.jpg", "question": "What?"}])
    with pytest.raises(RowFileError, match=r"train\.json\[0\]: has no answer"):
        CatalogDataset("vizwiz", tmp_path)


def test_a_dialogue_that_points_past_the_lists_is_a_problem(tmp_path):
    write_dataset("visdial", tmp_path)
    file = tmp_path / "visdial_1.0_train.json"
    content = json.loads(file.read_text())
    # Python would take -1 for the last.
    content["data"]["dialogs"][0]["dialog"][3]["answer"] = -1
    write_json(file, content)
    with pytest.raises(RowFileError, match=r"dialogs\[0\]: has a turn that points to no question or answer"):
        CatalogDataset("visdial", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gqa", "train_balanced_questions.json", "{", "train_balanced_questions.json:1: not readable as JSON"),
        ("gqa", "train_balanced_questions.json", "3", "holds int, not a list of rows"),
        ("textvqa", "TextVQA_0.5.1_train.json", "[]", "has no data, so it is not the published file"),
        ("visdial", "visdial_1.0_train.json", "{}", "has no data.dialogs"),
        ("iconqa", "pid_splits.json", "{}", "has no choose_txt_train"),
        ("vqav2", "v2_mscoco_train2014_annotations.json", "[]", "has no annotations"),
        ("web_capfilt", "annotation.json", '{"a": 1}', "does not hold a list of rows"),
        ("web_capfilt", "annotation.json", '[{"image": "cc/0.jpg", "caption": "x"}, {"ima', r"annotation.json\[1\]"),
        ("vsr", "train.jsonl", "", "has no rows"),
    ],
)
def test_a_file_that_is_not_the_published_one_is_named(tmp_path, name, file, content, message):
    write_dataset(name, tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        CatalogDataset(name, tmp_path)


def test_missing_files_folders_and_names_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no train_qa\.json or qa_train\.json"):
        CatalogDataset("msvd_qa", tmp_path)
    write_dataset("vqav2", tmp_path / "vqa")
    (tmp_path / "vqa" / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no v2_mscoco_val2014_annotations\.json$"):
        CatalogDataset("vqav2", tmp_path / "vqa", "val")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        CatalogDataset("vqav2", tmp_path / "none")
    with pytest.raises(KeyError, match="no dataset 'vqa'"):
        CatalogDataset("vqa", tmp_path)
    with pytest.raises(KeyError, match="vqav2 has no split 'dev'; it has train, val"):
        CatalogDataset("vqav2", tmp_path, "dev")


@pytest.mark.parametrize("buffer", [1, 7, 64, 1 << 20])
def test_large_lists_are_read_row_by_row_as_json_reads_them_whole(tmp_path, monkeypatch, buffer):
    rows = [{"image": f"{number}.jpg", "caption": 'a "quoted", [b], {c} \u00e9\n'} for number in range(50)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(files, "_BUFFER", buffer)
    read = list(streamed_json_rows(tmp_path / "a.json"))
    assert [row for _, row in read] == rows
    assert read[49][0] == "a.json[49]"
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert list(streamed_json_rows(tmp_path / "empty.json")) == []
