"""Accuracies of a model on the test scenes, by generation and by ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from claim_rows import ALL_TASKS, CANDIDATES, TEST_SEED, Question, ScenePool, blank_image, draw_questions

from instructblip_hf.data.sources.shapes_world import score


MAX_NEW_TOKENS = 16
EVALUATION_BATCH = 200


class Evaluator:
    """Accuracies on the test scenes, the same questions for all models.

    Args:
        model (`InstructBlipForConditionalGeneration`): What is measured.
        processor (`InstructBlipProcessor`): Its processor.
        pool (`ScenePool`): The test scenes.
        examples (`int`): Questions a task.
        reads_instruction (`bool`, *optional*, defaults to `True`): Whether the Q-Former is given the instruction.
    """

    def __init__(
        self, model: Any, processor: Any, pool: ScenePool, examples: int, reads_instruction: bool = True
    ) -> None:
        self.model, self.processor, self.pool, self.examples = model.eval(), processor, pool, examples
        self.reads_instruction = reads_instruction

    def __call__(self, tasks: Sequence[str], form: str, templates: str = "seen") -> dict[str, float]:
        """Share of right answers by task, generated greedily."""
        questions, prompts = self._ask(tasks, form, templates)
        answers: dict[int, str] = {}
        for places, inputs in self._batches(questions, prompts):
            tokens = self.model.generate(
                **inputs, return_full_text=False, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
            )
            texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            answers.update(zip(places, (text.strip() for text in texts)))
        right = []
        for place, question in enumerate(questions):
            example = {**asdict(question), "scene": self.pool.scenes[question.scene_index]}
            right.append(score(example, answers[place]))
        return _by_task(questions, right)

    def rank(self, tasks: Sequence[str]) -> dict[str, float]:
        """Share of questions whose answer is the likeliest of the task's `CANDIDATES`."""
        questions, prompts = self._ask(tasks, "instruction", "seen")
        candidates = [self.processor.encode_candidates(CANDIDATES[question.task]) for question in questions]
        right = [False] * len(questions)
        for places, inputs in self._batches(questions, prompts):
            order = self.model.rank_candidates(candidates=[candidates[place] for place in places], **inputs).order
            for place, best in zip(places, order[:, 0].tolist()):
                right[place] = CANDIDATES[questions[place].task][best] == questions[place].completion
        return _by_task(questions, right)

    def _ask(self, tasks: Sequence[str], form: str, templates: str) -> tuple[list[Question], list[str]]:
        questions = [
            question
            for task in tasks
            for question in draw_questions(task, self.pool.scenes, self.examples, [TEST_SEED, 3])
        ]
        prompts = []
        for place, question in enumerate(questions):
            # A generator for each, so that a question has the same words whatever else is asked.
            seed = [TEST_SEED, 4, ALL_TASKS.index(question.task), place % self.examples]
            prompts.append(question.prompt(form, np.random.default_rng(seed), templates))
        return questions, prompts

    def _batches(self, questions: Sequence[Question], prompts: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """Places of questions in batches of similar length, and the model's inputs."""
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].split()))
        for start in range(0, len(order), EVALUATION_BATCH):
            places = order[start : start + EVALUATION_BATCH]
            withheld = {} if self.reads_instruction else {"qformer_text": [""] * len(places)}
            inputs = self.processor(
                images=[[blank_image()]] * len(places),
                text=[prompts[place] for place in places],
                padding=True,
                padding_side="left",
                return_tensors="pt",
                **withheld,
            )
            del inputs["pixel_values"]
            inputs.update(self.pool([[questions[place].scene_index] for place in places]))
            yield places, inputs.to(self.model.device)


def _by_task(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for question, good in zip(questions, right):
        found.setdefault(question.task, []).append(good)
    return {task: round(float(np.mean(values)), 4) for task, values in found.items()}
