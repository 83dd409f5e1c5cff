"""What a language model remembers of a prompt, and what it predicts after continuations of it.

A prompt is read once. Continuations come either as a tree, all of its nodes in one row with a mask that lets each see
its own ancestors, or as rows of their own, each with a copy of the prompt's keys and values. The tree is the faster
one, and the first nodes are read together with the prompt, so that a small tree costs no pass of its own. It needs a
model whose positions can be told apart from places in the cache. Rows work with every model that has a cache.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True)
class TokenTree:
    """Continuations of prompts, each node a token after its ancestors.

    Args:
        tokens (`torch.LongTensor`): Shape (batch, nodes), or (1, nodes) for the same of all prompts.
        depths (`torch.LongTensor`): Of the same shape, 0 for a node right after the prompt.
        visible (`torch.BoolTensor`): Shape (batch, nodes, nodes): who sees whom, itself among them.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    visible: torch.Tensor

    def expand(self, batch: int) -> TokenTree:
        """The tree for each of `batch` prompts."""
        return TokenTree(
            self.tokens.expand(batch, -1), self.depths.expand(batch, -1), self.visible.expand(batch, -1, -1)
        )


class CausalPromptState:
    """A prompt as a causal language model has read it.

    Args:
        language_model (`PreTrainedModel`): With a head.
        inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden).
        attention_mask (`torch.Tensor`): Shape (batch, tokens); padding may stand anywhere.
        tree (`TokenTree`, *optional*): Nodes to read in the same pass, of a model that `takes_trees`.
        is_all (`bool`, *optional*, defaults to `False`): Whether nothing is read after this, so that nothing is kept.

    Attributes:
        next_logits (`torch.Tensor`): Shape (batch, vocabulary), for the token after the prompt.
        tree_logits (`torch.Tensor` or `None`): Shape (batch, nodes, vocabulary), after each node of `tree`.
    """

    def __init__(
        self,
        language_model: Any,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        tree: TokenTree | None = None,
        is_all: bool = False,
    ) -> None:
        self.model = language_model
        # So that every row's last token stands last.
        embeds, self.mask = _gather_padding(inputs_embeds, attention_mask, at_end=False)
        self.lengths = self.mask.sum(1)  # [batch]
        self._parameters = inspect.signature(language_model.forward).parameters
        options: dict[str, Any] = {}
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        nodes, mask = 0, self.mask.long()
        if tree is not None:
            tree = tree.expand(len(embeds))
            nodes = tree.tokens.shape[1]
            embeds = torch.cat([embeds, language_model.get_input_embeddings()(tree.tokens).to(embeds.dtype)], dim=1)
            positions = torch.cat([positions, self.lengths[:, None] + tree.depths], dim=1)
            mask = _additive(_seen_with_prompt(self.mask, tree), embeds.dtype).unsqueeze(1)
        if "logits_to_keep" in self._parameters:
            options["logits_to_keep"] = nodes + 1
        if "position_ids" in self._parameters:
            options["position_ids"] = positions
        outputs = language_model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=not is_all, return_dict=True, **options
        )
        self.next_logits = outputs.logits[:, -1 - nodes]
        self.tree_logits = outputs.logits[:, -nodes:] if tree is not None else None
        cache: Any = outputs.past_key_values
        if nodes and not is_all:
            cache.crop(-nodes)
        self._cache = None if is_all else cache

    @staticmethod
    def takes_trees(language_model: Any) -> bool:
        """Whether a tree gives what the model itself would."""
        config = language_model.config.get_text_config()
        return (
            config._attn_implementation in ("eager", "sdpa")
            and "position_ids" in inspect.signature(language_model.forward).parameters
            # Their biases are computed from places in the cache.
            and not any(getattr(config, name, False) for name in ("alibi", "use_alibi"))
            and not getattr(language_model, "_is_stateful", False)
            and _is_plain(DynamicCache(config=config))
        )

    @property
    def reads_trees(self) -> bool:
        """Whether `tree` gives what the model itself would."""
        return self.takes_trees(self.model) and _is_plain(self._cache)

    def tree(self, tree: TokenTree) -> torch.Tensor:
        """Logits after every node of a tree, of shape (batch, nodes, vocabulary)."""
        tree = tree.expand(len(self.mask))
        seen = _seen_by_nodes(self.mask, tree)
        outputs = self.model(
            input_ids=tree.tokens,
            attention_mask=_additive(seen, self.next_logits.dtype).unsqueeze(1),  # [batch, 1, nodes, prompt + nodes]
            position_ids=self.lengths[:, None] + tree.depths,
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
        _select_logits(selected, row)
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

    def __init__(
        self,
        language_model: Any,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        tree: TokenTree | None = None,
        is_all: bool = False,
    ) -> None:
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
        ids = torch.full((len(self.mask), 1), start, device=inputs_embeds.device)
        options: dict[str, Any] = {}
        if tree is not None:
            tree = tree.expand(len(ids))
            ids = torch.cat([ids, tree.tokens], dim=1)
            options["decoder_attention_mask"] = self._tree_mask(tree, in_cache=0)
        outputs = language_model(
            encoder_outputs=self.encoder_outputs,
            attention_mask=self.mask.long(),
            decoder_input_ids=ids,
            use_cache=not is_all,
            return_dict=True,
            **options,
        )
        self.next_logits = outputs.logits[:, 0]
        self.tree_logits = outputs.logits[:, 1:] if tree is not None else None
        cache: Any = outputs.past_key_values
        if tree is not None and not is_all:
            cache.self_attention_cache.crop(-tree.tokens.shape[1])
        self._cache = None if is_all else cache

    @staticmethod
    def takes_trees(language_model: Any) -> bool:
        """Whether a tree gives what the model itself would: where positions are T5's bias, of the first layer alone."""
        config = language_model.config
        return config.model_type in ("t5", "mt5") and config._attn_implementation in ("eager", "sdpa")

    @property
    def reads_trees(self) -> bool:
        """As `CausalPromptState.reads_trees`."""
        return self.takes_trees(self.model)

    def _tree_mask(self, tree: TokenTree, in_cache: int) -> torch.Tensor:
        """Of shape (batch, heads, nodes that are read, start token + nodes); the start token is in the cache or is read."""
        attention = self.model.get_decoder().block[0].layer[0].SelfAttention
        places = nn.functional.pad(tree.depths + 1, (1, 0))  # [batch, start token + nodes]
        distances = places[:, None] - places[:, in_cache:, None]
        buckets = attention._relative_position_bucket(
            distances,
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias = attention.relative_attention_bias(buckets).permute(0, 3, 1, 2)
        # The model adds the bias of places in the cache; the mask takes it out again.
        width = places.shape[1]
        added = attention.compute_bias(
            width - in_cache, width, device=places.device, past_seen_tokens=in_cache
        )  # [1, heads, nodes that are read, start token + nodes]
        seen = nn.functional.pad(tree.visible, (1, 0, 1, 0), value=True)
        seen[:, 0, 1:] = False  # the start token sees itself alone
        return (bias - added).masked_fill(~seen[:, None, in_cache:], torch.finfo(bias.dtype).min)

    def tree(self, tree: TokenTree) -> torch.Tensor:
        """As `CausalPromptState.tree`."""
        tree = tree.expand(len(self.mask))
        outputs = self.model(
            encoder_outputs=self.encoder_outputs,
            attention_mask=self.mask.long(),
            decoder_input_ids=tree.tokens,
            decoder_attention_mask=self._tree_mask(tree, in_cache=1),
            past_key_values=_copy_of(self._cache),
            use_cache=True,
            return_dict=True,
        )
        return outputs.logits

    def select(self, row: int) -> Seq2SeqPromptState:
        """The state of one prompt alone."""
        rows = torch.tensor([row], device=self.mask.device)
        selected = copy.copy(self)
        selected.mask, selected.encoder_outputs = self.mask[rows], self._encoded(rows)
        _select_logits(selected, row)
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


def _select_logits(state: Any, row: int) -> None:
    """Cuts what a state has of logits and cache down to one prompt."""
    state.next_logits = state.next_logits[row : row + 1]
    if state.tree_logits is not None:
        state.tree_logits = state.tree_logits[row : row + 1]
    if state._cache is not None:
        state._cache = _copy_of(state._cache)
        state._cache.batch_select_indices(torch.tensor([row], device=state.mask.device))


def _is_plain(cache: Any) -> bool:
    """Whether a cache holds keys and values of all tokens, in their order."""
    return all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", [None]))


def _seen_by_nodes(mask: torch.Tensor, tree: TokenTree) -> torch.Tensor:
    """What the nodes see of prompt and nodes, of shape (batch, nodes, prompt + nodes)."""
    return torch.cat([mask[:, None].expand(-1, tree.tokens.shape[1], -1), tree.visible], dim=2)


def _seen_with_prompt(mask: torch.Tensor, tree: TokenTree) -> torch.Tensor:
    """Who sees whom among prompt and nodes, of shape (batch, prompt + nodes, prompt + nodes)."""
    width, nodes = mask.shape[1], tree.tokens.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    # Padding sees itself, as a row that sees nothing may become NaN.
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    of_prompt = nn.functional.pad((causal & mask[:, None]) | itself, (0, nodes), value=False)
    return torch.cat([of_prompt, _seen_by_nodes(mask, tree)], dim=1)


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


__all__ = ["CausalPromptState", "Seq2SeqPromptState", "TokenTree"]
