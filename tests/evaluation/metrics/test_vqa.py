"""VQA accuracy against the published evaluators' own outputs, and against a second implementation of their rules.

The vectors are outputs of GT-Vision-Lab/VQA's evaluator (a013f00), LAVIS's (506965b) and LLaVA's copy of TextVQA's.
"""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instructblip_hf.evaluation.metrics import (
    normalize_answer,
    normalize_textvqa_answer,
    vqa_accuracy,
    vqa_scores,
)
from instructblip_hf.evaluation.metrics.vqa import VARIANTS


# text, normalised by VQA's evaluator, by TextVQA's
NORMALIZED = [
    ("Two red-ish dogs, and a cat.", "2 red ish dogs and cat", "2 red ish dogs and cat"),
    ("red -blue", "red blue", "red blue"),
    ("red-blue", "red blue", "red blue"),
    ("red-blue -green", "redblue green", "redblue green"),
    ("1,000-2", "10002", "1000 2"),
    ("a.5", "a.5", "a.5"),
    ("3.", "3", "3"),
    ("3.5", "3.5", "3.5"),
    ("...", "", ""),
    ("." * 40, "." * 8, "." * 8),
    ("none", "0", "0"),
    ("Im", "im", "im"),
    ("aint", "ain't", "ain't"),
    ("couldntve", "couldntve", "couldntve"),
    ("couldn'tve", "couldn't've", "couldn't've"),
    ("somebody'd", "somebodyd", "somebodyd"),
    ("let's", "let's", "let 's"),
    ("lets", "lets", "lets"),
    ("10:30", "10:30", "10:30"),
    ("50%", "50%", "50%"),
    ("A an THE", "", ""),
    ("What?!", "what", "what"),
    ("it's", "it's", "it 's"),
    ("Macy's, 1,000?", "macy's 1000", "macy 's 1000"),
    ("café\u3000au lait", "café au lait", "café au lait"),
    ("twas", "'twas", "'twas"),
    ("\tone\n", "1", "1"),
    ("(left)", "left", "left"),
    ("`quoted`", "quoted", "quoted"),
    ("U.S.A", "usa", "usa"),
    ("ten,eleven", "10 eleven", "teneleven"),
    ("ten, eleven", "10 eleven", "10 eleven"),
    ("\u0663,\u0664-x", "\u0663\u0664x", "\u0663\u0664 x"),
]

# prediction, answers, then the score of each variant
SCORED = [
    ("dog", ["dog"] * 10, (1.0, 1.0, 1.0)),
    ("Dog.", ["dog"] * 10, (0.0, 1.0, 1.0)),
    ("dog", ["The dog"] * 10, (0.0, 0.0, 1.0)),
    ("a dog", ["dog"] * 9 + ["cat"], (1.0, 1.0, 1.0)),
    ("dog", ["the dog"] * 9 + ["cat"], (1.0, 0.0, 1.0)),
    ("2", ["two"] * 5 + ["2"] * 2 + ["3"] * 3, (1.0, 0.6, 1.0)),
    ("cat", ["cat"] + ["dog"] * 9, (0.3, 0.3, 0.3)),
    ("cat", ["cat"] * 2 + ["dog"] * 8, (0.6, 0.6, 0.6)),
    ("cat", ["cat"] * 3 + ["dog"] * 7, (0.9, 0.9, 0.9)),
    ("cat", ["cat"] * 4 + ["dog"] * 6, (1.0, 1.0, 1.0)),
    ("", ["cat"] * 4 + ["dog"] * 6, (0.0, 0.0, 0.0)),
    ("", ["the"] * 4 + ["dog"] * 6, (1.0, 0.0, 1.0)),
    ("macys", ["macy's"] * 5 + ["macys"] * 5, (1.0, 1.0, 1.0)),
    ("café", ["café"] * 4 + ["cafe"] * 6, (1.0, 1.0, 1.0)),
    ("dog\n", ["dog "] * 10, (1.0, 0.0, 1.0)),
    ("dog", ["dog\t"] * 5 + ["dog"] * 5, (1.0, 1.0, 1.0)),
]


@pytest.mark.parametrize(("text", "vqa", "textvqa"), NORMALIZED)
def test_texts_are_normalised_as_by_the_evaluators(text, vqa, textvqa):
    assert normalize_answer(text) == vqa
    assert normalize_textvqa_answer(text) == textvqa


@pytest.mark.parametrize(("prediction", "answers", "expected"), SCORED)
def test_scores_are_the_evaluators(prediction, answers, expected):
    scores = [vqa_scores([prediction], [answers], variant)[0] for variant in VARIANTS]
    assert scores == pytest.approx(expected, abs=1e-12)


