"""What a model is asked about an example of a task, and what it chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter, ascii_lowercase

from ..data.schema import DialogTurn, Example
from ..data.templates.scienceqa_forms import LETTERS, scienceqa_prompt
from ..data.templates.wording import slot_texts
from .tasks import EvalTask


MAX_OCR_TOKENS = 30
"""As many as LAVIS takes (`blip2_vicuna_instruct.py`, `predict_answers`)."""


def prompt_of(task: EvalTask, example: Example) -> str:
    """The prompt of an example.

    Args:
        task (`EvalTask`): The task.
        example (`Example`): A row of its dataset.

    Raises:
        ValueError: If the example lacks something that the prompt names and there is no prompt without it.
    """
    slots = _slots(example)
    template = task.prompt
    for slot, instead in task.without.items():
        if not slots.get(slot):
            template = instead
    missing = [name for _, name, _, _ in Formatter().parse(template) if name is not None and not slots.get(name)]
    if missing:
        raise ValueError(f"{example['dataset']} {example['id']} has no {', '.join(missing)}, which the prompt needs")
    return template.format(**slots)


def options_text(options: Sequence[str]) -> str:
    """Choices with letters, ``"(a) red (b) blue"``, as LAVIS writes them.

    Raises:
        ValueError: For more choices than letters.
    """
    if len(options) > len(ascii_lowercase):
        raise ValueError(f"there are {len(options)} options; letters go up to {len(ascii_lowercase)}")
    return slot_texts({"options": options}).get("options", "")


def history_text(history: Sequence[DialogTurn]) -> str:
    """Earlier turns of a dialogue, ``"Question: is it red? Answer: no. Question: ..."``."""
    return " ".join(f"Question: {turn['question']} Answer: {turn['answer'].rstrip('.')}." for turn in history)


def candidates_of(task: EvalTask, example: Example, train_answers: Sequence[str] = ()) -> list[str]:
    """The answers that the model chooses from.

    Args:
        task (`EvalTask`): A task that ranks.
        example (`Example`): A row of its dataset.
        train_answers (`Sequence[str]`, *optional*): All answers of the training split, for tasks that rank these.

    Raises:
        ValueError: If the task does not rank, or there is nothing to choose from.
    """
    if task.candidates is None:
        raise ValueError(f"the task of {task.dataset} generates; it has no candidates")
    if task.candidates == "options":
        found = list(example.get("options", ()))
    elif task.labels is not None:
        found = [text for texts in task.labels.values() for text in texts]
    else:
        found = list(train_answers)
    if not found:
        raise ValueError(f"{example['dataset']} {example['id']} has nothing to choose from ({task.candidates})")
    return found


def _slots(example: Example) -> dict[str, str]:
    """Texts by slot. Those that an example does not have are absent, or empty."""
    texts = slot_texts(example, MAX_OCR_TOKENS)
    texts["history"] = history_text(example.get("history", ()))
    if example.get("question") and 0 < len(example.get("options", ())) <= len(LETTERS):
        texts |= {form.lower(): scienceqa_prompt(example, form) for form in ("QCM", "CQM")}
    # Hundreds of candidate answers are no part of a prompt.
    if len(example.get("options", ())) > len(ascii_lowercase):
        texts.pop("options", None)
    return texts


__all__ = ["MAX_OCR_TOKENS", "candidates_of", "history_text", "options_text", "prompt_of"]
