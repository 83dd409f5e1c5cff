"""What a model answers to examples of a task, by generation or by ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.schema import Example
from ..data.sources.datasets import open_images
from ..models.language_models.adapter import padding_side
from ..models.ranking import label_scores
from ..models.recent_images import RecentImages
from .prompts import candidates_of, prompt_of
from .tasks import Decoding, EvalTask


MOST_SCORES = 100
"""Scores of more candidates than this do not go into a record; VisDial has a hundred."""


class TaskModel:
    """A model that answers a task.

    Args:
        model (`VisionLanguageModel`): A model of this package.
        processor (`ProcessorMixin`): Its processor.
        task (`EvalTask`): What it is asked.
        decoding (`Decoding`, *optional*): In place of the task's.
        train_answers (`Sequence[str]`, *optional*): For a task that ranks these, see `distinct_answers`.
        images_at_once (`int`, *optional*): As in [`RecentImages`], which encodes an image once for questions that follow
            each other.

    Raises:
        ValueError: If the task ranks the answers of the training split and there are none.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: EvalTask,
        decoding: Decoding | None = None,
        train_answers: Sequence[str] = (),
        images_at_once: int | None = None,
    ) -> None:
        self.model, self.processor, self.task = model, processor, task
        self.train_answers = list(train_answers)
        if task.candidates == "train_answers" and not self.train_answers:
            raise ValueError(f"the task of {task.dataset} ranks the answers of the training split; there are none")
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.options = (decoding or task.decoding).options(self.is_encoder_decoder)
        self.recent = RecentImages(model, processor, images_at_once=images_at_once)
        self._encoded: dict[bool, list[list[int]]] = {}

    def answer(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Records of a batch of examples.

        Args:
            examples (`Sequence[Example]`): Rows of the task's dataset, with image paths resolved.

        Returns:
            `list[dict]`: ``id``, ``prompt`` and ``prediction`` (a text) of each; of ranked ones ``choice``, the index of
            the candidate or label, and, for at most `MOST_SCORES` of them, ``scores`` in nats.

        Raises:
            ValueError: If an example cannot be asked or its image not be read, naming it.
        """
        prompts = [prompt_of(self.task, example) for example in examples]
        images = [open_images(example) for example in examples]
        texts = [self.processor.user_turn(prompt, len(own)) for prompt, own in zip(prompts, images)]
        inputs = self.processor(
            images=images,
            text=texts,
            padding=True,
            padding_side=padding_side(self.is_encoder_decoder),
            return_tensors="pt",
            image_inputs=self.recent,
        ).to(self.model.device, self.model.dtype)
        answers = self._generate(inputs) if self.task.inference == "generate" else self._rank(inputs, examples, texts)
        return [
            {"id": str(example["id"]), "prompt": prompt, **answer}
            for example, prompt, answer in zip(examples, prompts, answers)
        ]

    def _generate(self, inputs: Any) -> list[dict[str, Any]]:
        options = {**self.processor.generation_options(), **self.options}
        ids = self.model.generate(**inputs, return_full_text=False, **options)
        return [{"prediction": text} for text in self.processor.answers(ids)]

    def _rank(self, inputs: Any, examples: Sequence[Example], prompts: Sequence[str]) -> list[dict[str, Any]]:
        candidates = [candidates_of(self.task, example, self.train_answers) for example in examples]
        needs_space = [not prompt[-1:].isspace() for prompt in prompts]
        is_shared = self.task.candidates != "options" and len(set(needs_space)) == 1
        encoded: list[Any] = [self._encode(texts, space) for texts, space in zip(candidates, needs_space)]
        # Of thousands of answers the best alone is looked for.
        top_k = 1 if self.task.candidates == "train_answers" else None
        output = self.model.rank_candidates(candidates=encoded[0] if is_shared else encoded, top_k=top_k, **inputs)
        return [
            ranked_answer(self.task, texts, row[: len(texts)].float().cpu(), int(order[0]))
            for texts, row, order in zip(candidates, output.scores, output.order)
        ]

    def _encode(self, texts: Sequence[str], needs_space: bool) -> list[list[int]]:
        def encode() -> list[list[int]]:
            ids: list[list[int]] = self.processor.encode_candidates(
                texts, self.is_encoder_decoder, add_prefix_space=needs_space
            )
            return ids

        if self.task.candidates == "options":
            return encode()
        if needs_space not in self._encoded:
            self._encoded[needs_space] = encode()
        return self._encoded[needs_space]


def ranked_answer(task: EvalTask, texts: Sequence[str], scores: torch.Tensor, best: int) -> dict[str, Any]:
    """What the scores of candidates say: the likeliest candidate or, of a task with labels, the likeliest label.

    Args:
        task (`EvalTask`): A task that ranks.
        texts (`Sequence[str]`): Its candidates.
        scores (`torch.Tensor`): Shape (candidates,), in nats.
        best (`int`): The candidate with the highest score.

    Returns:
        `dict`: ``prediction``, ``choice`` and for at most `MOST_SCORES` candidates or labels ``scores``, of these.
    """
    if task.labels is not None:
        texts = list(task.labels)
        places = [place for place, strings in enumerate(task.labels.values()) for _ in strings]
        scores = label_scores(scores[None], places)[0]  # [labels]
        best = int(scores.argmax())
    record: dict[str, Any] = {"prediction": texts[best], "choice": best}
    if len(texts) <= MOST_SCORES and task.candidates != "train_answers":
        record["scores"] = scores.tolist()
    return record


def distinct_answers(examples: Sequence[Example] | Any) -> list[str]:
    """All answers of a split once, in the order in which they come.

    Args:
        examples (`Sequence[Example]`): Rows; of a `CatalogDataset` images are not looked for.
    """
    peek = getattr(examples, "peek", examples.__getitem__)
    found: dict[str, None] = {}
    for index in range(len(examples)):
        found.update(dict.fromkeys(answer for answer in peek(index)["answers"] if answer.strip()))
    return list(found)


__all__ = ["MOST_SCORES", "TaskModel", "distinct_answers", "ranked_answer"]
