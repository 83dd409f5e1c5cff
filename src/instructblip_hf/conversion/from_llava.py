"""From a folder of LLaVA's own code to one in transformers' layout, or of a first stage to a connector's folder.

Every tensor is named in a report, nothing is written before all fit, and what was written is read again and compared with
what it was made of: bit by bit, and the connector by what LLaVA's own layers compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPImageProcessorPil, GenerationConfig, LlavaImageProcessorPil
from transformers.utils import GENERATION_CONFIG_NAME

from ..models.chat_templates import find_chat_template
from ..models.llava import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from ..models.llava.multi_modal_projector import build_projector
from ..models.llava.projector_files import save_projector
from .checking import check_bits, difference_of, raise_if_too_large
from .llava_original import OriginalLlava, read_original
from .plan_llava import LlavaTensors, plan_llava, read_llava_tensors
from .processors import has_tokenizer
from .report import ConversionReport, Difference
from .stored_tensors import ConversionError, StoredTensor, read_weight_folder
from .writing import DEFAULT_SHARD_BYTES, check_target, whole_or_nothing, write_weights


_MARKER = "{%- set marker = image_token if image_token is defined else '<image>' -%}"
_BRACKETED = _MARKER + "{%- set marker = '<im_start>' + marker + '<im_end>' -%}"
_CONNECTOR = "multi_modal_projector."


@dataclass(frozen=True)
class FromLlava:
    """Options of a conversion from LLaVA's own folders.

    Args:
        llm (`Path`, *optional*): Folder of the language model, for what LoRA or the first stage left.
        vision_tower (`Path`, *optional*):
            Folder of the vision tower, where the folder does not hold it, or is of none that is known by its name.
        tokenizer (`Path`, *optional*): Folder of the tokenizer; by default LLaVA's folder or ``llm``.
        chat_template (`str`, *optional*, defaults to `"v1"`):
            Which conversation the model was trained on, of `CHAT_TEMPLATES`; LLaVA keeps it nowhere.
        dtype (`torch.dtype`, *optional*): Of all weights; by default each tensor keeps its own.
        shard_bytes (`int`, *optional*, defaults to 5,000,000,000): Largest size of a file of weights.
    """

    llm: Path | None = None
    vision_tower: Path | None = None
    tokenizer: Path | None = None
    chat_template: str = "v1"
    dtype: torch.dtype | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES


def convert_llava(source: Path, target: Path, options: FromLlava | None = None) -> ConversionReport:
    """Makes a folder in our layout of one of LLaVA's own code; of a first stage without ``llm`` a connector's folder.

    Args:
        source (`Path`): LLaVA's folder.
        target (`Path`): The new folder, which is not there yet or empty.
        options ([`FromLlava`], *optional*): Options.

    Returns:
        [`ConversionReport`]

    Raises:
        ConversionError: If it cannot be done, or what was written is not what it was made of; nothing is left behind.
    """
    options = options or FromLlava()
    check_target(target)
    original = read_original(source)
    if original.kind == "lora" and options.llm is None:
        raise ConversionError([f"{source} is a LoRA adapter: give the folder of its language model (llm)"])
    report = ConversionReport([str(source)], str(target), f"llava ({original.kind})")
    report.sources += [str(path) for path in (options.llm, options.vision_tower) if path is not None]
    tensors = read_llava_tensors(original, options.llm, options.vision_tower)
    if original.kind == "projector" and options.llm is None:
        return _convert_connector(original, tensors, target, options, report)
    config = _config(original, tensors, options)
    processor = _processor(original, config, options, report)
    _set_vocabulary(config, tensors, processor, report)
    plan = plan_llava(tensors, config, options.dtype)
    if plan.problems:
        raise ConversionError(plan.problems)
    dtypes = {tensor.dtype for tensor in plan.tensors if tensor.dtype.is_floating_point}
    config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    config.architectures = [LlavaForConditionalGeneration.__name__]
    report.add_plan(plan)
    with whole_or_nothing(target) as partial:
        partial.mkdir()
        config.save_pretrained(partial)
        _generation_config(original, config, options).save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        write_weights(plan.tensors, partial, options.shard_bytes)
        written = read_weight_folder(partial)
        check_bits(plan.tensors, written)
        connector = {name.removeprefix(_CONNECTOR): t for name, t in written.items() if name.startswith(_CONNECTOR)}
        report.differences.append(_compare_connector(config, connector, tensors, options.dtype))
    return report


def _convert_connector(
    original: OriginalLlava, tensors: LlavaTensors, target: Path, options: FromLlava, report: ConversionReport
) -> ConversionReport:
    """A first stage's connector for [`load_projector`]; there is no language model to put it before."""
    config = _config(original, tensors, options)
    model: Any = nn.Module()
    model.config, model.multi_modal_projector = config, build_projector(config)
    problems, planned = [], {}
    for name, parameter in model.multi_modal_projector.named_parameters():
        stored = tensors.found.get(_CONNECTOR + name)
        if stored is None or stored.shape != tuple(parameter.shape):
            problems.append(f"nothing in {original.folder} makes {name} of shape {tuple(parameter.shape)}")
            continue
        planned[_CONNECTOR + name] = stored.rounded(options.dtype).load()
    problems += [
        f"{stored.name} of {stored.file} has no place in a connector: give the language model's folder (llm)"
        for name, stored in tensors.found.items()
        if not name.startswith((_CONNECTOR, "vision_tower."))
    ]
    if problems:
        raise ConversionError(problems)
    for name, tensor in planned.items():
        stored = tensors.found[name]
        report.rows.append(
            {
                "from": [stored.name],
                "file": [stored.file],
                "to": name,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "how": "as it is" if tensor.dtype == stored.dtype else "in another type",
            }
        )
        report.bytes += tensor.nbytes
    with whole_or_nothing(target) as partial:
        save_projector(model, partial, planned)
    report.notes.append("a connector alone: model.load_projector, and model.projector of a recipe, take it")
    return report


