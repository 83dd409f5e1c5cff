"""ScienceQA's problems as LLaVA puts them: question, context and lettered options in, lecture, solution and letter out.

The format called QCM-LEA, as ``scripts/convert_sqa_to_llava.py`` of haotian-liu/LLaVA writes it, its spacing included: one
of two blanks that follow each other is left out. The image stands behind the text; ``image_order: first`` puts it where
LLaVA's trainer moves it.
"""

from __future__ import annotations

from string import ascii_uppercase

from ...constants import IMAGE_TOKEN
from ..schema import Example


def llava_scienceqa(example: Example) -> tuple[str, str]:
    """Prompt and completion of a problem of ScienceQA.

    Args:
        example (`Example`): With ``question``, ``options`` and ``correct_option``; ``context``, ``lecture`` and
            ``explanation`` where it has them.

    Raises:
        ValueError: If it has no options, more than there are letters, or no right one.
    """
    options = example.get("options", [])
    if not options or "correct_option" not in example:
        raise ValueError("form llava_scienceqa is for questions with options and the right one, and this has none")
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"has {len(options)} options; form llava_scienceqa has a letter for {len(ascii_uppercase)}")
    choices = " ".join(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options))
    context = example.get("context", "").strip() or "N/A"
    lecture, solution = example.get("lecture", ""), example.get("explanation", "")
    letter = ascii_uppercase[example["correct_option"]]
    prompt = _without("Question: ", f"Question: {example['question']}\nContext: {context}\nOptions: {choices}\n")
    completion = _without("Answer: ", f"Answer: {lecture} {solution} The answer is {letter}.")
    return prompt + f"\n{IMAGE_TOKEN}" * len(example["images"]), completion


def _without(word: str, text: str) -> str:
    # The word is taken off wherever it stands, not only in front.
    return text.replace("  ", " ").strip().replace(word, "")


__all__ = ["llava_scienceqa"]
