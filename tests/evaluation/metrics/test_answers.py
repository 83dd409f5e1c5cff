"""Accuracies of single answers. Vectors marked "published script" are outputs of the script named."""

import random

import pytest

from instructblip_hf.evaluation.metrics import (
    aokvqa_direct_answer,
    aokvqa_multiple_choice,
    exact_match,
    gqa_accuracy,
    ivqa_accuracy,
    ocr_vqa_accuracy,
    scienceqa_accuracy,
)


@pytest.mark.parametrize(("normalizer", "expected"), [("none", 0.25), ("lower", 0.5), ("vqa", 0.75)])
def test_exact_match_by_normalizer(normalizer, expected):
    predictions = ["dog", "Dog ", "the dog.", "cat"]
    assert exact_match(predictions, [["dog"]] * 4, normalizer)["accuracy"] == expected


def test_exact_match_of_several_answers_unicode_and_nothing():
    result = exact_match(["日本", "", "é"], [["中国", "日本"], ["dog"], ["e\u0301"]])
    assert result == {"accuracy": pytest.approx(1 / 3), "count": 3}  # composed and decomposed letters are not alike


def test_exact_match_names_what_is_wrong():
    with pytest.raises(ValueError, match="no rows"):
        exact_match([], [])
    with pytest.raises(ValueError, match="empty for row 1"):
        exact_match(["a", "b"], [["a"], []])
    with pytest.raises(TypeError, match="strings for row 0"):
        exact_match(["a"], ["a"])
    with pytest.raises(ValueError, match="'lavis'; allowed are none, lower, vqa"):
        exact_match(["a"], [["a"]], "lavis")
    with pytest.raises(ValueError, match=r"groups\['kind'\] has 1 rows for 2 predictions"):
        exact_match(["a", "b"], [["a"], ["b"]], groups={"kind": ["x"]})


def test_gqa_counts_binary_and_open_questions():
    kinds = ["verify", "query", "query", "logical", "choose", "compare"]
    result = gqa_accuracy(
        ["yes", "Dog", "cat", "no", "left", "yes"], ["yes", "dog", "cat", "yes", "left", "no"], kinds
    )
    assert result["accuracy"] == 0.5
    assert result["by"]["answer_type"] == {
        "binary": {"accuracy": 0.5, "count": 4},
        "open": {"accuracy": 0.5, "count": 2},
    }
    assert result["by"]["structural_type"]["verify"] == {"accuracy": 1.0, "count": 1}
    assert gqa_accuracy(["the Dog."], ["dog"], normalizer="vqa")["accuracy"] == 1.0


def test_ocr_vqa_by_genre():
    result = ocr_vqa_accuracy(
        ["Barron's  Guide", "no", "1999"], ["barron's guide", "yes", "1999"], ["Test", "Test", "Law"]
    )
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["by"]["genre"] == {"Law": {"accuracy": 1.0, "count": 1}, "Test": {"accuracy": 0.5, "count": 2}}


AOKVQA = [["bus"] * 4 + ["Bus"] * 2 + ["coach"] * 2 + ["van"] * 2, ["one"] + ["1"] * 2 + ["two"] * 7, ["w"] * 10]


@pytest.mark.parametrize(
    ("predictions", "expected"),  # published script: eval_predictions.py of allenai/aokvqa (83786de)
    [(["bus", "1", "w"], 0.8333333333333333), (["coach", "one", "x"], 0.5), (["bus ", "", "w"], 0.0)],
)
def test_aokvqa_direct_answers_as_published(predictions, expected):
    result = aokvqa_direct_answer(predictions, AOKVQA, difficult=[False, False, True])
    assert result == {"accuracy": pytest.approx(expected, abs=1e-12), "count": 2, "excluded": 1}


def test_aokvqa_direct_answers_of_one_annotator_and_none_left():
    assert aokvqa_direct_answer(["a"], [["a"]])["accuracy"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="all 1 questions are difficult"):
        aokvqa_direct_answer(["a"], [["a"]], difficult=[True])
    with pytest.raises(ValueError, match="empty for row 1"):
        aokvqa_direct_answer(["a", "b"], [["a"], []], difficult=[False, False])
    grouped = aokvqa_direct_answer(["bus", "1", "w"], AOKVQA, [False, False, True], groups={"g": ["x", "y", "z"]})
    assert set(grouped["by"]["g"]) == {"x", "y"}


