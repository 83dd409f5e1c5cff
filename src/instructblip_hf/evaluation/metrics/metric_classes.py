"""The metrics as `evaluate.Metric`: rows by id, in batches, gathered over processes, offline.

Rows are ``ids`` (strings), ``predictions`` and ``references``. What is known of the whole split goes to `compute`, so
to the main process alone: ``expected_ids``, ``groups`` (grouping to id to group), and the options of the function of
the metric.

In several processes each builds the metric with the same ``num_process`` and ``experiment_id`` and its ``process_id``,
adds its rows and calls `compute`; process 0 returns the result, the others `None`. A process without rows calls
``add_batch(ids=[], predictions=[], references=[])`` once. ``cache_dir`` is on a disk that all of them see.

The classes need the ``eval`` extra, the functions that they call do not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


try:
    import evaluate
    from datasets import Features, Value
    from datasets import Sequence as ListOf
except ImportError as error:
    raise ImportError(
        "the evaluate.Metric classes need the packages evaluate and datasets: pip install 'instructblip-hf[eval]'; "
        "the functions of instructblip_hf.evaluation.metrics work without them"
    ) from error

from .answers import (
    aokvqa_direct_answer,
    aokvqa_multiple_choice,
    exact_match,
    gqa_accuracy,
    ivqa_accuracy,
    ocr_vqa_accuracy,
    scienceqa_accuracy,
)
from .captions import caption_scores
from .classification import roc_auc
from .ranking import ndcg, ranking_scores
from .rows import check_columns, check_ids, groups_by_row
from .vqa import vqa_accuracy


_TEXT, _NUMBER, _INDEX, _FLAG = Value("string"), Value("float64"), Value("int64"), Value("bool")

_GroupsById = Mapping[str, Mapping[str, Any]]


class _RowMetric(evaluate.Metric):
    """A metric of rows with ids. Subclasses say what predictions and references are, and score them."""

    prediction: Any
    reference: Any

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="\nids (`list[str]`) name the rows; expected_ids, if given to compute, is the whole split.",
            features=Features({"ids": _TEXT, "predictions": self.prediction, "references": self.reference}),
        )

    def _compute(
        self,
        *,
        ids: Sequence[str],
        predictions: Sequence[Any],
        references: Sequence[Any],
        expected_ids: Collection[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        ids, predictions, references = list(ids), list(predictions), list(references)
        check_columns(predictions=predictions)
        check_ids(ids, expected_ids)
        return self._score(ids, predictions, references, **options)

    def _score(self, ids: list[str], predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        raise NotImplementedError


class VqaAccuracy(_RowMetric):
    """VQA accuracy (VQAv2, OKVQA, VizWiz, TextVQA). References: the annotators' answers. See `vqa_accuracy`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)

    def _score(
        self,
        ids: list[str],
        predictions: list[Any],
        references: list[Any],
        groups: _GroupsById | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        return vqa_accuracy(predictions, references, groups=groups_by_row(ids, groups), ids=ids, **options)


class ExactMatch(_RowMetric):
    """The share of predictions equal to a right answer. References: the right answers. See `exact_match`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)

    def _score(
        self,
        ids: list[str],
        predictions: list[Any],
        references: list[Any],
        groups: _GroupsById | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        return exact_match(predictions, references, groups=groups_by_row(ids, groups), ids=ids, **options)


class GqaAccuracy(_RowMetric):
    """GQA's accuracy. References: ``{"answer", "structural_type"}``. See `gqa_accuracy`."""

    prediction = _TEXT
    reference = {"answer": _TEXT, "structural_type": _TEXT}

    def _score(
        self,
        ids: list[str],
        predictions: list[Any],
        references: list[Any],
        groups: _GroupsById | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        return gqa_accuracy(
            predictions,
            _column(references, "answer"),
            _column(references, "structural_type"),
            groups=groups_by_row(ids, groups),
            **options,
        )


class OcrVqaAccuracy(_RowMetric):
    """OCR-VQA's accuracy. References: ``{"answer", "genre"}``. See `ocr_vqa_accuracy`."""

    prediction = _TEXT
    reference = {"answer": _TEXT, "genre": _TEXT}

    def _score(self, ids: list[str], predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        return ocr_vqa_accuracy(predictions, _column(references, "answer"), _column(references, "genre"), **options)


class AokvqaDirectAnswer(_RowMetric):
    """A-OKVQA's direct answers. References: ``{"direct_answers", "difficult"}``. See `aokvqa_direct_answer`."""

    prediction = _TEXT
    reference = {"direct_answers": ListOf(_TEXT), "difficult": _FLAG}

    def _score(
        self,
        ids: list[str],
        predictions: list[Any],
        references: list[Any],
        groups: _GroupsById | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        return aokvqa_direct_answer(
            predictions,
            _column(references, "direct_answers"),
            _column(references, "difficult"),
            groups=groups_by_row(ids, groups),
            ids=ids,
            **options,
        )


class AokvqaMultipleChoice(_RowMetric):
    """A-OKVQA's multiple choice. References: ``{"choices", "correct"}``. See `aokvqa_multiple_choice`."""

    prediction = _TEXT
    reference = {"choices": ListOf(_TEXT), "correct": _INDEX}

    def _score(
        self,
        ids: list[str],
        predictions: list[Any],
        references: list[Any],
        groups: _GroupsById | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        return aokvqa_multiple_choice(
            predictions,
            _column(references, "choices"),
            _column(references, "correct"),
            ids=ids,
            groups=groups_by_row(ids, groups),
            **options,
        )


class IvqaAccuracy(_RowMetric):
    """iVQA's accuracy. References: the five annotators' answers. See `ivqa_accuracy`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)

    def _score(
        self,
        ids: list[str],
        predictions: list[Any],
        references: list[Any],
        groups: _GroupsById | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        return ivqa_accuracy(predictions, references, groups=groups_by_row(ids, groups), ids=ids, **options)


class ScienceqaAccuracy(_RowMetric):
    """ScienceQA's table. Predictions and ``answer`` are indices of options. See `scienceqa_accuracy`.

    References: ``{"answer", "subject", "grade", "topic", "has_text", "has_image"}``.
    """

    prediction = _INDEX
    reference = {
        "answer": _INDEX,
        "subject": _TEXT,
        "grade": _TEXT,
        "topic": _TEXT,
        "has_text": _FLAG,
        "has_image": _FLAG,
    }

    def _score(self, ids: list[str], predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        columns = {name: _column(references, name) for name in self.reference}
        return scienceqa_accuracy(
            predictions,
            columns["answer"],
            columns["subject"],
            columns["grade"],
            columns["has_text"],
            columns["has_image"],
            columns["topic"],
            **options,
        )


class RocAuc(_RowMetric):
    """Area under the ROC curve (HatefulMemes). Predictions: scores. References: 0 or 1. See `roc_auc`."""

    prediction = _NUMBER
    reference = _INDEX

    def _score(self, ids: list[str], predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        return roc_auc(predictions, references, ids=ids, **options)


class RankingScores(_RowMetric):
    """MRR, mean rank, recall at k (VisDial, retrieval). See `ranking_scores`.

    Predictions: scores of the candidates. References: indices of the right ones.
    """

    prediction = ListOf(_NUMBER)
    reference = ListOf(_INDEX)

    def _score(self, ids: list[str], predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        return ranking_scores(predictions, references, ids=ids, **options)


class Ndcg(_RowMetric):
    """VisDial's NDCG. Predictions: scores of the candidates. References: their relevance. See `ndcg`."""

    prediction = ListOf(_NUMBER)
    reference = ListOf(_NUMBER)

    def _score(self, ids: list[str], predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        return ndcg(predictions, references, ids=ids, **options)


class CaptionScores(_RowMetric):
    """CIDEr, BLEU and ROUGE-L (COCO, NoCaps, Flickr30k, TextCaps). References: captions. See `caption_scores`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)

    def _score(self, ids: list[str], predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        return caption_scores(predictions, references, ids=ids, **options)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


__all__ = [
    "AokvqaDirectAnswer",
    "AokvqaMultipleChoice",
    "CaptionScores",
    "ExactMatch",
    "GqaAccuracy",
    "IvqaAccuracy",
    "Ndcg",
    "OcrVqaAccuracy",
    "RankingScores",
    "RocAuc",
    "ScienceqaAccuracy",
    "VqaAccuracy",
]
