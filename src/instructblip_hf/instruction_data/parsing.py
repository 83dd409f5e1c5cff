"""Answers read strictly: what is not in the form that was asked for, or tells where it is from, is rejected with a reason.

LLaVA's generator was never released, and neither is known what it did with answers in another form. Rejected is better than
repaired here: a repair guesses, and another answer costs a fraction of a cent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .response_types import ResponseType


REASONS = (
    "empty",
    "cut off",
    "not finished",
    "structure",
    "no answer",
    "number of turns",
    "source",
    "refusal",
    "image marker",
)
"""Why an answer is rejected: nothing in it; longer than allowed; ended by the endpoint for another reason; not in the form
that was asked for; a question without an answer; too few or too many turns; it names the captions or boxes it was made
from; it speaks of what it cannot do; it has the marker that stands for the image."""

_SOURCES = r"(description|sentence|information|text\s+description)s?"
_WHICH = r"((first|second|third|fourth|fifth|last|other)\s+)?"
_SAYS = r"(say|mention|state|describe|indicate|suggest|tell|do\s+not|does\s+not|doesn't|don't)"
_FROM = r"(according\s+to|based\s+(up)?on|judging\s+(by|from)|(mentioned|stated|described)\s+in|as\s+per)"
_NUMBER = r"(0?\.\d+|[01](\.0+)?)(?![\d.]*\d)"

SOURCE_WORDS = (
    r"\bcaption(s|ed|ing)?\b",
    r"\bbounding[\s-]?box(es)?\b",
    r"\bb(ound)?box(es)?\b",
    r"\bcoordinates?\b",
    r"\bannotat(ions?|ed)\b",
    r"\b(given|provided|supplied)\s+(description|sentence|context|data|information|text|detail)s?\b",
    r"\bdetails?\s+(that\s+(is|are|was|were)\s+)?(provided|supplied)\b",
    r"\b(above|following|five|input)\s+(description|sentence)s?\b",
    r"\b(description|sentence|context|data|information|text)s?\s+(that\s+(is|are|was|were)\s+)?(given|provided|supplied)\b",
    rf"\b({_FROM}|from)\s+(the|this|these|my|your)\s+{_WHICH}{_SOURCES}\b",
    rf"\b(the|these|this|one|another|each|both|some|several|most|all|((one|some|most|all|each|none)\s+of\s+)the)\s+{_WHICH}(description|sentence)s?\s+{_SAYS}",
    r"\b(image|picture|photo|scene)\s+descriptions?\b",
    # The text on a sign is in the image; a text that is nowhere is what the model was given.
    rf"\b{_FROM}\s+(the|this)\s+text\b(?!\s+(on|of|in|at|above|below|under|beside|across|written|printed|painted|displayed|shown|visible|that|which))",
    r"\b(location|position|extent|area)s?\s+(is|are)\s+(given|defined|indicated|described|specified|denoted)\s+by\s+(the|a|its|their|this|these)\s+box(es)?\b",
    r"\bcategory\s+(label|name)s?\b",
    r"\bobject\s+(categor(y|ies)|labels?)\b",
    r"\blabels?\s+(for|of)\s+the\s+objects?\b",
    r"[\[(]\s*[01]?\.\d+\s*,\s*[01]?\.?\d*",
    # Without brackets only where a place is meant, or a whole box: two small numbers may be prices or litres.
    rf"\b(at|from|to|near|around|between|spans?|spanning|located|placed|positioned)\s+0?\.\d+\s*,\s*{_NUMBER}",
    rf"(?<![\d.])0?\.\d+\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*(,|,?\s*and\b)\s*{_NUMBER}",
    r"\b[xy][12]\b",
)
"""What tells of the source, as regular expressions without regard to case."""

REFUSALS = (
    r"\bas an ai\b",
    r"\blanguage model\b",
    r"\bi('m| am) (sorry|unable|not able)\b",
    r"\bi (cannot|can't|can not) (see|view|help|assist|provide|access|answer)\b",
)

_SOURCE = re.compile("|".join(SOURCE_WORDS), re.IGNORECASE)
_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)
_HEAD = re.compile(r"(Question|Answer):(?:[ \t]*\n|[ \t]+|$)")
_SEPARATOR = re.compile(r"(?:^|\n)[ \t]*={3,}[ \t]*(?=\n|$)")
_MARKER = "<image>"


@dataclass(frozen=True)
class Turn:
    """A question and its answer. The question of a description is empty, as it comes from a list."""

    question: str
    answer: str


def parse_answer(response_type: ResponseType, text: str, finish_reason: str) -> list[Turn] | str:
    """Reads a model's answer.

    Args:
        response_type (`ResponseType`): What was asked for.
        text (`str`): The answer.
        finish_reason (`str`): Of the endpoint: ``"stop"``, ``"length"``, or another.

    Returns:
        `list[Turn]` or `str`: The turns; or one of `REASONS`.
    """
    text = text.replace("\r\n", "\n").strip()
    if finish_reason == "length":
        return "cut off"
    if not text:
        return "empty"
    if finish_reason != "stop":
        return "not finished"
    if _MARKER in text:
        return "image marker"
    if _REFUSAL.search(text):
        return "refusal"
    turns = _dialogue(text) if response_type.asks else _description(text)
    if isinstance(turns, str):
        return turns
    if len(turns) < response_type.min_turns or len(turns) > (response_type.max_turns or len(turns)):
        return "number of turns"
    if any(_SOURCE.search(part) for turn in turns for part in (turn.question, turn.answer)):
        return "source"
    return turns


def source_words(text: str) -> list[str]:
    """The places of a text that tell of captions or boxes."""
    return [match.group() for match in _SOURCE.finditer(text)]


def _description(text: str) -> list[Turn] | str:
    if _SEPARATOR.search(text) or any(_HEAD.match(line) for line in text.split("\n")):
        return "structure"
    return [Turn("", text)]


def _dialogue(text: str) -> list[Turn] | str:
    blocks = [block.strip() for block in _SEPARATOR.split(text)]
    if blocks and not blocks[-1]:
        blocks.pop()  # a separator after the last answer
    said: list[str] = []
    for number, block in enumerate(blocks):
        head = _HEAD.match(block)
        if head is None:
            return "structure"
        is_question = head.group(1) == "Question"
        if is_question != (number % 2 == 0):
            return "no answer" if is_question else "structure"
        content = block[head.end() :].strip()
        if any(_HEAD.match(line.strip()) for line in content.split("\n")):
            return "structure"
        if not content:
            return "structure" if is_question else "no answer"
        said.append(content)
    if len(said) % 2:
        return "no answer"
    return [Turn(said[place], said[place + 1]) for place in range(0, len(said), 2)]


__all__ = ["REASONS", "REFUSALS", "SOURCE_WORDS", "Turn", "parse_answer", "source_words"]
