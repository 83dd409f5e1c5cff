"""The Q-Former as a model: masks, the images that rows share, and the layers; the families embed queries and text."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from ..attention import check_attentions_available, kernel_choice
from ..composition import load_part
from ..model_part import ModelPart, as_input_of, value_or_default
from .configuration_qformer import QFormerConfig
from .packed_text import PackedText
from .qformer import QFormerEncoder
from .qformer_from_bert import bert_shape, copy_bert_weights
from .shared_images import SharedImages


# Implementations whose results packing gives; others are what a caller asked for by name, or return probabilities.
_PACKS = ("sdpa", "triton")


class QFormerModel(ModelPart):
    """Layers of queries and text; a family builds embeddings and ``encoder``, and adds its configuration class and a
    ``forward``."""

    config: QFormerConfig
    base_model_prefix = "qformer"
    layernorm_name = "embeddings.layernorm"
    encoder: QFormerEncoder

    def encode(
        self,
        states: torch.Tensor,
        query_length: int,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        encoder_index: torch.Tensor | None = None,
        encoder_keys_and_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        queries_only: bool = False,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Run the layers on normalised states, queries first.

        Args:
            states (`torch.Tensor`): Shape (batch, queries + text, hidden).
            query_length (`int`): Number of queries; the rest is text.
            attention_mask (`torch.Tensor`, *optional*):
                Shape (batch, queries + text), 1 where a position counts; or an additive float mask of shape
                (batch, 1, queries + text, queries + text). With SDPA and much padding nothing is computed for it, and
                states there come out as zeros; on an accelerator only if the mask is in the memory of the CPU.
            encoder_hidden_states (`torch.Tensor`, *optional*): Shape (batch, image tokens, image hidden), or with
                ``encoder_index`` (images, image tokens, image hidden).
            encoder_attention_mask (`torch.Tensor`, *optional*): Shape (batch, image tokens) or (images, image tokens).
            output_hidden_states (`bool`, *optional*): Also return the states before and after every layer.
            output_attentions (`bool`, *optional*): Also return self- and cross-attentions; needs eager attention.
            return_dict (`bool`, *optional*): `False` for a tuple.
            encoder_index (`torch.LongTensor`, *optional*):
                Shape (batch,), the image that each row reads, so that rows share its keys and values.
            encoder_keys_and_values (`Sequence[tuple[torch.Tensor, torch.Tensor]]`, *optional*):
                What [`keys_and_values`] made of the image features, in their place.
            queries_only (`bool`, *optional*, defaults to `False`):
                Whether only the queries' states are wanted, so that the last layer makes nothing of the text's.
                ``last_hidden_state`` then has the queries alone, unless states of all layers are asked for, or the text's
                weights of that layer train and would get no gradient.

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`: ``last_hidden_state`` (batch, queries + text, hidden).

        Raises:
            ValueError: If the queries have no image to read, or a mask of four dimensions is boolean.
        """
        output_hidden_states = value_or_default(output_hidden_states, self.config.output_hidden_states)
        output_attentions = value_or_default(output_attentions, self.config.output_attentions)
        check_attentions_available(self.config, output_attentions)
        self_mask: Any = None
        packed = None
        if attention_mask is not None:
            if attention_mask.dim() == 4 and not attention_mask.is_floating_point():
                # Eager attention would add it as zeros and ones.
                raise ValueError(
                    f"an attention_mask of four dimensions is added to the scores and must be of a floating type, got "
                    f"{attention_mask.dtype}"
                )
            implementation = self.config._attn_implementation or "eager"
            if attention_mask.dim() == 4 and implementation.startswith(("flex", "flash", "paged")):
                raise ValueError(
                    f"{implementation} attention takes no mask of four dimensions, which matching and the first stage need: "
                    "use eager or sdpa for the Q-Former"
                )
            if implementation in _PACKS and not output_hidden_states and states.shape[1] > query_length:
                packed = PackedText.of(attention_mask, query_length, states)
            if packed is None:
                self_mask = bidirectional_mask(self.config, states, attention_mask)
        source = encoder_keys_and_values[0][0] if encoder_keys_and_values else encoder_hidden_states
        shared = None
        if encoder_index is not None and source is not None:
            may_use_kernels = kernel_choice(self.config) != "torch" and not torch.compiler.is_compiling()
            shared = SharedImages.of(encoder_index, source.shape[0]).to(states.device, may_use_kernels)
        cross_mask: Any = None
        if encoder_attention_mask is not None and source is not None:
            queries = states[:, :query_length]
            if shared is not None:
                queries = shared.like_gathered(queries)
                encoder_attention_mask = shared.copy_keys(encoder_attention_mask)
            # Of the source the shape alone is read, and the mask may have a row for every row of queries.
            cross_mask = bidirectional_mask(
                self.config, queries, encoder_attention_mask, source[:1].expand(len(queries), -1, -1)
            )
        queries_only = (
            queries_only and not output_hidden_states and not output_attentions and self._can_leave_text(self_mask)
        )
        encoded = self.encoder(
            states if packed is None else packed.pack(states),
            encoder_hidden_states,
            self_mask,
            cross_mask,
            query_length,
            output_hidden_states,
            output_attentions,
            shared,
            encoder_keys_and_values,
            queries_only,
            packed,
        )
        if packed is not None:
            last = encoded.last_hidden_state
            encoded["last_hidden_state"] = packed.split(last)[0] if queries_only else packed.unpack(last)
        outputs = BaseModelOutputWithPoolingAndCrossAttentions(
            pooler_output=encoded.last_hidden_state[:, 0], **encoded
        )
        return outputs if value_or_default(return_dict, self.config.return_dict) else outputs.to_tuple()

    def keys_and_values(self, encoder_hidden_states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What every layer with cross-attention makes of image features, whatever is asked about them.

        Args:
            encoder_hidden_states (`torch.Tensor`): Shape (images, image tokens, image hidden).

        Returns:
            `list[tuple[torch.Tensor, torch.Tensor]]`: Keys and values, each of shape (images, image tokens, hidden).
        """
        states = as_input_of(self._image_readers()[0].key, encoder_hidden_states)
        return [reader.keys_and_values(states) for reader in self._image_readers()]

    def key_and_value_layers(self) -> list[torch.nn.Module]:
        """What [`keys_and_values`] computes with."""
        return [part for reader in self._image_readers() for part in (reader.key, reader.value)]

    def _image_readers(self) -> list[Any]:
        layers: list[Any] = [layer for layer in self.encoder.layer if layer.has_cross_attention]
        return [layer.crossattention.attention for layer in layers]

    def _can_leave_text(self, self_mask: Any) -> bool:
        implementation = self.config._attn_implementation or "eager"
        if self_mask is not None and implementation not in ("eager", "sdpa", "triton"):
            return False  # masks of other forms tell queries and keys apart by their number
        last: Any = self.encoder.layer[-1]
        text_parts = [getattr(last, name) for name in ("intermediate", "output") if hasattr(last, name)]
        trains = any(parameter.requires_grad for part in text_parts for parameter in part.parameters())
        return not (trains and torch.is_grad_enabled())


def bidirectional_mask(
    config: Any, states: torch.Tensor, attention_mask: torch.Tensor, source: torch.Tensor | None = None
) -> Any:
    """The mask as the attention implementation takes it, made without waiting for an accelerator.

    Args:
        config ([`QFormerConfig`]): Says which implementation.
        states (`torch.Tensor`): Shape (batch, queries, hidden), what attends.
        attention_mask (`torch.Tensor`): Shape (batch, keys), or of four dimensions, which stays as it is.
        source (`torch.Tensor`, *optional*): Shape (batch, keys, hidden), what is attended to, if not ``states``.

    Returns:
        `torch.Tensor`, or `None` where nothing is left out, which is looked for on the CPU alone.
    """
    is_plain = attention_mask.dim() == 2 and config._attn_implementation in (None, "eager", "sdpa")
    if is_plain and states.device.type != "cpu":
        return mask_without_looking(config, states, attention_mask)
    return create_bidirectional_mask(
        config=config, inputs_embeds=states, attention_mask=attention_mask, encoder_hidden_states=source
    )


def mask_without_looking(config: Any, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mask for SDPA or eager attention, also where nothing is left out; see [`bidirectional_mask`]."""
    counts = attention_mask.to(states.device, torch.bool)[:, None, None]  # [batch, 1, 1, keys]
    if config._attn_implementation == "sdpa":
        return counts
    lowest = torch.finfo(states.dtype).min
    return torch.zeros_like(counts, dtype=states.dtype).masked_fill(~counts, lowest)


AnyQFormer = TypeVar("AnyQFormer", bound=QFormerModel)


def build_qformer(
    qformer_class: type[AnyQFormer],
    source: str | os.PathLike[str] | PreTrainedModel | None,
    image_hidden_size: int,
    config: QFormerConfig | None = None,
) -> AnyQFormer:
    """New Q-Former, a given or saved one, or one that starts from a BERT.

    Args:
        qformer_class (`type`): The family's Q-Former.
        source (`str`, `os.PathLike` or `PreTrainedModel`, *optional*): Q-Former or BERT; `None` for a new one.
        image_hidden_size (`int`): Width of the image features.
        config ([`QFormerConfig`], *optional*): Of a new Q-Former, or of one that starts from a BERT, whose shape it
            must have.

    Returns:
        [`QFormerModel`]: Of the class that was asked for.

    Raises:
        ValueError: If the source is neither, or was made for image features of another width.
        KeyError: If the source lacks weights.
    """
    new_config: Any = qformer_class.config_class
    if source is None:
        config = copy.deepcopy(config) if config is not None else new_config()
        config.encoder_hidden_size = image_hidden_size
        return qformer_class(config)
    model = source if isinstance(source, PreTrainedModel) else load_part(source)
    if isinstance(model, qformer_class):
        if model.config.encoder_hidden_size != image_hidden_size:
            raise ValueError(
                f"the Q-Former was made for image features of width {model.config.encoder_hidden_size}, the vision "
                f"tower's have {image_hidden_size}"
            )
        return model
    if model.config.model_type != "bert":
        raise ValueError(
            f"qformer is of type {model.config.model_type!r}; it can be a Q-Former of the family "
            f"({new_config.model_type!r}) or a BERT"
        )
    config = copy.deepcopy(config) if config is not None else new_config(**bert_shape(model.config))
    config.encoder_hidden_size = image_hidden_size
    qformer = qformer_class(config)
    copy_bert_weights(
        model, dict(qformer.named_parameters()), config.use_qformer_text_input, qformer_class.layernorm_name
    )
    return qformer


__all__ = ["QFormerModel", "bidirectional_mask", "build_qformer"]
