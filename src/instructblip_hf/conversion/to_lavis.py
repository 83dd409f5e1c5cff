"""From a folder in our layout, which is transformers', to a file of LAVIS's; checked as the other direction is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from .checking import Weights, check_bits, compare_image_side
from .kinds import KINDS, Kind
from .language_models import compare_language_models
from .lavis_file import write_lavis_file
from .lavis_keys import LANGUAGE_PREFIXES
from .options import ToLavis
from .plan import ModelSpec, Plan, by_first_names, model_spec
from .plan_folder import assign_names
from .plan_lavis import plan_lavis
from .report import ConversionReport
from .stored_tensors import ConversionError, load_torch_file, read_weight_folder, tensors_of_mapping
from .writing import check_target, whole_or_nothing


def convert_to_lavis(source: Path, target: Path, options: ToLavis | None = None) -> ConversionReport:
    """Makes a LAVIS file of a folder in our layout.

    Args:
        source (`Path`): The folder.
        target (`Path`): The file, which is not there yet.
        options ([`ToLavis`], *optional*): Options.

    Returns:
        [`ConversionReport`]

    Raises:
        ConversionError: If it cannot be done, or what was written is not what it was made of; nothing is left behind.
    """
    options = options or ToLavis()
    check_target(target)
    kind, config = _kind_of_folder(source)
    prefix = _language_prefix(kind, config)
    spec = model_spec(kind, config)
    stored = by_first_names(read_weight_folder(source), spec)
    stored = {name: replace(tensor, name=name) for name, tensor in stored.items()}
    rows = options.vocabulary_rows
    if rows is None and kind.language_model:
        rows = _rows_without_placeholder(config, spec)
    plan = plan_lavis(stored, spec, kind, prefix, options.trimmed, rows, options.drop_key_bias)
    if plan.problems:
        raise ConversionError(plan.problems)
    report = ConversionReport([str(source)], str(target), kind.name)
    report.add_plan(plan)
    own: dict[str, Any] = {"kind": kind.name, "config": config.to_dict()}
    if kind.language_model and (source / GENERATION_CONFIG_NAME).is_file():
        own["generation_config"] = json.loads((source / GENERATION_CONFIG_NAME).read_text())
    report.notes.append("LAVIS has no processor in its files: tokenizers and image sizes are in its own configuration")
    with whole_or_nothing(target) as partial:
        kept = {name: tensor.load() for name, tensor in plan.kept.items()}
        write_lavis_file(_shared_once(plan), partial, own, kept)
        written = tensors_of_mapping(load_torch_file(partial)["model"], partial, "the entry 'model'")
        check_bits(plan.tensors, written)
        weights = Weights(kind, config, written, stored, prefix)
        report.differences += compare_image_side(weights, with_vision=not options.trimmed)
        if kind.language_model and not options.trimmed:
            assigned, _ = assign_names(written, kind, prefix)
            files = {name: sources[0] for name, sources in assigned.items()}
            report.differences.append(compare_language_models(weights, files, spec))
    return report


def _kind_of_folder(folder: Path) -> tuple[Kind, Any]:
    if not (folder / CONFIG_NAME).is_file():
        raise ConversionError([f"{folder} has no {CONFIG_NAME}: it is no folder of a model"])
    content = json.loads((folder / CONFIG_NAME).read_text())
    classes = content.get("architectures") or []
    found = [kind for kind in KINDS.values() if kind.model_class.split(":")[1] in classes]
    if not found:
        wanted = sorted({kind.model_class.split(":")[1] for kind in KINDS.values()})
        raise ConversionError(
            [f"{folder} holds {', '.join(classes) or 'a model without a name'}; {', '.join(wanted)} can be converted"]
        )
    kind = found[0]
    config = kind.config().from_pretrained(folder)
    if kind.name == "instructblip" and not config.qformer_config.use_qformer_text_input:
        kind = KINDS["instructblip-without-text"]
    own_tower = type(kind.config()().vision_config).model_type
    if config.vision_config.model_type != own_tower:
        raise ConversionError(
            [
                f"{folder} has a vision tower of type {config.vision_config.model_type}; LAVIS's files have EVA's, {own_tower}"
            ]
        )
    return kind, config


def _language_prefix(kind: Kind, config: Any) -> str | None:
    if not kind.language_model:
        return None
    model_type = config.text_config.model_type
    if model_type not in LANGUAGE_PREFIXES:
        raise ConversionError(
            [f"the language model is of type {model_type}; LAVIS has models with {', '.join(LANGUAGE_PREFIXES)}"]
        )
    return LANGUAGE_PREFIXES[model_type]


def _rows_without_placeholder(config: Any, spec: ModelSpec) -> int | None:
    rows = spec.shapes[spec.vocabulary[0]][0]
    return rows - 1 if config.image_token_index == rows - 1 else None


def _shared_once(plan: Plan) -> dict[str, torch.Tensor]:
    """Tensors of a plan; names of the same weights get the same tensor, which a file holds once."""
    made: dict[Any, torch.Tensor] = {}
    tensors = {}
    for tensor in plan.tensors:
        key = (tensor.sources[0].name, tensor.make, tensor.shape)
        if key not in made:
            made[key] = tensor.load()
        tensors[tensor.name] = made[key]
    return tensors


__all__ = ["convert_to_lavis"]
