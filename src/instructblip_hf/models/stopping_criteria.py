"""The end of an answer where a chat template ends it with text in place of the end token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import StoppingCriteria


class StopAtText(StoppingCriteria):
    """Ends a row with the token that completes one of the endings.

    The newest tokens are decoded as answers are, so any tokenizer will do; transformers' own ``stop_strings`` matches the
    pieces of a vocabulary, which word-level tokenizers do not join as they are written.

    Args:
        decode (`Callable`): Texts of a batch of token ids, as answers are read.
        endings (`Sequence[str]`): Texts that end an answer; one in the prompt ends nothing.
    """

    def __init__(self, decode: Callable[[torch.Tensor], Sequence[str]], endings: Sequence[str]) -> None:
        if not endings or not all(isinstance(ending, str) and ending for ending in endings):
            raise ValueError(f"endings must be texts that are not empty, got {list(endings)!r}")
        self.decode = decode
        self.endings = list(endings)
        # A token may be a single byte of the ending, and special tokens between them are no text.
        self._window = 8 + 2 * max(len(ending.encode()) for ending in endings)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: object) -> torch.BoolTensor:
        newest = input_ids[:, -self._window :]
        before = self.decode(newest[:, :-1]) if newest.shape[1] > 1 else [""] * len(newest)
        is_done = [
            any(text.rfind(ending) > shorter.rfind(ending) for ending in self.endings)
            for text, shorter in zip(self.decode(newest), before, strict=True)
        ]
        done: torch.BoolTensor = torch.tensor(is_done, dtype=torch.bool, device=input_ids.device)  # type: ignore[assignment]
        return done


__all__ = ["StopAtText"]
