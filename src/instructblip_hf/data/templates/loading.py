"""Reads template files and checks them as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..schema import SLOTS
from .wording import Template


SHIPPED_TEMPLATES = Path(__file__).with_name("templates.yaml")

FEWEST, MOST = 10, 15
"""How many templates a kind of row has in the shipped file: the paper's range."""

# Where the answer is, and what is learnt or kept for scoring, is not told in a prompt.
_NOT_WORDED = {"correct_option", "explanation", "video"}
# A visual dialogue's 100 options are candidates to be ranked, too many to be read out.
_OPTIONS_NOT_WORDED = {"conversational_qa"}


class TemplateError(ValueError):
    """Templates that cannot be used.

    Attributes:
        problems (`list[str]`): One line for each thing that is wrong.
    """

    def __init__(self, file: str, problems: Sequence[str]) -> None:
        self.problems = [f"{file}: {problem}" for problem in problems]
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class TaskTemplates:
    """Templates of a task category.

    Attributes:
        name (`str`): What the category is called in ``[Task:Dataset]`` identifiers.
        plain (`Template`): The input without an instruction.
        templates (`tuple[Template, ...]`): In the order of the file.
    """

    name: str
    plain: Template
    templates: tuple[Template, ...]


def load_templates(path: str | Path | None = None) -> dict[str, TaskTemplates]:
    """Templates by task category.

    Args:
        path (`str` or `Path`, *optional*): A YAML file in the form of the shipped ``templates.yaml``. It may leave
            categories out.

    Returns:
        `dict[str, TaskTemplates]`

    Raises:
        FileNotFoundError: If there is no such file.
        TemplateError: With one line for each problem: unknown categories, keys and slots, templates without what their
            category needs or with what gives the target away, the same wording twice, no templates.
    """
    file = SHIPPED_TEMPLATES if path is None else Path(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TemplateError(file.name, [f"not readable as YAML: {error}"]) from error
    if not isinstance(content, dict) or not content:
        raise TemplateError(file.name, ["must be a mapping from task categories to their templates"])
    problems: list[str] = []
    loaded = {}
    for category, section in content.items():
        if category not in SLOTS or SLOTS[category].target == "messages":
            worded = [name for name, slots in SLOTS.items() if slots.target != "messages"]
            problems.append(f"{category}: no category with templates; allowed are {', '.join(worded)}")
            continue
        templates, found = _read_section(section, category)
        problems += [f"{category}: {problem}" for problem in found]
        if templates is not None:
            loaded[category] = templates
    if problems:
        raise TemplateError(file.name, problems)
    return loaded


def _read_section(section: Any, category: str) -> tuple[TaskTemplates | None, list[str]]:
    if not isinstance(section, dict) or set(section) != {"name", "plain", "templates"}:
        return None, ["must have the keys name, plain and templates, and no others"]
    texts = section["templates"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return None, ["templates must be a list of texts, with at least one"]
    if not isinstance(section["name"], str) or not isinstance(section["plain"], str):
        return None, ["name and plain must be text"]
    problems = []
    # Spacing and case make no other wording.
    counts = Counter(" ".join(text.lower().split()) for text in texts)
    problems += [f"{text!r} stands there {count} times" for text, count in counts.items() if count > 1]
    parsed = []
    for text in [section["plain"], *texts]:
        try:
            template = Template(text)
        except ValueError as error:
            problems.append(f"{text!r}: {error}")
            continue
        parsed.append(template)
        # The plain form serves all rows of a category, so that whatever it names may stand in brackets.
        named = template.needed | template.optional if text is section["plain"] else template.needed
        problems += [f"{text!r}: {problem}" for problem in _check(template, named, category)]
    if problems:
        return None, problems
    return TaskTemplates(section["name"], parsed[0], tuple(parsed[1:])), []


def _check(template: Template, needed: frozenset[str], category: str) -> list[str]:
    slots = SLOTS[category]
    if slots.target == "question":
        groups: list[set[str]] = [{"answer"}]
        optional: set[str] = set()
    else:
        groups = [set(group) - _NOT_WORDED for group in slots.required]
        optional = set(slots.optional) - _NOT_WORDED
        if category in _OPTIONS_NOT_WORDED:
            optional -= {"options"}
    problems = []
    for group in filter(None, groups):
        # The first turn of a dialogue has no history.
        if not (group & (template.optional | needed if group == {"history"} else needed)):
            problems.append(f"must name {' or '.join(f'{{{slot}}}' for slot in sorted(group))}")
    problems += [
        f"must name {{{slot}}}, in brackets, so that rows that have it do not lose it"
        for slot in sorted(optional - template.optional)
    ]
    allowed = optional.union(*groups)
    problems += [
        f"names {{{slot}}}, which is not in prompts of this category"
        for slot in sorted((template.needed | template.optional) - allowed)
    ]
    return problems


__all__ = ["FEWEST", "MOST", "SHIPPED_TEMPLATES", "TaskTemplates", "TemplateError", "load_templates"]
