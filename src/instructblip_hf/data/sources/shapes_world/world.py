"""`ShapesWorld`: an endless, seeded source of instruction examples in TRL's row form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .scenes import HandwrittenDigits, Scene, render, sample_scene
from .tasks import HELD_OUT_TASKS, TASKS, ask, canonical_question, solve
from .wordings import WORDING_SETS, word


SPLITS = ("train", "test")


class ShapesWorld:
    """Instruction examples about freshly drawn scenes.

    Everything is a function of the arguments and the example's index: two worlds with equal arguments hold equal
    examples, in any order of access. Scenes of different splits are drawn from different random streams, and their
    handwritten digits from disjoint pools.

    Args:
        seed (`int`): Which world.
        split (`str`, *optional*, defaults to `"train"`): ``"train"`` or ``"test"``.
        handwritten (`bool`, *optional*, defaults to `False`): Show scikit-learn's handwritten digits in place of
            drawn ones.
        tasks (sequence of `str`, *optional*): Task types to choose from, by default all of `TASKS`. Names may also
            come from `HELD_OUT_TASKS`.
        templates (`str`, *optional*, defaults to `"seen"`): Wordings, ``"seen"`` or ``"held_out"``. Held-out task
            types have but one set.

    Raises:
        ImportError: If ``handwritten`` is asked for and scikit-learn is not installed.
        ValueError: If ``split``, ``tasks`` or ``templates`` are none of the above.

    Example:
        >>> example = ShapesWorld(seed=0, split="test").example(3, task="color")
        >>> sorted(example)
        ['completion', 'images', 'prompt', 'scene', 'slots', 'task']
    """

    def __init__(
        self,
        seed: int,
        split: str = "train",
        handwritten: bool = False,
        tasks: Sequence[str] | None = None,
        templates: str = "seen",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
        if templates not in WORDING_SETS:
            raise ValueError(f"templates={templates!r} is not one of {', '.join(WORDING_SETS)}")
        self.seed = seed
        self.split = split
        self.tasks = tuple(TASKS if tasks is None else tasks)
        self.templates = templates
        for task in self.tasks:
            _check_task(task)
        if not self.tasks:
            raise ValueError("tasks is empty")
        self.glyphs = HandwrittenDigits(split) if handwritten else None

    def example(self, index: int, task: str | None = None) -> dict[str, Any]:
        """One example.

        Args:
            index (`int`): Which one, 0 or more.
            task (`str`, *optional*): Its task type; by default one of the world's tasks, each as likely.

        Returns:
            `dict`: ``images`` (a list of one 56x56 RGB picture), ``prompt`` and ``completion`` (strings; for a
            dialogue instead ``messages``, 2 or 3 turns of user and assistant, content strings), ``task``, and for
            scoring ``scene`` and ``slots``.

        Raises:
            ValueError: If ``index`` is negative or ``task`` is no task type.
        """
        if index < 0:
            raise ValueError(f"index={index} is negative")
        if task is not None:
            _check_task(task)
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        if task is None:
            task = self.tasks[rng.integers(len(self.tasks))]
        while True:
            scene = sample_scene(rng)
            row = make_row(task, scene, rng, self.templates)
            if row is not None:
                break
        pixels, _ = render(scene, rng, self.glyphs)
        return {"images": [Image.fromarray(pixels)], **row, "task": task, "scene": scene}

    def examples(self, count: int, task: str | None = None, start: int = 0) -> Iterator[dict[str, Any]]:
        """The examples ``start`` to ``start + count``, see `example`."""
        return (self.example(index, task) for index in range(start, start + count))


def make_row(task: str, scene: Scene, rng: np.random.Generator, templates: str = "seen") -> dict[str, Any] | None:
    """Words of an example about a given scene, without its picture.

    Args:
        task (`str`): A task type.
        scene (`Scene`): What is asked about.
        rng (`numpy.random.Generator`): Source of randomness.
        templates (`str`, *optional*, defaults to `"seen"`): ``"seen"`` or ``"held_out"`` wordings.

    Returns:
        `dict` or `None`: ``slots`` with ``prompt`` and ``completion`` or ``messages``; `None` where the scene allows
        no question of this type.
    """
    if task == "dialogue":
        return _dialogue(scene, rng, templates)
    slots = ask(task, scene, rng)
    if slots is None:
        return None
    if task == "question":
        completion = canonical_question(scene, slots["answer"])
    else:
        completion = solve(task, scene, slots)
    return {"prompt": word(task, slots, rng, templates), "completion": completion, "slots": slots}


_OPENERS = {"color": ("where", "size"), "shape": ("where", "size"), "where": ("size",), "at": ("size",)}


def _dialogue(scene: Scene, rng: np.random.Generator, templates: str) -> dict[str, Any] | None:
    """A question about one object and one or two that go on about "it"."""
    opener = list(_OPENERS)[rng.choice(len(_OPENERS), p=(0.35, 0.35, 0.15, 0.15))]
    slots = ask(opener, scene, rng)
    if slots is None:
        return None
    answer = solve(opener, scene, slots)
    item = next(
        (
            item
            for item in scene.objects
            if slots.get("noun", item.noun) == item.noun
            and slots.get("color", item.color) == item.color
            and slots.get("place", item.place) == item.place
        ),
        None,
    )
    if item is None:  # an empty cell has no "it"
        return None
    messages = [_turn("user", word(opener, slots, rng, templates)), _turn("assistant", str(answer))]
    follow_ups = [_OPENERS[opener][i] for i in rng.permutation(len(_OPENERS[opener]))]
    for follow_up in follow_ups[: 1 + int(rng.integers(2))]:
        messages.append(_turn("user", word(f"{follow_up}_follow_up", {}, rng, templates)))
        messages.append(_turn("assistant", item.place if follow_up == "where" else item.size))
    return {"messages": messages, "slots": {"opener": opener, **slots}}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _check_task(task: str) -> None:
    if task not in TASKS and task not in HELD_OUT_TASKS:
        raise ValueError(f"task={task!r} is not one of {', '.join(TASKS + HELD_OUT_TASKS)}")
