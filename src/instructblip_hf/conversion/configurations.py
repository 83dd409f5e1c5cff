"""Configurations of a folder: the model's, by the first source that there is, its vocabulary, and the one of generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from .geometry import read_geometry
from .kinds import Kind
from .language_models import language_config
from .lavis_file import LavisWeights
from .options import ToFolder
from .plan import ModelSpec, Plan
from .report import ConversionReport
from .stored_tensors import ConversionError, StoredTensor


def model_config(kind: Kind, lavis: LavisWeights, options: ToFolder, report: ConversionReport) -> Any:
    """Configuration of the target, by the first that is there: a given folder's, the file's own, what tensors tell."""
    if options.config is not None:
        report.notes.append(f"the configuration is that of {options.config}")
        return _given_config(kind, json.loads((options.config / CONFIG_NAME).read_text()), str(options.config))
    if "config" in lavis.own:
        report.notes.append("the configuration is the one that was written beside LAVIS's weights")
        return _given_config(kind, json.loads(lavis.own["config"]), "the file")
    arguments = read_geometry(lavis.tensors, kind, options.heads)
    report.notes.append(
        f"attention heads are not in the files: {options.heads.vision} of the vision tower, {options.heads.qformer} of "
        "the Q-Former (vision_heads, qformer_heads)"
    )
    if kind.language_model:
        if options.llm is None:
            raise ConversionError(
                [
                    "the language model's folder is missing (llm): LAVIS's files do not hold its configuration, nor, "
                    "where it was frozen, its weights"
                ]
            )
        text_config = language_config(options.llm)
        if text_config.model_type == "t5":
            report.notes.append("LAVIS runs FlanT5 with the exact gelu (dense_act_fn), and so does what was written")
        arguments["text_config"] = text_config
    report.notes.append(
        "ln_vision has epsilon 1e-5 in LAVIS and 1e-6 in this layout, which has one for the whole vision tower"
    )
    return kind.config()(**arguments)


def _given_config(kind: Kind, values: dict[str, Any], where: str) -> Any:
    wanted = kind.config().model_type
    if values.get("model_type") != wanted:
        raise ConversionError(
            [f"the configuration of {where} is of type {values.get('model_type')}; {kind.name} is of type {wanted}"]
        )
    config = kind.config().from_dict(values)
    config.qformer_config.use_qformer_text_input = kind.qformer_text != "none"
    return config


def set_vocabulary(
    config: Any,
    assigned: Mapping[str, tuple[StoredTensor, ...]],
    spec: ModelSpec,
    processor: Any,
    lavis: LavisWeights,
    options: ToFolder,
    report: ConversionReport,
) -> None:
    """Sets the placeholder's id and the number of rows: those stored, and what tokenizers need beyond them."""
    stored = [assigned[name][0].shape[0] for name in spec.vocabulary if name in assigned]
    if not stored:
        return  # the plan tells that the language model is missing
    rows = max(stored)
    is_given = "config" in lavis.own or options.config is not None
    ids = {
        "image_token_id": options.image_token_id,
        "the tokenizer's": None if processor is None else processor.image_token_id,
        "the configuration's": config.image_token_index,
    }
    known = {name: value for name, value in ids.items() if value is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{name} is {value}" for name, value in known.items())
        raise ConversionError([f"the image placeholder has several ids: {told}"])
    image_token = next(iter(known.values()), None if is_given else rows)
    needed = max(
        rows,
        0 if image_token is None else image_token + 1,
        len(processor.tokenizer) if processor is not None else 0,
        config.text_config.vocab_size if is_given else 0,
    )
    placeholder = "no token" if image_token is None else f"token {image_token}"
    report.notes.append(
        f"the image placeholder is {placeholder}; the language model's files have {rows} rows, the folder {needed}"
    )
    config.image_token_index = image_token
    config.text_config.vocab_size = needed


def finish_config(config: Any, kind: Kind, plan: Plan, keep_dtype: bool) -> None:
    """Says which class it is of, and the widest type among its weights, in which opening it loses nothing."""
    config.architectures = [kind.model_class.split(":")[1]]
    if keep_dtype:
        return
    dtypes = {tensor.dtype for tensor in plan.tensors if tensor.dtype.is_floating_point}
    widest = dtypes.pop() if len(dtypes) == 1 else torch.float32
    config.dtype = widest
    for part in ("vision_config", "qformer_config", "text_config"):
        getattr(config, part).dtype = widest


def generation_config(config: Any, lavis: LavisWeights, options: ToFolder, processor: Any) -> GenerationConfig:
    """The language model's, with the special tokens that LAVIS generates with."""
    if "generation_config" in lavis.own:
        return GenerationConfig.from_dict(json.loads(lavis.own["generation_config"]))
    if options.llm is not None and (options.llm / GENERATION_CONFIG_NAME).is_file():
        generation = GenerationConfig.from_pretrained(options.llm)
    else:
        generation = GenerationConfig.from_model_config(config.text_config)
    if processor is None:
        return generation
    model_type, tokenizer = config.text_config.model_type, processor.tokenizer
    if model_type == "llama":
        generation.bos_token_id = generation.eos_token_id = tokenizer.eos_token_id
        generation.pad_token_id = tokenizer.pad_token_id
    elif model_type == "opt":
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        if len(newline) == 1:
            generation.eos_token_id = newline[0]
    return generation


__all__ = ["finish_config", "generation_config", "model_config", "set_vocabulary"]
