"""Names of tensors in LAVIS's files and in folders of transformers' layout, as literal rules for both directions.

In a rule ``{n}`` is a layer's number and ``*`` the rest of the name. One pair of tensors has no rule: LAVIS stores the
query and the value bias of the vision tower's fused projection, whose key bias is zero (`eva_vit.py`), where our
layout has one bias of all three.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from .kinds import Kind


Rule = tuple[str, str]
"""A name in LAVIS's files, and the name in our layout."""

_BLOCK, _LAYER = "visual_encoder.blocks.{n}", "vision_model.encoder.layers.{n}"
VISION: tuple[Rule, ...] = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
    (f"{_BLOCK}.norm1.*", f"{_LAYER}.layer_norm1.*"),
    (f"{_BLOCK}.norm2.*", f"{_LAYER}.layer_norm2.*"),
    (f"{_BLOCK}.attn.qkv.weight", f"{_LAYER}.self_attn.qkv.weight"),
    (f"{_BLOCK}.attn.proj.*", f"{_LAYER}.self_attn.projection.*"),
    (f"{_BLOCK}.mlp.fc1.*", f"{_LAYER}.mlp.fc1.*"),
    (f"{_BLOCK}.mlp.fc2.*", f"{_LAYER}.mlp.fc2.*"),
    ("ln_vision.*", "vision_model.post_layernorm.*"),
)

QUERY_BIAS, VALUE_BIAS = f"{_BLOCK}.attn.q_bias", f"{_BLOCK}.attn.v_bias"
KEY_BIAS = f"{_BLOCK}.attn.k_bias"
"""A name of our own, for a key bias that is kept beside LAVIS's weights."""
FUSED_BIAS = f"{_LAYER}.self_attn.qkv.bias"

_BERT_LAYER, _QFORMER_LAYER = "Qformer.bert.encoder.layer.{n}", "qformer.encoder.layer.{n}"
QFORMER: tuple[Rule, ...] = (
    ("query_tokens", "query_tokens"),
    (f"{_BERT_LAYER}.attention.self.*", f"{_QFORMER_LAYER}.attention.attention.*"),
    (f"{_BERT_LAYER}.attention.output.*", f"{_QFORMER_LAYER}.attention.output.*"),
    (f"{_BERT_LAYER}.crossattention.self.*", f"{_QFORMER_LAYER}.crossattention.attention.*"),
    (f"{_BERT_LAYER}.crossattention.output.*", f"{_QFORMER_LAYER}.crossattention.output.*"),
    (f"{_BERT_LAYER}.intermediate_query.dense.*", f"{_QFORMER_LAYER}.intermediate_query.dense.*"),
    (f"{_BERT_LAYER}.output_query.*", f"{_QFORMER_LAYER}.output_query.*"),
)
QFORMER_TEXT_LAYERS: tuple[Rule, ...] = (
    (f"{_BERT_LAYER}.intermediate.dense.*", f"{_QFORMER_LAYER}.intermediate.dense.*"),
    (f"{_BERT_LAYER}.output.*", f"{_QFORMER_LAYER}.output.*"),
)

WORDS, POSITIONS = (
    "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.bert.embeddings.position_embeddings.weight",
)
EMBEDDINGS_INSIDE: tuple[Rule, ...] = (
    (WORDS, "qformer.embeddings.word_embeddings.weight"),
    (POSITIONS, "qformer.embeddings.position_embeddings.weight"),
)
EMBEDDINGS_BESIDE: tuple[Rule, ...] = (
    (WORDS, "embeddings.word_embeddings.weight"),
    (POSITIONS, "embeddings.position_embeddings.weight"),
)
_EMBEDDING_NORM = "Qformer.bert.embeddings.LayerNorm.*"
NORM_OF_INSTRUCTBLIP: Rule = (_EMBEDDING_NORM, "qformer.embeddings.layernorm.*")
NORM_OF_BLIP_2: Rule = (_EMBEDDING_NORM, "qformer.layernorm.*")

FIRST_STAGE: tuple[Rule, ...] = (
    ("vision_proj.*", "vision_projection.*"),
    ("text_proj.*", "text_projection.*"),
    ("itm_head.*", "itm_head.*"),
)
LANGUAGE_HEAD: tuple[Rule, ...] = (("temp", "temp"), ("Qformer.cls.*", "cls.*"))

