"""A conversation with a model about images: turns, and the answer to the next one as it is generated.

How turns become a prompt is the processor's chat template; nothing here depends on the family.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from typing import Any

from ..models.recent_images import RecentImages
from .streaming import stream_text


class Conversation:
    """What was said, and the images that were shown.

    Example:

    ```python
    >>> talk = Conversation(model, processor)
    >>> talk.show(image)
    >>> for text in talk.ask("What color is the circle?"):
    ...     print(text)
    >>> *_, answer = talk.ask("And where is it?")
    ```

    Args:
        model (`PreTrainedModel`): With a language model, in evaluation mode.
        processor (`ProcessorMixin`): Its processor.
        max_new_tokens (`int`, *optional*, defaults to 256): Longest answer.
        temperature (`float`, *optional*, defaults to 0.0): Of sampling; 0 takes the likeliest token.
        top_p (`float`, *optional*, defaults to 1.0): Sampling among the likeliest tokens of this probability together.
        recent ([`RecentImages`], *optional*): Encodes images, each once and not at every turn; by default one of its own.

    Attributes:
        messages (`list[dict]`): The turns, as ``processor.apply_chat_template`` takes them.
        images (`list`): All images, in the order in which they were shown.

    Raises:
        ValueError: For options out of their range.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        recent: RecentImages | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
        self.model = model
        self.processor = processor
        self.recent = recent if recent is not None else RecentImages(model, processor)
        self.max_new_tokens = max_new_tokens
        self.sampling: dict[str, Any] = {"do_sample": False}
        if temperature:
            self.sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        self.messages: list[dict[str, Any]] = []
        self.images: list[Any] = []
        self._coming: list[Any] = []  # images that go with the next question

    def show(self, image: Any) -> None:
        """Begins anew, about this image."""
        self.messages.clear()
        self.images, self._coming = [image], [image]

    def add(self, image: Any) -> None:
        """One more image, which goes with the next question."""
        self.images.append(image)
        self._coming.append(image)

    def forget(self) -> None:
        """Begins anew, about the same images."""
        self.messages.clear()
        self._coming = list(self.images)

    def resume(self, messages: Sequence[dict[str, Any]]) -> None:
        """Goes on after turns that were kept; their images are those that have been shown."""
        self.messages = list(messages)
        parts = [part for message in self.messages for part in message["content"]]
        self.images, self._coming = [part["image"] for part in parts if part["type"] == "image"], []

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer so far, again and again, until it is whole.

        Question and answer become part of the conversation, also where the iterator is closed or interrupted before
        the end: then the answer is what had been generated. A question without any answer is not kept.

        Args:
            question (`str`): The next turn.

        Yields:
            `str`: All of the answer so far.

        Raises:
            ValueError: If the question is empty, or the conversation is longer than the model can read.
        """
        turn = self.turn(question)
        inputs = self.inputs([*self.messages, turn])
        options = {
            **self.processor.generation_options(),
            **self.sampling,
            "num_beams": 1,
            "max_new_tokens": self._room(inputs),
        }
        generate = functools.partial(self.model.generate, **inputs, return_full_text=False)
        answer = ""
        try:
            for text in stream_text(generate, self._decode, self.processor.stop_strings, **options):
                answer = text.strip()
                yield answer
        except Exception:
            answer = ""
            raise
        finally:
            if answer:
                reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
                self.messages += [turn, reply]
                self._coming = []

    def turn(self, question: str) -> dict[str, Any]:
        """The message that a question makes, with the images that go with it.

        Raises:
            ValueError: If the question is empty.
        """
        if not question.strip():
            raise ValueError("a question is empty")
        parts = [{"type": "image", "image": image} for image in self._coming]
        return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}

    def inputs(self, messages: list[dict[str, Any]]) -> Any:
        """Inputs of the model for a conversation that ends with a question."""
        return self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            image_inputs=self.recent,
        ).to(self.model.device, self.model.dtype)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.processor.answers([ids])[0]
        return text

    def _room(self, inputs: Any) -> int:
        """How long the answer may be: as long as was asked for, or until the model's positions end."""
        positions = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if positions is None:
            return self.max_new_tokens
        prompt = inputs["input_ids"].shape[1]
        if prompt >= positions:
            raise ValueError(
                f"the conversation is {prompt} tokens long, and the language model reads {positions} at most: begin anew"
            )
        if self.model.config.is_encoder_decoder:
            return min(self.max_new_tokens, positions - 1)
        return min(self.max_new_tokens, positions - prompt)


__all__ = ["Conversation"]
