"""Examples to training rows: a wording is chosen, an answer is chosen, and the row takes TRL's form.

Which wording a row gets depends on seed, epoch, dataset and row alone. It begins with a template drawn by
`instructblip_hf.data.answers.draw_index`, a hash, and moves on by one template in every epoch, so that no wording of a
row comes again before all were used, and in each epoch all wordings are used equally often. No generator is involved:
processes, workers, resumed runs and versions of Python agree.

A question with options is asked with them, and the right one is its answer. If annotators also answered it freely, as
in A-OKVQA, a hash of the same kind has it asked openly in half of the epochs, with one of their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...utils.caption_text import clean_caption
from ..answers import CHOICES, choose_answer, draw_index
from ..image_groups import peek
from ..schema import SLOTS, Example
from .loading import TaskTemplates, load_templates
from .scienceqa_forms import llava_scienceqa
from .wording import SLOT_NAMES, Template, slot_texts


FORMS = ("instruction", "plain", "identifier", "prefix", "llava_scienceqa")
"""A template's wording; the paper's multitask ablation (section 3.4) without instructions, or with
``[Task:Dataset]`` in front instead of them; or for captions their own first words, which BLIP-2's second stage gives to a
sequence-to-sequence language model (arXiv 2301.12597, section 3.3); or ScienceQA as LLaVA puts it, answer and all."""


@dataclass(frozen=True)
class Instructions:
    """How examples are worded.

    Args:
        form (`str`, *optional*, defaults to `"instruction"`): One of `FORMS`.
        seed (`int`, *optional*, defaults to 0): Seed of the choice of wordings and answers.
        answer_choice (`str`, *optional*, defaults to `"draw"`): How one of several answers is chosen, see
            `instructblip_hf.data.answers.choose_answer`.
        without (`tuple[str, ...]`, *optional*): Slots to leave out of prompts, such as ``("lecture",)``, or
            ``("options",)`` to ask multiple-choice questions openly.
        max_ocr_tokens (`int`, *optional*, defaults to 30): OCR tokens in a prompt.
        templates (`Mapping[str, TaskTemplates]`, *optional*): Of `load_templates`; the shipped ones by default.
        wording (`str`, *optional*): One [`Template`] for all rows in place of the templates; with form `"instruction"`.
        clean_captions (`bool`, *optional*, defaults to `False`):
            Whether captions are put as LAVIS puts them, see [`clean_caption`]; other answers are as they are.
        qformer_wording (`str`, *optional*): What the Q-Former reads, by default the prompt; a [`Template`] as well.

    Raises:
        ValueError: For another form, answer choice or slot, or a wording that is no template or has another form.
    """

    form: str = "instruction"
    seed: int = 0
    answer_choice: str = "draw"
    without: tuple[str, ...] = ()
    max_ocr_tokens: int = 30
    templates: Mapping[str, TaskTemplates] | None = None
    wording: str | None = None
    qformer_wording: str | None = None
    clean_captions: bool = False

    def __post_init__(self) -> None:
        for name in ("wording", "qformer_wording"):
            try:
                Template(getattr(self, name) or "")
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if self.wording is not None and self.form != "instruction":
            raise ValueError(f"wording is given, and form is {self.form!r}; it takes the place of instructions")
        if self.form not in FORMS:
            raise ValueError(f"form is {self.form!r}; allowed are {', '.join(FORMS)}")
        if self.answer_choice not in CHOICES:
            raise ValueError(f"answer_choice is {self.answer_choice!r}; allowed are {', '.join(CHOICES)}")
        for slot in self.without:
            if slot not in SLOT_NAMES:
                raise ValueError(f"without: {slot!r} is no slot; allowed are {', '.join(SLOT_NAMES)}")
        if self.templates is None:
            object.__setattr__(self, "templates", _shipped_templates())

    def row(self, example: Example, row: int = 0, epoch: int = 0) -> dict[str, Any]:
        """The training row of an example.

        Args:
            example (`Example`): Checked by `instructblip_hf.data.schema.check_example`.
            row (`int`, *optional*, defaults to 0): Its index in its dataset.
            epoch (`int`, *optional*, defaults to 0): Epoch of its dataset.

        Returns:
            `dict`: ``id``, ``dataset``, ``images`` and either ``prompt`` and ``completion``, as text, or ``messages``.

        Raises:
            ValueError: If there is no template that fits, no answer, or nothing to learn; it names the example.
        """
        content = {"id": example["id"], "dataset": example["dataset"], "images": list(example["images"])}
        try:
            if SLOTS[example["category"]].target == "messages":
                return {**content, "messages": self._messages(example)}
            prompt, completion = self._prompt_and_completion(example, row, epoch)
            if self.qformer_wording is not None:
                content["qformer_text"] = _render(self.qformer_wording, "qformer_wording", self._texts(example))
        except ValueError as error:
            raise ValueError(f"{example['dataset']} {example['id']}: {error}") from error
        return {**content, "prompt": prompt, "completion": completion}

    def _texts(self, example: Example) -> dict[str, str]:
        texts = slot_texts(example, self.max_ocr_tokens)
        return {slot: text for slot, text in texts.items() if slot not in self.without}

    def _prompt_and_completion(self, example: Example, row: int, epoch: int) -> tuple[str, str]:
        category, dataset = example["category"], example["dataset"]
        if self.form == "llava_scienceqa":
            kept = {slot: value for slot, value in example.items() if slot not in self.without}
            return llava_scienceqa(kept)
        task = self._task(category)
        texts = self._texts(example)
        with_options = (
            "options" in texts and "options" in task.plain.optional and self._asks_with_options(example, row, epoch)
        )
        if not with_options:
            texts.pop("options", None)
        if with_options and "correct_option" in example:
            answer = example["options"][example["correct_option"]]
        else:
            answer = choose_answer(example["answers"], self.answer_choice, self.seed, epoch, row)
        completion = answer
        if SLOTS[category].target == "question":
            texts["answer"], completion = answer, example["question"]
        is_caption = not SLOTS[category].required and SLOTS[category].target == "answers"
        if is_caption and self.clean_captions:
            completion = clean_caption(completion)
            if not completion:
                raise ValueError(f"nothing is left of the caption {answer!r} but punctuation")
        if self.form == "prefix":
            if not is_caption:
                raise ValueError(f"form prefix is for captions, which {category} has none of")
            return split_caption(completion, self.seed, epoch, row)
        if self.wording is not None:
            return _render(self.wording, "wording", texts), completion
        if self.form != "instruction":
            prompt = task.plain.render(texts)
            if self.form == "identifier":
                prompt = f"[{task.name}:{dataset}] {prompt}".strip()
            return prompt, completion
        fitting = [template for template in task.templates if template.needed <= texts.keys()]
        if not fitting:
            raise ValueError(
                f"no template of {category} fits; the example has content for {', '.join(texts) or 'none'}"
            )
        first = draw_index(len(fitting), self.seed, 0, row, f"template of {dataset}")
        return fitting[(first + epoch) % len(fitting)].render(texts), completion

    def _asks_with_options(self, example: Example, row: int, epoch: int) -> bool:
        if "correct_option" not in example:
            return all(answer in example["options"] for answer in example["answers"])
        right = example["options"][example["correct_option"]]
        has_open_answers = any(answer != right for answer in example["answers"])
        return not has_open_answers or draw_index(2, self.seed, epoch, row, f"options of {example['dataset']}") == 0

    def _messages(self, example: Example) -> list[dict[str, Any]]:
        messages = example["messages"]
        if self.form != "identifier":
            return messages
        # The category has no templates, and so no name for identifiers in their file.
        identifier = {"type": "text", "text": f"[Visual conversation:{example['dataset']}] "}
        first = next(index for index, message in enumerate(messages) if message["role"] == "user")
        parts = messages[first]["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        place = next((index for index, part in enumerate(parts) if part["type"] == "text"), len(parts))
        changed = {**messages[first], "content": [*parts[:place], identifier, *parts[place:]]}
        return [*messages[:first], changed, *messages[first + 1 :]]

    def _task(self, category: str) -> TaskTemplates:
        templates = self.templates or {}
        if category not in templates:
            raise ValueError(f"there are no templates for {category}; they are for {', '.join(templates)}")
        return templates[category]


def split_caption(caption: str, seed: int, epoch: int, row: int) -> tuple[str, str]:
    """The first words of a caption and the rest, split at a random word from the first one to the middle.

    The rule is that of BLIP-2's authors (LAVIS issue 139), whose code does not have it. Which word depends on seed,
    epoch and row alone.

    Args:
        caption (`str`): A caption; one of a single word has no first part.
        seed (`int`): Seed of the run.
        epoch (`int`): Epoch of the row's dataset.
        row (`int`): Index of the row in its dataset.
    """
    words = caption.split()
    if len(words) < 2:
        return "", caption.strip()
    first = 1 + draw_index(len(words) // 2, seed, epoch, row, "prefix")
    return " ".join(words[:first]), " ".join(words[first:])


def _render(wording: str, name: str, texts: Mapping[str, str]) -> str:
    try:
        return Template(wording).render(texts)
    except KeyError as error:
        raise ValueError(
            f"{name} needs {error}, and the example has content for {', '.join(texts) or 'none'}"
        ) from error


@lru_cache(maxsize=1)
def _shipped_templates() -> Mapping[str, TaskTemplates]:
    return load_templates()


class InstructionDataset:
    """Examples of one dataset as training rows, worded anew in every epoch.

    Args:
        examples (`Sequence[Example]`): Examples by index.
        instructions (`Instructions`): How they are worded.
        open_images (`Callable[[Example], list]`, *optional*): Gives the images of an example, such as
            `instructblip_hf.data.sources.open_images`, which reads frames of videos. By default ``images`` as they
            stand in the example: collators open files themselves.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        instructions: Instructions,
        open_images: Callable[[Example], list[Any]] | None = None,
    ) -> None:
        self.examples = examples
        self.instructions = instructions
        self.open_images = open_images

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The row as it is in epoch 0."""
        return self.at(row, 0)

    def at(self, row: int, epoch: int) -> dict[str, Any]:
        """The row as it is in an epoch of this dataset.

        Raises:
            ValueError: As `Instructions.row`, and where images cannot be opened.
        """
        example = self.examples[row]
        worded = self.instructions.row(example, row, epoch)
        if self.open_images is not None:
            worded["images"] = list(self.open_images(example))
        return worded

    def peek(self, row: int, epoch: int = 0) -> dict[str, Any]:
        """The row with ``images`` as the examples name them, none of them opened.

        Raises:
            TypeError: If the examples cannot give that, see `instructblip_hf.data.image_groups.peek`.
        """
        worded = self.instructions.row(peek(self.examples, row, epoch), row, epoch)  # type: ignore[arg-type]
        return worded


__all__ = ["FORMS", "InstructionDataset", "Instructions", "split_caption"]
