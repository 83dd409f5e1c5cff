"""LLaVA's three response types: what the model gets to see for each, and what is expected of its answer (section 3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResponseType:
    """One kind of data.

    Attributes:
        name (`str`): What it is called here, and its prompt's file.
        dataset (`str`): The dataset of this package's catalog that reads it.
        file (`str`): The file of rows.
        with_boxes (`bool`): Whether the model gets boxes beside captions. The published examples of conversations have
            captions alone.
        asks (`bool`): Whether the model writes questions; those for descriptions come from a list.
        min_turns (`int`): Fewest turns of an answer.
        max_turns (`int`, *optional*): Most turns.
        max_tokens (`int`): Longest answer, in tokens.
        expected_tokens (`int`): An answer's length as a rule, for estimates: our guess.
    """

    name: str
    dataset: str
    file: str
    with_boxes: bool
    asks: bool
    min_turns: int
    max_turns: int | None
    max_tokens: int
    expected_tokens: int


RESPONSE_TYPES = {
    one.name: one
    for one in (
        ResponseType("conversation", "llava_conversation", "conversation.json", False, True, 2, None, 1536, 320),
        ResponseType("detail", "llava_detail", "detail.json", True, False, 1, 1, 768, 150),
        ResponseType("complex_reasoning", "llava_reasoning", "complex_reasoning.json", True, True, 1, 1, 1024, 220),
    )
}


__all__ = ["RESPONSE_TYPES", "ResponseType"]
