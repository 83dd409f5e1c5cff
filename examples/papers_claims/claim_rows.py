"""The study's data: tasks of very unequal size, their inputs in three forms, and scenes with cached vision features.

Rows are slots of a question about a scene of the pool. What the model reads of them depends on the form, as in the
paper's section 3.4: an instruction (a wording drawn anew in every epoch), the plain input (the bare question; for a
caption nothing, for question generation the answer alone), or the plain input after an identifier ``(task: dataset)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from instructblip_hf.data.sources.shapes_world import HELD_OUT_TASKS, Scene, render, sample_scene
from instructblip_hf.data.sources.shapes_world.scenes import COLORS, IMAGE_SIZE
from instructblip_hf.data.sources.shapes_world.tasks import LETTERS, ask, canonical_question, solve
from instructblip_hf.data.sources.shapes_world.wordings import word


HELD_IN = {
    "caption": 8000,
    "relation": 4000,
    "count": 2000,
    "color": 1000,
    "where": 1000,
    "choice": 1000,
    "question": 500,
    "digit": 250,
    "size": 60,
}
"""Tasks of the instruction tuning and their rows: the largest has 133 times as many as the smallest."""

WITHHELD = ("shape", "at", "exist")
"""Held-out tasks that the frozen language model knows from its pre-training, but the Q-Former never sees."""

NOVEL = HELD_OUT_TASKS
"""Held-out tasks that no part of the model was ever trained on."""

HELD_OUT = (*WITHHELD, *NOVEL)
ALL_TASKS = (*HELD_IN, *HELD_OUT)
SPATIAL = ("relation", "where", "at", "color_at", "relation_color")
"""Tasks about where things are."""

YES_NO = ("yes", "no")
CANDIDATES: dict[str, tuple[str, ...]] = {
    "choice": tuple(LETTERS),
    "choice_shape": tuple(LETTERS),
    "relation": YES_NO,
    "exist": YES_NO,
    "exist_shape": YES_NO,
    "relation_color": YES_NO,
    "color_at": tuple(COLORS),
}
"""Tasks with a list of answers, for ranking."""

FORMS = ("instruction", "plain", "identifier")

POOL_SEED, TEST_SEED = 0, 1
"""Of the scenes that are trained on, and of those that evaluation is about."""

PLAIN = {
    "caption": "",
    "relation": "Is the {a} {relation} the {b}?",
    "count": "How many {things} are there?",
    "color": "What color is the {noun}?",
    "where": "Where is the {color} {noun}?",
    "choice": "What color is the {noun}? {options}",
    "question": "{answer}",
    "digit": "What number is shown?",
    "size": "What size is the {color} object?",
    "shape": "What shape is the {color} object?",
    "at": "What is at the {place}?",
    "exist": "Is there a {color} {noun}?",
    "color_at": "What color is the object at the {place}?",
    "exist_shape": "Is there a {noun}?",
    "choice_shape": "What shape is the {color} object? {options}",
    "relation_color": "Is the {a} object {relation} the {b} object?",
}

IDENTIFIERS = {
    "caption": "(caption: image)",
    "relation": "(yes or no: position)",
    "count": "(number: objects)",
    "color": "(question: color)",
    "where": "(question: position)",
    "choice": "(options: color)",
    "question": "(ask: question)",
    "digit": "(number: digit)",
    "size": "(question: size)",
    "shape": "(question: shape)",
    "at": "(question: object)",
    "exist": "(yes or no: object)",
    "color_at": "(question: color object)",
    "exist_shape": "(yes or no: shape)",
    "choice_shape": "(options: shape)",
    "relation_color": "(yes or no: position color)",
}
"""The paper's ``[Task:Dataset]`` in words that the tiny tokenizer has."""