def _config(original: OriginalLlava, tensors: LlavaTensors, options: FromLlava) -> LlavaConfig:
    vision = original.vision_config(options.vision_tower)
    size: Any = vision.image_size
    patches = (size // vision.patch_size) ** 2
    embeddings = tensors.found.get("language_model.model.embed_tokens.weight")
    text = original.text_config()
    if embeddings is not None:
        text.vocab_size = embeddings.shape[0]
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=original.settings.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=original.select_strategy,
        projector_type=original.projector_type,
        image_token_index=text.vocab_size,
        image_seq_length=patches + (0 if original.select_strategy == "default" else 1),
    )


def _processor(
    original: OriginalLlava, config: LlavaConfig, options: FromLlava, report: ConversionReport
) -> LlavaProcessor | None:
    from transformers import AutoTokenizer

    folders = [options.tokenizer] if options.tokenizer is not None else [original.folder, options.llm]
    folder = next((path for path in folders if path is not None and has_tokenizer(path)), None)
    if folder is None:
        report.notes.append("written without a processor: for it give a tokenizer's folder (tokenizer)")
        return None
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        # LLaVA pads with the unknown token.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    template = find_chat_template(options.chat_template)
    if original.brackets_images:
        if _MARKER not in template or "<im_start>" not in tokenizer.get_vocab():
            raise ConversionError(
                [
                    f"mm_use_im_start_end of {original.folder} is set: images stand between <im_start> and <im_end>, which "
                    f"the tokenizer of {folder} does not have, or the chat template does not write"
                ]
            )
        template = template.replace(_MARKER, _BRACKETED)
        report.notes.append("images stand between <im_start> and <im_end>, which the chat template writes")
    report.notes.append(
        f"the chat template is {options.chat_template} (chat_template): LLaVA's folders do not say which one it was"
    )
    return LlavaProcessor(
        _image_processor(original, config, options),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=template,
        num_additional_image_tokens=1,  # CLIP's class token
        # LLaVA's code splits text at images before it makes tokens of it, which shows with such tokenizers alone.
        split_at_images=tokenizer.init_kwargs.get("legacy") is False,
    )


def _image_processor(original: OriginalLlava, config: LlavaConfig, options: FromLlava) -> Any:
    """CLIP's, at the size of the tower; around it LLaVA 1.5 pads images to a square."""
    size = config.vision_config.image_size
    arguments: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if options.vision_tower is not None and (options.vision_tower / "preprocessor_config.json").is_file():
        own = CLIPImageProcessorPil.from_pretrained(options.vision_tower)
        arguments.update(image_mean=own.image_mean, image_std=own.image_std)
    if original.settings.get("image_aspect_ratio") == "pad":
        return LlavaImageProcessorPil(do_pad=True, **arguments)
    return CLIPImageProcessorPil(**arguments)


def _set_vocabulary(
    config: LlavaConfig, tensors: LlavaTensors, processor: LlavaProcessor | None, report: ConversionReport
) -> None:
    rows = config.text_config.vocab_size
    config.image_token_index = rows if processor is None else processor.image_token_id
    needed = max(rows, config.image_token_index + 1, len(processor.tokenizer) if processor is not None else 0)
    config.text_config.vocab_size = needed
    report.notes.append(
        f"the image placeholder is token {config.image_token_index}; the files have {rows} rows, the folder {needed}"
    )


def _generation_config(original: OriginalLlava, config: LlavaConfig, options: FromLlava) -> GenerationConfig:
    for folder in (original.folder, options.llm):
        if folder is not None and (folder / GENERATION_CONFIG_NAME).is_file():
            return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(config.text_config)


def _compare_connector(
    config: LlavaConfig, written: dict[str, StoredTensor], tensors: LlavaTensors, dtype: torch.dtype | None
) -> Difference:
    """What was written against LLaVA's ``nn.Sequential`` of linear layers and GELU, on random features."""
    model = build_projector(config).eval()
    model.load_state_dict({name: stored.load().float() for name, stored in written.items()})

    def original(name: str) -> torch.Tensor:
        return tensors.found[_CONNECTOR + name].rounded(dtype).load().float()

    features = torch.randn(1, 8, config.image_features_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = nn.functional.linear(features, original("linear_1.weight"), original("linear_1.bias"))
        if config.projector_type == "mlp":
            expected = nn.functional.gelu(expected)
            expected = nn.functional.linear(expected, original("linear_2.weight"), original("linear_2.bias"))
        found = model(features)[0]
    difference = difference_of("what the language model gets", found, expected)
    raise_if_too_large([difference])
    return difference


__all__ = ["FromLlava", "convert_llava"]
