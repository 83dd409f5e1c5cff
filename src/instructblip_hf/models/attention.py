"""Attention shared by the vision tower and the Q-Former, behind transformers' `AttentionInterface`.

The name ``"triton"`` (`transformers_hooks.py`) is for the Q-Former, ours and stock's: `triton_mask` hands it the padding of
keys as it is, and `triton_attention` the kernels. Everything else that bears the name computes as with ``"sdpa"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..kernels import cross_attention, log_once, measured_faster


QFORMERS = ("instructblip_qformer", "blip_2_qformer")
"""Model types that the kernels were made for."""


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, the reference that every other implementation is compared with.

    Args:
        module (`nn.Module`): Caller, for its training flag.
        query (`torch.Tensor`): Shape (batch, heads, queries, head size).
        key (`torch.Tensor`): Shape (batch, heads, keys, head size).
        value (`torch.Tensor`): Shape (batch, heads, keys, head size).
        attention_mask (`torch.Tensor`, *optional*): Additive, broadcast to (batch, heads, queries, keys).
        scaling (`float`): Factor on the scores.
        dropout (`float`, *optional*, defaults to 0.0): Dropout of the probabilities.

    Returns:
        `tuple`: Output of shape (batch, queries, heads, head size) and probabilities (batch, heads, queries, keys).
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by the implementation that ``module.config`` names; shapes as in [`eager_attention`].

    ``module`` carries ``config``, ``scaling`` and ``is_causal``, as implementations registered with
    transformers expect.
    """
    name = module.config._attn_implementation
    if name == "sdpa" and attention_mask is None and _is_measured_faster(module, query, key):
        name = "triton"
    if not len(query):
        name = "eager"  # transformers' SDPA cannot shape no rows
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
    return implementation(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout if module.training else 0.0,
        scaling=module.scaling,
    )


def _is_measured_faster(module: Any, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether the kernels were measured to be faster than SDPA for a Q-Former's attention of this shape."""
    if module.config.model_type not in QFORMERS:
        return False
    rows, heads, queries, size = query.shape
    shape = {"rows": rows, "images": rows, "queries": queries, "keys": key.shape[2], "heads": heads, "head_size": size}
    return measured_faster("cross_attention", (query, key), **shape)


def kernel_choice(config: Any) -> str | None:
    """What a Q-Former hands to the kernels as ``implementation``.

    Args:
        config ([`QFormerConfig`]): Configuration.

    Returns:
        `str`, *optional*: `"triton"` where ``attn_implementation`` names it, `None` under `"sdpa"`, for Triton where
        measurements say that it is faster, and `"torch"` under every other name.
    """
    return {"triton": "triton", "sdpa": None}.get(config._attn_implementation, "torch")


def fuses_norm(config: Any, norm: nn.Module, projected: torch.Tensor) -> bool:
    """Whether the end of a Q-Former's sub-layer goes to the kernel.

    Args:
        config ([`QFormerConfig`]): Configuration.
        norm (`nn.Module`): The LayerNorm. What others have put hooks on, or in its place, is called as a module: sharded
            and offloaded weights are there only then.
        projected (`torch.Tensor`): Shape (..., hidden), the product of the projection.
    """
    choice = kernel_choice(config)
    if choice == "torch" or type(norm) is not nn.LayerNorm or "forward" in vars(norm):
        return False
    if norm._forward_pre_hooks or norm._forward_hooks:
        return False
    if choice == "triton":
        return True
    rows, hidden = projected[..., 0].numel(), projected.shape[-1]
    return measured_faster("dropout_add_layer_norm", (projected,), rows=rows, hidden=hidden)


def triton_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The implementation ``"triton"``: kernels for the Q-Former, SDPA where they do not apply, which is logged once.

    Shapes as in [`eager_attention`]; ``attention_mask`` is what [`triton_mask`] made: keys that count, of shape (batch,
    keys), or SDPA's mask of four dimensions.
    """
    reason = _why_not_kernels(module, query, key, attention_mask, kwargs)
    if reason is not None:
        model_type = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        if not torch.compiler.is_compiling():
            log_once(f"{model_type} uses SDPA, not attn_implementation='triton': {reason}")
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, :]
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    output = cross_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        key_mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout_p=dropout,
        implementation="triton",
    )
    return output, None


def _why_not_kernels(
    module: Any, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, kwargs: dict[str, Any]
) -> str | None:
    if getattr(getattr(module, "config", None), "model_type", None) not in QFORMERS:
        return "the kernels are for the Q-Former"
    if attention_mask is not None and attention_mask.dim() != 2:
        return "a mask with rows of its own for queries, as the first stage has, is not in the kernels"
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and is_causal and query.shape[2] > 1:
        return "causal attention is not in the kernels"
    if kwargs.get("position_bias") is not None or len(query) != len(key) or query.shape[1] != key.shape[1]:
        return "biases of positions, and heads or rows that are shared, are not in the kernels"
    return None


def triton_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask for ``"triton"``: for a Q-Former's padding the keys that count, for everything else SDPA's.

    It is called as transformers' mask functions are; nothing is read back from the device.

    Returns:
        `torch.BoolTensor`, *optional*: Shape (batch, keys), or SDPA's (batch, 1, queries, keys).
    """
    mask = kwargs.get("attention_mask")
    is_padding_of_qformer = (
        not args
        and getattr(kwargs.get("config"), "model_type", None) in QFORMERS
        and kwargs.get("mask_function") is bidirectional_mask_function
        and isinstance(kwargs.get("kv_offset", 0), int)
        and not kwargs.get("kv_offset", 0)
        and (mask is None or (mask.dim() == 2 and mask.shape[1] == kwargs.get("kv_length")))
    )
    return mask if is_padding_of_qformer else sdpa_mask(*args, **kwargs)


def check_attentions_available(config: Any, output_attentions: bool) -> None:
    """Raise where attention probabilities are asked of an implementation that never forms them.

    Raises:
        ValueError: If ``output_attentions`` is set and the implementation is not eager.
    """
    if output_attentions and config._attn_implementation not in (None, "eager"):
        raise ValueError(
            f"output_attentions=True needs attn_implementation='eager' for {config.model_type}, "
            f"got {config._attn_implementation!r}; set it at loading or with model.set_attn_implementation('eager')"
        )


__all__ = [
    "QFORMERS",
    "attend",
    "check_attentions_available",
    "eager_attention",
    "fuses_norm",
    "kernel_choice",
    "triton_attention",
    "triton_mask",
]
