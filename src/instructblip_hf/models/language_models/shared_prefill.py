"""Beam search and several samples a prompt with one reading of the prompt.

transformers' ``generate`` repeats a prompt for each beam before it is read. Rows that are equal have equal keys, values and
logits, so here each prompt is read once, and its cache and logits are repeated after that. All else is transformers' own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


logger = logging.getLogger(__name__)


@contextlib.contextmanager
def prompts_read_once(language_model: Any) -> Iterator[None]:
    """Within it ``generate`` of a causal language model reads a prompt once, however many beams or samples it has.

    What cannot be repeated is read as before, with the reason in the log: caches of fixed size, hidden states and attentions
    that are to be returned, prompts that are read in chunks or go on from a cache.

    Args:
        language_model (`PreTrainedModel`): Causal, or left as it is.
    """
    if language_model.config.is_encoder_decoder:
        # Its encoder runs before transformers repeats anything.
        yield
        return
    vars(language_model)["_prefill"] = functools.partial(_prefill, language_model)
    try:
        yield
    finally:
        # Another thread may have done so already.
        vars(language_model).pop("_prefill", None)


def _prefill(
    model: Any, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any], **options: Any
) -> Any:
    plain = functools.partial(type(model)._prefill, model)
    copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
    if copies == 1:
        return plain(input_ids, generation_config, model_kwargs, **options)
    reason = _why_not(generation_config, model_kwargs, len(input_ids), copies)
    if reason is not None:
        logger.info("each of %d copies of a prompt is read: %s", copies, reason)
        return plain(input_ids, generation_config, model_kwargs, **options)
    rows = len(input_ids)
    first = {name: value[::copies] if _has_rows(value, rows) else value for name, value in model_kwargs.items()}
    outputs = plain(input_ids[::copies], generation_config, first, **options)
    outputs.past_key_values.batch_repeat_interleave(copies)
    outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
    return outputs


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == rows


def _why_not(generation_config: Any, model_kwargs: dict[str, Any], rows: int, copies: int) -> str | None:
    cache = model_kwargs.get("past_key_values")
    if rows % copies:
        return f"{rows} rows are no multiple of them"
    if type(cache) is not DynamicCache:
        return f"the cache is a {type(cache).__name__}"
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return "layers of the cache cannot be repeated"
    if cache.get_seq_length():
        return "it goes on from a cache"
    if generation_config.prefill_chunk_size is not None:
        return "prefill_chunk_size is set"
    if generation_config.output_hidden_states or generation_config.output_attentions:
        return "hidden states or attentions of it are returned"
    positions = model_kwargs.get("position_ids")
    if positions is not None and positions.ndim != 2:
        return "its positions have several axes"
    return None


__all__ = ["prompts_read_once"]
