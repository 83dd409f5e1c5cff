"""What LAVIS's readers of these datasets lose or mix up: none of it happens here."""

import json

import pytest

from instructblip_hf.constants import IMAGE_TOKEN
from instructblip_hf.data.answers import choose_answer
from instructblip_hf.data.sources.datasets import CatalogDataset
from official_formats import LLAVA_TURNS, TEN_ANSWERS, write_dataset


@pytest.fixture
def read(tmp_path):
    def read(name, split="train"):
        write_dataset(name, tmp_path / name)
        dataset = CatalogDataset(name, tmp_path / name, split)
        return [dataset[index] for index in range(len(dataset))]

    return read


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "vqg_vqav2", "vqg_okvqa"])
def test_answers_stay_with_their_questions(read, name):
    first, second = read(name)
    assert (first["id"], second["id"]) == ("10", "20")
    # The annotations stand in the other order, and each question keeps all ten, as often as they were given.
    assert first["answers"] == TEN_ANSWERS
    assert second["answers"] == ["two"] * 10


def test_a_row_learns_one_of_its_own_answers():
    drawn = [choose_answer(TEN_ANSWERS, seed=1, epoch=epoch, row=7) for epoch in range(2000)]
    shares = {answer: drawn.count(answer) / len(drawn) for answer in set(drawn)}
    assert shares == pytest.approx({"dog": 0.6, "puppy": 0.3, "cat": 0.1}, abs=0.04)
    assert drawn == [choose_answer(TEN_ANSWERS, seed=1, epoch=epoch, row=7) for epoch in range(2000)]
    assert drawn != [choose_answer(TEN_ANSWERS, seed=1, epoch=epoch, row=8) for epoch in range(2000)]
    assert choose_answer(["b", "a", "a"], "most_common") == "a"
    assert choose_answer(["b", "a"], "most_common") == "b"
    with pytest.raises(ValueError, match="allowed are draw, most_common, first"):
        choose_answer(["a"], "random")
    with pytest.raises(ValueError, match="answers is empty"):
        choose_answer([])


def test_every_turn_of_visual_dialog_is_its_own_row_with_its_history_and_options(read):
    rows = read("visdial")
    assert [row["question"] for row in rows] == [f"question {k}?" for k in range(10)]
    assert [row["answers"] for row in rows] == [[f"answer {9 - k}"] for k in range(10)]
    for k, row in enumerate(rows):
        assert row["caption"] == "A man."
        assert row["history"] == [{"question": f"question {j}?", "answer": f"answer {9 - j}"} for j in range(k)]
        assert len(row["options"]) == 100
        assert row["options"][row["correct_option"]] == row["answers"][0]


def test_visual_dialog_finds_its_images_in_their_official_folders(read):
    assert read("visdial")[0]["images"][0].parent.name == "val2014"
    assert read("visdial", "val")[0]["images"][0].name == "VisualDialog_val2018_000000000009.jpg"
    (last,) = read("visdial", "test")
    assert (last["question"], last["answers"], len(last["history"])) == ("question 2?", [], 2)


def test_all_turns_of_llava_are_kept_word_for_word(read):
    first, second = read("llava_conversation")
    texts = [part["text"] for message in first["messages"] for part in message["content"] if part["type"] == "text"]
    assert texts == [turn["value"].removeprefix(f"{IMAGE_TOKEN}\n") for turn in LLAVA_TURNS]
    assert [message["role"] for message in first["messages"]] == ["user", "assistant"] * 2
    # The image stands where the row has it: before the question or after it.
    assert [part["type"] for part in first["messages"][0]["content"]] == ["image", "text"]
    assert [part["type"] for part in second["messages"][0]["content"]] == ["text", "image"]
    assert IMAGE_TOKEN not in json.dumps(first["messages"])


def test_scienceqa_keeps_hint_lecture_subject_and_grade_and_reads_rows_without_image(read):
    with_image, without = read("scienceqa")
    assert with_image["context"] == "Look at the bar."
    assert with_image["lecture"] == "Magnets attract."
    assert with_image["explanation"] == "Iron is magnetic."
    assert {"subject": "natural science", "grade": "grade4"}.items() <= with_image["metadata"].items()
    assert (with_image["options"], with_image["correct_option"]) == (["iron", "wood"], 0)
    assert with_image["answers"] == ["iron"]
    assert without["images"] == []
    assert "context" not in without


def test_iconqa_reads_the_questions_whose_choices_are_texts(read):
    (row,) = read("iconqa")
    assert (row["question"], row["options"], row["answers"]) == ("How many?", ["2", "3"], ["3"])


def test_ocr_vqa_has_every_question_of_a_split_and_no_other(read):
    rows = read("ocr_vqa", "val")
    assert [row["question"] for row in rows] == ["Who wrote this book?", "What is the title?", "Is this a cookbook?"]
    assert [row["answers"] for row in rows] == [["Ann Author"], ["Title 1"], ["No"]]
    assert {row["id"].split("-")[0] for row in read("ocr_vqa", "test")} == {"000000002X", "000000003X"}


def test_vizwiz_keeps_how_often_an_answer_was_given(read):
    (row,) = read("vizwiz")
    assert row["answers"] == TEN_ANSWERS
    assert row["metadata"]["answer_confidences"] == ["maybe"] * 10


def test_vsr_answers_yes_or_no(read):
    true, false = read("vsr")
    assert true["statement"] == "The teddy bear is in front of the person."
    assert (true["answers"], false["answers"]) == (["yes"], ["no"])


def test_ocr_words_come_from_the_published_file(read):
    assert read("textvqa")[0]["ocr_tokens"] == ["stop", "5"]
    assert read("textcaps")[0]["ocr_tokens"] == ["stop", "5"]
    # The fixture has no file of words for this split.
    assert "ocr_tokens" not in read("textcaps", "val")[0]


def test_textcaps_trains_on_captions_and_is_evaluated_by_image(read):
    assert [row["answers"] for row in read("textcaps")] == [[f"A sign {k}."] for k in range(5)]
    assert [row["answers"] for row in read("textcaps", "val")] == [[f"A sign {k}." for k in range(5)]]


def test_captions_keep_case_and_punctuation_and_restval_is_trained_on(read):
    rows = read("coco_caption")
    assert [row["answers"] for row in rows[:2]] == [["Caption 0 of 0."], ["Caption 1 of 0."]]
    assert rows[5]["images"][0].name == "COCO_val2014_000000000001.jpg"
    assert len(read("coco_caption", "test")[0]["answers"]) == 5


def test_aokvqa_has_direct_answers_and_choices(read):
    (row,) = read("aokvqa")
    assert row["answers"] == ["ride"] * 4 + ["cab"] * 6
    assert row["options"][row["correct_option"]] == "cab"
    assert row["explanation"] == "R1."


def test_ivqa_has_its_clip_and_five_answers(read):
    (row,) = read("ivqa")
    assert (row["video"]["start"], row["video"]["end"]) == (3.0, 9.0)
    assert row["answers"] == ["tomato", "tomato", "tomatoes", "red", "onion"]
