"""Files of answers to ScienceQA, scored as LLaVA scores them, alone and together with GPT-4's (LLaVA, section 5.2).

Two ways to join a model with a text-only GPT-4: *complement* takes GPT-4's answer, and the model's where GPT-4 gives none;
*judge* takes what GPT-4 answers when it is shown both, and the model's where that is nothing. LLaVA's scripts
(``eval_science_qa_gpt4.py``, ``eval_science_qa_gpt4_requery.py``) let chance choose an option for an answer that names
none; here it is seeded, and counted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.schema import Example
from .metrics.answers import scienceqa_accuracy
from .metrics.letters import answer_letter, letter_index, scienceqa_letters
from .metrics.rows import named
from .scoring import scienceqa_columns


_ID_KEYS = ("question_id", "id")
_TEXT_KEYS = ("text", "prediction")


def read_answers(path: str | Path) -> dict[str, str]:
    """Texts by the id of their problem.

    Args:
        path (`str` or `Path`):
            Lines of LLaVA's answers (``question_id`` and ``text``), ``predictions.jsonl`` of this package (``id`` and
            ``prediction``), or a result of LLaVA's or ScienceQA's own, a JSON object with ``outputs`` by id.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none of these, or answers a problem twice, naming the line or the id.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return _read_lines(path.name, text)
    if isinstance(whole, Mapping) and not any(key in whole for key in _ID_KEYS):
        outputs = whole.get("outputs")
        if not isinstance(outputs, Mapping) or not all(isinstance(one, str) for one in outputs.values()):
            raise ValueError(f'{path.name} has no object "outputs" from ids to texts')
        return {str(key): one for key, one in outputs.items()}
    return _read_lines(path.name, text)


def _read_lines(name: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}:{number} is no JSON: {line[:60]!r}") from error
        row = row if isinstance(row, Mapping) else {}
        row_id = next((row[key] for key in _ID_KEYS if isinstance(row.get(key), str | int)), None)
        answer = next((row[key] for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
        if row_id is None or answer is None:
            raise ValueError(f"{name}:{number} is no answer, which has question_id and text: {line[:60]!r}")
        if str(row_id) in found:
            raise ValueError(f"{name}:{number} answers {row_id} a second time")
        found[str(row_id)] = answer
    if not found:
        raise ValueError(f"{name} has no answers")
    return found


def score_answers(examples: Sequence[Example], answers: Mapping[str, str]) -> dict[str, Any]:
    """LLaVA's score of a file of answers.

    Args:
        examples (`Sequence[Example]`): Problems of the split.
        answers (`Mapping[str, str]`): Texts by id, see [`read_answers`]; others than of these problems are left aside.

    Returns:
        `dict`: As of [`scienceqa_letters`], with ``unanswered``, how many problems have no answer. They count as failed
        and as wrong.

    Raises:
        ValueError: If no problem has an answer, or a problem lacks its right option.
    """
    texts = [answers.get(str(example["id"])) for example in examples]
    unanswered = texts.count(None)
    if unanswered == len(texts):
        raise ValueError(f"the answers are to none of the {len(texts)} problems, such as {examples[0]['id']}")
    counts, correct = _options(examples)
    result = scienceqa_letters([text or "" for text in texts], counts, correct, **scienceqa_columns(examples))
    return {**result, "unanswered": unanswered}


@dataclass(frozen=True)
class Ensemble:
    """One way to choose, scored.

    Attributes:
        result (`dict`): As of [`scienceqa_accuracy`].
        choices (`dict[str, int]`): Index of the chosen option, by id of the problem.
        drawn (`int`): How many of these chance chose.
    """

    result: dict[str, Any]
    choices: dict[str, int]
    drawn: int


def score_with_gpt4(
    examples: Sequence[Example],
    answers: Mapping[str, str],
    gpt4: Mapping[str, str],
    judge: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """A model, GPT-4, and both together.

    An answer counts where it says "The answer is X." exactly once, here without the shorter forms, as in LLaVA's scripts.

    Args:
        examples (`Sequence[Example]`): Problems of the split.
        answers (`Mapping[str, str]`): The model's texts, by id of the problem.
        gpt4 (`Mapping[str, str]`): GPT-4's.
        judge (`Mapping[str, str]`, *optional*): GPT-4's once it has seen both; where it is missing, the model's counts.
        seed (`int`, *optional*, defaults to 0): Of what chance chooses, in the order of the problems.

    Returns:
        `dict`: [`Ensemble`] by name: ``model``, ``gpt4``, ``complement`` and, with ``judge``, ``judge``; and
        ``upper_bound``, the share of problems that the model gets right or GPT-4 where it answers, and the counts
        ``gpt4_failed`` and ``judge_missing``.

    Raises:
        ValueError: If a problem has no answer by the model or by GPT-4.
    """
    ids = [str(example["id"]) for example in examples]
    for what, texts in (("the model's answers", answers), ("GPT-4's answers", gpt4)):
        missing = [repr(one) for one in ids if one not in texts]
        if missing:
            raise ValueError(f"{what} lack {named(missing)}")
    counts, correct = _options(examples)
    chance = random.Random(seed)
    chosen: dict[str, list[_Choice]] = {"model": [], "gpt4": [], "complement": [], "judge": []}
    for one, count in zip(ids, counts):
        # One after the other, as chance is asked in LLaVA's scripts.
        ours, theirs = _choose(answers[one], count, chance), _choose(gpt4[one], count, chance)
        chosen["model"].append(ours)
        chosen["gpt4"].append(theirs)
        chosen["complement"].append(ours if theirs.failed else theirs)
        if judge is not None:
            judged = _choose(judge.get(one, ""), count, chance)
            chosen["judge"].append(ours if judged.failed else judged)
    columns = scienceqa_columns(examples)
    found: dict[str, Any] = {}
    for name, choices in chosen.items():
        if choices:
            places = [choice.place for choice in choices]
            result = scienceqa_accuracy(places, correct, **columns)
            found[name] = Ensemble(result, dict(zip(ids, places)), sum(choice.drawn for choice in choices))
    pairs = zip(chosen["model"], chosen["complement"], correct)
    found["upper_bound"] = sum(right in (ours.place, theirs.place) for ours, theirs, right in pairs) / len(ids)
    found["gpt4_failed"] = sum(choice.failed for choice in chosen["gpt4"])
    found["judge_missing"] = 0 if judge is None else sum(one not in judge for one in ids)
    return found


@dataclass(frozen=True)
class _Choice:
    place: int
    failed: bool
    drawn: bool


def _choose(text: str, count: int, chance: random.Random) -> _Choice:
    letter = answer_letter(text, sentence_only=True)
    place = letter_index(letter, count)
    drawn = place < 0
    return _Choice(chance.choice(range(count)) if drawn else place, letter is None, drawn)


def _options(examples: Sequence[Example]) -> tuple[list[int], list[int]]:
    without = [repr(example["id"]) for example in examples if "correct_option" not in example]
    if without:
        raise ValueError(f"which option is right is not said of {named(without)}")
    return [len(example["options"]) for example in examples], [example["correct_option"] for example in examples]


__all__ = ["Ensemble", "read_answers", "score_answers", "score_with_gpt4"]
