"""Which of several published answers a row learns.

VQAv2, OKVQA, A-OKVQA, TextVQA and VizWiz publish ten answers a question, captioning sets five captions an image. A
draw takes one of them with the weight of how often it was given, anew in each epoch, and depends on seed, epoch and
row alone, so that every worker, process and resumed run draws the same. LAVIS drew an answer and then dropped it in
its collator for the flattened list of all distinct ones, which no longer stood beside their questions.

Captions that CapFilt ranked stand best first. BLIP-2 trains on one of the top two, anew at each step (section 3.4 of
arXiv 2301.12597): `"first_two"`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


CHOICES = ("draw", "most_common", "first", "first_two")


def choose_answer(answers: Sequence[str], choice: str = "draw", seed: int = 0, epoch: int = 0, row: int = 0) -> str:
    """One of the answers.

    Args:
        answers (`Sequence[str]`): As published, repeated as often as they were given. Blank ones are never chosen.
        choice (`str`, *optional*, defaults to `"draw"`): `"draw"` takes each with its share of the list,
            `"most_common"` the one given most often and of several the one that stands first, `"first"` the first,
            `"first_two"` draws one of the first two.
        seed (`int`, *optional*, defaults to 0): Seed of the run.
        epoch (`int`, *optional*, defaults to 0): Epoch of the row's dataset.
        row (`int`, *optional*, defaults to 0): Index of the row in its dataset.

    Raises:
        ValueError: If there is no answer, only blank ones, or ``choice`` is another.
    """
    if not answers:
        raise ValueError("answers is empty: this split is published without them")
    answers = [answer for answer in answers if answer.strip()]
    if not answers:
        raise ValueError("answers are all blank")
    if choice == "first":
        return answers[0]
    if choice == "most_common":
        return Counter(answers).most_common(1)[0][0]
    if choice == "first_two":
        answers = answers[:2]
    if choice in ("draw", "first_two"):
        return answers[draw_index(len(answers), seed, epoch, row, "answer")]
    raise ValueError(f"choice is {choice!r}; allowed are {', '.join(CHOICES)}")


def draw_index(count: int, seed: int, epoch: int, row: int, purpose: str) -> int:
    """A uniform draw from ``range(count)`` that depends on the arguments alone.

    Draws with another ``purpose`` are independent of each other.

    Raises:
        ValueError: If ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    key = f"{seed}/{epoch}/{row}/{purpose}".encode()
    # 128 bits: what the modulo favours is beyond measuring.
    return int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big") % count


__all__ = ["choose_answer", "draw_index"]
