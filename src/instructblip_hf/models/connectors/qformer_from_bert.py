"""A Q-Former that starts from a BERT (BLIP-2, arXiv 2301.12597, section 3.1).

Text embeddings, self-attention and text feed-forward layers are BERT's; the queries' feed-forward layers start as
copies of the text's (LAVIS `blip2_qformer.py`); cross-attention stays as initialised. As in LAVIS, BERT's
token-type embeddings and pooler have no place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel


_UNUSED = ("embeddings.token_type_embeddings.", "embeddings.position_ids", "pooler.", "cls.")
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)


def bert_shape(bert_config: Any) -> dict[str, Any]:
    """The options of a BERT configuration that a Q-Former of the same shape has."""
    return {name: getattr(bert_config, name) for name in _SHAPE}


@torch.no_grad()
def copy_bert_weights(
    bert: PreTrainedModel,
    target: Mapping[str, torch.Tensor],
    has_text: bool,
    layernorm: str = "embeddings.layernorm",
) -> list[str]:
    """Copy a BERT's weights into a Q-Former.

    Args:
        bert (`BertModel` or a model with a ``bert`` in it): Source.
        target (`Mapping[str, torch.Tensor]`): Parameters of a Q-Former of the same shape by BERT's names; its text
            embedding may have more rows.
        has_text (`bool`): Whether the Q-Former has a place for text; without it BERT's weights for text are left out.
        layernorm (`str`, *optional*, defaults to `"embeddings.layernorm"`): Name there of the embeddings' layer norm.

    Returns:
        `list[str]`: The parameters that BERT has nothing for and that stay as initialised.

    Raises:
        ValueError: If a shape differs.
        KeyError: If BERT holds a weight without a home here.
    """
    copied: set[str] = set()
    for name, value in getattr(bert, "bert", bert).state_dict().items():
        if name.startswith(_UNUSED):
            continue
        name = name.replace(".attention.self.", ".attention.attention.").replace("embeddings.LayerNorm", layernorm)
        copies = [name]
        for part in ("intermediate", "output"):
            # Feed-forward layers alone: "encoder.layer.0.output.", not "encoder.layer.0.attention.output."
            if ".attention." not in name and f".{part}." in name:
                copies.append(name.replace(f".{part}.", f".{part}_query."))
        for copy_name in copies:
            if copy_name not in target:
                if not has_text:
                    continue
                raise KeyError(f"BERT's weight {name!r} has no place in the Q-Former")
            parameter = target[copy_name]
            rows = parameter[: value.shape[0]] if copy_name == "embeddings.word_embeddings.weight" else parameter
            if rows.shape != value.shape:
                raise ValueError(f"{copy_name} has shape {tuple(parameter.shape)}, BERT's {tuple(value.shape)}")
            rows.copy_(value)
            copied.add(copy_name)
    return sorted(set(target) - copied)


__all__ = ["bert_shape", "copy_bert_weights"]