def test_aokvqa_multiple_choice_as_published():
    choices = [["car", "bus", "dog", "cat"], ["1", "2", "3", "4"], ["x", "y", "z", "w"]]
    right = [1, 0, 3]
    result = aokvqa_multiple_choice(["bus", "2", "w"], choices, right)
    assert result == {"accuracy": pytest.approx(2 / 3), "count": 3, "not_a_choice": 0}
    loose = aokvqa_multiple_choice(["Bus", "1", "w"], choices, right, strict=False)
    assert loose == {"accuracy": pytest.approx(2 / 3), "count": 3, "not_a_choice": 1}
    with pytest.raises(ValueError, match="none of the choices, of id 'q7'"):
        aokvqa_multiple_choice(["Bus", "1", "w"], choices, right, ids=["q7", "q8", "q9"])
    with pytest.raises(ValueError, match="none of the choices of row 2"):
        aokvqa_multiple_choice(["bus", "2", "w"], choices, [1, 0, 4])


IVQA = [
    ["apron"] * 3 + ["stove"] * 2,
    ["apron", "stove", "stove", "knife", "pan"],
    ["apron"] * 5,
    ["knife", "pan", "pan", "pan", "stove"],
]


@pytest.mark.parametrize(
    ("predictions", "expected"),  # published script: compute_aggreeings of antoyang/just-ask (b58f08e)
    [(["apron", "knife", "pan", "pan"], 0.625), (["stove", "apron", "apron", "stove"], 0.75), ([""] * 4, 0.0)],
)
def test_ivqa_as_published(predictions, expected):
    assert ivqa_accuracy(predictions, IVQA) == {"accuracy": expected, "count": 4}


def test_scienceqa_by_counting_one_column_at_a_time():
    draw = random.Random(3)
    rows = [
        {
            "answer": draw.randint(0, 3),
            "subject": draw.choice(["natural science", "social science", "language science"]),
            "grade": draw.randint(1, 12),
            "topic": draw.choice(["biology", "physics"]),
            "text": draw.random() < 0.5,
            "image": draw.random() < 0.5,
        }
        for _ in range(300)
    ]
    predictions = [draw.randint(-1, 3) for _ in rows]
    result = scienceqa_accuracy(
        predictions,
        [row["answer"] for row in rows],
        [row["subject"] for row in rows],
        [f"grade{row['grade']}" for row in rows],
        [row["text"] for row in rows],
        [row["image"] for row in rows],
        [row["topic"] for row in rows],
    )

    def share(keep):
        right = [row["answer"] == chosen for row, chosen in zip(rows, predictions) if keep(row)]
        return {"accuracy": pytest.approx(sum(right) / len(right)), "count": len(right)}

    by = result["by"]
    assert {"accuracy": result["accuracy"], "count": result["count"]} == share(lambda row: True)
    for subject in ("natural science", "social science", "language science"):
        assert by["subject"][subject] == share(lambda row, subject=subject: row["subject"] == subject)
    assert by["grade"]["1-6"] == share(lambda row: row["grade"] < 7)
    assert by["grade"]["7-12"] == share(lambda row: row["grade"] > 6)
    assert by["topic"]["biology"] == share(lambda row: row["topic"] == "biology")
    assert by["context"]["text"] == share(lambda row: row["text"])
    assert by["context"]["image"] == share(lambda row: row["image"])
    assert by["context"]["none"] == share(lambda row: not row["text"] and not row["image"])


def test_scienceqa_leaves_empty_columns_out_and_names_what_is_wrong():
    only_images = scienceqa_accuracy([0], [0], ["natural science"], ["grade12"], [False], [True])
    assert only_images["by"]["context"] == {"image": {"accuracy": 1.0, "count": 1}}
    assert only_images["by"]["grade"] == {"7-12": {"accuracy": 1.0, "count": 1}}
    with pytest.raises(ValueError, match="'grade13'; allowed are grade1 to grade12"):
        scienceqa_accuracy([0], [0], grades=["grade13"])
    with pytest.raises(ValueError, match="'maths'; allowed are natural science"):
        scienceqa_accuracy([0], [0], subjects=["maths"])
    with pytest.raises(ValueError, match="belong together"):
        scienceqa_accuracy([0], [0], has_text=[True])