def punctuation_by_steps(text):
    """The evaluators' rule for punctuation, mark by mark on a growing text."""
    out = text
    number = any(
        text[place] == "," and text[place - 1].isdecimal() and text[place + 1].isdecimal()
        for place in range(1, len(text) - 1)
    )
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        beside_space = any(
            text[place] == mark and " " in (text[place - 1 : place], text[place + 1 : place + 2])
            for place in range(len(text))
        )
        out = "".join(("" if beside_space or number else " ") if letter == mark else letter for letter in out)
    kept, removed = [], 0
    for place, letter in enumerate(out):
        if letter == "." and removed < 32 and not out[place + 1 : place + 2].isdecimal():
            removed += 1
        else:
            kept.append(letter)
    return "".join(kept)


def words_by_steps(text):
    out = []
    for word in re.split(r"\s+", text.lower().strip()):
        if word in ("", "a", "an", "the"):
            continue
        out.append({"one": "1", "two": "2", "ten": "10", "none": "0", "dont": "don't"}.get(word, word))
    return " ".join(out)


def left_out_by_steps(prediction, answers):
    """The formula as it is told: leave out one annotator after the other."""
    values = []
    for left_out in range(len(answers)):
        others = [answer for index, answer in enumerate(answers) if index != left_out]
        values.append(min(1, others.count(prediction) / 3))
    return sum(values) / len(values)


pieces = st.sampled_from(
    [
        "one",
        "Two",
        "ten",
        "none",
        "dont",
        "dog",
        "a",
        "The",
        "5",
        "٣",
        "é",
        ".",
        ",",
        "-",
        " ",
        "/",
        "'",
        ":",
        "?",
        "  ",
    ]
)
texts = st.lists(pieces, max_size=7).map("".join)


@settings(deadline=None, max_examples=300)
@given(text=texts)
def test_normalising_equals_the_rules_step_by_step(text):
    assert normalize_answer(text) == words_by_steps(punctuation_by_steps(text))


@settings(deadline=None, max_examples=200)
@given(prediction=texts, answers=st.lists(texts, min_size=2, max_size=10))
@example(prediction="oneone", answers=["", "one,one,  "])
def test_scores_equal_the_rules_step_by_step(prediction, answers):
    # The later evaluator strips answers before it looks at their punctuation, the earlier one does not.
    full = [words_by_steps(punctuation_by_steps(answer.strip())) for answer in answers]
    alone = words_by_steps(punctuation_by_steps(prediction.strip()))
    several = len(set(answers)) > 1
    lavis = left_out_by_steps(alone, [punctuation_by_steps(answer) for answer in answers] if several else answers)
    assert vqa_scores([prediction], [answers], "lavis") == pytest.approx([lavis])
    stripped = [answer.strip() for answer in answers]
    official = (
        left_out_by_steps(alone, full) if len(set(stripped)) > 1 else left_out_by_steps(prediction.strip(), stripped)
    )
    assert vqa_scores([prediction], [answers]) == pytest.approx([official])


def test_one_annotator_is_an_error_unless_the_zero_of_the_evaluators_is_asked_for():
    with pytest.raises(ValueError, match="'q2'.*exact_match"):
        vqa_scores(["a", "b"], [["a", "a"], ["b"]], ids=["q1", "q2"])
    assert vqa_scores(["b"], [["b"]], allow_single_answer=True) == [0.0]
    with pytest.raises(ValueError, match="fewer than 1 answers to row 0"):
        vqa_scores(["b"], [[]], allow_single_answer=True)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="no rows"):
        vqa_accuracy([], [])
    with pytest.raises(ValueError, match="2 predictions, 1 references"):
        vqa_accuracy(["a", "b"], [["a", "b"]])
    with pytest.raises(ValueError, match="'vizwiz'; allowed are official, lavis, textvqa"):
        vqa_accuracy(["a"], [["a", "b"]], variant="vizwiz")


def test_the_mean_and_groups():
    result = vqa_accuracy(
        ["yes", "dog", "2"],
        [["yes"] * 10, ["dog"] * 2 + ["cat"] * 8, ["3"] * 10],
        groups={"answer_type": ["yes/no", "other", None]},
    )
    assert result["accuracy"] == pytest.approx((1 + 0.6 + 0) / 3)
    assert result["count"] == 3
    assert result["by"] == {
        "answer_type": {
            "other": {"accuracy": pytest.approx(0.6), "count": 1},
            "yes/no": {"accuracy": 1.0, "count": 1},
        }
    }
