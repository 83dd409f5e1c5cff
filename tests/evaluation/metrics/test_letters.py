"""Which option a text chooses: the cases of LLaVA's reader, read off its code by hand."""

import pytest

from instructblip_hf.evaluation.metrics import scienceqa_letters
from instructblip_hf.evaluation.metrics.letters import answer_letter, letter_index


LETTERS = {
    "A": "A",
    "E": "E",
    "F": None,  # LLaVA knows five
    "": None,
    "AB": None,  # of several letters, though "AB" is in "ABCDE"
    "a": None,
    " A": None,
    "B.": None,  # nothing follows the full stop
    "B. ": "B",
    "B. Because it is.": "B",
    "B. The answer is C.": "B",  # what it begins with goes first
    "(B)": None,
    "B: wood": None,
    "F. x": None,
    "The answer is C.": "C",
    "Wood. The answer is C. It is.": "C",
    "The answer is C": None,  # one more character is needed
    "The answer is C\n": None,  # and no line break
    "The answer is C,": "C",
    "The answer is AB": "A",
    "The answer is Z.": "Z",
    "the answer is C.": None,
    "The answer is C. The answer is C.": None,  # once, and only once
    "The answer is A. The answer is C.": None,
    "The answer is  C.": None,
}


@pytest.mark.parametrize("text", LETTERS)
def test_letters(text):
    assert answer_letter(text) == LETTERS[text]


@pytest.mark.parametrize(("text", "letter"), [("A", None), ("B. x", None), ("B. The answer is C.", "C")])
def test_the_sentence_alone(text, letter):
    assert answer_letter(text, sentence_only=True) == letter


@pytest.mark.parametrize(
    ("letter", "options", "place"), [("A", 2, 0), ("B", 2, 1), ("C", 2, -1), ("E", 5, 4), ("Z", 5, -1), (None, 5, -1)]
)
def test_places(letter, options, place):
    assert letter_index(letter, options) == place


def test_the_table_counts_what_chooses_nothing_as_wrong():
    texts = ["A", "The answer is B.", "C", "none", "D. x", "B"]
    subjects = ["natural science"] * 3 + ["social science"] * 3
    grades = ["grade1", "grade6", "grade7", "grade12", "grade1", "grade7"]
    found = scienceqa_letters(
        texts,
        [2, 2, 2, 2, 4, 3],
        [0, 0, 1, 0, 3, 1],
        subjects,
        grades,
        has_text=[True, False, False, True, False, False],
        has_image=[True, True, False, False, False, True],
    )
    assert found["accuracy"] == 3 / 6
    assert (found["failed"], found["not_an_option"]) == (1, 1)
    by = found["by"]
    assert by["subject"]["natural science"] == {"accuracy": 1 / 3, "count": 3}
    assert by["context"]["image"] == {"accuracy": 2 / 3, "count": 3}
    assert by["context"]["text"] == {"accuracy": 1 / 2, "count": 2}
    assert by["context"]["none"] == {"accuracy": 1 / 2, "count": 2}
    assert by["grade"]["1-6"] == {"accuracy": 2 / 3, "count": 3}
