"""Rows in the form of LLaVA-Instruct-150K: ``{"id", "image", "conversations": [{"from", "value"}]}``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..constants import IMAGE_TOKEN
from .contexts import ImageContext
from .parsing import Turn
from .prompting import draw


def llava_row(context: ImageContext, type_name: str, turns: Sequence[Turn], seed: int) -> dict[str, Any]:
    """A row. The image stands before or after the first question, drawn by hash (LLaVA, equation 3).

    Args:
        context (`ImageContext`): The image.
        type_name (`str`): Response type.
        turns (`Sequence[Turn]`): Questions and answers.
        seed (`int`): Of the draw.
    """
    conversations = []
    for number, turn in enumerate(turns):
        question = turn.question
        if number == 0:
            is_first = draw(seed, f"image position/{type_name}", context.image, 2) == 0
            question = f"{IMAGE_TOKEN}\n{question}" if is_first else f"{question}\n{IMAGE_TOKEN}"
        conversations += [{"from": "human", "value": question}, {"from": "gpt", "value": turn.answer}]
    return {"id": context.id, "image": context.image, "conversations": conversations}


def as_json_list(rows: Sequence[Any]) -> str:
    """A JSON list with a row a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def as_jsonl(rows: Sequence[Any]) -> str:
    """A JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


__all__ = ["as_json_list", "as_jsonl", "llava_row"]