LANGUAGE_PREFIXES = {"opt": "opt", "t5": "t5", "llama": "llm"}
"""What LAVIS puts before ``_model`` and ``_proj``, by the language model's type."""

UNUSED_IN_EVA_VIT = ("head.", "norm.", "fc_norm.", "mask_token")
"""What `eva_vit_g.pth` may hold beside blocks and embeddings; LAVIS's tower has no such parts."""

# In stock layouts of a language model's weights; computed from the configuration, or not used.
LANGUAGE_MODEL_BUFFERS = (
    (r".*\.rotary_emb\.inv_freq", "rotary frequencies are computed from the configuration"),
    (
        r".*decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        "T5's cross-attention has no relative positions",
    ),
)


def rules_of(kind: Kind, language_prefix: str | None) -> tuple[Rule, ...]:
    """Rules of a kind of model.

    Args:
        kind ([`Kind`]): The model.
        language_prefix (`str`, *optional*): `"opt"`, `"t5"` or `"llm"`, where it has a language model.
    """
    rules = [*VISION, *QFORMER]
    rules.append(NORM_OF_INSTRUCTBLIP if kind.name.startswith("instructblip") else NORM_OF_BLIP_2)
    if kind.qformer_text != "none":
        rules += QFORMER_TEXT_LAYERS
        rules += EMBEDDINGS_INSIDE if kind.qformer_text == "inside" else EMBEDDINGS_BESIDE
    if kind.first_stage:
        rules += FIRST_STAGE
    if kind.language_head:
        rules += LANGUAGE_HEAD
    if kind.language_model:
        rules += [
            (f"{language_prefix}_proj.*", "language_projection.*"),
            (f"{language_prefix}_model.*", "language_model.*"),
        ]
    return tuple(rules)


def to_ours(name: str, rules: Iterable[Rule]) -> str | None:
    """Name in our layout of a name in LAVIS's, or `None`."""
    return next((found for lavis, ours in rules if (found := translate(name, lavis, ours)) is not None), None)


def to_lavis(name: str, rules: Iterable[Rule]) -> str | None:
    """Name in LAVIS's layout of a name in ours, or `None`."""
    return next((found for lavis, ours in rules if (found := translate(name, ours, lavis)) is not None), None)


def translate(name: str, source: str, target: str) -> str | None:
    """A name that fits the template ``source``, written by the template ``target``; `None` if it does not fit."""
    match = _pattern(source).fullmatch(name)
    if match is None:
        return None
    for mark, group in match.groupdict().items():
        target = target.replace("{n}" if mark == "n" else "*", group)
    return target


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    expression = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\*", r"(?P<rest>.+)")
    return re.compile(expression)


def why_left_out(name: str, kind: Kind) -> str | None:
    """Why a tensor of a LAVIS file has no place in a model of ``kind`` and need not have one; `None` if it should."""
    if name == "Qformer.bert.embeddings.position_ids":
        return "0, 1, 2, ... are not stored"
    for expression, reason in LANGUAGE_MODEL_BUFFERS:
        if re.fullmatch(rf"(?:opt|t5|llm)_model\.{expression}", name):
            return reason
    if not kind.language_head and to_ours(name, LANGUAGE_HEAD) is not None:
        return f"{kind.name} has no language-model head and no temperature; blip-2-pretraining has them"
    if not kind.first_stage and to_ours(name, FIRST_STAGE) is not None:
        return f"{kind.name} has none of the heads of the first stage"
    if kind.qformer_text == "none" and to_ours(name, (*QFORMER_TEXT_LAYERS, *EMBEDDINGS_BESIDE)) is not None:
        return f"the Q-Former of {kind.name} reads no text"
    return None


__all__ = [
    "FUSED_BIAS",
    "KEY_BIAS",
    "LANGUAGE_PREFIXES",
    "QUERY_BIAS",
    "POSITIONS",
    "UNUSED_IN_EVA_VIT",
    "VALUE_BIAS",
    "WORDS",
    "rules_of",
    "to_lavis",
    "to_ours",
    "translate",
    "why_left_out",
]
