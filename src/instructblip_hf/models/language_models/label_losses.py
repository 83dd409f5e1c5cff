"""Cross-entropy at label positions alone, in chunks, for any language model of transformers.

Of a prompt with image placeholders few positions are learnt, and over a vocabulary of 32,000 or 256,000 the logits of the
others are most of the memory of a frozen step. What turns hidden states into logits differs between architectures
(Gemma 2 caps them, Cohere and Granite scale them, T5 scales hidden states, heads have biases or not), so nothing of it is
written again here: the language model's own forward runs, and what its body hands to its head is cut down to the label
positions. More positions than a chunk are handed to the same forward chunk by chunk, with the body held back, and
are computed again in the backward pass, so that no more than one chunk of logits ever exists.

An architecture for which this does not hold (a head that looks at other positions, or at something else than the body's
last hidden state) is found by a comparison with its full logits on a few tokens, once a model, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from ...constants import IGNORE_INDEX


CHUNK_LOGITS = 2**22
"""Logits of a chunk: 16 MiB in float32, 131 positions of a vocabulary of 32,000."""

_CHECKED = "_logits_at_labels_checked"


def losses_at_labels(
    language_model: Any, is_encoder_decoder: bool, targets: torch.Tensor, **inputs: Any
) -> tuple[torch.Tensor, Any]:
    """Run the language model and compute the loss of every target, without logits of other positions.

    Args:
        language_model (`PreTrainedModel`): A full causal or sequence-to-sequence model.
        is_encoder_decoder (`bool`): Which of the two it is.
        targets (`torch.LongTensor`): Shape (batch, tokens), what each position predicts; -100 for nothing.
        inputs: Of the language model's forward.

    Returns:
        `tuple`: Losses in float32 and nats, of shape (targets that are not -100,), in reading order; and the language
        model's output, with ``logits`` `None`.

    Raises:
        ValueError: If the language model's logits do not follow from its body's last hidden states position by position.
    """
    check_logits_at_labels(language_model, is_encoder_decoder)
    return _losses(language_model, is_encoder_decoder, targets, inputs, CHUNK_LOGITS)


def check_logits_at_labels(language_model: Any, is_encoder_decoder: bool) -> None:
    """Compare with the full logits on a few tokens, once a model.

    Raises:
        ValueError: If they differ.
    """
    if getattr(language_model, _CHECKED, False):
        return
    embeddings = language_model.get_input_embeddings()
    device = embeddings.weight.device
    ids = torch.arange(8, device=device).view(2, 4) % language_model.config.vocab_size
    targets = ids.clone()
    targets[0, 1] = targets[1, 0] = IGNORE_INDEX
    training = [module for module in language_model.modules() if module.training]
    language_model.eval()
    try:
        with torch.no_grad():
            inputs: dict[str, Any] = {"inputs_embeds": embeddings(ids), "attention_mask": torch.ones_like(ids)}
            if is_encoder_decoder:
                inputs["decoder_input_ids"] = ids
            logits = language_model(**inputs, return_dict=True).logits
            expected = _cross_entropy(logits[targets != IGNORE_INDEX], targets[targets != IGNORE_INDEX])
            # Whole, and in chunks of one position.
            own = [
                _losses(language_model, is_encoder_decoder, targets, inputs, limit)[0] for limit in (CHUNK_LOGITS, 1)
            ]
    finally:
        for module in training:
            module.training = True
    # Matrix products of another shape round otherwise; what is to be found is off by far more.
    tolerance = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 0.05
    for losses in own:
        difference = (losses - expected).abs().max()
        if not bool(difference <= tolerance * expected.abs().max().clamp(min=1.0)):
            raise ValueError(
                f"logits_at_labels: the logits of {type(language_model).__name__} do not follow from its last hidden "
                f"states position by position (losses differ by {float(difference):.3g}); use logits_at_labels=False"
            )
    setattr(language_model, _CHECKED, True)


def assume_logits_at_labels(language_model: Any) -> None:
    """Leaves out `check_logits_at_labels`, for a model without values."""
    setattr(language_model, _CHECKED, True)


def _losses(
    language_model: Any, is_encoder_decoder: bool, targets: torch.Tensor, inputs: dict[str, Any], chunk_logits: int
) -> tuple[torch.Tensor, Any]:
    body = language_model.get_decoder()
    chunk = max(1, chunk_logits // language_model.config.vocab_size)
    kept: dict[str, Any] = {}

    def keep_labels(output: Any) -> Any:
        hidden_states = _hidden_states(output, language_model)
        if hidden_states.shape[:2] != targets.shape:
            raise ValueError(
                f"labels have the shape {tuple(targets.shape)}, the language model's hidden states "
                f"{tuple(hidden_states.shape[:2])}"
            )
        chosen = targets.to(hidden_states.device) != IGNORE_INDEX
        kept["output"], kept["hidden"] = output, hidden_states[chosen]  # [labels, hidden]
        kept["targets"] = targets.to(hidden_states.device)[chosen]
        # More than one chunk comes in other runs; the head is not meant to run on nothing.
        size = len(kept["hidden"])
        return _with_hidden_states(output, kept["hidden"] if 0 < size <= chunk else hidden_states[0, :1])

    with _output_of(body, keep_labels):
        outputs = language_model(**{"use_cache": False, **inputs}, return_dict=True)
    if not kept:
        raise ValueError(
            f"logits_at_labels: {type(language_model).__name__} did not run its decoder {type(body).__name__}; use "
            "logits_at_labels=False"
        )
    hidden, own_targets = kept["hidden"], kept["targets"]
    if len(hidden) == 0:
        # Of no labels, and yet connected to what came before.
        losses = hidden.float().sum(-1)
    elif len(hidden) <= chunk:
        losses = _cross_entropy(outputs.logits[0], own_targets)
    else:
        # Nothing of it but its other fields is needed from here on.
        template = _with_hidden_states(kept.pop("output"), hidden[:1].detach())
        stand_ins = _stand_ins(inputs, is_encoder_decoder)

        def losses_of(states: torch.Tensor, chunk_targets: torch.Tensor) -> torch.Tensor:
            with _held_back(body, _with_hidden_states(template, states)):
                logits = language_model(**stand_ins, use_cache=False, return_dict=True).logits
            return _cross_entropy(logits[0], chunk_targets)

        run: Callable[..., torch.Tensor] = losses_of
        if torch.is_grad_enabled():

            def run(*arguments: torch.Tensor) -> torch.Tensor:
                return checkpoint(losses_of, *arguments, use_reentrant=False)

        losses = torch.cat([run(*part) for part in zip(hidden.split(chunk), own_targets.split(chunk))])
    return losses, type(outputs)(**{name: value for name, value in outputs.items() if name != "logits"})


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")


def _stand_ins(inputs: dict[str, Any], is_encoder_decoder: bool) -> dict[str, Any]:
    """Inputs that a language model's forward can be called with while its body is held back: one token."""
    first = inputs["inputs_embeds"][:1, :1].detach()
    if not is_encoder_decoder:
        return {"inputs_embeds": first}
    return {
        "encoder_outputs": BaseModelOutput(last_hidden_state=first),
        "decoder_input_ids": torch.zeros(1, 1, dtype=torch.long, device=first.device),
    }


# --- the body's output ------------------------------------------------------------------------------------------------


def _hidden_states(output: Any, language_model: Any) -> torch.Tensor:
    hidden_states = output.get("last_hidden_state") if isinstance(output, ModelOutput) else None
    if hidden_states is None:
        raise ValueError(
            f"logits_at_labels: the decoder of {type(language_model).__name__} returns {type(output).__name__} without "
            "last_hidden_state; use logits_at_labels=False"
        )
    return hidden_states


def _with_hidden_states(output: Any, hidden_states: torch.Tensor) -> Any:
    """The output with other hidden states, of shape (positions, hidden), as one row."""
    return type(output)(**{**output, "last_hidden_state": hidden_states.unsqueeze(0)})


@contextmanager
def _output_of(body: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    handle = body.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _held_back(body: Any, output: Any) -> Iterator[None]:
    """The body returns `output` in place of running."""
    own = body.__dict__.get("forward")
    body.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own


__all__ = ["CHUNK_LOGITS", "check_logits_at_labels", "losses_at_labels"]
