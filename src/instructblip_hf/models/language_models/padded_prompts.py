"""Prompts of few lengths, for caches of fixed size: what is compiled, or recorded as a CUDA graph, holds for one shape.

With ``cache_implementation="static"`` transformers compiles the steps after the prompt on an accelerator. Their shapes are
those of the cache, whose size follows from the length of the prompt: without padding nearly every batch would be compiled anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


logger = logging.getLogger(__name__)

PROMPT_MULTIPLE = 64
"""Lengths of prompts with a cache of fixed size are multiples of it."""

_FIXED_SIZE = ("static", "offloaded_static")

DEFAULT_MAX_LENGTH = 20
"""transformers' own default, which does not count the prompt."""


@dataclass(frozen=True)
class PaddedPrompt:
    """A prompt that was made longer.

    Attributes:
        inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden).
        attention_mask (`torch.Tensor`): Shape (batch, tokens).
        input_ids (`torch.Tensor` or `None`): Shape (batch, tokens).
        padding (`int`): How many tokens were added.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    input_ids: torch.Tensor | None
    padding: int = 0

    @classmethod
    def of(
        cls,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        input_ids: torch.Tensor | None,
        multiple: int | None,
        config: Any,
    ) -> PaddedPrompt:
        """Pads to a multiple: on the left, and for encoders, whose positions begin there, on the right."""
        padding = -inputs_embeds.shape[1] % multiple if multiple is not None else 0
        if not padding:
            return cls(inputs_embeds, attention_mask, input_ids)
        sides = (0, padding) if config.is_encoder_decoder else (padding, 0)
        if input_ids is not None:
            pad_token_id = getattr(config.text_config, "pad_token_id", None)
            input_ids = nn.functional.pad(input_ids, sides, value=pad_token_id or 0)
        return cls(
            nn.functional.pad(inputs_embeds, (0, 0, *sides)),
            nn.functional.pad(attention_mask, sides),
            input_ids,
            padding,
        )


class StreamerWithoutPadding:
    """Hands a streamer what ``generate`` puts, the prompt as it was before it was padded.

    Args:
        streamer (`BaseStreamer`): The caller's.
        padding (`int`): Tokens on the left of the prompt, which comes first.
    """

    def __init__(self, streamer: Any, padding: int) -> None:
        self.streamer, self.padding = streamer, padding

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, and then each token."""
        padding, self.padding = self.padding, 0
        self.streamer.put(value[..., padding:])

    def end(self) -> None:
        """Called by ``generate`` at the end."""
        self.streamer.end()


def settled_options(generate_kwargs: Mapping[str, Any], own_config: Any) -> Callable[[str], Any]:
    """What ``generate`` goes by, as a function of an option's name: what it is given, or else what the configuration that it
    is given says, or else the model's own.

    Args:
        generate_kwargs (`Mapping[str, Any]`): Options of ``generate``, ``generation_config`` among them.
        own_config (`GenerationConfig`): The model's.
    """
    given_config = generate_kwargs.get("generation_config")

    def option(name: str) -> Any:
        if name in generate_kwargs:
            return generate_kwargs[name]
        value = getattr(given_config, name, None)
        return value if value is not None else getattr(own_config, name, None)

    return option


def length_multiple(
    given: int | None,
    generate_kwargs: dict[str, Any],
    own_config: Any,
    prompt_length: int = 0,
    is_encoder_decoder: bool = False,
) -> int | None:
    """What lengths of prompts are to be multiples of: what is given, or `PROMPT_MULTIPLE` with a cache of fixed size.

    Args:
        given (`int`, *optional*): ``pad_to_multiple_of`` of the caller.
        generate_kwargs (`dict`): Options of ``generate``.
        own_config (`GenerationConfig`): The model's.
        prompt_length (`int`, *optional*, defaults to 0): A configuration's ``min_length`` asks for nothing up to it.
        is_encoder_decoder (`bool`, *optional*, defaults to `False`): Whose lengths never count the prompt.

    Raises:
        ValueError: If ``given`` is below 1, or lengths count the prompt, so that padding would change them.
    """
    if given is not None and given < 1:
        raise ValueError(f"pad_to_multiple_of is {given}; it must be at least 1")
    option = settled_options(generate_kwargs, own_config)
    cache = option("cache_implementation")
    if given is None and cache not in _FIXED_SIZE:
        return None
    if is_encoder_decoder:
        return given or PROMPT_MULTIPLE
    counted = [name for name in ("max_length", "min_length") if generate_kwargs.get(name)]
    if not option("max_new_tokens") and option("max_length") not in (None, DEFAULT_MAX_LENGTH):
        counted = counted or ["generation_config.max_length"]
    if not generate_kwargs.get("min_length") and (option("min_length") or 0) > prompt_length:
        counted.append("generation_config.min_length")
    if not counted:
        return given or PROMPT_MULTIPLE
    if given is not None:
        raise ValueError(
            f"pad_to_multiple_of makes prompts longer, and {', '.join(counted)} counts the prompt: give max_new_tokens or "
            "min_new_tokens in its place"
        )
    logger.info("prompts are not padded for the %s cache, as %s counts the prompt", cache, ", ".join(counted))
    return None


__all__ = [
    "DEFAULT_MAX_LENGTH",
    "PROMPT_MULTIPLE",
    "PaddedPrompt",
    "StreamerWithoutPadding",
    "length_multiple",
    "settled_options",
]
