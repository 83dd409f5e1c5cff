"""A task of InstructBLIP's protocol as one of lmms-eval's, on the user's own copy of the dataset.

What is asked, chosen from and measured is that of `instructblip_hf.evaluation`. A YAML file of the folder `tasks` gives
the name of the task in the protocol as ``dataset_name``, the way it is asked as ``output_type``, and the numbers that are
reported.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.registry import get_aggregation
from lmms_eval.api.task import ConfigurableTask

from ...data.schema import Example
from ...data.sources.datasets import CatalogDataset, open_images
from ..answering import distinct_answers, ranked_answer
from ..prompts import candidates_of, prompt_of
from ..scoring import score
from ..tasks import EvalTask, eval_task
from .requests import AnswerList


DATA_ROOT = "INSTRUCTBLIP_DATA_ROOT"
"""The environment variable with the folder that has a folder for each dataset, named as in the catalog."""

OF_ALL_ROWS = ("caption_scores", "roc_auc")
"""Metrics that are no mean over rows."""


class ProtocolDocuments:
    """A split's examples, as lmms-eval reads a dataset.

    Args:
        examples (`CatalogDataset`): The split.
        with_media (`bool`): Whether images are looked for.
    """

    features: Mapping[str, Any] = {}

    def __init__(self, examples: CatalogDataset, with_media: bool) -> None:
        self._read: Callable[[int], Example] = examples.__getitem__ if with_media else examples.peek
        self._length = len(examples)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self._read(index)

    def __iter__(self) -> Iterator[Example]:
        return map(self._read, range(self._length))


class ProtocolTask(ConfigurableTask):
    """A task of the protocol.

    Args:
        config (`dict`): Of the YAML file. ``dataset_kwargs`` may have ``root``, the folder of this dataset, in place of
            the one under `DATA_ROOT`, and ``image_root`` and ``max_bad_rows`` of `CatalogDataset`.

    Raises:
        KeyError: If the protocol has no such task.
        ValueError: If neither ``root`` nor the environment variable is given, or answers are on a server.
        FileNotFoundError: If there is no such folder, or files are missing.
    """

    protocol: EvalTask

    def __init__(self, config: dict[str, Any]) -> None:
        given = {key: value for key, value in config.items() if key != "class"}
        self.protocol = eval_task(given["dataset_name"])
        facts = {"prompt_from": self.protocol.source, "unverified": list(self.protocol.unverified)}
        own = {
            "test_split": self.protocol.split,
            "metadata": {**facts, **given.get("metadata", {})},
        }
        if given["output_type"] == "generate_until":
            own["generation_kwargs"] = {**self._decoding(), **given.get("generation_kwargs", {})}
        super().__init__(config={**given, **own})

    def _decoding(self) -> dict[str, Any]:
        causal, seq2seq = (self.protocol.decoding.options(kind) for kind in (False, True))
        penalty = (causal["length_penalty"], seq2seq["length_penalty"])
        return {**causal, "length_penalty": list(penalty), "until": []}

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None) -> None:
        """Reads the dataset's official files; nothing is downloaded."""
        options = dict(dataset_kwargs or {})
        name, split = self.protocol.dataset, self.protocol.split
        if options.get("root") is None:
            if not os.environ.get(DATA_ROOT):
                raise ValueError(f"set {DATA_ROOT} to the folder that has your copy of {name} in a folder {name}")
            options["root"] = Path(os.environ[DATA_ROOT]).expanduser() / name
        examples = CatalogDataset(name, split=split, **options)
        self.dataset = {split: ProtocolDocuments(examples, with_media=True)}
        self.dataset_no_image = {split: ProtocolDocuments(examples, with_media=False)}
        if self.protocol.candidates == "train_answers":
            # One request a document rather than one for each of thousands of answers.
            answers = distinct_answers(CatalogDataset(name, split="train", **options))
            self.config.generation_kwargs["candidates"] = AnswerList(answers)

    # --- what is asked ----------------------------------------------------------------------------------------------

    def doc_to_text(self, doc: Example) -> str:
        """The prompt."""
        return prompt_of(self.protocol, doc)

    def doc_to_visual(self, doc: Example) -> list[Any]:
        """Images; of a video its four frames."""
        return open_images(doc)

    def doc_to_choice(self, doc: Example) -> list[str]:
        """What a ranking chooses from."""
        return candidates_of(self.protocol, doc)

    def doc_to_target(self, doc: Example) -> list[str]:
        """The right answers, for logs."""
        return doc["answers"]

    # --- what is measured -------------------------------------------------------------------------------------------

    def process_results(self, doc: Example, results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        """The row's numbers, or what numbers of all rows are made of."""
        record = {"id": str(doc["id"]), **self._answer(doc, results)}
        if self.protocol.metric in OF_ALL_ROWS:
            return dict.fromkeys(self._names, {"example": doc, "record": record})
        if self.protocol.metric == "aokvqa_direct_answer" and doc.get("metadata", {}).get("difficult_direct_answer"):
            return {}  # does not count
        result = score(self.protocol, [doc], {record["id"]: record}).result
        return {name: float(result[name]) for name in self._names}

    def _prepare_metric_and_aggregation(self) -> None:
        self._metric_fn_list = dict.fromkeys(self._names)
        self._metric_fn_kwargs: dict[str, Any] = {name: {} for name in self._names}
        self._higher_is_better = {metric["metric"]: metric["higher_is_better"] for metric in self.config.metric_list}
        # Of its own mean lmms-eval knows the standard error.
        self._aggregation_list = dict.fromkeys(self._names, get_aggregation("mean"))
        if self.protocol.metric in OF_ALL_ROWS:
            self._aggregation_list = {name: partial(_score_of, self.protocol, name) for name in self._names}

    @property
    def _names(self) -> list[str]:
        return [metric["metric"] for metric in self.config.metric_list]

    def _answer(self, doc: Example, results: list[Any]) -> dict[str, Any]:
        if self.OUTPUT_TYPE == "generate_until":
            return {"prediction": results[0].strip()}
        texts = self.doc_to_choice(doc)
        if len(results) != len(texts):
            raise ValueError(f"{doc['dataset']} {doc['id']} has {len(texts)} choices and {len(results)} values")
        # lmms-eval's values are losses.
        scores = -torch.tensor([_loss_of(result) for result in results], dtype=torch.float64)  # [choices]
        return ranked_answer(self.protocol, texts, scores, int(scores.argmax()))


def _loss_of(result: Any) -> float:
    # From other models, and from its cache, lmms-eval 0.7 gives pairs as their text: "(1.5, False)", "[1.5, False]".
    pair = ast.literal_eval(result) if isinstance(result, str) else result
    return float(pair[0])


def _score_of(task: EvalTask, name: str, items: list[dict[str, Any]]) -> float:
    records = {item["record"]["id"]: item["record"] for item in items}
    return float(score(task, [item["example"] for item in items], records).result[name])


__all__ = ["DATA_ROOT", "ProtocolDocuments", "ProtocolTask"]
