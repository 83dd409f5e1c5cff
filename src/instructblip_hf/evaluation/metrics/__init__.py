"""The metrics of InstructBLIP's 26 datasets, as their authors publish them.

Each metric is a function on lists (`vqa_accuracy`, `caption_scores`, ...) that needs no more than numpy, and a thin
`evaluate.Metric` around it (`VqaAccuracy`, `CaptionScores`, ...; the ``eval`` extra) that gathers rows by id in batches
and over processes. Nothing is loaded from the Hub.

Scores are fractions, neither multiplied by 100 nor rounded. docs/metrics.md has the table of metrics, their quirks, and
what each was compared with. Names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import Any


_PUBLIC_NAMES = {
    "AokvqaDirectAnswer": "metric_classes",
    "AokvqaMultipleChoice": "metric_classes",
    "CaptionScores": "metric_classes",
    "ExactMatch": "metric_classes",
    "GqaAccuracy": "metric_classes",
    "IvqaAccuracy": "metric_classes",
    "Ndcg": "metric_classes",
    "OcrVqaAccuracy": "metric_classes",
    "RankingScores": "metric_classes",
    "RetrievalRecall": "metric_classes",
    "RocAuc": "metric_classes",
    "ScienceqaAccuracy": "metric_classes",
    "VqaAccuracy": "metric_classes",
    "aokvqa_direct_answer": "answers",
    "aokvqa_multiple_choice": "answers",
    "bleu_scores": "captions",
    "caption_scores": "captions",
    "cider_scores": "captions",
    "exact_match": "answers",
    "gqa_accuracy": "answers",
    "ivqa_accuracy": "answers",
    "ndcg": "ranking",
    "normalize_answer": "vqa",
    "normalize_textvqa_answer": "vqa",
    "ocr_vqa_accuracy": "answers",
    "ranking_scores": "ranking",
    "retrieval_recall": "retrieval",
    "roc_auc": "classification",
    "rouge_l_scores": "captions",
    "scienceqa_accuracy": "answers",
    "scienceqa_letters": "letters",
    "tokenize_captions": "caption_tokenizers",
    "vqa_accuracy": "vqa",
    "vqa_scores": "vqa",
}

__all__ = sorted(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
