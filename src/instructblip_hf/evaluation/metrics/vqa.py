"""VQA accuracy: VQAv2, OKVQA, VizWiz, TextVQA.

Source: Antol et al. 2015 (https://arxiv.org/abs/1505.00468), as the evaluators compute it. An answer is right if three
of the other annotators gave it: for each annotator the answers of the *others* are counted, ``min(count / 3, 1)``, and
the annotators' values are averaged. Texts are compared after a normalisation whose details matter as much as the
formula. Three of them are in use:

- ``"official"``: the evaluator of VQA (GT-Vision-Lab/VQA) since March 2021. Prediction and answers are normalised
  alike, and only if the annotators' answers are not all the same text; otherwise texts are compared as they are.
- ``"lavis"``: that evaluator before, copied in LAVIS, so the one of InstructBLIP's numbers. The prediction is always
  normalised. Of the answers only the punctuation is, and only if they are not all the same text. An answer such as
  "the dog" or "two" that an annotator gave can then never be matched.
- ``"textvqa"``: the one of TextVQA (Pythia, MMF, LLaVA). Always both, after `normalize_textvqa_answer`.

What is kept of the evaluators' slips, since published numbers hold them:

- A period is removed unless a digit *follows*: what was meant to look behind ("not after a digit") matches the text
  "<=" instead. "3." loses its period, "a.5" keeps it. And only the first 32 periods of a text are removed: the flag
  `re.UNICODE` stands where the count belongs.
- Punctuation becomes a space ("red-blue" is two words), but nothing ("red -blue" is "red blue") if anywhere in the
  text a space stands beside the same mark, and for all marks if anywhere a comma stands between two digits.
- Apostrophes, colons, %, $, & and # are not punctuation.
- "none" is 0. Contractions are looked up after lower-casing, so those with a capital ("Im") never apply.
  "somebody'd" *loses* its apostrophe.
- Leaving out the annotator leaves nothing of a single answer: the score is 0 whatever is predicted.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

from .rows import Groups, accuracy_of, check_columns, named, row_name


VARIANTS = ("official", "lavis", "textvqa")
"""The normalisations in use (see the module's description)."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = int(re.UNICODE)  # 32: passed as the count by the evaluators
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_CONTRACTED = [
    "'ow's'at",
    "'twas",
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "couldn't've",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hadn't've",
    "hasn't",
    "haven't",
    "he'd",
    "he'd've",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'd've",
    "it'll",
    "ma'am",
    "might've",
    "mightn't",
    "mightn't've",
    "must've",
    "mustn't",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "shan't",
    "she'd've",
    "should've",
    "shouldn't",
    "shouldn't've",
    "somebody'd've",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'd've",
    "someone'll",
    "someone's",
    "something'd",
    "something'd've",
    "something'll",
    "that's",
    "there'd",
    "there'd've",
    "there're",
    "there's",
    "they'd",
    "they'd've",
    "they'll",
    "they're",
    "they've",
    "wasn't",
    "we'd've",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'd've",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "wouldn't've",
    "y'all",
    "y'all'd've",
    "y'all'll",
    "you'd",
    "you'd've",
    "you'll",
    "you're",
    "you've",
]
# Written with any one of its apostrophes left out, a contraction gets it back.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTED for place, mark in enumerate(word) if mark == "'"
} | {"somebody'd": "somebodyd"}


def normalize_punctuation(text: str) -> str:
    """Removes punctuation as the VQA evaluators do (the first three slips of the module's description)."""
    number = _COMMA_IN_NUMBER.search(text)
    replacement = {
        ord(mark): "" if number or f"{mark} " in text or f" {mark}" in text else " " for mark in _PUNCTUATION
    }
    return _PERIOD.sub("", text.translate(replacement), count=_PERIODS_REMOVED)


