"""Prompts: system message, examples as turns of a conversation, and an image's context last (LLaVA, section 3).

The prompts are YAML files, one a response type; a user's own folder may have others, with ``system``, ``examples``
(``captions``, ``objects`` and the ``answer`` to them) and, for descriptions, ``questions``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .contexts import ImageContext, context_of
from .parsing import parse_answer
from .response_types import RESPONSE_TYPES, ResponseType


@dataclass(frozen=True)
class Prompts:
    """What a language model is told for one response type.

    Args:
        system (`str`): The system message.
        examples (`tuple`): Contexts and the answers to them.
        questions (`tuple[str, ...]`, *optional*): Of which one is drawn for each description.
    """

    system: str
    examples: tuple[tuple[ImageContext, str], ...]
    questions: tuple[str, ...] = ()

    def question(self, image: str, seed: int) -> str:
        """The question for an image's description, drawn by hash."""
        return self.questions[draw(seed, "question", image, len(self.questions))]


def load_prompts(folder: str | Path | None = None) -> dict[str, Prompts]:
    """The prompts of all response types.

    Args:
        folder (`str` or `Path`, *optional*): With files named like the types; one that is not there is the package's.

    Raises:
        ValueError: If a file is malformed, or an example's answer would be rejected.
        FileNotFoundError: If the folder has none of the files.
    """
    if folder is not None and not any((Path(folder) / f"{name}.yaml").is_file() for name in RESPONSE_TYPES):
        raise FileNotFoundError(f"{folder} has none of {', '.join(f'{name}.yaml' for name in RESPONSE_TYPES)}")
    prompts = {}
    for name, response_type in RESPONSE_TYPES.items():
        own = Path(folder) / f"{name}.yaml" if folder is not None else None
        if own is not None and own.is_file():
            where, text = str(own), own.read_text(encoding="utf-8")
        else:
            file = resources.files(__package__).joinpath("prompts", f"{name}.yaml")
            where, text = file.name, file.read_text(encoding="utf-8")
        try:
            prompts[name] = _prompts(yaml.safe_load(text), response_type)
        except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise ValueError(f"{where}: {error}") from error
    return prompts


def messages_for(response_type: ResponseType, prompts: Prompts, context: ImageContext) -> list[dict[str, str]]:
    """Messages that ask for one response about one image."""
    messages = [{"role": "system", "content": prompts.system}]
    for example, answer in prompts.examples:
        messages.append({"role": "user", "content": example.text(response_type.with_boxes)})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": context.text(response_type.with_boxes)})
    return messages


def draw(seed: int, what: str, image: str, count: int) -> int:
    """A number below ``count`` that is a hash of seed, purpose and image."""
    digest = hashlib.blake2b(f"{seed}/{what}/{image}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def _prompts(content: Any, response_type: ResponseType) -> Prompts:
    if not isinstance(content, Mapping):
        raise ValueError("must have system, examples and, for descriptions, questions")
    unknown = sorted(set(content) - {"system", "examples", "questions"})
    if unknown:
        raise ValueError(f"has {', '.join(map(str, unknown))}; allowed are system, examples and questions")
    system = content["system"]
    if not isinstance(system, str) or not system.strip():
        raise ValueError("system must be a text")
    examples = []
    for number, row in enumerate(content.get("examples") or (), start=1):
        context = context_of(
            {"image": f"example {number}", "captions": row["captions"], "instances": row.get("objects")}
        )
        answer = str(row["answer"]).strip()
        parsed = parse_answer(response_type, answer, "stop")
        if isinstance(parsed, str):
            raise ValueError(f"the answer of example {number} would be rejected: {parsed}")
        examples.append((context, answer))
    questions = tuple(str(question).strip() for question in content.get("questions") or ())
    if response_type.asks and questions:
        raise ValueError(f"questions are for descriptions; those of {response_type.name} are the model's")
    if not response_type.asks and not all(questions or ("",)):
        raise ValueError("questions must be a list of texts, with one at least")
    return Prompts(system.strip(), tuple(examples), questions)


__all__ = ["Prompts", "draw", "load_prompts", "messages_for"]
