"""ScienceQA in LLaVA's words: texts written out by hand after its converter, and what cannot be worded."""

import pytest

from instructblip_hf.data.templates.scienceqa_forms import (
    INPUT_FORMS,
    TARGET_FORMS,
    scienceqa_conversation,
    scienceqa_prompt,
    scienceqa_target,
)


def problem(**changes):
    example = {
        "id": "7",
        "dataset": "scienceqa",
        "images": ["7/image.png"],
        "question": "Which is  magnetic?",
        "options": ["iron", "wood"],
        "correct_option": 1,
        "context": "Look at the bar.",
        "lecture": "Magnets attract.\nIron is one.",
        "explanation": "It is wood.",
    }
    return {key: value for key, value in {**example, **changes}.items() if value is not None}


def test_the_form_that_llava_was_finetuned_on():
    assert scienceqa_conversation(problem()) == {
        "id": "7",
        "image": "7/image.png",
        "conversations": [
            {
                "from": "human",
                "value": "Which is magnetic?\nContext: Look at the bar.\nOptions: (A) iron (B) wood\n<image>",
            },
            {"from": "gpt", "value": "Magnets attract.\nIron is one. It is wood. The answer is B."},
        ],
    }


def test_without_hint_reasons_and_image():
    row = scienceqa_conversation(problem(context=None, lecture=None, explanation=None, images=[]))
    assert row == {
        "id": "7",
        "conversations": [
            {"from": "human", "value": "Which is magnetic?\nContext: N/A\nOptions: (A) iron (B) wood"},
            # Of three blanks that follow each other LLaVA's converter leaves two, and takes one off with "Answer: ".
            {"from": "gpt", "value": " The answer is B."},
        ],
    }


QUESTION, CONTEXT, OPTIONS = "Question: Q?", "Context: C.", "Options: (A) x (B) y"
PROMPTS = {
    "QCM": ["Q?", CONTEXT, OPTIONS],
    "CQM": [CONTEXT, QUESTION, OPTIONS],
    "QCML": ["Q?", CONTEXT, OPTIONS, "BECAUSE: L."],
    "QCME": ["Q?", CONTEXT, OPTIONS, "BECAUSE: E."],
    "QCMLE": ["Q?", CONTEXT, OPTIONS, "BECAUSE: L. E."],
    "QCLM": ["Q?", CONTEXT, "BECAUSE: L.", OPTIONS],
    "QCEM": ["Q?", CONTEXT, "BECAUSE: E.", OPTIONS],
    "QCLEM": ["Q?", CONTEXT, "BECAUSE: L. E.", OPTIONS],
}
TARGETS = {
    "A": "The answer is A.",
    "AL": "The answer is A. BECAUSE: E.",  # of ScienceQA's own: the letters are exchanged
    "AE": "The answer is A. BECAUSE: L.",
    "ALE": "The answer is A. BECAUSE: L. E.",
    "AEL": "The answer is A. BECAUSE: E. L.",
    "LA": "L. The answer is A.",
    "EA": "E. The answer is A.",
    "LEA": "L. E. The answer is A.",
    "ELA": "E. L. The answer is A.",
    "LEPA": "LECTURE: L.\nSOLUTION: E.\n###\nANSWER: A.",
}
SHORT = {
    "question": "Q?",
    "context": "C.",
    "options": ["x", "y"],
    "correct_option": 0,
    "lecture": "L.",
    "explanation": "E.",
}


def test_all_forms_are_written_out():
    assert set(PROMPTS) == set(INPUT_FORMS)
    assert set(TARGETS) == set(TARGET_FORMS)


@pytest.mark.parametrize("form", PROMPTS)
def test_prompts(form):
    assert scienceqa_prompt(problem(**SHORT), form) == "\n".join(PROMPTS[form])


@pytest.mark.parametrize("form", TARGETS)
def test_targets(form):
    assert scienceqa_target(problem(**SHORT), form) == TARGETS[form]


def test_nothing_is_left_of_reasons_that_are_not_there():
    bare = problem(**{**SHORT, "lecture": None, "explanation": None})
    assert scienceqa_prompt(bare, "QCML") == "\n".join(PROMPTS["QCM"])
    assert scienceqa_target(bare, "ALE") == "The answer is A."
    assert scienceqa_target(bare, "LEPA") == "###\nANSWER: A."


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: scienceqa_prompt(problem(), "MCQ"), "form is 'MCQ'; what is asked can be QCM, CQM"),
        (lambda: scienceqa_target(problem(), "B"), "form is 'B'; what is answered can be A, AL"),
        (lambda: scienceqa_conversation(problem(), "QCM"), "it must be like 'QCM-LEA'"),
        (lambda: scienceqa_prompt(problem(options=list("abcdef"))), "scienceqa 7 has 6 options; there must be 1 to 5"),
        (lambda: scienceqa_target(problem(correct_option=None)), "scienceqa 7 does not say which option is right"),
    ],
)
def test_what_cannot_be_worded_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
