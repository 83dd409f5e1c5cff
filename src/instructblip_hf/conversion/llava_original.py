"""Checkpoints of LLaVA's own code (haotian-liu/LLaVA): what is in a folder, told by its files and its configuration.

There are three kinds. A whole model has weights, with or without the vision tower's; the first stage leaves ``config.json``
and ``mm_projector.bin``; LoRA leaves ``adapter_*``, ``config.json`` and ``non_lora_trainables.bin``. LLaVA's loader tells
them apart by words in the folder's name; here the name says nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from .stored_tensors import ConversionError, StoredTensor, load_torch_file, read_safetensors, tensors_of_mapping


PROJECTOR_FILE = "mm_projector.bin"
TRAINABLES_FILE = "non_lora_trainables.bin"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_LANGUAGE_MODELS = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
_PROJECTORS = {"linear": "linear", "mlp2x_gelu": "mlp"}
_SELECTED = {"patch": "default", "cls_patch": "full"}
# Of a configuration: what LLaVA adds to the language model's, and what is not about the model.
_NOT_OF_THE_LANGUAGE_MODEL = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "freeze_mm_mlp_adapter",
    "freeze_mm_vision_resampler",
    "image_aspect_ratio",
    "image_crop_resolution",
    "image_grid_pinpoints",
    "image_split_resolution",
    "model_type",
    "pretrain_mm_mlp_adapter",
    "sep_image_conv_front",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "torch_dtype",
    "transformers_version",
    "tune_mm_mlp_adapter",
    "tune_mm_vision_resampler",
    "unfreeze_mm_vision_tower",
    "use_mm_proj",
)
_VIT_L: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_KNOWN_TOWERS: dict[str | None, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {**_VIT_L, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_VIT_L, "image_size": 336},
}


@dataclass(frozen=True)
class OriginalLlava:
    """A folder of LLaVA's own code.

    Args:
        folder (`Path`): The folder.
        settings (`dict`): Its ``config.json``.
        kind (`str`): `"model"`, `"projector"` or `"lora"`.
        problems (`list[str]`): Settings that this package has nothing for.
    """

    folder: Path
    settings: dict[str, Any]
    kind: str
    problems: list[str] = field(default_factory=list)

    @property
    def projector_type(self) -> str:
        """The connector, as [`LlavaConfig`] names it."""
        return _PROJECTORS[self.settings.get("mm_projector_type", "linear")]

    @property
    def select_strategy(self) -> str:
        """Which tokens of the tower are used, as [`LlavaConfig`] names it."""
        return _SELECTED[self.settings.get("mm_vision_select_feature", "patch")]

    @property
    def brackets_images(self) -> bool:
        """Whether every image stands between ``<im_start>`` and ``<im_end>``."""
        return bool(self.settings.get("mm_use_im_start_end", False))

    def text_config(self) -> PreTrainedConfig:
        """Configuration of the language model."""
        values = {
            name: value
            for name, value in self.settings.items()
            if name not in _NOT_OF_THE_LANGUAGE_MODEL and not name.startswith("mm_")
        }
        return CONFIG_MAPPING[_LANGUAGE_MODELS[self.settings["model_type"]]](**values)

    def vision_config(self, tower: Path | None) -> PreTrainedConfig:
        """Configuration of the vision tower: a given folder's, or that of a tower known by the name it is given.

        Raises:
            ConversionError: If there is neither.
        """
        if tower is None:
            name = self.settings.get("mm_vision_tower")
            if name not in _KNOWN_TOWERS:
                raise ConversionError(
                    [f"the configuration names {name!r} as vision tower: give its folder (vision_tower)"]
                )
            return CLIPVisionConfig(**_KNOWN_TOWERS[name])
        values = json.loads((tower / CONFIG_NAME).read_text())
        values = values.get("vision_config") or values
        model_type = values.get("model_type", "clip_vision_model")
        if model_type != "clip_vision_model":
            raise ConversionError([f"vision_tower: {tower} is of type {model_type}; LLaVA's is CLIP's"])
        return CLIPVisionConfig(**{name: value for name, value in values.items() if name != "model_type"})


def is_original_llava(folder: Path) -> bool:
    """Whether a folder's configuration is one of LLaVA's own code."""
    file = folder / CONFIG_NAME
    return file.is_file() and "mm_vision_tower" in json.loads(file.read_text())


def read_original(folder: Path) -> OriginalLlava:
    """Reads what a folder says of itself.

    Raises:
        ConversionError: If it is none of the three kinds, or has settings that this package has nothing for.
    """
    settings = json.loads((folder / CONFIG_NAME).read_text())
    weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    if (folder / ADAPTER_CONFIG).is_file():
        kind = "lora"
    elif any((folder / name).is_file() for name in weights):
        kind = "model"
    elif (folder / PROJECTOR_FILE).is_file():
        kind = "projector"
    else:
        raise ConversionError(
            [
                f"{folder} holds no weights: neither a model's, nor {PROJECTOR_FILE}, nor a LoRA adapter ({ADAPTER_CONFIG})"
            ]
        )
    problems = []
    for name, default, known in (
        ("model_type", None, _LANGUAGE_MODELS),
        ("mm_projector_type", "linear", _PROJECTORS),
        ("mm_vision_select_feature", "patch", _SELECTED),
        ("mm_patch_merge_type", "flat", ("flat",)),
        ("image_aspect_ratio", "square", ("square", "pad", None)),
    ):
        value = settings.get(name, default)
        if value not in known:
            allowed = ", ".join(str(choice) for choice in known if choice is not None)
            problems.append(f"{name} of {folder / CONFIG_NAME} is {value!r}; converted are {allowed}")
    if problems:
        raise ConversionError(problems)
    return OriginalLlava(folder, settings, kind)


def read_projector_file(folder: Path) -> dict[str, StoredTensor]:
    """Tensors of ``mm_projector.bin``: the connector's, and of the first checkpoints the embeddings of two tokens."""
    path = folder / PROJECTOR_FILE
    tensors = tensors_of_mapping(load_torch_file(path), path, "it")
    # From DeepSpeed's wrapper or PEFT's, the names begin otherwise.
    return {_from_model(name): tensor for name, tensor in tensors.items()}


