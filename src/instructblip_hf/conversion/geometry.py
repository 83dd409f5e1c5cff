"""The shape of a model, read off the tensors of LAVIS's layout.

What no tensor tells is given by the user: numbers of attention heads, checked against the widths, and the language
model's configuration. What is missing is told together with the file that would bring it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .kinds import KINDS, Kind
from .lavis_keys import POSITIONS, WORDS
from .stored_tensors import ConversionError, StoredTensor


@dataclass(frozen=True)
class Heads:
    """Numbers of attention heads, which no tensor tells; the defaults are those of the published models.

    Args:
        vision (`int`, *optional*, defaults to 16): Of the vision tower.
        qformer (`int`, *optional*, defaults to 12): Of the Q-Former.
    """

    vision: int = 16
    qformer: int = 12


def kind_of(tensors: Mapping[str, StoredTensor]) -> Kind:
    """The model that LAVIS's tensors make, by what is there.

    Raises:
        ConversionError: If neither a projection into a language model nor the first stage's heads are there.
    """
    if any(name.startswith(("opt_proj.", "t5_proj.", "llm_proj.")) for name in tensors):
        return KINDS["instructblip" if WORDS in tensors else "blip-2"]
    if any(name.startswith("vision_proj.") for name in tensors):
        has_language_head = any(name.startswith("Qformer.cls.") for name in tensors)
        return KINDS["blip-2-pretraining" if has_language_head else "blip-2-retrieval"]
    raise ConversionError(
        [
            "these files make no model: they have neither a projection into a language model (opt_proj, t5_proj or "
            "llm_proj), nor the heads of the first stage (vision_proj). The first file is to be a checkpoint of "
            "LAVIS's BLIP-2 or InstructBLIP"
        ]
    )


def language_prefix_of(tensors: Mapping[str, StoredTensor]) -> str:
    """`"opt"`, `"t5"` or `"llm"`: what LAVIS calls the projection's language model."""
    return next(prefix for prefix in ("opt", "t5", "llm") if f"{prefix}_proj.weight" in tensors)


def missing_parts(tensors: Mapping[str, StoredTensor], kind: Kind) -> list[str]:
    """What a model of ``kind`` lacks, each with the file that would bring it."""
    required = {
        "visual_encoder.pos_embed": (
            "the vision tower (visual_encoder.*) is missing: give LAVIS's eva_vit_g.pth as a further file; checkpoints "
            "that were trained with a frozen tower do not hold it"
        ),
        "ln_vision.weight": "ln_vision is missing: it is in the checkpoint of every stage, beside the Q-Former",
        "query_tokens": "query_tokens are missing: they are in the checkpoint of every stage, beside the Q-Former",
        "Qformer.bert.embeddings.LayerNorm.weight": "the Q-Former (Qformer.bert.*) is missing: it is in the checkpoint "
        "of every stage",
    }
    if kind.qformer_text != "none":
        reason = (
            "are missing: give the first stage's checkpoint (blip2_pretrained.pth) as a further file; the second "
            "stage's do not hold them"
        )
        required[WORDS] = f"the Q-Former's embeddings of words and positions {reason}"
        required["Qformer.bert.encoder.layer.0.output.dense.weight"] = (
            f"the Q-Former's feed-forward layers for text {reason}"
        )
    if kind.first_stage:
        for name in ("vision_proj", "text_proj", "itm_head"):
            required[f"{name}.weight"] = (
                f"{name} is missing: the first stage's checkpoint (blip2_pretrained.pth) has it"
            )
    if kind.language_head:
        reason = "the first stage's checkpoint has it, and blip-2-retrieval is the kind without it"
        required["temp"] = f"temp is missing: {reason}"
        required["Qformer.cls.predictions.transform.dense.weight"] = f"Qformer.cls is missing: {reason}"
    problems = [problem for name, problem in required.items() if name not in tensors]
    if kind.language_model and not any(f"{prefix}_proj.weight" in tensors for prefix in ("opt", "t5", "llm")):
        problems.append(
            "the projection into the language model (opt_proj, t5_proj or llm_proj) is missing: a second-stage or "
            "InstructBLIP checkpoint has it"
        )
    return problems


