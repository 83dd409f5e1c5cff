"""The shapes world: procedural pictures of coloured shapes and digits, and instructions about them.

- `ShapesWorld(seed, split="train", handwritten=False, tasks=None, templates="seen")` with
  ``.example(index, task=None)`` and ``.examples(count, task=None, start=0)``: rows with ``images``, ``prompt`` and
  ``completion`` (or ``messages``), ``task``, and ``scene`` and ``slots`` for scoring;
- `TASKS` and `HELD_OUT_TASKS`: the task types that are trained on, and those that are only evaluated;
- `score(example, answer)`: whether an answer is right;
- `build_tokenizer(for_qformer=False)`: its word-level tokenizer.
"""

from .scenes import HandwrittenDigits, Scene, SceneObject, render, sample_scene
from .scoring import normalize, score
from .tasks import HELD_OUT_TASKS, TASKS
from .tokenizer import build_tokenizer
from .wordings import wordings
from .world import ShapesWorld, make_row


__all__ = [
    "HELD_OUT_TASKS",
    "TASKS",
    "HandwrittenDigits",
    "Scene",
    "SceneObject",
    "ShapesWorld",
    "build_tokenizer",
    "make_row",
    "normalize",
    "render",
    "sample_scene",
    "score",
    "wordings",
]
