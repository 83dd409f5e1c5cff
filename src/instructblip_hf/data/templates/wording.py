"""One template: text with slots, parts of which are left out where a row has no content for them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any


SLOT_NAMES = (
    "answer",
    "caption",
    "context",
    "history",
    "lecture",
    "ocr_tokens",
    "options",
    "question",
    "statement",
    "text",
)
"""Slots that templates can name. ``answer`` is one of an example's ``answers``, the others are its own."""

_OPTIONAL_PART = re.compile(r"\[([^\[\]]*)\]")


class Template:
    """A wording such as ``"{question}[ Options: {options}.] Answer:"``.

    Args:
        text (`str`): ``{slot}`` stands for content; ``[...]`` is left out unless every slot in it has content.
            Neither braces nor brackets can be written otherwise, and brackets do not nest.

    Attributes:
        text (`str`): As given.
        needed (`frozenset[str]`): Slots outside of brackets.
        optional (`frozenset[str]`): Slots that stand in brackets alone.

    Raises:
        ValueError: If the text does not have this form or names an unknown slot.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        # Split by a pattern with one group: parts outside and inside of brackets take turns.
        self._parts = [(part, index % 2 == 1, _slots(part)) for index, part in enumerate(_OPTIONAL_PART.split(text))]
        for part, is_optional, slots in self._parts:
            if "[" in part or "]" in part:
                raise ValueError("brackets must come in pairs and do not nest")
            if is_optional and not slots:
                raise ValueError(f"[{part}] names no slot, so that it would always or never be there")
        self.needed = frozenset(slot for _, is_optional, slots in self._parts if not is_optional for slot in slots)
        self.optional = frozenset(slot for _, _, slots in self._parts for slot in slots) - self.needed

    def render(self, texts: Mapping[str, str]) -> str:
        """The wording with content in its slots; slots that are not in `texts` have none.

        Raises:
            KeyError: If there is no content for one of `needed`.
        """
        parts = [
            part.format_map(texts)
            for part, is_optional, slots in self._parts
            if not is_optional or all(slot in texts for slot in slots)
        ]
        return "".join(parts).strip()


def slot_texts(example: Mapping[str, Any], max_ocr_tokens: int = 30) -> dict[str, str]:
    """An example's content as text, by slot; slots without content are left out.

    Options become ``(a) first (b) second``, OCR tokens are joined by commas, and the turns of a dialogue by
    ``Question: ... Answer: ...``.

    Args:
        example (`Mapping`): An `instructblip_hf.data.schema.Example`.
        max_ocr_tokens (`int`, *optional*, defaults to 30): How many of the OCR tokens are used; LAVIS uses 30.
    """
    texts = {
        slot: str(example[slot]).strip()
        for slot in ("caption", "context", "lecture", "question", "statement", "text")
        if example.get(slot)
    }
    texts["options"] = " ".join(
        f"({_letter(index)}) {str(option).strip()}" for index, option in enumerate(example.get("options") or ())
    )
    texts["ocr_tokens"] = ", ".join((example.get("ocr_tokens") or [])[:max_ocr_tokens])
    texts["history"] = " ".join(
        f"Question: {turn['question'].strip()} Answer: {turn['answer'].strip()}"
        for turn in example.get("history") or ()
    )
    return {slot: text for slot, text in texts.items() if text}


def _letter(index: int) -> str:
    letters = string.ascii_lowercase
    return letters[index] if index < len(letters) else str(index + 1)


def _slots(text: str) -> Sequence[str]:
    slots = []
    for _, slot, specification, conversion in string.Formatter().parse(text):
        if slot is None:
            continue
        if slot not in SLOT_NAMES or specification or conversion:
            raise ValueError(f"{{{slot}}} is no slot; allowed are {', '.join(SLOT_NAMES)}")
        slots.append(slot)
    return slots


__all__ = ["SLOT_NAMES", "Template", "slot_texts"]
