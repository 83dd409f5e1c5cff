"""A connector in a folder of its own: what the first stage of training leaves, and the second begins with.

LLaVA keeps it in ``mm_projector.bin`` and knows it again by the folder's name. Here ``projector_config.json`` says what it
fits, and a model that it does not fit says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from ...utils.whole_files import write_whole
from .configuration_llava import LlavaConfig


PROJECTOR_CONFIG = "projector_config.json"
PROJECTOR_WEIGHTS = "projector.safetensors"
_PREFIX = "multi_modal_projector."
_FIELDS = (
    "projector_type",
    "projector_hidden_act",
    "multimodal_projector_bias",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "num_query_tokens",
)


def save_projector(
    model: Any, folder: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Writes a model's connector and what it fits.

    Args:
        model ([`LlavaForConditionalGeneration`]): The model.
        folder (`str` or `os.PathLike`): Made if it is not there. A connector that is in it is replaced.
        state_dict (`Mapping[str, torch.Tensor]`, *optional*): The model's weights where they had to be gathered first.

    Raises:
        KeyError: If ``state_dict`` lacks some of them.
        OSError: If it cannot be written; no file is left half-written.
    """
    names = list(_parameters(model))
    source = model.state_dict() if state_dict is None else state_dict
    missing = [name for name in names if _PREFIX + name not in source]
    if missing:
        raise KeyError(f"state_dict lacks {', '.join(_PREFIX + name for name in missing)}")
    tensors = {name: source[_PREFIX + name].detach().cpu().contiguous() for name in names}
    # The weights first: a folder with a configuration is whole.
    write_whole(Path(folder) / PROJECTOR_WEIGHTS, save(tensors, {"format": "pt"}))
    content = json.dumps(projector_facts(model.config), indent=2, sort_keys=True) + "\n"
    write_whole(Path(folder) / PROJECTOR_CONFIG, content)


@torch.no_grad()
def load_projector(model: Any, folder: str | os.PathLike[str]) -> None:
    """Puts a saved connector into a model; all of it or, where it does not fit, nothing.

    Args:
        model ([`LlavaForConditionalGeneration`]): Changed in place; weights take on its types.
        folder (`str` or `os.PathLike`): What [`save_projector`] wrote.

    Raises:
        FileNotFoundError: If there is no connector in the folder.
        KeyError: If its weights are missing or unexpected.
        ValueError: If it is another kind of connector, or was made for other parts.
    """
    file = Path(folder) / PROJECTOR_CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no connector: there is no {PROJECTOR_CONFIG}")
    theirs, own = json.loads(file.read_text(encoding="utf-8")), projector_facts(model.config)
    differences = [
        f"{name} is {theirs.get(name)!r} there and {value!r} in the model"
        for name, value in own.items()
        if theirs.get(name) != value
    ]
    if differences:
        raise ValueError(f"the connector of {folder} does not fit: {'; '.join(differences)}")
    tensors = load_file(Path(folder) / PROJECTOR_WEIGHTS)
    parameters = _parameters(model)
    missing, unexpected = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or unexpected:
        raise KeyError(f"{folder} has missing keys {missing} and unexpected keys {unexpected}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{name} of {folder} has shape {tuple(tensors[name].shape)}, the model's {tuple(parameter.shape)}"
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def projector_facts(config: LlavaConfig) -> dict[str, Any]:
    """What a connector is and which parts it stands between, as it is kept beside its weights."""
    facts: dict[str, Any] = {name: getattr(config, name) for name in _FIELDS}
    facts["image_features_size"] = config.image_features_size
    facts["text_hidden_size"] = config.text_config.hidden_size
    facts["vision_model_type"] = config.vision_config.model_type
    if config.qformer_config is not None:
        facts["qformer_hidden_size"] = config.qformer_config.hidden_size
        facts["qformer_num_hidden_layers"] = config.qformer_config.num_hidden_layers
    return facts


def _parameters(model: Any) -> dict[str, nn.Parameter]:
    """By name inside of the connector; the identity behind a single linear layer is no parameter."""
    return dict(model.multi_modal_projector.named_parameters())


__all__ = ["PROJECTOR_CONFIG", "PROJECTOR_WEIGHTS", "load_projector", "projector_facts", "save_projector"]
