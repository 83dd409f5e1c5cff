"""From answers to the task's metric: what the metric is given of rows and answers, and the number of the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.schema import Example
from . import metrics
from .metrics.rows import check_ids
from .tasks import METRICS, EvalTask


@dataclass(frozen=True)
class Score:
    """A task's result.

    Args:
        value (`float`): What the paper's tables show, as a fraction; CIDEr as it is.
        name (`str`): Which of the metric's results that is, such as ``"accuracy"``.
        result (`dict`): All that the metric returned.
    """

    value: float
    name: str
    result: dict[str, Any]


def score(task: EvalTask, examples: Sequence[Example], answers: Mapping[str, Mapping[str, Any]]) -> Score:
    """Scores the answers to a task.

    Args:
        task (`EvalTask`): The task.
        examples (`Sequence[Example]`): All rows that were asked.
        answers (`Mapping[str, Mapping]`): Records of `TaskModel.answer` by id.

    Raises:
        ValueError: If a row has no answer or an answer no row, or rows lack what the metric needs, naming them.
    """
    ids = [str(example["id"]) for example in examples]
    check_ids(list(answers), ids)
    records = [answers[name] for name in ids]
    result = _RESULTS[task.metric](ids, examples, records, task)
    name = METRICS[task.metric]
    return Score(float(result[name]), name, result)


def check_metric(task: EvalTask) -> None:
    """Sees that the task's metric can run, before a model answers for hours.

    Raises:
        ImportError: If something is not installed that it needs.
    """
    if task.metric == "caption_scores":
        metrics.tokenize_captions(["a caption"], "auto")


def _texts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [record["prediction"] for record in records]


def _answers(examples: Sequence[Example]) -> list[list[str]]:
    return [example["answers"] for example in examples]


def _facts(examples: Sequence[Example], *path: str) -> list[Any]:
    """A fact of each row's metadata, `None` where a row has it not."""
    found = []
    for example in examples:
        fact: Any = example.get("metadata", {})
        for key in path:
            fact = fact.get(key) if isinstance(fact, Mapping) else None
        found.append(fact)
    return found


def _groups(examples: Sequence[Example], *names: str) -> dict[str, list[Any]] | None:
    """Groupings by facts of the metadata that at least one row has."""
    columns = {name: _facts(examples, name) for name in names}
    return {name: column for name, column in columns.items() if any(fact is not None for fact in column)} or None


def _whole_column(column: list[Any]) -> list[Any] | None:
    return column if all(fact is not None for fact in column) else None


def _correct_options(ids: Sequence[str], examples: Sequence[Example]) -> list[int]:
    without = [name for name, example in zip(ids, examples) if "correct_option" not in example]
    if without:
        raise ValueError(f"{examples[0]['dataset']} {without[0]} does not say which option is right")
    return [example["correct_option"] for example in examples]


def _vqa(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    groups = _groups(examples, "answer_type", "question_type")
    result = metrics.vqa_accuracy(_texts(records), _answers(examples), groups=groups, ids=ids, **task.metric_options)
    # What the paper's numbers were very probably computed with.
    result["accuracy_lavis"] = metrics.vqa_accuracy(_texts(records), _answers(examples), "lavis", ids=ids)["accuracy"]
    return result


def _gqa(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    first = [answers[0] for answers in _answers(examples)]
    kinds = _whole_column(_facts(examples, "types", "structural"))
    result = metrics.gqa_accuracy(_texts(records), first, kinds, **task.metric_options)
    result["accuracy_as_written"] = metrics.gqa_accuracy(_texts(records), first)["accuracy"]
    return result


def _exact_match(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    answers = _answers(examples)
    if task.candidates == "options":
        correct = _correct_options(ids, examples)
        answers = [[example["options"][place]] for example, place in zip(examples, correct)]
    groups = _groups(examples, "relation", "grade")
    return metrics.exact_match(_texts(records), answers, groups=groups, ids=ids, **task.metric_options)


def _ivqa(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    return metrics.ivqa_accuracy(_texts(records), _answers(examples), ids=ids, **task.metric_options)


def _ocr_vqa(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    first = [answers[0] for answers in _answers(examples)]
    return metrics.ocr_vqa_accuracy(_texts(records), first, _whole_column(_facts(examples, "genre")))


def _direct_answer(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    difficult = [bool(fact) for fact in _facts(examples, "difficult_direct_answer")]
    return metrics.aokvqa_direct_answer(_texts(records), _answers(examples), difficult, ids=ids)


def _multiple_choice(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    choices = [example["options"] for example in examples]
    return metrics.aokvqa_multiple_choice(_texts(records), choices, _correct_options(ids, examples), ids=ids)


def scienceqa_columns(examples: Sequence[Example]) -> dict[str, Any]:
    """What ScienceQA's table groups by, as arguments of `scienceqa_accuracy`."""
    return {
        "subjects": _whole_column(_facts(examples, "subject")),
        "grades": _whole_column(_facts(examples, "grade")),
        "has_text": [bool(example.get("context")) for example in examples],
        "has_image": [bool(example["images"]) for example in examples],
        "topics": _whole_column(_facts(examples, "topic")),
    }


def _scienceqa(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    chosen = [record["choice"] for record in records]
    return metrics.scienceqa_accuracy(chosen, _correct_options(ids, examples), **scienceqa_columns(examples))


def _scienceqa_letters(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    counts = [len(example["options"]) for example in examples]
    correct = _correct_options(ids, examples)
    return metrics.scienceqa_letters(_texts(records), counts, correct, **scienceqa_columns(examples))


def _roc_auc(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    positive, negative = (list(task.labels or ()).index(label) for label in ("yes", "no"))
    # Of log-probabilities: their difference orders rows as the probability of yes among the two does.
    scores = [record["scores"][positive] - record["scores"][negative] for record in records]
    labels = [int(answers[0] == "yes") for answers in _answers(examples)]
    result = metrics.roc_auc(scores, labels, ids=ids)
    right = [[answers[0]] for answers in _answers(examples)]
    return {**result, "accuracy": metrics.exact_match(_texts(records), right)["accuracy"]}


def _ranking(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    targets = [[place] for place in _correct_options(ids, examples)]
    return metrics.ranking_scores([record["scores"] for record in records], targets, ids=ids)


def _captions(ids: Any, examples: Any, records: Any, task: EvalTask) -> dict[str, Any]:
    return metrics.caption_scores(_texts(records), _answers(examples), ids=ids)


_RESULTS = {
    "aokvqa_direct_answer": _direct_answer,
    "aokvqa_multiple_choice": _multiple_choice,
    "caption_scores": _captions,
    "exact_match": _exact_match,
    "gqa_accuracy": _gqa,
    "ivqa_accuracy": _ivqa,
    "ocr_vqa_accuracy": _ocr_vqa,
    "ranking_scores": _ranking,
    "roc_auc": _roc_auc,
    "scienceqa_accuracy": _scienceqa,
    "scienceqa_letters": _scienceqa_letters,
    "vqa_accuracy": _vqa,
}

__all__ = ["Score", "check_metric", "scienceqa_columns", "score"]
