"""ScienceQA's problems as LLaVA words them: a question with context and lettered options, and a target that reasons first.

The forms and their names are those of ScienceQA's few-shot prompts (lupantech/ScienceQA ``models/base_prompt.py``), in the
variant of LLaVA's converter (``scripts/convert_sqa_to_llava.py``), whose text is reproduced to the character: before the
dash what is asked, in this order (Question, Context, Multiple options, Lecture, Explanation), behind it what is answered
(Lecture, Explanation, Answer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...constants import IMAGE_TOKEN


LETTERS = ("A", "B", "C", "D", "E")
"""Of options; no problem has more."""

INPUT_FORMS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
TARGET_FORMS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")
DEFAULT_FORM = "QCM-LEA"
"""What LLaVA was finetuned on."""


def scienceqa_prompt(example: Mapping[str, Any], form: str = "QCM") -> str:
    """What is asked of a problem.

    Args:
        example (`Mapping`): An `instructblip_hf.data.schema.Example` with ``question``, ``options`` and, where it has
            them, ``context``, ``lecture`` and ``explanation``.
        form (`str`, *optional*, defaults to `"QCM"`): One of `INPUT_FORMS`.

    Returns:
        `str`: Lines of question, context (``N/A`` without one) and options, without a marker for the image.

    Raises:
        ValueError: If the form is none, or there are no options or more than letters.
    """
    if form not in INPUT_FORMS:
        raise ValueError(f"form is {form!r}; what is asked can be {', '.join(INPUT_FORMS)}")
    lines = []
    reasons = [letter for letter in form if letter in "LE"]
    for letter in form:
        if letter in reasons[1:]:
            continue
        if letter in "LE":
            lines.append(f"BECAUSE: {' '.join(_reason(example, one) for one in reasons)}")
        else:
            lines.append(_LINES[letter](example))
    text = _tidy("\n".join(lines) + "\n")
    # As it is told from the other forms: by what a text begins with, and then wherever it stands.
    return text.replace("Question: ", "") if text.startswith("Question: ") else text


def scienceqa_target(example: Mapping[str, Any], form: str = "LEA") -> str:
    """What is to be answered to a problem.

    Args:
        example (`Mapping`): As for [`scienceqa_prompt`], with ``correct_option``.
        form (`str`, *optional*, defaults to `"LEA"`):
            One of `TARGET_FORMS`. As in ScienceQA's own code ``AL`` gives the explanation and ``AE`` the lecture.

    Returns:
        `str`: With ``The answer is X.`` in it; for ``LEPA`` in parts with titles.

    Raises:
        ValueError: If the form is none, or the example does not say which option is right.
    """
    if form not in TARGET_FORMS:
        raise ValueError(f"form is {form!r}; what is answered can be {', '.join(TARGET_FORMS)}")
    if "correct_option" not in example:
        raise ValueError(f"{example.get('dataset')} {example.get('id')} does not say which option is right")
    letter = LETTERS[example["correct_option"]]
    lecture, explanation = _reason(example, "L"), _reason(example, "E")
    if form == "LEPA":
        parts = [
            f"{title}: {text}\n" for title, text in (("LECTURE", lecture), ("SOLUTION", explanation)) if text.strip()
        ]
        return _tidy("".join([*parts, f"###\nANSWER: {letter}."]))
    sentence = f"The answer is {letter}."
    reasons = {"AL": "E", "AE": "L"}.get(form, form.replace("A", ""))
    reason = " ".join({"L": lecture, "E": explanation}[one] for one in reasons)
    if form == "A":
        text = f"Answer: {sentence}"
    elif form.startswith("A"):
        text = f"Answer: {sentence} BECAUSE: {reason}"
    else:
        text = f"Answer: {reason} {sentence}"
    text = _tidy(text)
    return text.replace("Answer: ", "") if text.startswith("Answer: ") else text


def scienceqa_conversation(example: Mapping[str, Any], form: str = DEFAULT_FORM) -> dict[str, Any]:
    """A row of LLaVA's training JSON.

    Args:
        example (`Mapping`): As for [`scienceqa_target`].
        form (`str`, *optional*, defaults to `"QCM-LEA"`): What is asked and what is answered, with a dash between.

    Returns:
        `dict`: ``id``, ``conversations`` and, of a problem with an image, ``image``, relative to the folder of its split.

    Raises:
        ValueError: As [`scienceqa_prompt`] and [`scienceqa_target`].
    """
    asked, dash, answered = form.partition("-")
    if not dash:
        raise ValueError(f"form is {form!r}; it must be like {DEFAULT_FORM!r}")
    prompt, target = scienceqa_prompt(example, asked), scienceqa_target(example, answered)
    row: dict[str, Any] = {"id": str(example["id"])}
    if example["images"]:
        row["image"] = f"{example['id']}/image.png"
        prompt += f"\n{IMAGE_TOKEN}"
    row["conversations"] = [{"from": "human", "value": prompt}, {"from": "gpt", "value": target}]
    return row


def llava_scienceqa(example: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and completion of a training row as LLaVA was finetuned on: ``QCM-LEA``, the image behind the text.

    ``image_order: first`` puts the image where LLaVA's trainer moves it.

    Args:
        example (`Mapping`): As for [`scienceqa_target`].

    Raises:
        ValueError: If it has no options, more than there are letters, or no right one.
    """
    if not example.get("options") or "correct_option" not in example:
        raise ValueError("form llava_scienceqa is for questions with options and the right one, and this has none")
    prompt = scienceqa_prompt(example) + f"\n{IMAGE_TOKEN}" * len(example["images"])
    return prompt, scienceqa_target(example)


def _context(example: Mapping[str, Any]) -> str:
    return f"Context: {str(example.get('context', '')).strip() or 'N/A'}"


def _options(example: Mapping[str, Any]) -> str:
    options = example.get("options") or []
    if not 1 <= len(options) <= len(LETTERS):
        raise ValueError(
            f"{example.get('dataset')} {example.get('id')} has {len(options)} options; there must be 1 to {len(LETTERS)}"
        )
    return "Options: " + " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options))


def _reason(example: Mapping[str, Any], letter: str) -> str:
    text = str(example.get({"L": "lecture", "E": "explanation"}[letter], ""))
    return text.replace("\\n", "\n")


def _tidy(text: str) -> str:
    text = text.replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text


_LINES = {"Q": lambda example: f"Question: {example['question']}", "C": _context, "M": _options}

__all__ = [
    "DEFAULT_FORM",
    "INPUT_FORMS",
    "LETTERS",
    "TARGET_FORMS",
    "llava_scienceqa",
    "scienceqa_conversation",
    "scienceqa_prompt",
    "scienceqa_target",
]
