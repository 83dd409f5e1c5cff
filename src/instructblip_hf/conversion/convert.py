"""Converting between LAVIS's checkpoint files and folders in our layout, which is transformers'.

Either way every tensor is named in a report, nothing is written before all fit, and what was written is read again and
compared with the weights it was made of: bit by bit, and by its outputs on a probe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from ..models.composition import load_language_model
from .checking import (
    Weights,
    check_bits,
    compare_image_side,
    compare_language_models,
    most_common_dtype,
    open_language_model,
)
from .geometry import Heads, kind_of, language_prefix_of, missing_parts, read_geometry
from .kinds import KINDS, Kind
from .lavis_file import LavisWeights, read_lavis_files, write_lavis_file
from .lavis_keys import FUSED_BIAS, KEY_BIAS, LANGUAGE_PREFIXES, rules_of, to_ours, translate
from .plan import ModelSpec, Plan, add_language_model, assign_names, model_spec, plan_folder, plan_lavis
from .processors import build_processor, has_tokenizer
from .report import ConversionReport, Difference
from .stored_tensors import ConversionError, StoredTensor, load_torch_file, read_weight_folder, tensors_of_mapping
from .writing import DEFAULT_SHARD_BYTES, check_target, whole_or_nothing, write_weights


PUBLISHED_VISION_LAYERS = 39


@dataclass(frozen=True)
class ToFolder:
    """Options of a conversion from LAVIS's files.

    Args:
        kind (`str`, *optional*): A name of [`KINDS`]; by default read off the tensors.
        llm (`Path`, *optional*): Folder of the language model, where the files do not hold it.
        tokenizer (`Path`, *optional*): Folder of the language model's tokenizer; by default ``llm``, if it has one.
        qformer_tokenizer (`Path`, *optional*): Folder of the Q-Former's tokenizer, BERT's.
        processor (`Path`, *optional*): Folder of a processor, which is taken as it is, in place of both tokenizers.
        config (`Path`, *optional*):
            Folder whose ``config.json`` is that of the model, in place of reading its shape off the tensors.
        heads ([`Heads`], *optional*): Numbers of attention heads; by default those of the published models.
        vision_layers (`int`, *optional*, defaults to 39): How many blocks of `eva_vit_g.pth` are used.
        image_token_id (`int`, *optional*):
            Id of the image placeholder; by default the processor's, or a new row at the vocabulary's end.
        dtype (`torch.dtype`, *optional*): Of all weights; by default each tensor keeps its own.
        shard_bytes (`int`, *optional*, defaults to 5,000,000,000): Largest size of a file of weights.
    """

    kind: str | None = None
    llm: Path | None = None
    tokenizer: Path | None = None
    qformer_tokenizer: Path | None = None
    processor: Path | None = None
    config: Path | None = None
    heads: Heads = Heads()
    vision_layers: int = PUBLISHED_VISION_LAYERS
    image_token_id: int | None = None
    dtype: torch.dtype | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES


@dataclass(frozen=True)
class ToLavis:
    """Options of a conversion to a LAVIS file.

    Args:
        trimmed (`bool`, *optional*, defaults to `False`):
            Whether vision tower and language model stay out, as in the files of a training that froze them.
        vocabulary_rows (`int`, *optional*):
            How many rows LAVIS's language model has for its tokens. By default all but the image placeholder's, if that
            is the last one. Further rows are kept beside LAVIS's weights, where converting back finds them.
        drop_key_bias (`bool`, *optional*, defaults to `False`):
            Whether a key bias of the vision tower that is not zero, as training with an unfrozen tower makes it, is kept
            there too. It adds the same to all scores of a query, so that attention is the same without it.
    """

    trimmed: bool = False
    vocabulary_rows: int | None = None
    drop_key_bias: bool = False


def convert_to_folder(sources: Sequence[Path], target: Path, options: ToFolder | None = None) -> ConversionReport:
    """Makes a folder in our layout of LAVIS's files.

    Args:
        sources (`Sequence[Path]`):
            A checkpoint, and files that bring what it lacks: `eva_vit_g.pth`, the first stage's checkpoint.
        target (`Path`): The folder, which is not there yet or empty.
        options ([`ToFolder`], *optional*): Options.

    Returns:
        [`ConversionReport`]

    Raises:
        ConversionError: If it cannot be done, or what was written is not what it was made of; nothing is left behind.
    """
    options = options or ToFolder()
    check_target(target)
    lavis = read_lavis_files(sources, options.vision_layers)
    kind = _kind(options.kind, lavis)
    problems = missing_parts(lavis.tensors, kind)
    if problems:
        raise ConversionError(problems)
    report = ConversionReport([str(source) for source in sources], str(target), kind.name, notes=list(lavis.notes))
    prefix = language_prefix_of(lavis.tensors) if kind.language_model else None
    assigned, plan = assign_names(lavis.tensors, kind, prefix)
    plan.left_out += lavis.left_out
    folder: dict[str, StoredTensor] = {}
    if kind.language_model and options.llm is not None:
        report.sources.append(str(options.llm))
        folder = read_weight_folder(options.llm)
    config = _config(kind, lavis, options, report)
    spec = model_spec(kind, config)
    if kind.language_model:
        add_language_model(assigned, plan, folder, spec)
    tokenizer = options.tokenizer
    if tokenizer is None and options.processor is None and options.llm is not None and has_tokenizer(options.llm):
        tokenizer = options.llm
    processor = build_processor(kind, config, tokenizer, options.qformer_tokenizer, options.processor)
    if processor is None:
        absent = ["tokenizer"] if kind.language_model and tokenizer is None else []
        absent += ["qformer_tokenizer"] if kind.name != "blip-2" and options.qformer_tokenizer is None else []
        report.notes.append(f"written without a processor: for it give a folder as {' and '.join(absent)}")
    if kind.language_model:
        _set_vocabulary(config, assigned, spec, processor, lavis, options, report)
        spec = model_spec(kind, config)
    elif processor is not None:
        config.image_token_index = processor.image_token_id
    rules = rules_of(kind, prefix)
    kept = {
        translate(name, KEY_BIAS, FUSED_BIAS) or to_ours(name, rules) or name: tensor
        for name, tensor in lavis.own.get("kept", {}).items()
    }
    plan = plan_folder(assigned, plan, spec, options.dtype, kept)
    if plan.problems:
        raise ConversionError(plan.problems)
    _finish_config(config, kind, plan, keep_dtype="config" in lavis.own and options.dtype is None)
    report.add_plan(plan)
    with whole_or_nothing(target) as partial:
        partial.mkdir()
        config.save_pretrained(partial)
        if kind.language_model:
            _generation_config(config, lavis, options, processor).save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        write_weights(plan.tensors, partial, options.shard_bytes)
        written = read_weight_folder(partial)
        check_bits(plan.tensors, written)
        # A type that was asked for is no difference.
        before = {name: tensor.rounded(options.dtype) for name, tensor in lavis.tensors.items()}
        weights = Weights(kind, kind.config().from_pretrained(partial), before, written, prefix)
        report.differences += compare_image_side(weights)
        if kind.language_model:
            files = {name: sources[0].rounded(options.dtype) for name, sources in assigned.items()}
            llm = options.llm if not any("_model." in name for name in lavis.tensors) else None
            report.differences.append(_compare_language_model(weights, files, spec, llm))
    return report


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
    stored = read_weight_folder(source)
    spec = model_spec(kind, config)
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
            report.differences.append(_compare_language_model(weights, files, spec))
    return report


# --- what a folder is -------------------------------------------------------------------------------------------------


def _kind(name: str | None, lavis: LavisWeights) -> Kind:
    if name is None and "kind" in lavis.own:
        name = json.loads(lavis.own["kind"])
    if name is None:
        return kind_of(lavis.tensors)
    if name not in KINDS:
        raise ConversionError([f"kind is {name!r}, which is none of {', '.join(KINDS)}"])
    return KINDS[name]


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


# --- configurations ---------------------------------------------------------------------------------------------------


def _config(kind: Kind, lavis: LavisWeights, options: ToFolder, report: ConversionReport) -> Any:
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
        text_config = _language_config(options.llm)
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


def _set_vocabulary(
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
    image_token = options.image_token_id
    if processor is not None:
        if image_token not in (None, processor.image_token_id):
            raise ConversionError(
                [f"image_token_id is {image_token}, the tokenizer's is {processor.image_token_id}: give one of them"]
            )
        image_token = processor.image_token_id
    is_given = "config" in lavis.own or options.config is not None
    if image_token is None:
        image_token = config.image_token_index
    if image_token is None and not is_given:
        image_token = rows
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


def _finish_config(config: Any, kind: Kind, plan: Plan, keep_dtype: bool) -> None:
    """Says which class it is of, and the widest type among its weights, in which opening it loses nothing."""
    config.architectures = [kind.model_class.split(":")[1]]
    if keep_dtype:
        return
    dtypes = {tensor.dtype for tensor in plan.tensors if tensor.dtype.is_floating_point}
    widest = dtypes.pop() if len(dtypes) == 1 else torch.float32
    config.dtype = widest
    for part in ("vision_config", "qformer_config", "text_config"):
        getattr(config, part).dtype = widest


def _generation_config(config: Any, lavis: LavisWeights, options: ToFolder, processor: Any) -> GenerationConfig:
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


# --- the language model, compared -------------------------------------------------------------------------------------


def _compare_language_model(
    weights: Weights, files: Mapping[str, StoredTensor], spec: ModelSpec, llm: Path | None = None
) -> Difference:
    """Logits of the language model that was converted, out of ``llm`` by its own configuration, and of the other one."""
    prefix = "language_model."
    with torch.device("meta"):
        model_class = type(weights.kind.model()(weights.config).language_model)

    def own(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}

    def of_files() -> Any:
        if llm is None:
            return open_language_model(weights.config.text_config, model_class, own(files))
        dtype = most_common_dtype(own(files).values())
        return load_language_model(llm, config=_language_config(llm), dtype=dtype)

    return compare_language_models(
        of_files,
        lambda: open_language_model(weights.config.text_config, model_class, own(weights.ours)),
        min(files[name].shape[0] for name in spec.vocabulary if name in files),
        weights.config.is_encoder_decoder,
    )


def _language_config(folder: Path) -> Any:
    """Configuration of a language model as LAVIS runs it."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "t5":
        config.dense_act_fn = "gelu"
    return config


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


__all__ = ["PUBLISHED_VISION_LAYERS", "ToFolder", "ToLavis", "convert_to_folder", "convert_to_lavis"]
