"""An answer while it is being generated: its text so far, again and again, until it is whole or stopped.

Generation runs in a thread of its own and hands over each token through transformers' streamer interface. What is
decoded is always the whole answer so far, so that the last text is the one that decoding ``generate``'s output gives;
transformers' own streamers decode line by line, which loses blanks with SentencePiece.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class TokenQueue(BaseStreamer):
    """Hands the new tokens of one answer to another thread; the prompt, which ``generate`` puts first, is left out."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._prompt_is_next = True

    def put(self, value: Any) -> None:
        """Takes the prompt, and then each token.

        Raises:
            ValueError: If they are those of several answers.
        """
        ids = value.reshape(-1, value.shape[-1]) if value.dim() > 1 else value.reshape(1, -1)
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        if ids.shape[0] > 1:
            raise ValueError(f"one answer is streamed at a time, got tokens of {ids.shape[0]}")
        self.arrived.put(ids[0].tolist())

    def end(self) -> None:
        """Called by ``generate`` when the answer is whole; the thread that runs it says so itself."""


class StopWhenTold(StoppingCriteria):
    """Ends generation after the token during which the event was set."""

    def __init__(self, told: threading.Event) -> None:
        self.told = told

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids.new_full((input_ids.shape[0],), self.told.is_set()).bool()


def stream_text(
    generate: Callable[..., Any],
    decode: Callable[[list[int]], str],
    endings: Sequence[str] = (),
    **generate_options: Any,
) -> Generator[str, None, None]:
    """The text of an answer so far, whenever more of it has been generated.

    Closing the iterator, or an exception where it is consumed, stops the generation and waits for its end.

    Args:
        generate (`Callable`): A model's ``generate`` with its inputs; for one sample and one beam.
        decode (`Callable`): Text of token ids.
        endings (`Sequence[str]`, *optional*): Text that `decode` takes off as the end of an answer; of one that has begun,
            nothing is shown before it is known to be none.
        generate_options: For ``generate``.

    Yields:
        `str`: All of the answer so far, without an incomplete character at its end. The last is the whole answer.

    Raises:
        Exception: What ``generate`` raises.
    """
    tokens, told = TokenQueue(), threading.Event()
    criteria = StoppingCriteriaList([*(generate_options.pop("stopping_criteria", None) or []), StopWhenTold(told)])
    ids: list[int] = []
    shown = ""
    with ThreadPoolExecutor(1, "generate") as executor:
        done = executor.submit(generate, streamer=tokens, stopping_criteria=criteria, **generate_options)
        done.add_done_callback(lambda _: tokens.arrived.put(None))
        try:
            while (news := tokens.arrived.get()) is not None:
                ids += news
                text = _without_begun(decode(ids).rstrip("\ufffd"), endings)
                if text != shown:
                    shown = text
                    yield text
            done.result()
            if (text := decode(ids)) != shown:
                yield text
        finally:
            told.set()


def _without_begun(text: str, endings: Sequence[str]) -> str:
    lengths = (
        length for ending in endings for length in range(len(ending) - 1, 0, -1) if text.endswith(ending[:length])
    )
    return text[: len(text) - max(lengths, default=0)]


def settled(text: str) -> str:
    """The beginning of a growing text that later tokens do not change.

    Tokenizers that tidy up blanks take back one before punctuation and around an apostrophe.
    """
    return text.rstrip(" \t\n'\ufffd")


__all__ = ["StopWhenTold", "TokenQueue", "settled", "stream_text"]
