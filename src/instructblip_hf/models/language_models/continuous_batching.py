"""transformers' continuous batching, with images: a request that has ended makes room for the next one.

It takes token ids alone. So every image feature gets an id behind the vocabulary, and for the length of a call the embedding of
words knows what it stands for. Different images have different ids, so keys and values are never shared between prompts that
only look alike.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from .padded_prompts import DEFAULT_MAX_LENGTH


ROWS_ON_CPU = 8
"""Requests in the language model at once where nobody says and there is no accelerator, whose memory transformers fills."""

TAKEN = MappingProxyType(
    {
        "num_beams": 1,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "min_new_tokens": 0,
        "min_length": 0,
        "bad_words_ids": None,
        "sequence_bias": None,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "begin_suppress_tokens": None,
        "exponential_decay_length_penalty": None,
        "guidance_scale": 1.0,
        "stop_strings": None,
    }
)
"""Options that read what was written before, which transformers drops or gets wrong, and their values that do nothing."""

_PAGE_ON_CPU = 32
_MOST_TOKENS_A_PASS = 8192  # transformers' own default


@dataclass(frozen=True)
class Request:
    """A prompt with its images, for continuous batching.

    Attributes:
        input_ids (`list[int]`): Without padding, with placeholders.
        features (`torch.Tensor`): What stands in their place, shape (placeholders, hidden).
    """

    input_ids: list[int]
    features: torch.Tensor

    def __len__(self) -> int:
        return len(self.input_ids)


def requests_of(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    image_token_id: int | None,
) -> list[Request]:
    """The rows of a batch.

    Args:
        input_ids (`torch.LongTensor`): Shape (batch, tokens), with placeholders.
        attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens); by default all ones.
        inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden), image features in place.
        image_token_id (`int`, *optional*): The placeholder.
    """
    kept = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    is_image = kept & (input_ids == image_token_id) if image_token_id is not None else torch.zeros_like(kept)
    return [
        Request(ids[own].tolist(), embeds[places])
        for ids, own, embeds, places in zip(input_ids, kept, inputs_embeds, is_image)
    ]


def not_taken(config: GenerationConfig) -> dict[str, tuple[Any, Any]]:
    """Options of a configuration that continuous batching does not do, with the values that it takes in their place."""
    found = {name: (getattr(config, name, None), value) for name, value in TAKEN.items()}
    return {name: (own, value) for name, (own, value) in found.items() if own not in (None, value)}


def check_language_model(language_model: Any) -> None:
    """Refuses language models whose attention is not the one that continuous batching computes.

    Raises:
        ValueError: For an encoder-decoder, attention that is the model's own (MPT, BLOOM), or scores that are capped (Gemma 2).
    """
    config, name = language_model.config, type(language_model).__name__
    if config.is_encoder_decoder:
        raise ValueError("transformers' continuous batching is for causal language models: use generate")
    if not getattr(language_model, "_supports_attention_backend", False):
        raise ValueError(f"{name} has an attention of its own, which continuous batching does not reach: use generate")
    is_flash = "flash" in str(config._attn_implementation)
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None and not is_flash:
        raise ValueError(
            f"{name} caps the scores of its attention, which continuous batching does with FlashAttention alone: load it "
            "with attn_implementation='flash_attention_2', or use generate"
        )


def checked_config(
    given: GenerationConfig | None, own: GenerationConfig, max_new_tokens: int | None
) -> GenerationConfig:
    """A configuration for continuous batching, which says how long answers are.

    Args:
        given (`GenerationConfig`, *optional*): Of the caller; what it leaves out is the model's, as in ``generate``.
        own (`GenerationConfig`): The model's.
        max_new_tokens (`int`, *optional*): In place of the configuration's.

    Raises:
        ValueError: For an option that continuous batching does not do, or a length that counts the prompt.
    """
    config = copy.deepcopy(given or own)
    for name, value in own.to_dict().items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    config.cache_implementation = None  # it has its own
    if max_new_tokens is not None:
        config.max_new_tokens = max_new_tokens
    if config.max_new_tokens is None:
        if config.max_length not in (None, DEFAULT_MAX_LENGTH):
            raise ValueError(f"max_length is {config.max_length} and counts the prompt: give max_new_tokens")
        # transformers' continuous batching would go on for as long as there is memory.
        config.max_new_tokens = DEFAULT_MAX_LENGTH
    for name, (value, taken) in not_taken(config).items():
        raise ValueError(f"{name} is {value}; generate_batch takes {taken}: use generate")
    return config


def sized_config(requests: Sequence[Request], max_new_tokens: int, rows: int, language_model: Any) -> Any:
    """transformers' configuration for so many requests at once: a cache with room for `rows` of the longest and no more.

    Args:
        requests (`Sequence[Request]`): All that are answered.
        max_new_tokens (`int`): Longest answer.
        rows (`int`): Requests in the language model at once.
        language_model (`PreTrainedModel`): Who answers.

    Returns:
        `ContinuousBatchingConfig`: With ``num_blocks``, ``max_batch_tokens`` and ``max_requests_per_batch``.
    """
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    # The name is older in transformers before 5.18.
    names = {field.name for field in fields(ContinuousBatchingConfig)}
    page_name = "page_size" if "page_size" in names else "block_size"
    options: dict[str, Any] = {}
    if language_model.device.type == "cpu":
        # FlashAttention, where there is an accelerator, wants the pages as transformers has them.
        options = {page_name: _PAGE_ON_CPU}
    page = getattr(ContinuousBatchingConfig(**options), page_name)
    longest = max(len(request) for request in requests)
    # A page more than needed is what transformers takes at times, and layers of other kinds have pages of their own.
    pages = math.ceil((longest + max_new_tokens) / page) + 1
    kinds = len(set(getattr(language_model.config.get_text_config(), "layer_types", None) or [None]))
    rows = min(rows, len(requests))
    return ContinuousBatchingConfig(
        num_blocks=rows * pages * kinds,
        max_batch_tokens=max(rows, min(rows * longest, _MOST_TOKENS_A_PASS)),
        max_requests_per_batch=rows,
        safety_margin=0.0,
        **options,
    )


def answer_requests(
    language_model: Any,
    requests: Sequence[Request],
    config: GenerationConfig,
    batching: Any = None,
    image_token_id: int | None = None,
) -> list[Any]:
    """Has transformers answer requests.

    Args:
        language_model (`PreTrainedModel`): A causal one.
        requests (`Sequence[Request]`): Prompts with images.
        config (`GenerationConfig`): Of `checked_config`.
        batching (`ContinuousBatchingConfig`, *optional*): By default transformers' own, which fills the device's memory.
        image_token_id (`int`, *optional*): The placeholder.

    Returns:
        `list[GenerationOutput]`: One a request, in order.

    Raises:
        ValueError: Under autocast.
        RuntimeError: If transformers gives no answer to a request.
    """
    if torch.is_autocast_enabled(language_model.device.type):
        raise ValueError(
            "continuous batching runs in a thread of its own, which autocast does not reach: use generate"
        )
    if not requests:
        return []
    first_id = max(language_model.get_input_embeddings().weight.shape[0], (image_token_id or 0) + 1)
    prompts = numbered_prompts(requests, image_token_id, first_id)
    features = torch.cat([request.features for request in requests])
    attention = language_model.config._attn_implementation
    try:
        with image_tokens(language_model, features, first_id):
            found = _finished(language_model, prompts, config, batching)
    finally:
        # It changes the attention to its own.
        language_model.set_attn_implementation(attention)
    failed = [str(answer.error) for answer in found if answer is not None and answer.error is not None]
    answers = [answer for answer in found if answer is not None and answer.error is None]
    if len(answers) < len(prompts):
        reason = f": {failed[0]}" if failed else ""
        raise RuntimeError(f"{len(prompts) - len(answers)} of {len(prompts)} requests got no answer{reason}")
    return answers


def _finished(language_model: Any, prompts: list[list[int]], config: GenerationConfig, batching: Any) -> list[Any]:
    """What transformers has for each prompt in the end, in order; `None` where it has nothing."""
    batching = copy.deepcopy(batching)
    if batching is not None:
        # All are there from the beginning, so that which go through a pass together is the same every time.
        batching.max_queue_size = 0
    # Its `generate_batch`, interrupted, would leave a thread behind that answers the rest.
    manager = language_model.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
    found: dict[str, Any] = {}
    try:
        names: list[str] = manager.add_requests(prompts, max_new_tokens=config.max_new_tokens)
        manager.start()
        while len(found) < len(names):
            is_running = manager.is_running()
            output = manager.get_result(timeout=1)
            if output is not None and output.is_finished():
                found[output.request_id] = output
            elif output is None and not is_running:
                break
    finally:
        manager.stop(hard_stop=True)
        manager.destroy()
    return [found.get(name) for name in names]


def numbered_prompts(requests: Sequence[Request], image_token_id: int | None, first_id: int) -> list[list[int]]:
    """Prompts whose placeholders are numbered from `first_id` on, through all requests in reading order."""
    numbers = itertools.count(first_id)
    return [[next(numbers) if one == image_token_id else one for one in request.input_ids] for request in requests]


class EmbeddingWithImages(nn.Module):
    """An embedding of words with more rows, for image features.

    Args:
        words (`nn.Module`): The language model's own.
        features (`torch.Tensor`): Shape (features, hidden).
        first_id (`int`): Id of the first feature; ids below it are words.
    """

    def __init__(self, words: nn.Module, features: torch.Tensor, first_id: int) -> None:
        super().__init__()
        self.words, self.features, self.first_id = words, features, first_id

    @property
    def weight(self) -> Any:
        """Of the words."""
        return self.words.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (..., hidden)."""
        is_image = input_ids >= self.first_id
        words: torch.Tensor = self.words(input_ids.masked_fill(is_image, 0))
        images = self.features[(input_ids - self.first_id).clamp(0, len(self.features) - 1)]
        return torch.where(is_image.unsqueeze(-1), images.to(words.dtype), words)


@contextlib.contextmanager
def image_tokens(language_model: Any, features: torch.Tensor, first_id: int) -> Iterator[None]:
    """Within it ids from `first_id` on stand for features."""
    words = language_model.get_input_embeddings()
    if not len(features):
        yield
        return
    language_model.set_input_embeddings(EmbeddingWithImages(words, features, first_id))
    try:
        yield
    finally:
        language_model.set_input_embeddings(words)


__all__ = [
    "ROWS_ON_CPU",
    "TAKEN",
    "EmbeddingWithImages",
    "Request",
    "answer_requests",
    "check_language_model",
    "checked_config",
    "image_tokens",
    "not_taken",
    "numbered_prompts",
    "requests_of",
    "sized_config",
]
