"""What a language model remembers of a prompt, and what it predicts after continuations of it.

A prompt is read once. Continuations come either as a tree, all of its nodes in one row with a mask that lets each see
its own ancestors, or as rows of their own, each with a copy of the prompt's keys and values. The tree is the faster
one; it needs a model whose positions can be told apart from places in the cache. Rows work with every model that has a
cache.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput


class CausalPromptState:
    """A prompt as a causal language model has read it.

    Args:
        language_model (`PreTrainedModel`): With a head.
        inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden).
        attention_mask (`torch.Tensor`): Shape (batch, tokens); padding may stand anywhere.

    Attributes:
        next_logits (`torch.Tensor`): Shape (batch, vocabulary), for the token after the prompt.
    """

    def __init__(self, language_model: Any, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> None:
        self.model = language_model
        # So that every row's last token stands last.
        embeds, self.mask = _gather_padding(inputs_embeds, attention_mask, at_end=False)
        self.lengths = self.mask.sum(1)  # [batch]
        self._parameters = inspect.signature(language_model.forward).parameters
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._parameters else {}
        if "position_ids" in self._parameters:
            options["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)
        outputs = language_model(
            inputs_embeds=embeds, attention_mask=self.mask.long(), use_cache=True, return_dict=True, **options
        )
        self.next_logits = outputs.logits[:, -1]
        self._cache = outputs.past_key_values

    @property
    def reads_trees(self) -> bool:
        """Whether `tree` gives what the model itself would."""
        config = self.model.config.get_text_config()
        return (
            config._attn_implementation in ("eager", "sdpa")
            and "position_ids" in self._parameters
            # Their biases are computed from places in the cache.
            and not any(getattr(config, name, False) for name in ("alibi", "use_alibi"))
            and all(type(layer) is DynamicLayer for layer in getattr(self._cache, "layers", [None]))
        )

    def tree(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Logits after every node of a tree, the same for all rows.

        Args:
            tokens (`torch.LongTensor`): Shape (nodes,).
            depths (`torch.LongTensor`): Shape (nodes,), 0 for a node right after the prompt.
            visible (`torch.BoolTensor`): Shape (nodes, nodes): who sees whom, itself among them.

        Returns:
            `torch.Tensor`: Shape (batch, nodes, vocabulary).
        """
        batch, nodes = len(self.mask), len(tokens)
        seen = torch.cat(
            [self.mask[:, None].expand(-1, nodes, -1), visible.expand(batch, -1, -1)], dim=2
        )  # [batch, nodes, prompt + nodes]
        outputs = self.model(
            input_ids=tokens.expand(batch, -1),
            attention_mask=_additive(seen, self.next_logits.dtype).unsqueeze(1),
            position_ids=self.lengths[:, None] + depths,
            past_key_values=_copy_of(self._cache),
            use_cache=True,
            return_dict=True,
        )
        return outputs.logits

    def select(self, row: int) -> CausalPromptState:
        """The state of one prompt alone."""
        rows = torch.tensor([row], device=self.mask.device)
        selected = copy.copy(self)
        selected.mask, selected.lengths = self.mask[rows], self.lengths[rows]
        selected.next_logits = self.next_logits[rows]
        selected._cache = _copy_of(self._cache)
        selected._cache.batch_select_indices(rows)
        return selected

    def rows(self, prompts: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits after every token of continuations.

        Args:
            prompts (`torch.LongTensor`): Shape (rows,): which prompt each continues.
            tokens (`torch.LongTensor`): Shape (rows, tokens), padded on the right.
            mask (`torch.BoolTensor`): Shape (rows, tokens).

        Returns:
            `torch.Tensor`: Shape (rows, tokens, vocabulary).
        """
        cache = _copy_of(self._cache)
        cache.batch_select_indices(prompts)
        options: dict[str, Any] = {}
        if "position_ids" in self._parameters:
            options["position_ids"] = self.lengths[prompts, None] + (mask.cumsum(1) - 1).clamp(min=0)
        outputs = self.model(
            input_ids=tokens,
            attention_mask=torch.cat([self.mask[prompts], mask], dim=1).long(),
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **options,
        )
        return outputs.logits


class Seq2SeqPromptState:
    """A prompt as the encoder of a sequence-to-sequence language model has read it; see `CausalPromptState`."""

    def __init__(self, language_model: Any, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> None:
        self.model = language_model
        # Positions of the encoder are counted from the start of the row.
        inputs_embeds, self.mask = _gather_padding(inputs_embeds, attention_mask, at_end=True)
        start = language_model.config.decoder_start_token_id
        if start is None:
            start = language_model.generation_config.decoder_start_token_id
        if start is None:
            raise ValueError("the language model's configuration needs a decoder_start_token_id")
        self.encoder_outputs = language_model.get_encoder()(
            inputs_embeds=inputs_embeds, attention_mask=self.mask.long(), return_dict=True
        )
        outputs = language_model(
            encoder_outputs=self.encoder_outputs,
            attention_mask=self.mask.long(),
            decoder_input_ids=torch.full((len(self.mask), 1), start, device=inputs_embeds.device),
            use_cache=True,
            return_dict=True,
        )
        self.next_logits = outputs.logits[:, -1]
        self._cache = outputs.past_key_values

    @property
    def reads_trees(self) -> bool:
        """Whether `tree` gives what the model itself would: where positions are T5's bias, of the first layer alone."""
        config = self.model.config
        return config.model_type in ("t5", "mt5") and config._attn_implementation in ("eager", "sdpa")

    def tree(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """As `CausalPromptState.tree`."""
        batch, nodes = len(self.mask), len(tokens)
        attention = self.model.get_decoder().block[0].layer[0].SelfAttention
        places = torch.cat([depths.new_zeros(1), depths + 1])  # of the start token and the nodes
        distances = places[None] - places[1:, None]  # [nodes, 1 + nodes]
        buckets = attention._relative_position_bucket(
            distances,
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias = attention.relative_attention_bias(buckets).permute(2, 0, 1)  # [heads, nodes, 1 + nodes]
        # The model adds the bias of places in the cache; the mask takes it out again.
        in_cache = attention.compute_bias(nodes, 1 + nodes, device=tokens.device, past_seen_tokens=1)[0]
        seen = nn.functional.pad(visible, (1, 0), value=True)
        mask = (bias - in_cache).masked_fill(~seen, torch.finfo(bias.dtype).min)
        outputs = self.model(
            encoder_outputs=self.encoder_outputs,
            attention_mask=self.mask.long(),
            decoder_input_ids=tokens.expand(batch, -1),
            decoder_attention_mask=mask.expand(batch, -1, -1, -1),
            past_key_values=_copy_of(self._cache),
            use_cache=True,
            return_dict=True,
        )
        return outputs.logits

    def select(self, row: int) -> Seq2SeqPromptState:
        """The state of one prompt alone."""
        rows = torch.tensor([row], device=self.mask.device)
        selected = copy.copy(self)
        selected.mask, selected.next_logits = self.mask[rows], self.next_logits[rows]
        selected.encoder_outputs = self._encoded(rows)
        selected._cache = _copy_of(self._cache)
        selected._cache.batch_select_indices(rows)
        return selected

    def _encoded(self, rows: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.encoder_outputs.last_hidden_state[rows])

    def rows(self, prompts: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As `CausalPromptState.rows`."""
        cache = _copy_of(self._cache)
        cache.batch_select_indices(prompts)
        outputs = self.model(
            encoder_outputs=self._encoded(prompts),
            attention_mask=self.mask[prompts].long(),
            decoder_input_ids=tokens,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        return outputs.logits


def _gather_padding(
    inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, at_end: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with all of their padding at one side, and the mask as `torch.BoolTensor`."""
    mask = attention_mask.to(inputs_embeds.device).bool()
    if not bool(mask.any(1).all()):
        raise ValueError("a row of attention_mask is all zero: every row needs a prompt")
    order = (~mask if at_end else mask).long().argsort(dim=1, stable=True)
    return inputs_embeds.gather(1, order.unsqueeze(-1).expand_as(inputs_embeds)), mask.gather(1, order)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _copy_of(cache: Any) -> Any:
    """A cache that grows and is selected from without a change to the one it was made from."""
    if isinstance(cache, EncoderDecoderCache):
        both = copy.copy(cache)
        both.self_attention_cache = _copy_of(cache.self_attention_cache)
        both.cross_attention_cache = _copy_of(cache.cross_attention_cache)
        both.is_updated = dict(cache.is_updated)
        return both
    if not isinstance(cache, Cache):
        raise TypeError(f"the language model keeps a {type(cache).__name__}, which is no cache that can be continued")
    copied = copy.copy(cache)
    # These replace their tensors when they grow; others write into them.
    copied.layers = [
        copy.copy(layer) if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else copy.deepcopy(layer)
        for layer in cache.layers
    ]
    return copied


__all__ = ["CausalPromptState", "Seq2SeqPromptState"]