@dataclass(frozen=True)
class Question:
    """A question about a scene of a pool.

    Attributes:
        task (`str`): Task type.
        scene_index (`int`): Which scene.
        slots (`dict[str, str]`): What is asked.
        completion (`str`): The answer.
    """

    task: str
    scene_index: int
    slots: dict[str, str]
    completion: str

    def prompt(self, form: str, rng: np.random.Generator, templates: str = "seen") -> str:
        """What the model reads, in one of `FORMS`; wordings of instructions are drawn from `rng`."""
        if form == "instruction":
            return word(self.task, self.slots, rng, templates)
        plain = PLAIN[self.task].format(**self.slots)
        return plain if form == "plain" else f"{IDENTIFIERS[self.task]} {plain}".strip()


def draw_questions(task: str, scenes: Sequence[Scene], count: int, seed: Sequence[int]) -> list[Question]:
    """Questions of a task, each about a scene of its own as long as there are enough that allow one."""
    rng = np.random.default_rng([*seed, ALL_TASKS.index(task)])
    questions: list[Question] = []
    while len(questions) < count:
        before = len(questions)
        for index in rng.permutation(len(scenes)).tolist():
            slots = ask(task, scenes[index], rng)
            if slots is None:
                continue
            scene = scenes[index]
            answer = canonical_question(scene, slots["answer"]) if task == "question" else solve(task, scene, slots)
            questions.append(Question(task, index, slots, str(answer)))
            if len(questions) == count:
                break
        if len(questions) == before:
            raise ValueError(f"none of {len(scenes)} scenes allows a question of the task {task}")
    return questions


class TaskRows:
    """A dataset of one task, for a `MixtureDataset`; `images` holds the scene's place in the pool.

    Args:
        questions (`Sequence[Question]`): The rows.
        form (`str`): One of `FORMS`.
        seed (`int`): Of the wordings.
    """

    def __init__(self, questions: Sequence[Question], form: str, seed: int) -> None:
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; allowed are {', '.join(FORMS)}")
        self.questions, self.form, self.seed = questions, form, seed

    def __len__(self) -> int:
        return len(self.questions)

    def at(self, row: int, epoch: int) -> dict[str, Any]:
        """A row as it is worded in an epoch."""
        question = self.questions[row]
        rng = np.random.default_rng([self.seed, 5, ALL_TASKS.index(question.task), row, epoch])
        return {
            "images": [question.scene_index],
            "prompt": question.prompt(self.form, rng),
            "completion": question.completion,
        }


class ScenePool:
    """Scenes and the frozen vision tower's features of one picture each, computed once and kept in a file.

    It is called by the collator in the place of the image processor (``image_inputs``).

    Args:
        scenes (`list[Scene]`): The scenes.
        features (`torch.Tensor`): Bfloat16, shape (scenes, patches + 1, vision hidden).
    """

    def __init__(self, scenes: list[Scene], features: torch.Tensor) -> None:
        self.scenes, self.features = scenes, features

    def __call__(self, image_lists: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Features of the images of rows, shape (images, patches + 1, vision hidden)."""
        return {"image_embeds": self.features[[index for own in image_lists for index in own]].float()}

    @classmethod
    def open(cls, path: Path, count: int, seed: int, model: Any = None, processor: Any = None) -> ScenePool:
        """The pool of a seed, from its file or, with a model, computed and kept there.

        Raises:
            FileNotFoundError: If there is no file and no model.
        """
        rng = np.random.default_rng([seed, 21])
        scenes = [sample_scene(rng) for _ in range(count)]
        if path.is_file():
            return cls(scenes, load_file(path)["features"])
        if model is None:
            raise FileNotFoundError(f"there are no features of scenes in {path}")
        parts = []
        rng = np.random.default_rng([seed, 22])
        with torch.no_grad():
            for start in range(0, count, 250):
                images = [Image.fromarray(render(scene, rng)[0]) for scene in scenes[start : start + 250]]
                pixels = processor(images=images, return_tensors="pt").pixel_values.to(model.device)
                parts.append(model.vision_model(pixels).last_hidden_state.bfloat16().cpu())
        features = torch.cat(parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        incoming = path.with_suffix(".incoming")
        save_file({"features": features}, incoming)
        incoming.replace(path)
        return cls(scenes, features)


def blank_image() -> Image.Image:
    """A picture whose pixels nobody looks at: prompts have placeholders, features take their place."""
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
