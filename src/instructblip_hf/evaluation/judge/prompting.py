"""What the judge reads.

The layout is the published one (``[Context]``, ``[Question]``, ``[Assistant 1]`` ... ``[System]``). What the judge is told
to do is our own wording by default; with LLaVA's ``rule.json`` it is the published one, word by word, with the published
system message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .inputs import JudgedQuestion


SYSTEM = "You compare answers of two assistants, and judge them fairly and precisely."
PUBLISHED_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_BENCH = "llava_bench_"

_TASK = """Somebody looked at an image and asked the question above; two assistants answered. You cannot see the image. In \
its place the context tells {context}.

Judge how helpful, relevant, correct and detailed each answer is, and give each a score from 1 to 10; a better answer has a \
higher one. Things in an answer that contradict the context are mistakes. The order of the answers means nothing.

The first line of what you write has the two scores and nothing else, that of Assistant 1 first, with a space between. \
Explain them from the second line on."""
_SENTENCES = "what it shows, in sentences about the whole of it"
_BOXES = (
    "what it shows, in sentences about the whole of it and a list of things in it, each with its left, upper, right and "
    "lower end from 0 to 1"
)


@dataclass(frozen=True)
class Rule:
    """How a category is judged.

    Args:
        prompt (`str`): What the judge is to do.
        role (`str`, *optional*, defaults to `"Assistant"`): What those who answered are called.
    """

    prompt: str
    role: str = "Assistant"


def read_rules(file: str | Path) -> dict[str, Rule]:
    """Reads LLaVA's ``llava/eval/table/rule.json``: ``{category: {"role", "prompt"}}``.

    Raises:
        ValueError: If it is not of this form.
    """
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        return {name: Rule(str(rule["prompt"]), str(rule["role"])) for name, rule in content.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: must have a role and a prompt for each category") from error


def messages_for(
    question: JudgedQuestion, is_model_first: bool, rules: Mapping[str, Rule] | None = None
) -> list[dict[str, str]]:
    """Messages that ask for a verdict.

    Args:
        question (`JudgedQuestion`): What is judged.
        is_model_first (`bool`): Whether the model's answer is that of Assistant 1; in the paper the reference's is.
        rules (`Mapping[str, Rule]`, *optional*): The published ones, of `read_rules`.

    Raises:
        ValueError: If the rules have none for the question's category.
    """
    rule = _rule(question, rules)
    first, second = (question.model, question.reference) if is_model_first else (question.reference, question.model)
    parts = [
        f"[Context]\n{question.context}\n\n",
        f"[Question]\n{question.text}\n\n",
        *(
            f"[{rule.role} {number}]\n{answer}\n\n[End of {rule.role} {number}]\n\n"
            for number, answer in ((1, first), (2, second))
        ),
        f"[System]\n{rule.prompt}\n\n",
    ]
    system = SYSTEM if rules is None else PUBLISHED_SYSTEM
    return [{"role": "system", "content": system}, {"role": "user", "content": "".join(parts)}]


def content_of(rules: Mapping[str, Rule] | None) -> Any:
    """What a report says of the prompts."""
    if rules is None:
        return {"wording": "instructblip_hf", "system": SYSTEM}
    return {"wording": "rules of a file", "rules": {name: vars(rule) for name, rule in sorted(rules.items())}}


def _rule(question: JudgedQuestion, rules: Mapping[str, Rule] | None) -> Rule:
    if rules is None:
        return Rule(_TASK.format(context=_BOXES if question.has_boxes else _SENTENCES))
    # Contexts without boxes are those of LLaVA-Bench, which have rules of their own.
    wanted = question.category if question.has_boxes else f"{_BENCH}{question.category}"
    if wanted not in rules:
        raise ValueError(f"the rules have none for category {wanted!r}; they have {', '.join(sorted(rules))}")
    return rules[wanted]


__all__ = ["PUBLISHED_SYSTEM", "SYSTEM", "Rule", "content_of", "messages_for", "read_rules"]
