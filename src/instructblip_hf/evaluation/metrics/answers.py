"""Accuracies of single answers: exact match, GQA, OCR-VQA, A-OKVQA, iVQA, ScienceQA.

Each follows its dataset's own script: GQA's ``eval.py``, ``eval_predictions.py`` of allenai/aokvqa, just-ask's
``compute_aggreeings`` (iVQA), ``evaluate_acc.py`` of lupantech/ScienceQA. OCR-VQA was published without one. These
scripts compare texts as they are; a generated answer is rarely spelt as the published one, so how texts are made alike
before the comparison is an argument wherever answers are free text.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from .rows import Groups, accuracy_of, check_columns, named, row_name
from .vqa import normalize_answer


def _as_it_is(text: str) -> str:
    return text


def _lower(text: str) -> str:
    return " ".join(text.lower().split())


NORMALIZERS = {"none": _as_it_is, "lower": _lower, "vqa": normalize_answer}
"""How prediction and reference are made alike: not at all, lower case and single spaces, or as in VQA's evaluator."""


def exact_match(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    normalizer: str = "none",
    groups: Groups | None = None,
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """The share of predictions equal to one of their answers: MSVD-QA, MSRVTT-QA, VSR, IconQA and others.

    Args:
        predictions (`Sequence[str]`): Predicted answers.
        references (`Sequence[Sequence[str]]`): The right answers to each question, mostly one.
        normalizer (`str`, *optional*, defaults to `"none"`): A key of `NORMALIZERS`; for prediction and answers.
            LAVIS's tasks for single answers do as `"vqa"`.
        groups (`Mapping[str, Sequence]`, *optional*): For each grouping the group of every row.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Returns:
        `dict`: ``accuracy``, ``count`` and, given groupings, ``by`` (see `accuracy_of`).

    Raises:
        ValueError: If there are no rows, a question has no answer, or ``normalizer`` is another.
    """
    check_columns(predictions=predictions, references=references)
    _check_answers(references, range(len(references)), ids)
    alike = _normalizer(normalizer)
    scores = [
        float(alike(prediction) in {alike(answer) for answer in answers})
        for prediction, answers in zip(predictions, references)
    ]
    return accuracy_of(scores, groups)


def gqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[str],
    structural_types: Sequence[str] | None = None,
    normalizer: str = "none",
    groups: Groups | None = None,
) -> dict[str, Any]:
    """GQA's accuracy, in all and for binary and open questions.

    Args:
        predictions (`Sequence[str]`): Predicted answers.
        references (`Sequence[str]`): The published answer to each question of a balanced split.
        structural_types (`Sequence[str]`, *optional*): Each question's ``types.structural``. Questions of type
            ``query`` are open, all others binary.
        normalizer (`str`, *optional*, defaults to `"none"`): `"none"` is GQA's script, `"vqa"` is LAVIS, so the one
            of InstructBLIP's numbers.
        groups (`Mapping[str, Sequence]`, *optional*): Further groupings.

    Returns:
        `dict`: ``accuracy``, ``count`` and ``by``, in which ``answer_type`` has ``binary`` and ``open``. GQA's script
        multiplies by 100.
    """
    check_columns(predictions=predictions, references=references)
    if structural_types is not None:
        kinds = ["open" if kind == "query" else "binary" for kind in structural_types]
        groups = {"answer_type": kinds, "structural_type": structural_types, **(groups or {})}
    return exact_match(predictions, [[answer] for answer in references], normalizer, groups)


def ocr_vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[str],
    genres: Sequence[str] | None = None,
    normalizer: str = "lower",
) -> dict[str, Any]:
    """OCR-VQA's accuracy, in all and by the genre of the book.

    No evaluator was published with OCR-VQA, nor in LAVIS; the paper (Mishra et al. 2019) says accuracy. By default
    letter case and spaces do not count.

    Args:
        predictions (`Sequence[str]`): Predicted answers.
        references (`Sequence[str]`): The published answer to each question.
        genres (`Sequence[str]`, *optional*): Genre of each question's book.
        normalizer (`str`, *optional*, defaults to `"lower"`): A key of `NORMALIZERS`.
    """
    check_columns(predictions=predictions, references=references)
    groups = None if genres is None else {"genre": genres}
    return exact_match(predictions, [[answer] for answer in references], normalizer, groups)