def read_trainables(folder: Path) -> dict[str, StoredTensor]:
    """Tensors that trained as a whole beside LoRA, by the names of the model.

    Raises:
        ConversionError: If the file is not there.
    """
    path = folder / TRAINABLES_FILE
    if not path.is_file():
        raise ConversionError(
            [f"{folder} lacks {TRAINABLES_FILE}, which holds the connector that trained beside LoRA"]
        )
    tensors = tensors_of_mapping(load_torch_file(path), path, "it")
    return {_from_model(name): tensor for name, tensor in tensors.items()}


def read_adapter(folder: Path) -> tuple[dict[str, tuple[StoredTensor, StoredTensor]], float]:
    """LoRA's two matrices by the name of the weight that they change, and what their product is multiplied with.

    Raises:
        ConversionError: If the adapter has more than LoRA's matrices, or is not there.
    """
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    problems = [
        f"{name} of {folder / ADAPTER_CONFIG} is {settings[name]!r}, which is not converted"
        for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias")
        if settings.get(name)
    ]
    if settings.get("peft_type", "LORA") != "LORA":
        problems.append(f"{folder} is an adapter of type {settings['peft_type']}; converted are LoRA's")
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        problems.append(f"{folder} lacks the adapter's weights: {' or '.join(ADAPTER_FILES)}")
    if problems or path is None:
        raise ConversionError(problems)
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path, path.name)
    else:
        tensors = tensors_of_mapping(load_torch_file(path), path, "it")
    halves: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        plain = name.replace(".default.", ".")
        stem, _, half = plain.removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B"):
            problems.append(f"{name} of {path} is no matrix of LoRA's")
            continue
        halves.setdefault(_from_model(f"{stem}.weight"), {})[half] = tensor
    problems += [f"{name} of {path} has one matrix of two" for name, pair in halves.items() if len(pair) != 2]
    if problems:
        raise ConversionError(problems)
    rank = settings["r"]
    scaling = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in halves.items()}, scaling


def _from_model(name: str) -> str:
    """The name inside of LLaVA's model, without what wrappers put in front."""
    for wrapper in ("module.", "base_model.model.", "base_model."):
        name = name.removeprefix(wrapper)
    return name.removeprefix("model.") if name.startswith("model.model.") else name


__all__ = [
    "OriginalLlava",
    "is_original_llava",
    "read_adapter",
    "read_original",
    "read_projector_file",
    "read_trainables",
]