def read_geometry(tensors: Mapping[str, StoredTensor], kind: Kind, heads: Heads) -> dict[str, Any]:
    """Configuration of vision tower and Q-Former, as arguments for the configuration class.

    Args:
        tensors (`Mapping[str, StoredTensor]`): By LAVIS's names, with nothing missing.
        kind ([`Kind`]): The model.
        heads ([`Heads`]): Numbers of attention heads.

    Returns:
        `dict`: ``vision_config``, ``qformer_config``, ``num_query_tokens`` and, where it has them, the width of the
        first stage's projections.

    Raises:
        ConversionError: If shapes make no such model, or the heads do not divide the widths.
    """
    shapes = _Shapes({name: tensor.shape for name, tensor in tensors.items()})
    problems: list[str] = []
    positions, width = shapes["visual_encoder.pos_embed"][-2:]
    patch = shapes["visual_encoder.patch_embed.proj.weight"][-1]
    grid = math.isqrt(positions - 1)
    if grid * grid != positions - 1:
        problems.append(
            f"visual_encoder.pos_embed has {positions} positions: one for the class token and {positions - 1} for "
            "patches, which is no square number"
        )
    vision = {
        "hidden_size": width,
        "intermediate_size": shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, r"visual_encoder\.blocks\.(\d+)\."),
        "num_attention_heads": heads.vision,
        "image_size": grid * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
        "qkv_bias": "visual_encoder.blocks.0.attn.q_bias" in shapes,
    }
    _, queries, hidden = shapes["query_tokens"]
    layer = "Qformer.bert.encoder.layer"
    crossed = _numbers(shapes, rf"{re.escape(layer)}\.(\d+)\.crossattention\.")
    layers = _count(shapes, rf"{re.escape(layer)}\.(\d+)\.")
    frequency = crossed[1] - crossed[0] if len(crossed) > 1 else max(layers, 1)
    if crossed != list(range(0, layers, frequency)):
        problems.append(
            f"cross-attention is in the Q-Former's layers {', '.join(map(str, crossed)) or 'none'} of {layers}; it is "
            "to be in every n-th, from the first on"
        )
    qformer: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads.qformer,
        "intermediate_size": shapes[f"{layer}.0.intermediate_query.dense.weight"][0],
        "cross_attention_frequency": frequency,
        "encoder_hidden_size": shapes[f"{layer}.0.crossattention.self.key.weight"][1] if crossed else width,
        "layer_norm_eps": 1e-12,
        "use_qformer_text_input": kind.qformer_text != "none",
    }
    if kind.qformer_text != "none":
        qformer["vocab_size"] = shapes[WORDS][0]
        qformer["max_position_embeddings"] = shapes[POSITIONS][0]
    for name, size, number, option in (
        ("the vision tower's", width, heads.vision, "vision_heads"),
        ("the Q-Former's", hidden, heads.qformer, "qformer_heads"),
    ):
        if number < 1 or size % number:
            problems.append(f"{option} is {number}, which does not divide {name} width, {size}")
    if problems:
        raise ConversionError(problems)
    geometry: dict[str, Any] = {"vision_config": vision, "qformer_config": qformer, "num_query_tokens": queries}
    if kind.first_stage:
        geometry["image_text_hidden_size"] = shapes["vision_proj.weight"][0]
    return geometry


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes by name; one that is not there is told by its name."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise ConversionError([f"{name} is missing, from which the shape of the model is read"])


def _numbers(names: Mapping[str, Any], expression: str) -> list[int]:
    return sorted({int(match[1]) for name in names if (match := re.match(expression, name))})


def _count(names: Mapping[str, Any], expression: str) -> int:
    return len(_numbers(names, expression))


__all__ = ["Heads", "kind_of", "language_prefix_of", "missing_parts", "read_geometry"]