def aokvqa_direct_answer(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    difficult: Sequence[bool] | None = None,
    normalizer: str = "none",
    groups: Groups | None = None,
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """A-OKVQA's accuracy of direct answers: ``min(count / 3, 1)`` with count among all ten answers.

    Other than in VQA's formula nobody is left out, and texts are compared as they are.

    Args:
        predictions (`Sequence[str]`): Predicted answers.
        references (`Sequence[Sequence[str]]`): ``direct_answers`` of each question.
        difficult (`Sequence[bool]`, *optional*): ``difficult_direct_answer`` of each question. Those questions do
            not count, as in the published script.
        normalizer (`str`, *optional*, defaults to `"none"`): A key of `NORMALIZERS`; other than `"none"` is not the
            published metric.
        groups (`Mapping[str, Sequence]`, *optional*): For each grouping the group of every row.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Returns:
        `dict`: ``accuracy``, ``count``, ``excluded`` (questions that did not count) and ``by``.

    Raises:
        ValueError: If there are no rows, a question has no answer, or all questions are difficult.
    """
    count = check_columns(predictions=predictions, references=references)
    difficult = [False] * count if difficult is None else difficult
    check_columns(predictions=predictions, difficult=difficult)
    kept = [row for row in range(count) if not difficult[row]]
    if not kept:
        raise ValueError(f"all {count} questions are difficult_direct_answer: none is left to score")
    _check_answers(references, kept, ids)
    if groups is not None:
        for grouping, members in groups.items():
            check_columns(**{"predictions": predictions, f"groups[{grouping!r}]": members})
        groups = {grouping: [members[row] for row in kept] for grouping, members in groups.items()}
    alike = _normalizer(normalizer)
    scores = [
        min(1.0, sum(alike(answer) == alike(predictions[row]) for answer in references[row]) / 3) for row in kept
    ]
    return {**accuracy_of(scores, groups), "excluded": count - len(kept)}


def aokvqa_multiple_choice(
    predictions: Sequence[str],
    choices: Sequence[Sequence[str]],
    correct: Sequence[int],
    strict: bool = True,
    ids: Sequence[Hashable] | None = None,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """A-OKVQA's accuracy of multiple choice: the share of predictions equal to the right choice.

    Args:
        predictions (`Sequence[str]`): The chosen text of each question.
        choices (`Sequence[Sequence[str]]`): ``choices`` of each question.
        correct (`Sequence[int]`): ``correct_choice_idx`` of each question.
        strict (`bool`, *optional*, defaults to `True`): Whether a prediction that is none of the choices is an error.
            If not, it is wrong, and counted in the result. (The published script can map it to the nearest choice by
            GloVe vectors; ranking makes that unnecessary.)
        ids (`Sequence`, *optional*): Names of the rows in errors.
        groups (`Mapping[str, Sequence]`, *optional*): For each grouping the group of every row.

    Returns:
        `dict`: ``accuracy``, ``count``, ``not_a_choice`` and ``by``.

    Raises:
        ValueError: If there are no rows, an index is outside of its choices, or a prediction is none of them.
    """
    count = check_columns(predictions=predictions, choices=choices, correct=correct)
    outside = [row_name(row, ids) for row in range(count) if not 0 <= correct[row] < len(choices[row])]
    if outside:
        raise ValueError(f"the right choice is none of the choices of {named(outside)}")
    strangers = [row_name(row, ids) for row in range(count) if predictions[row] not in choices[row]]
    if strict and strangers:
        raise ValueError(
            f"predictions that are none of the choices, of {named(strangers)}; strict=False scores them 0"
        )
    scores = [float(predictions[row] == choices[row][correct[row]]) for row in range(count)]
    return {**accuracy_of(scores, groups), "not_a_choice": len(strangers)}


def ivqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    normalizer: str = "none",
    groups: Groups | None = None,
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """iVQA's accuracy: ``min(count / 2, 1)`` with count among the five annotators' answers.

    just-ask and FrozenBiLM predict from a vocabulary of training answers, where comparing indices is comparing texts;
    answers outside of it cannot be predicted there, here they can.

    Args:
        predictions (`Sequence[str]`): Predicted answers.
        references (`Sequence[Sequence[str]]`): ``answer1`` to ``answer5`` of each question.
        normalizer (`str`, *optional*, defaults to `"none"`): A key of `NORMALIZERS`. Published answers are in lower
            case and without punctuation.
        groups (`Mapping[str, Sequence]`, *optional*): For each grouping the group of every row.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Raises:
        ValueError: If there are no rows, or a question has no answer.
    """
    check_columns(predictions=predictions, references=references)
    _check_answers(references, range(len(references)), ids)
    alike = _normalizer(normalizer)
    scores = [
        min(1.0, sum(alike(answer) == alike(prediction) for answer in answers) / 2)
        for prediction, answers in zip(predictions, references)
    ]
    return accuracy_of(scores, groups)


SCIENCEQA_SUBJECTS = ("natural science", "social science", "language science")
"""Columns NAT, SOC and LAN of ScienceQA's table."""


def scienceqa_accuracy(
    predictions: Sequence[int],
    answers: Sequence[int],
    subjects: Sequence[str] | None = None,
    grades: Sequence[str] | None = None,
    has_text: Sequence[bool] | None = None,
    has_image: Sequence[bool] | None = None,
    topics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """ScienceQA's table: accuracy by subject, by context and by grade, and in all.

    A column without questions is left out, as those without images are for the part of ScienceQA with images.

    Args:
        predictions (`Sequence[int]`): Index of the chosen option; -1 for an answer that names none, which is wrong.
        answers (`Sequence[int]`): Index of the right option.
        subjects (`Sequence[str]`, *optional*): One of `SCIENCEQA_SUBJECTS` for each question.
        grades (`Sequence[str]`, *optional*): ``"grade1"`` to ``"grade12"``.
        has_text (`Sequence[bool]`, *optional*): Whether the question has a hint. Together with ``has_image``.
        has_image (`Sequence[bool]`, *optional*): Whether it has an image.
        topics (`Sequence[str]`, *optional*): Topic of each question.

    Returns:
        `dict`: ``accuracy``, ``count`` and ``by``: ``subject``, ``context`` (``text``, ``image`` and ``none``; a
        question with both counts in both), ``grade`` (``1-6`` and ``7-12``) and ``topic``. ScienceQA's script
        multiplies by 100 and rounds to two digits.

    Raises:
        ValueError: If there are no rows, a grade or subject is another, or one of ``has_text`` and ``has_image`` is
            missing.
    """
    count = check_columns(predictions=predictions, answers=answers)
    scores = [float(prediction == answer) for prediction, answer in zip(predictions, answers)]
    if (has_text is None) != (has_image is None):
        raise ValueError("has_text and has_image belong together; one of them is missing")
    groups: dict[str, Sequence[Hashable]] = {}
    if subjects is not None:
        strangers = [repr(subject) for subject in sorted(set(subjects) - set(SCIENCEQA_SUBJECTS))]
        if strangers:
            raise ValueError(f"subjects has {named(strangers)}; allowed are {', '.join(SCIENCEQA_SUBJECTS)}")
        groups["subject"] = subjects
    if grades is not None:
        groups["grade"] = [_grade_band(grade) for grade in grades]
    if topics is not None:
        groups["topic"] = topics
    result = accuracy_of(scores, groups)
    if has_text is not None and has_image is not None:
        check_columns(predictions=predictions, has_text=has_text, has_image=has_image)
        columns = {
            "text": has_text,
            "image": has_image,
            "none": [not (has_text[row] or has_image[row]) for row in range(count)],
        }
        contexts = {name: [scores[row] for row in range(count) if column[row]] for name, column in columns.items()}
        result["by"]["context"] = {name: accuracy_of(rows) for name, rows in contexts.items() if rows}
    return result


def _grade_band(grade: str) -> str:
    number = grade.removeprefix("grade")
    if not number.isdecimal() or not 1 <= int(number) <= 12:
        raise ValueError(f"a grade is {grade!r}; allowed are grade1 to grade12")
    return "1-6" if int(number) <= 6 else "7-12"


def _normalizer(name: str) -> Any:
    if name not in NORMALIZERS:
        raise ValueError(f"normalizer is {name!r}; allowed are {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]


def _check_answers(references: Sequence[Sequence[str]], rows: Sequence[int], ids: Sequence[Hashable] | None) -> None:
    strings = [row_name(row, ids) for row in rows if isinstance(references[row], str)]
    if strings:
        raise TypeError(f"references are strings for {named(strings)}; each is a list of answers")
    empty = [row_name(row, ids) for row in rows if not references[row]]
    if empty:
        raise ValueError(f"references are empty for {named(empty)}: such a question has no right answer")


__all__ = [
    "NORMALIZERS",
    "SCIENCEQA_SUBJECTS",
    "aokvqa_direct_answer",
    "aokvqa_multiple_choice",
    "exact_match",
    "gqa_accuracy",
    "ivqa_accuracy",
    "ocr_vqa_accuracy",
    "scienceqa_accuracy",
]
