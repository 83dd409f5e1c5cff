"""What the page does when somebody acts, without anything of the page: answering, ranking, looking."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Sequence
from typing import Any

from ..models.query_attention import QueryAttention, qformer_of, query_attention, reads_instruction
from ..models.recent_images import RecentImages
from ..utils.images import load_image
from .conversation import Conversation


MOST_INSTRUCTIONS = 6
MEAN_OVER_LAYERS = "mean over layers"


class Actions:
    """A model behind the page; every method takes what a visitor entered and returns what is shown.

    Args:
        model (`PreTrainedModel`): With a language model, in evaluation mode.
        processor (`ProcessorMixin`): Its processor.
        options: For [`Conversation`], like ``max_new_tokens``.

    Raises:
        ValueError: By every method, in words for the visitor, when what was entered cannot be used.
    """

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        self.model = model
        self.processor = processor
        self.recent = RecentImages(model, processor)  # of all visitors, as the model is
        self.options = options
        self.new_conversation()  # tells of options out of range before the page is there

    def new_conversation(self) -> Conversation:
        """One without turns or images."""
        return Conversation(self.model, self.processor, **self.options, recent=self.recent)

    def answer(
        self, question: str, image: str | None, turns: Sequence[dict[str, Any]]
    ) -> Generator[list[dict[str, Any]], None, None]:
        """The conversation with the answer so far, again and again.

        Args:
            question (`str`): What is asked.
            image (`str`, *optional*): File of the image on the page.
            turns (`Sequence[dict]`): Earlier turns about it, as this returned them.

        Yields:
            `list[dict]`: The turns, the last being the answer so far.
        """
        talk = self.new_conversation()
        if turns:
            talk.resume(turns)
        elif image is not None:
            talk.show(load_image(image))
        asked = talk.turn(question)
        with contextlib.closing(talk.ask(question)) as texts:
            for text in texts:
                reply = {"role": "assistant", "content": [{"type": "text", "text": text}]}
                yield [*turns, asked, reply]

    def rank(self, question: str, candidates: str, image: str | None) -> dict[str, float]:
        """The probability of each candidate among the candidates.

        Args:
            question (`str`): What they answer.
            candidates (`str`): With commas or line ends between.
            image (`str`, *optional*): File of the image on the page.
        """
        from ..pipelines.vocabulary_ranking import VocabularyRankingPipeline

        texts = list(dict.fromkeys(text.strip() for text in re.split(r"[,\n]", candidates) if text.strip()))
        if len(texts) < 2:
            raise ValueError("Enter at least two answers to choose from, with commas between.")
        _need_text(question)
        ranker = VocabularyRankingPipeline(model=self.model, processor=self.processor, recent=self.recent)
        ranking: Any = ranker(
            [load_image(_needed(image))], prompt=self.processor.user_turn(question), candidates=texts
        )
        return {entry["label"]: float(entry["score"]) for entry in ranking[0]}

    # --- where it looks -------------------------------------------------------------------------------------------

    @property
    def can_look(self) -> bool:
        """Whether there are queries whose looks can be shown."""
        return qformer_of(self.model) is not None

    @property
    def reads_instruction(self) -> bool:
        """Whether where they look depends on the instruction."""
        return reads_instruction(self.model)

    @property
    def layers(self) -> list[str]:
        """Names of the choices of a layer."""
        qformer = qformer_of(self.model)
        blocks: Any = qformer.encoder.layer if qformer is not None else []
        return [
            MEAN_OVER_LAYERS,
            *(f"layer {place}" for place, block in enumerate(blocks) if block.has_cross_attention),
        ]

    def look(self, instructions: str, layer: str, image: str | None) -> list[tuple[str, QueryAttention]]:
        """Where the queries look for each instruction.

        Args:
            instructions (`str`): One a line.
            layer (`str`): One of [`layers`].
            image (`str`, *optional*): File of the image on the page.
        """
        texts = list(dict.fromkeys(line.strip() for line in instructions.splitlines() if line.strip()))
        if not self.reads_instruction:
            texts = [""]
        if not texts:
            raise ValueError("Enter an instruction, or several on lines of their own.")
        if len(texts) > MOST_INSTRUCTIONS:
            raise ValueError(f"{MOST_INSTRUCTIONS} instructions at a time are the most; there are {len(texts)}.")
        opened = load_image(_needed(image))
        place = self.layers.index(layer) - 1
        chosen = None if place < 0 else place
        return [(text, query_attention(self.model, self.processor, opened, text, chosen)) for text in texts]


def _needed(image: str | None) -> str:
    if image is None:
        raise ValueError("Choose an image first.")
    return image


def _need_text(question: str) -> None:
    if not question.strip():
        raise ValueError("Enter a question.")


__all__ = ["MEAN_OVER_LAYERS", "Actions"]
