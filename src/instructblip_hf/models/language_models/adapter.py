"""What differs between a causal and a sequence-to-sequence language model, in one place.

Stateless: the functions take the language model, so the base model holds no copy of either case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from ...constants import IGNORE_INDEX
from .label_losses import losses_at_labels


def build_language_model(text_config: PreTrainedConfig, is_encoder_decoder: bool) -> PreTrainedModel:
    """New language model with its head: `AutoModelForSeq2SeqLM` or `AutoModelForCausalLM` of the configuration."""
    auto_class = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    return auto_class.from_config(text_config)


def padding_side(is_encoder_decoder: bool) -> str:
    """The side that prompts are padded on for generation: a causal model goes on from the right end of every row."""
    return "right" if is_encoder_decoder else "left"


def run_language_model(
    language_model: Any,
    is_encoder_decoder: bool,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None = None,
    decoder_input_ids: torch.Tensor | None = None,
    decoder_attention_mask: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    without_head: bool = False,
    logits_at_labels: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
    """Run the language model on image features and prompt, and compute the loss on its labels.

    Args:
        language_model (`PreTrainedModel`): A full causal or sequence-to-sequence model.
        is_encoder_decoder (`bool`): Which of the two it is.
        inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden): prompt with the image features in place.
        attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens).
        labels (`torch.LongTensor`, *optional*):
            Causal: shape (batch, tokens), aligned with the inputs and shifted here. Sequence-to-sequence: shape
            (batch, target tokens). -100 is left out of the loss.
        decoder_input_ids (`torch.LongTensor`, *optional*): Sequence-to-sequence only; by default from ``labels``.
        decoder_attention_mask (`torch.Tensor`, *optional*): Sequence-to-sequence only.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*):
            Divisor of the summed loss, as Trainer hands it over under gradient accumulation; by default the mean
            over the batch's own labels.
        without_head (`bool`, *optional*, defaults to `False`):
            Causal only: run the decoder alone, whose output has ``last_hidden_state`` and no ``logits``.
        logits_at_labels (`bool`, *optional*, defaults to `False`):
            Whether to compute logits where there are labels alone, in chunks that are not kept; see `label_losses`.
        kwargs: For the language model.

    Returns:
        `tuple`: Loss (or `None` without labels), the language model's output, and with ``logits_at_labels`` the losses
        of the labels, of shape (labels that are not -100,) without a gradient; the output's ``logits`` are then `None`.

    Raises:
        ValueError: If ``logits_at_labels`` comes without labels or does not suit the language model.
    """
    kwargs.update(inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    if without_head:
        return None, language_model.base_model(return_dict=True, **kwargs), None
    targets = labels
    if is_encoder_decoder:
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = language_model.prepare_decoder_input_ids_from_labels(labels)
        kwargs.update(decoder_input_ids=decoder_input_ids, decoder_attention_mask=decoder_attention_mask)
    elif labels is not None:
        # Position t predicts token t + 1; the last position has nothing to predict.
        targets = nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
    if logits_at_labels:
        if targets is None:
            raise ValueError(
                "logits_at_labels=True needs labels: without them there is no position to compute logits at"
            )
        losses, outputs = losses_at_labels(language_model, is_encoder_decoder, targets, **kwargs)
        return _divide(losses.sum(), num_items_in_batch, len(losses)), outputs, losses.detach()
    outputs = language_model(return_dict=True, **kwargs)
    if targets is None:
        return None, outputs, None
    return token_cross_entropy(outputs.logits, targets, num_items_in_batch), outputs, None


def token_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy over the targets that are not -100, in float32.

    Args:
        logits (`torch.Tensor`): Shape (batch, tokens, vocabulary).
        targets (`torch.LongTensor`): Shape (batch, tokens).
        num_items_in_batch (`int` or `torch.Tensor`, *optional*): Divisor; by default the number of targets.

    Returns:
        `torch.Tensor`: Scalar, in nats a token.
    """
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten().to(logits.device),
        ignore_index=IGNORE_INDEX,
        reduction=reduction,
    )
    return loss if num_items_in_batch is None else _divide(loss, num_items_in_batch, 1)


def _divide(total: torch.Tensor, num_items_in_batch: torch.Tensor | int | None, targets: int) -> torch.Tensor:
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / (targets if num_items_in_batch is None else num_items_in_batch)


__all__ = ["build_language_model", "padding_side", "run_language_model", "token_cross_entropy"]