def normalize_words(text: str) -> str:
    """Lower case; number words up to ten as digits, articles left out, apostrophes put back into contractions."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(text: str) -> str:
    """The normalisation of VQA's evaluator: `normalize_punctuation`, then `normalize_words`.

    Example:

    ```python
    >>> normalize_answer("Two red-ish dogs, and a cat.")
    '2 red ish dogs and cat'
    ```
    """
    return normalize_words(normalize_punctuation(text))


def normalize_textvqa_answer(text: str) -> str:
    """The normalisation of TextVQA's evaluator: VQA's, after commas, question marks and what joins "'s" to a word.

    Example:

    ```python
    >>> normalize_textvqa_answer("Macy's, 1,000?")
    "macy 's 1000"
    ```
    """
    text = text.lower().translate({ord(","): None, ord("?"): None}).replace("'s", " 's")
    return normalize_answer(_single_line(text.strip()))


def vqa_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    variant: str = "official",
    allow_single_answer: bool = False,
    ids: Sequence[Hashable] | None = None,
) -> list[float]:
    """VQA accuracy of each prediction, from 0 to 1.

    Args:
        predictions (`Sequence[str]`): Predicted answers. An empty one is scored like any other text.
        references (`Sequence[Sequence[str]]`): The annotators' answers to each question, repeated as often as given.
        variant (`str`, *optional*, defaults to `"official"`): One of `VARIANTS`.
        allow_single_answer (`bool`, *optional*, defaults to `False`): Whether a question may have one answer. The
            evaluators score it 0 whatever is predicted; for such datasets `exact_match` is the metric.
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Raises:
        ValueError: If there are no rows, ``variant`` is another, or a question has no answer, or one.
    """
    check_columns(predictions=predictions, references=references)
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; allowed are {', '.join(VARIANTS)}")
    few = [row_name(row, ids) for row, answers in enumerate(references) if len(answers) < 2 - allow_single_answer]
    if few:
        raise ValueError(
            f"fewer than {2 - allow_single_answer} answers to {named(few)}: VQA accuracy compares with the other "
            "annotators' answers and is 0 for a single one, whatever is predicted; exact_match scores single "
            "answers, allow_single_answer=True gives the evaluators' 0"
        )
    return [_score(prediction, answers, variant) for prediction, answers in zip(predictions, references)]


def vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    variant: str = "official",
    allow_single_answer: bool = False,
    groups: Groups | None = None,
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Mean VQA accuracy.

    Args:
        groups (`Mapping[str, Sequence]`, *optional*): For each grouping the group of every row, such as
            ``{"answer_type": ["yes/no", "other"], "question_type": [...]}``.

    The other arguments are those of `vqa_scores`.

    Returns:
        `dict`: ``accuracy``, ``count`` and ``by`` (see `accuracy_of`). The evaluators multiply by 100 and round to two
        digits; this does neither.
    """
    return accuracy_of(vqa_scores(predictions, references, variant, allow_single_answer, ids), groups)


def _score(prediction: str, answers: Sequence[str], variant: str) -> float:
    if variant == "official":
        prediction = _single_line(prediction)
        answers = [_single_line(answer) for answer in answers]
        if len(set(answers)) > 1:
            prediction = normalize_answer(prediction)
            answers = [normalize_answer(answer) for answer in answers]
    elif variant == "lavis":
        prediction = normalize_answer(_single_line(prediction))
        if len(set(answers)) > 1:
            answers = [normalize_punctuation(answer) for answer in answers]
    else:
        prediction = normalize_textvqa_answer(prediction)
        answers = [normalize_textvqa_answer(answer) for answer in answers]
    same = sum(answer == prediction for answer in answers)
    # Left out in turn: each annotator who agrees, of whom same - 1 others do, and each who does not.
    agreeing = same * min(1.0, (same - 1) / 3)
    return (agreeing + (len(answers) - same) * min(1.0, same / 3)) / len(answers)


def _single_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


__all__ = [
    "VARIANTS",
    "normalize_answer",
    "normalize_punctuation",
    "normalize_textvqa_answer",
    "normalize_words",
    "vqa_accuracy",
    "vqa_scores",
]
