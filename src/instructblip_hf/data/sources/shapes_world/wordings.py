"""The wordings of the shapes world, read from ``templates.yaml``."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml


WORDING_SETS = ("seen", "held_out")
_PREFIX_SHARE = 0.3
_BARE_SHARE = 0.1


@cache
def _document() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("templates.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def wordings(task: str, which: str = "seen") -> list[str]:
    """Wordings of a task type.

    Args:
        task (`str`): A task type, or ``"where_follow_up"`` / ``"size_follow_up"`` for a later turn of a dialogue.
        which (`str`, *optional*, defaults to `"seen"`): ``"seen"`` or ``"held_out"``. A held-out task type has
            held-out wordings alone, which are returned for both.

    Returns:
        `list[str]`: Format strings over the question's slots.

    Raises:
        KeyError: If there is no such task type.
        ValueError: If ``which`` is neither of the two.
    """
    if which not in WORDING_SETS:
        raise ValueError(f"templates={which!r} is not one of {', '.join(WORDING_SETS)}")
    document = _document()
    follow_up = task.removesuffix("_follow_up")
    table = document["follow_ups"] if task != follow_up else document["tasks"]
    if follow_up not in table:
        raise KeyError(f"no wordings for task {task!r}; there are: {', '.join(table)}")
    sets = table[follow_up]
    return list(sets.get(which, sets["held_out"]))


def word(task: str, slots: dict[str, str], rng: np.random.Generator, which: str = "seen") -> str:
    """Puts a question into words.

    Seen wordings get a random prefix ("Question: ", "In the image, ") three times in ten, and lose their final
    punctuation one time in ten, so that a model does not depend on either; held-out wordings stay as they are.

    Args:
        task (`str`): A task type or follow-up, see `wordings`.
        slots (`dict[str, str]`): Values for the wording's slots.
        rng (`numpy.random.Generator`): Chooses wording and prefix.
        which (`str`, *optional*, defaults to `"seen"`): ``"seen"`` or ``"held_out"``.

    Returns:
        `str`: The instruction.
    """
    choices = wordings(task, which)
    text = choices[rng.integers(len(choices))].format(**slots)
    if which == "seen" and not task.endswith("_follow_up"):
        if rng.random() < _PREFIX_SHARE:
            prefixes = _document()["prefixes"]
            prefix = prefixes[rng.integers(len(prefixes))]
            text = prefix + (text if prefix.endswith(". ") else text[0].lower() + text[1:])
        if rng.random() < _BARE_SHARE:
            text = text.rstrip("?.:")
    return text


def all_texts(which: str) -> list[str]:
    """Every wording of one set with its slots emptied, and the prefixes: what a vocabulary has to cover."""
    document = _document()
    tables = [*document["tasks"].values(), *document["follow_ups"].values()]
    texts = [text for sets in tables for text in sets.get(which, [])]
    return [re.sub(r"\{\w+\}", " ", text) for text in texts] + list(document["prefixes"])


@cache
def _patterns(task: str) -> list[re.Pattern[str]]:
    patterns = []
    for text in wordings(task, "seen") + wordings(task, "held_out"):
        pieces = re.split(r"\{(\w+)\}", text)  # fixed text and names of slots, in turns
        parts = [f"(?P<{piece}>.+)" if index % 2 else simplify(piece) for index, piece in enumerate(pieces)]
        patterns.append(re.compile(" ".join(part for part in parts if part)))
    return patterns


def simplify(text: str) -> str:
    """Lower case, no punctuation, single spaces: the form in which answers and questions are compared."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def parse(task: str, text: str) -> dict[str, str] | None:
    """Reads a question back: the slots under which ``text`` is a wording of ``task``, or `None`."""
    for pattern in _patterns(task):
        match = pattern.fullmatch(simplify(text))
        if match:
            return match.groupdict()
    return None
