"""From LAVIS's files to a folder in our layout, which is transformers'.

Every tensor is named in a report, nothing is written before all fit, and what was written is read again and compared with
the weights it was made of: bit by bit, and by its outputs on a probe.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .checking import Weights, check_bits, compare_image_side
from .configurations import finish_config, generation_config, model_config, set_vocabulary
from .geometry import kind_of, language_prefix_of, missing_parts
from .kinds import KINDS, Kind
from .language_models import compare_language_models
from .lavis_file import LavisWeights, read_lavis_files
from .lavis_keys import FUSED_BIAS, KEY_BIAS, rules_of, to_ours, translate
from .options import ToFolder
from .plan import by_first_names, model_spec
from .plan_folder import add_language_model, assign_names, plan_folder
from .processors import build_processor, has_tokenizer, language_side
from .report import ConversionReport
from .stored_tensors import ConversionError, StoredTensor, read_weight_folder
from .writing import check_target, whole_or_nothing, write_weights


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
    config = model_config(kind, lavis, options, report)
    spec = model_spec(kind, config)
    if kind.language_model:
        add_language_model(assigned, plan, folder, spec)
        assigned = by_first_names(assigned, spec)
    tokenizer = options.tokenizer
    if tokenizer is None and options.processor is None and options.llm is not None and has_tokenizer(options.llm):
        tokenizer = options.llm
    processor = build_processor(kind, config, tokenizer, options.qformer_tokenizer, options.processor)
    side = processor
    if processor is None and not lavis.own and options.config is None:
        # Its tokens count even where a processor cannot be made of it alone.
        side = language_side(kind, config, tokenizer)
    if processor is None:
        absent = ["tokenizer"] if kind.language_model and tokenizer is None else []
        absent += ["qformer_tokenizer"] if kind.name != "blip-2" and options.qformer_tokenizer is None else []
        report.notes.append(f"written without a processor: for it give a folder as {' and '.join(absent)}")
    if kind.language_model:
        set_vocabulary(config, assigned, spec, side, lavis, options, report)
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
    finish_config(config, kind, plan, keep_dtype="config" in lavis.own and options.dtype is None)
    report.add_plan(plan)
    with whole_or_nothing(target) as partial:
        partial.mkdir()
        config.save_pretrained(partial)
        if kind.language_model:
            generation_config(config, lavis, options, side).save_pretrained(partial)
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
            report.differences.append(compare_language_models(weights, files, spec, llm))
    return report


def _kind(name: str | None, lavis: LavisWeights) -> Kind:
    if name is None and "kind" in lavis.own:
        name = json.loads(lavis.own["kind"])
    if name is None:
        return kind_of(lavis.tensors)
    if name not in KINDS:
        raise ConversionError([f"kind is {name!r}, which is none of {', '.join(KINDS)}"])
    return KINDS[name]


__all__ = ["convert_to_folder"]
