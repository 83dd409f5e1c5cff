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

from collections.abc import Callable, Collection, Mapping, Sequence
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
from .retrieval import retrieval_recall
from .rows import check_columns, check_ids, groups_by_row
from .vqa import vqa_accuracy


_TEXT, _NUMBER, _INDEX, _FLAG = Value("string"), Value("float64"), Value("int64"), Value("bool")


class _RowMetric(evaluate.Metric):
    """A metric of rows with ids: what predictions and references are, and the function that scores them.

    References of several fields go to the function as columns, in the order of the fields.
    """

    prediction: Any
    reference: Any
    function: Callable[..., dict[str, Any]]
    names_rows = True
    """Whether the function takes the ``ids``, to name rows in its errors."""

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
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        ids, predictions, references = list(ids), list(predictions), list(references)
        check_columns(predictions=predictions)
        check_ids(ids, expected_ids)
        if groups is not None:
            options["groups"] = groups_by_row(ids, groups)
        if self.names_rows:
            options["ids"] = ids
        columns = [references]
        if isinstance(self.reference, dict):
            columns = [[row[name] for row in references] for name in self.reference]
        return type(self).function(predictions, *columns, **options)


class VqaAccuracy(_RowMetric):
    """VQA accuracy (VQAv2, OKVQA, VizWiz, TextVQA). References: the annotators' answers. See `vqa_accuracy`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)
    function = staticmethod(vqa_accuracy)


class ExactMatch(_RowMetric):
    """The share of predictions equal to a right answer. References: the right answers. See `exact_match`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)
    function = staticmethod(exact_match)


class GqaAccuracy(_RowMetric):
    """GQA's accuracy. References: ``{"answer", "structural_type"}``. See `gqa_accuracy`."""

    prediction = _TEXT
    reference = {"answer": _TEXT, "structural_type": _TEXT}
    function = staticmethod(gqa_accuracy)
    names_rows = False


class OcrVqaAccuracy(_RowMetric):
    """OCR-VQA's accuracy. References: ``{"answer", "genre"}``. See `ocr_vqa_accuracy`."""

    prediction = _TEXT
    reference = {"answer": _TEXT, "genre": _TEXT}
    function = staticmethod(ocr_vqa_accuracy)
    names_rows = False


class AokvqaDirectAnswer(_RowMetric):
    """A-OKVQA's direct answers. References: ``{"direct_answers", "difficult"}``. See `aokvqa_direct_answer`."""

    prediction = _TEXT
    reference = {"direct_answers": ListOf(_TEXT), "difficult": _FLAG}
    function = staticmethod(aokvqa_direct_answer)


class AokvqaMultipleChoice(_RowMetric):
    """A-OKVQA's multiple choice. References: ``{"choices", "correct"}``. See `aokvqa_multiple_choice`."""

    prediction = _TEXT
    reference = {"choices": ListOf(_TEXT), "correct": _INDEX}
    function = staticmethod(aokvqa_multiple_choice)


class IvqaAccuracy(_RowMetric):
    """iVQA's accuracy. References: the five annotators' answers. See `ivqa_accuracy`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)
    function = staticmethod(ivqa_accuracy)


class ScienceqaAccuracy(_RowMetric):
    """ScienceQA's table. Predictions and ``answer`` are indices of options. See `scienceqa_accuracy`.

    References: ``{"answer", "subject", "grade", "has_text", "has_image", "topic"}``.
    """

    prediction = _INDEX
    reference = {
        "answer": _INDEX,
        "subject": _TEXT,
        "grade": _TEXT,
        "has_text": _FLAG,
        "has_image": _FLAG,
        "topic": _TEXT,
    }
    function = staticmethod(scienceqa_accuracy)
    names_rows = False


class RocAuc(_RowMetric):
    """Area under the ROC curve (HatefulMemes). Predictions: scores. References: 0 or 1. See `roc_auc`."""

    prediction = _NUMBER
    reference = _INDEX
    function = staticmethod(roc_auc)


class RankingScores(_RowMetric):
    """MRR, mean rank, recall at k (VisDial, retrieval). See `ranking_scores`.

    Predictions: scores of the candidates. References: indices of the right ones.
    """

    prediction = ListOf(_NUMBER)
    reference = ListOf(_INDEX)
    function = staticmethod(ranking_scores)


class RetrievalRecall(_RowMetric):
    """R@1, 5 and 10 in both directions (Flickr30k, COCO). See `retrieval_recall`.

    Predictions: scores of the candidates. References: ``{"direction", "targets"}``.
    """

    prediction = ListOf(_NUMBER)
    reference = {"direction": _TEXT, "targets": ListOf(_INDEX)}
    function = staticmethod(retrieval_recall)


class Ndcg(_RowMetric):
    """VisDial's NDCG. Predictions: scores of the candidates. References: their relevance. See `ndcg`."""

    prediction = ListOf(_NUMBER)
    reference = ListOf(_NUMBER)
    function = staticmethod(ndcg)


class CaptionScores(_RowMetric):
    """CIDEr, BLEU and ROUGE-L (COCO, NoCaps, Flickr30k, TextCaps). References: captions. See `caption_scores`."""

    prediction = _TEXT
    reference = ListOf(_TEXT)
    function = staticmethod(caption_scores)


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
    "RetrievalRecall",
    "RocAuc",
    "ScienceqaAccuracy",
    "VqaAccuracy",
]
