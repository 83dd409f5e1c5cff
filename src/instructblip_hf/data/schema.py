"""The row that sources yield and templates word: content by slot, without an instruction.

A source (`instructblip_hf.data.sources`) turns a published row into an `Example`; the template step turns an `Example`
into TRL's ``{"images", "prompt", "completion"}`` or ``{"images", "messages"}``. Between the two nothing is worded:
texts are those of the dataset, neither lower-cased nor cut.

Slots by category (`SLOTS`). A template fits an example if every slot that it names is there and not empty:

========================  ==============================================================  ===================
category                  slots of the prompt (those in brackets are there in some rows)  target
========================  ==============================================================  ===================
``image_captioning``      none                                                            one of ``answers``
``captioning_reading``    (ocr_tokens)                                                    one of ``answers``
``visual_reasoning``      question, or statement (VSR); (options)                         one of ``answers``
``image_qa``              question                                                        one of ``answers``
``knowledge_qa``          question, (options), (context), (lecture)                       one of ``answers``
``qa_reading``            question, (ocr_tokens)                                          one of ``answers``
``question_generation``   one of ``answers``, (options)                                   ``question``
``video_qa``              question                                                        one of ``answers``
``conversational_qa``     question, caption, history                                      one of ``answers``
``image_classification``  text                                                            one of ``answers``
``llava_instruct``        ``messages`` are the whole row, not worded further              assistant's turns
========================  ==============================================================  ===================

Which of several ``answers`` is used: `instructblip_hf.data.answers.choose_answer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict


class DialogTurn(TypedDict):
    """An earlier question of a visual dialogue and its answer."""

    question: str
    answer: str


class VideoClip(TypedDict):
    """Where frames come from: a video file or a folder of frames, whole or from ``start`` to ``end`` in seconds."""

    path: Any
    start: float | None
    end: float | None


class _RequiredSlots(TypedDict):
    id: str
    dataset: str
    category: str
    images: list[Any]
    answers: list[str]


class Example(_RequiredSlots, total=False):
    """One row of a dataset, before it is worded. Slots that a row does not have are absent.

    Args:
        id (`str`): Unique inside of a dataset's split: the published id, or made of it (``"12-3"`` for turn 3).
        dataset (`str`): Name in the catalog, such as ``"vqav2"``.
        category (`str`): One of the eleven of `SLOTS`.
        images (`list`): What `instructblip_hf.utils.images.load_image` takes, none for text-only rows. A source's
            pure functions give paths relative to the image folder, its loader gives them resolved.
        answers (`list[str]`): Acceptable outputs in published order, repeated as often as annotators gave them:
            answers or captions. Empty where a split is published without them.
        video (`VideoClip`): In place of images; `instructblip_hf.data.sources.open_images` gives its frames.
        question (`str`): The question; the target in ``question_generation``.
        statement (`str`): A statement that is true or false of the image (VSR; answers are "yes" or "no").
        options (`list[str]`): Choices, in published order.
        correct_option (`int`): Index of the right one in ``options``.
        context (`str`): What is to be read beside the image, such as ScienceQA's hint.
        lecture (`str`): Background knowledge (ScienceQA).
        explanation (`str`): Why the answer is right (ScienceQA's solution, A-OKVQA's rationales).
        ocr_tokens (`list[str]`): Words read off the image, by the published OCR.
        text (`str`): What is written on the image (HatefulMemes).
        caption (`str`): The caption a visual dialogue starts from.
        history (`list[DialogTurn]`): Earlier turns of a dialogue, oldest first; empty at the first.
        messages (`list[dict]`): A conversation in TRL's form, contents as lists of ``{"type": "image"}`` and
            ``{"type": "text", "text": ...}``, one image entry for each of ``images``.
        metadata (`dict`): Published facts that are neither worded nor learnt: subject, grade, confidences, ids.
    """

    video: VideoClip
    question: str
    statement: str
    options: list[str]
    correct_option: int
    context: str
    lecture: str
    explanation: str
    ocr_tokens: list[str]
    text: str
    caption: str
    history: list[DialogTurn]
    messages: list[dict[str, Any]]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class CategorySlots:
    """What the rows of a category hold.

    Args:
        required (`tuple[tuple[str, ...], ...]`): Of each group one slot is in every row.
        optional (`tuple[str, ...]`): Slots that some rows have.
        target (`str`): The slot to learn: ``"answers"``, ``"question"`` or ``"messages"``.
    """

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    target: str


SLOTS: dict[str, CategorySlots] = {
    "image_captioning": CategorySlots((), (), "answers"),
    "captioning_reading": CategorySlots((), ("ocr_tokens",), "answers"),
    "visual_reasoning": CategorySlots((("question", "statement"),), ("options", "correct_option"), "answers"),
    "image_qa": CategorySlots((("question",),), (), "answers"),
    "knowledge_qa": CategorySlots(
        (("question",),), ("options", "correct_option", "context", "lecture", "explanation"), "answers"
    ),
    "qa_reading": CategorySlots((("question",),), ("ocr_tokens",), "answers"),
    "question_generation": CategorySlots((("question",),), ("options", "correct_option"), "question"),
    "video_qa": CategorySlots((("question",), ("video",)), (), "answers"),
    "conversational_qa": CategorySlots(
        (("question",), ("caption",), ("history",)), ("options", "correct_option"), "answers"
    ),
    "image_classification": CategorySlots((("text",),), (), "answers"),
    "llava_instruct": CategorySlots((("messages",),), (), "messages"),
}
"""The eleven task categories of the paper (figure 2)."""


def check_example(example: Example) -> None:
    """Raises if an example's slots are not those of its category.

    Raises:
        ValueError: Naming the example and the slot that is missing, empty or not the category's.
    """
    name = f"{example.get('dataset')} {example.get('id')}"
    for slot in _RequiredSlots.__annotations__:
        if slot not in example:
            raise ValueError(f"{name}: has no {slot}")
    slots = SLOTS.get(example["category"])
    if slots is None:
        raise ValueError(f"{name}: category is {example['category']!r}; allowed are {', '.join(SLOTS)}")
    allowed = {slot for group in slots.required for slot in group} | set(slots.optional) | {"video", "metadata"}
    allowed |= set(_RequiredSlots.__annotations__)
    for slot in example:
        if slot not in allowed:
            raise ValueError(f"{name}: has the slot {slot}, which {example['category']} does not have")
    for group in slots.required:
        filled = [slot for slot in group if slot in example and (example[slot] or slot == "history")]  # type: ignore[literal-required]
        if not filled:
            raise ValueError(f"{name}: has no {' or '.join(group)}")
    if "correct_option" in example and not 0 <= example["correct_option"] < len(example.get("options", [])):
        raise ValueError(
            f"{name}: correct_option is {example['correct_option']} for {len(example.get('options', []))} options"
        )


__all__ = ["SLOTS", "CategorySlots", "DialogTurn", "Example", "VideoClip", "check_example"]
