"""What was written, read again: the same bits, and the same outputs as LAVIS's weights on a probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .kinds import Kind
from .plan import PlannedTensor
from .probe import LN_VISION_EPS, LavisForward
from .report import Difference
from .stored_tensors import ConversionError, StoredTensor


# Of the largest output: rounding in float32 through some fifty layers, by other kernels in another order.
_TOLERANCE = 1e-4
PROBE_TOKENS = 8


@dataclass(frozen=True)
class Weights:
    """The same model in both layouts.

    Args:
        kind ([`Kind`]): The model.
        config (`PreTrainedConfig`): Its configuration in our layout.
        lavis (`Mapping[str, StoredTensor]`): By LAVIS's names.
        ours (`Mapping[str, StoredTensor]`): By our names.
        language_prefix (`str`, *optional*): What LAVIS calls its language model.
    """

    kind: Kind
    config: Any
    lavis: Mapping[str, StoredTensor]
    ours: Mapping[str, StoredTensor]
    language_prefix: str | None


def check_bits(planned: Iterable[PlannedTensor], written: Mapping[str, StoredTensor]) -> None:
    """Compares what was written with what was to be written, bit by bit.

    Raises:
        ConversionError: If a tensor differs, is missing or is there unasked.
    """
    problems = []
    names = set()
    for tensor in planned:
        names.add(tensor.name)
        found = written.get(tensor.name)
        if found is None:
            problems.append(f"{tensor.name} was not written")
        elif not _same_bits(found.load(), tensor.load()):
            problems.append(f"{tensor.name} differs from what was to be written: the disk may be full or damaged")
    problems += [f"{name} was written unasked" for name in written if name not in names]
    if problems:
        raise ConversionError(problems)


def compare_image_side(weights: Weights, with_vision: bool = True) -> list[Difference]:
    """Compares vision tower, Q-Former and heads with LAVIS's weights on a random image and text.

    Args:
        weights ([`Weights`]): Both layouts.
        with_vision (`bool`, *optional*, defaults to `True`):
            Whether LAVIS's side has a vision tower; otherwise both sides read random states in its place.

    Returns:
        `list[Difference]`: For each output; the last one, which is not judged, tells what LAVIS's own epsilon of
        `ln_vision` changes.

    Raises:
        ConversionError: If outputs differ by more than rounding.
    """
    config = weights.config
    model = _without_language_model(weights)
    generator = torch.Generator().manual_seed(0)
    side = config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=generator)
    ids = None
    if weights.kind.qformer_text != "none":
        top = config.qformer_config.vocab_size
        length = min(PROBE_TOKENS, config.qformer_config.max_position_embeddings)
        ids = torch.randint(0, top, (1, length), generator=generator)
    lavis = LavisForward(
        weights.lavis,
        config.vision_config.num_attention_heads,
        config.qformer_config.num_attention_heads,
        config.vision_config.layer_norm_eps,
    )
    with torch.no_grad():
        if with_vision:
            states = lavis.image_states(pixels)
            features = model.vision_model(pixels).last_hidden_state
        else:
            positions = model.vision_model.embeddings.position_embedding.shape[1]
            states = torch.randn(1, positions, config.vision_config.hidden_size, generator=generator)
            features = model.vision_model.post_layernorm(states)
        expected = lavis.image_features(states)
        differences = [difference_of("image features", features, expected)]
        # Each part is compared on the same input: differences do not add up.
        expected_outputs = _lavis_outputs(weights, lavis, expected, ids)
        outputs = _our_outputs(weights.kind, model, expected, ids)
        differences += [difference_of(name, outputs[name], value) for name, value in expected_outputs.items()]
        as_lavis = LavisForward(weights.lavis, lavis.vision_heads, lavis.qformer_heads, LN_VISION_EPS)
        name, value = next(iter(_lavis_outputs(weights, as_lavis, as_lavis.image_features(states), ids).items()))
        own_eps = difference_of(name, outputs[name], value)
    raise_if_too_large(differences)
    eps = f"{config.vision_config.layer_norm_eps:g}"
    what = f"{name} with LAVIS's epsilon of ln_vision, {LN_VISION_EPS:g}, in place of {eps}"
    return [*differences, Difference(what, own_eps.largest, own_eps.scale)]


def _without_language_model(weights: Weights) -> Any:
    """The model in float32, its language model without weights."""
    with torch.device("meta"):
        model = weights.kind.model()(weights.config)
    tensors = {
        name: stored.load().float() for name, stored in weights.ours.items() if not name.startswith("language_model.")
    }
    for name, other in model.all_tied_weights_keys.items():
        if other in tensors:
            tensors.setdefault(name, tensors[other])
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval()


def _lavis_outputs(
    weights: Weights, lavis: LavisForward, features: torch.Tensor, ids: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    kind = weights.kind
    if kind.language_model:
        queries = weights.config.num_query_tokens
        states = lavis.qformer(features, ids)[:, :queries]
        return {"what the language model gets": lavis.project(states, f"{weights.language_prefix}_proj")}
    queries_alone, text_alone = lavis.qformer(features), lavis.qformer(input_ids=ids)
    both = lavis.qformer(features, ids)[:, : queries_alone.shape[1]]
    outputs = {
        "image embeddings": nn.functional.normalize(lavis.project(queries_alone, "vision_proj"), dim=-1),
        "text embeddings": nn.functional.normalize(lavis.project(text_alone[:, 0], "text_proj"), dim=-1),
        "matching logits": lavis.project(both, "itm_head").mean(1),
    }
    if kind.language_head:
        outputs["language-model head"] = lavis.language_head(text_alone)
    return outputs


def _our_outputs(kind: Kind, model: Any, features: torch.Tensor, ids: torch.Tensor | None) -> dict[str, torch.Tensor]:
    if kind.language_model:
        options = {} if ids is None else {"qformer_input_ids": ids}
        found = model.get_image_features(image_embeds=features, **options)
        return {"what the language model gets": found.pooler_output}
    outputs = {
        "image embeddings": model.get_image_features(image_embeds=features).image_embeds,
        "text embeddings": model.get_text_features(input_ids=ids).text_embeds,
        "matching logits": model.get_matching_logits(input_ids=ids, image_states=features),
    }
    if kind.language_head:
        text = model.qformer(query_embeds=model.embeddings(input_ids=ids), query_length=0).last_hidden_state
        outputs["language-model head"] = model.cls(text)
    return outputs


# --- comparing --------------------------------------------------------------------------------------------------------


def difference_of(what: str, found: torch.Tensor, expected: torch.Tensor) -> Difference:
    """Largest difference of two outputs, with what rounding in their precision allows."""
    scale = float(expected.float().abs().max())
    tolerance = max(_TOLERANCE, torch.finfo(expected.dtype).eps)
    if found.shape != expected.shape:
        raise ConversionError([f"{what}: shape {tuple(found.shape)} where LAVIS's is {tuple(expected.shape)}"])
    largest = float((found.float() - expected.float()).abs().max())
    return Difference(what, largest, scale, tolerance * max(scale, 1e-3))


def raise_if_too_large(differences: Iterable[Difference]) -> None:
    """Raises a [`ConversionError`] that names the differences larger than allowed."""
    # Written so that NaN counts as too large.
    problems = [
        f"the written model does not compute what the weights it was made of compute: {difference.what} differ by "
        f"{difference.largest:.2e}, {difference.allowed:.1e} is allowed"
        for difference in differences
        if not difference.largest <= difference.allowed
    ]
    if problems:
        raise ConversionError(problems)


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(*flat)


__all__ = ["PROBE_TOKENS", "Weights", "check_bits", "compare_image_side", "difference_of", "raise_if_too_large"]
