"""Task types of the shapes world: which questions a scene allows, and their true answers.

A question is a task type and its slots, for example ``("color", {"noun": "circle"})``. `ask` draws slots for which
the question has one clear answer, `solve` computes that answer from the scene alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .scenes import CELLS, COLORS, NOUNS, NUMBERS, Scene, SceneObject, name_objects


TASKS = (
    "caption",
    "color",
    "shape",
    "size",
    "where",
    "at",
    "digit",
    "count",
    "exist",
    "relation",
    "choice",
    "question",
    "dialogue",
)
"""Task types with seen wordings; ``"dialogue"`` chains questions of the others."""

HELD_OUT_TASKS = ("color_at", "exist_shape", "choice_shape", "relation_color")
"""Task types that are only evaluated."""

RELATIONS = ("left of", "right of", "above", "below")
LETTERS = "abc"
NOTHING = "nothing"
PLURALS = {noun: noun + ("es" if noun == "cross" else "s") for noun in NOUNS}

_PALETTE = tuple(COLORS)


def ask(task: str, scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    """Draws the slots of a question about a scene.

    Args:
        task (`str`): One of `TASKS` other than ``"dialogue"``, or of `HELD_OUT_TASKS`.
        scene (`Scene`): What is asked about.
        rng (`numpy.random.Generator`): Source of randomness.

    Returns:
        `dict[str, str]` or `None`: Slots, or `None` where the scene allows no question of this type (a relation
        needs two objects, reading a digit exactly one digit, "the circle" exactly one circle).

    Raises:
        KeyError: If there is no such task type.
    """
    if task not in _ASK:
        raise KeyError(f"no task {task!r}; there are: {', '.join(_ASK)}")
    return _ASK[task](scene, rng)


def solve(task: str, scene: Scene, slots: dict[str, str]) -> str | None:
    """The true answer to a question.

    Args:
        task (`str`): A task type, see `ask`; ``"question"`` has no single answer and is not solved here.
        scene (`Scene`): What is asked about.
        slots (`dict[str, str]`): The question's slots.

    Returns:
        `str` or `None`: The answer, or `None` where the question names no object or more than one.

    Raises:
        KeyError: If there is no such task type, or a slot is missing.
    """
    if task not in _SOLVE:
        raise KeyError(f"task {task!r} cannot be solved; these can: {', '.join(_SOLVE)}")
    return _SOLVE[task](scene, slots)


def options(slots: dict[str, str]) -> dict[str, str]:
    """Letters and words of a multiple-choice question: ``{"a": "red", "b": "blue", "c": "white"}``."""
    words = slots["options"].replace("(", " ").replace(")", " ").split()
    return dict(zip(words[::2], words[1::2]))


def _pick(items: list, rng: np.random.Generator) -> Any:
    return items[rng.integers(len(items))] if len(items) else None


def _only(items: list[SceneObject]) -> SceneObject | None:
    return items[0] if len(items) == 1 else None


def _with_unique_noun(scene: Scene) -> list[SceneObject]:
    return [item for item in scene.objects if len(scene.with_noun(item.noun)) == 1]


def _with_unique_color(scene: Scene) -> list[SceneObject]:
    return [item for item in scene.objects if len(scene.with_color(item.color)) == 1]


def _named(scene: Scene, name: str) -> list[SceneObject]:
    return [item for item in scene.objects if name in (item.name, item.color)]


# Asking


def _ask_nothing(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    return {} if scene.objects else None


def _ask_by_noun(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    item = _pick(_with_unique_noun(scene), rng)
    return item and {"noun": item.noun}


def _ask_by_color(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    item = _pick(_with_unique_color(scene), rng)
    return item and {"color": item.color}


def _ask_by_name(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    item = _pick(_with_unique_color(scene), rng)
    return item and {"color": item.color, "noun": item.noun}


def _ask_at(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    empty = [place for cell, place in enumerate(CELLS) if scene.at(cell) is None]
    if rng.random() < 0.2:
        return {"place": _pick(empty, rng)}
    item = _pick(list(scene.objects), rng)
    return item and {"place": item.place}


def _ask_color_at(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    item = _pick(list(scene.objects), rng)
    return item and {"place": item.place}


def _ask_digit(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    return {} if len(scene.with_noun("digit")) == 1 else None


def _ask_count(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    if rng.random() < 0.35:
        return {"things": "objects"}
    if scene.objects and rng.random() < 0.75:
        return {"things": PLURALS[_pick(list(scene.objects), rng).noun]}
    return {"things": PLURALS[_pick(list(NOUNS), rng)]}


def _ask_exist(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    present = [item.name for item in scene.objects]
    if not present:
        return None
    if rng.random() < 0.5:
        item = _pick(list(scene.objects), rng)
        return {"color": item.color, "noun": item.noun}
    # What is absent is mostly a present colour with another object's shape, so that neither word decides.
    nouns = [item.noun for item in scene.objects]
    colors = [item.color for item in scene.objects]
    while True:
        if rng.random() < 0.6:
            color, noun = _pick(colors, rng), _pick(nouns if rng.random() < 0.5 else list(NOUNS), rng)
        else:
            color, noun = _pick(list(_PALETTE), rng), _pick(nouns, rng)
        if f"{color} {noun}" not in present:
            return {"color": color, "noun": noun}


def _ask_exist_shape(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    nouns = sorted({item.noun for item in scene.objects})
    if not nouns:
        return None
    if rng.random() < 0.5:
        return {"noun": _pick(nouns, rng)}
    return {"noun": _pick([noun for noun in NOUNS if noun not in nouns], rng)}


def _ask_relation(by_color: bool) -> Callable[[Scene, np.random.Generator], dict[str, str] | None]:
    def draw(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
        items = _with_unique_color(scene)
        if len(items) < 2:
            return None
        first, second = (items[index] for index in rng.permutation(len(items))[:2])
        # Only an axis on which the two differ: "left of" is never asked of objects in one column.
        axes = []
        if first.column != second.column:
            axes.append(RELATIONS[:2])
        if first.row != second.row:
            axes.append(RELATIONS[2:])
        relation = _pick(list(_pick(axes, rng)), rng)
        name = (lambda item: item.color) if by_color else (lambda item: item.name)
        return {"a": name(first), "b": name(second), "relation": relation}

    return draw


def _lettered(answer: str, pool: tuple[str, ...], rng: np.random.Generator) -> str:
    others = [pool[index] for index in rng.permutation(len(pool)) if pool[index] != answer][: len(LETTERS) - 1]
    words = [answer, *others]
    shuffled = [words[index] for index in rng.permutation(len(words))]
    return " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, shuffled))


def _ask_choice(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    item = _pick(_with_unique_noun(scene), rng)
    return item and {"noun": item.noun, "options": _lettered(item.color, _PALETTE, rng)}


def _ask_choice_shape(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    item = _pick(_with_unique_color(scene), rng)
    return item and {"color": item.color, "options": _lettered(item.noun, NOUNS, rng)}


def _ask_question(scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    item = _pick(_with_unique_noun(scene), rng)
    return item and {"answer": _pick([item.color, item.noun, item.place], rng)}


_ASK: dict[str, Callable[[Scene, np.random.Generator], dict[str, str] | None]] = {
    "caption": _ask_nothing,
    "color": _ask_by_noun,
    "shape": _ask_by_color,
    "size": _ask_by_color,
    "where": _ask_by_name,
    "at": _ask_at,
    "digit": _ask_digit,
    "count": _ask_count,
    "exist": _ask_exist,
    "relation": _ask_relation(by_color=False),
    "choice": _ask_choice,
    "question": _ask_question,
    "color_at": _ask_color_at,
    "exist_shape": _ask_exist_shape,
    "choice_shape": _ask_choice_shape,
    "relation_color": _ask_relation(by_color=True),
}


# Solving


def _property_of(
    find: Callable[[Scene, dict[str, str]], list[SceneObject]], read: Callable[[SceneObject], str]
) -> Callable[[Scene, dict[str, str]], str | None]:
    def answer(scene: Scene, slots: dict[str, str]) -> str | None:
        item = _only(find(scene, slots))
        return read(item) if item is not None else None

    return answer


def _by_noun(scene: Scene, slots: dict[str, str]) -> list[SceneObject]:
    return scene.with_noun(slots["noun"])


def _by_color(scene: Scene, slots: dict[str, str]) -> list[SceneObject]:
    return scene.with_color(slots["color"])


def _by_name(scene: Scene, slots: dict[str, str]) -> list[SceneObject]:
    return _named(scene, f"{slots['color']} {slots['noun']}")


def _by_place(scene: Scene, slots: dict[str, str]) -> list[SceneObject]:
    return [item for item in scene.objects if item.place == slots["place"]]


def _solve_at(scene: Scene, slots: dict[str, str]) -> str | None:
    items = _by_place(scene, slots)
    return items[0].name if items else NOTHING


def _solve_digit(scene: Scene, slots: dict[str, str]) -> str | None:
    item = _only(scene.with_noun("digit"))
    return NUMBERS[item.digit] if item is not None and item.digit is not None else None


def _solve_count(scene: Scene, slots: dict[str, str]) -> str | None:
    if slots["things"] == "objects":
        return NUMBERS[len(scene.objects)]
    return NUMBERS[sum(PLURALS[item.noun] == slots["things"] for item in scene.objects)]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _solve_relation(scene: Scene, slots: dict[str, str]) -> str | None:
    first, second = _only(_named(scene, slots["a"])), _only(_named(scene, slots["b"]))
    if first is None or second is None:
        return None
    return _yes(
        {
            "left of": first.column < second.column,
            "right of": first.column > second.column,
            "above": first.row < second.row,
            "below": first.row > second.row,
        }[slots["relation"]]
    )


def _letter_of(
    find: Callable[[Scene, dict[str, str]], list[SceneObject]], read: Callable[[SceneObject], str]
) -> Callable[[Scene, dict[str, str]], str | None]:
    def answer(scene: Scene, slots: dict[str, str]) -> str | None:
        item = _only(find(scene, slots))
        if item is None:
            return None
        return next((letter for letter, option in options(slots).items() if option == read(item)), None)

    return answer


_SOLVE: dict[str, Callable[[Scene, dict[str, str]], str | None]] = {
    "caption": lambda scene, slots: name_objects(scene.objects) or NOTHING,
    "color": _property_of(_by_noun, lambda item: item.color),
    "shape": _property_of(_by_color, lambda item: item.noun),
    "size": _property_of(_by_color, lambda item: item.size),
    "where": _property_of(_by_name, lambda item: item.place),
    "at": _solve_at,
    "digit": _solve_digit,
    "count": _solve_count,
    "exist": lambda scene, slots: _yes(bool(_by_name(scene, slots))),
    "relation": _solve_relation,
    "choice": _letter_of(_by_noun, lambda item: item.color),
    "color_at": _property_of(_by_place, lambda item: item.color),
    "exist_shape": lambda scene, slots: _yes(bool(_by_noun(scene, slots))),
    "choice_shape": _letter_of(_by_color, lambda item: item.noun),
    "relation_color": _solve_relation,
}


def canonical_question(scene: Scene, answer: str) -> str | None:
    """The question that the world itself asks when the answer is given, about an object whose noun is unique.

    Args:
        scene (`Scene`): What is asked about.
        answer (`str`): A colour, a noun or the name of a cell.

    Returns:
        `str` or `None`: For example ``"what color is the circle ?"`` for ``"red"``; `None` where no object fits.
    """
    for item in _with_unique_noun(scene):
        if answer == item.color:
            return f"what color is the {item.noun}?"
        if answer == item.noun:
            return f"what shape is the {item.color} object?"
        if answer == item.place:
            return f"where is the {item.color} {item.noun}?"
    return None
