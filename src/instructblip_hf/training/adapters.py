"""Adapters: what a LoRA run trained, in a folder of PEFT's format, without the weights that it left alone.

``adapter_model.safetensors`` holds *every* tensor that trained, not LoRA's alone: LLaVA keeps the others in a second
file, ``non_lora_trainables.bin``, which PEFT does not read, so that whoever loads the adapter with PEFT loses the
projector without a word. Here ``PeftModel.from_pretrained(base, folder)`` gets them all:

- modules that train as a whole (Q-Former, projection, layer norms) are in ``modules_to_save`` of the configuration;
- parameters that no such module covers, ``query_tokens`` above all, which belong to the model itself, stand in the file
  under their full name. PEFT loads such names into the base model, as it does with trained biases.

PEFT keeps the second kind in no adapter of its own: `disable_adapter` leaves them trained, and PEFT's own
`save_pretrained` after further training leaves them out. `save_adapter` has both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..checkpoints import BUNDLED_CHECKPOINTS, bundled_checkpoint
from ..models.families import FAMILIES, family_of
from ..models.strict_loading import HUB_OPTIONS
from .quantization import is_quantized, keep_weights_as_loaded, quantization_config


CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before every name in an adapter: where PEFT puts the model that it wraps."""

_ADAPTER = "default"
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (Path(folder) / CONFIG_NAME).is_file()


# --- saving -----------------------------------------------------------------------------------------------------------


def save_adapter(model: nn.Module, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Writes everything that trains, LoRA layers and whole weights, in PEFT's format.

    Args:
        model (`nn.Module`): With LoRA layers of `apply_freezing`; what trains is what requires a gradient.
        folder (`str` or `Path`): Where to; made if it is not there.
        state_dict (`dict[str, torch.Tensor]`, *optional*): The model's weights where they had to be gathered first.

    Raises:
        ValueError: If the model has no LoRA layers, or was not loaded from anywhere that could be named as its base.
    """
    weights, modules_to_save = _trained(model, state_dict)
    config = _lora_config(model, modules_to_save)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    # Sets, which PEFT would write in any order.
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    content = {key: getattr(value, "value", value) for key, value in content.items()}
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_trained_weights(model: nn.Module, folder: str | Path) -> None:
    """Puts the tensors of `save_adapter` back into the model that they came from, to go on with its training.

    Raises:
        KeyError: If the file holds other tensors than the ones that train.
    """
    loaded = load_file(Path(folder) / WEIGHTS_NAME)
    names = {_peft_name(name): name for name in model.state_dict()}
    expected, _ = _trained(model, None)
    _raise_on_differences(folder, expected.keys() - loaded.keys(), loaded.keys() - expected.keys())
    model.load_state_dict({names[key]: tensor for key, tensor in loaded.items()}, strict=False)


def base_of(model: nn.Module) -> str:
    """What the model was loaded from, as an adapter names it: a Hub id, a bundled checkpoint's name, or a folder.

    Raises:
        ValueError: If it was not loaded from anywhere.
    """
    name = str(getattr(model, "name_or_path", "") or "")
    if not name:
        raise ValueError(
            "an adapter names the model that it belongs to, and this one was not loaded from a folder or the Hub: save "
            "it with save_pretrained and load it from there, or save merged weights"
        )
    path = Path(name)
    if not path.is_dir():
        return name
    return path.name if path.resolve().parent == bundled_checkpoint().resolve().parent else str(path.resolve())


def check_base_is_unchanged(model: nn.Module, components: Sequence[str]) -> None:
    """Refuses to save an adapter of a model with fresh weights that do not train, which no adapter would hold.

    Args:
        model (`nn.Module`): After `apply_freezing`.
        components (`Sequence[str]`): Names of the components that got fresh weights.

    Raises:
        ValueError: If one of them holds a weight that does not train.
    """
    for component in components:
        for name, parameter in model.named_parameters():
            if f"{name}.".startswith(f"{component}.") and not parameter.requires_grad:
                raise ValueError(
                    f"{name} of the reinitialized {component} does not train, so an adapter would leave its new weights "
                    "out: train it, or take freezing.save: merged"
                )


def _trained(
    model: nn.Module, state_dict: dict[str, torch.Tensor] | None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Trained tensors under PEFT's names, and the modules that train as a whole."""
    state = model.state_dict() if state_dict is None else state_dict
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    modules = _whole_modules(model, trained)
    names = [name for name in state if name in trained or name.startswith(tuple(f"{module}." for module in modules))]
    return {_peft_name(name): state[name].detach().cpu().contiguous() for name in names}, modules


def _whole_modules(model: nn.Module, trained: set[str]) -> list[str]:
    """The largest modules of which every weight trains, but for those that share weights with others."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    all_names = [name for name, _ in model.named_modules()]
    found: list[str] = []

    def visit(name: str, module: nn.Module) -> None:
        if hasattr(module, "lora_A"):
            return
        parameters = list(module.named_parameters(remove_duplicate=False))
        is_whole = all(f"{name}.{n}" in trained and uses[id(p)] == 1 for n, p in parameters) and not _has_lora(module)
        # PEFT finds modules by the end of their name, and cannot wrap lists.
        is_unique = sum(other.endswith(name) for other in all_names) == 1
        if name and parameters and is_whole and is_unique and not isinstance(module, _CONTAINERS):
            found.append(name)
            return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return found


def _has_lora(module: nn.Module) -> bool:
    return any(hasattr(child, "lora_A") for child in module.modules())


def _peft_name(name: str) -> str:
    """Of a parameter in a model with LoRA layers: PEFT leaves out the adapter's own name."""
    return PREFIX + name.replace(f".{_ADAPTER}.", ".") if ".lora_" in name else PREFIX + name


def _lora_config(model: nn.Module, modules_to_save: list[str]) -> Any:
    from peft import LoraConfig

    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    if not layers:
        raise ValueError("the model has no LoRA layers: mark a component 'lora', or save the whole model")
    settings = {
        (layer.r[_ADAPTER], layer.lora_alpha[_ADAPTER], float(getattr(layer.lora_dropout[_ADAPTER], "p", 0.0)))
        for layer in layers.values()
    }
    if len(settings) > 1:
        raise ValueError(f"the LoRA layers differ in rank, alpha or dropout: {sorted(settings)}")
    rank, alpha, dropout = settings.pop()
    config: Any = getattr(model, "config", None)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(layers),
        modules_to_save=modules_to_save or None,
        base_model_name_or_path=base_of(model),
        revision=getattr(config, "_commit_hash", None),
        inference_mode=True,
    )


# --- loading and merging ----------------------------------------------------------------------------------------------


def load_adapter(
    adapter: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype | str = torch.float32,
    quantization: str | None = None,
    is_trainable: bool = False,
    **options: Any,
) -> Any:
    """Opens an adapter on the model that it was trained on.

    Args:
        adapter (`str` or `Path`): Its folder, or Hub id.
        base (`str` or `Path`, *optional*): Folder, bundled name or Hub id; by default what the adapter names.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `torch.float32`): Of the base.
        quantization (`str`, *optional*): As ``model.quantization`` of a recipe; by default the base is whole.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether LoRA layers and saved modules train.
        options: For loading both from the Hub, like ``local_files_only``.

    Returns:
        `peft.PeftModel`: In evaluation mode; its ``get_base_model()`` is a model of this package.

    Raises:
        KeyError: If the adapter holds tensors that the base has no place for, or lacks some that it should hold.
        OSError: If adapter or base are not there.
        ImportError: If peft is not installed, or bitsandbytes where `quantization` needs it.
    """
    try:
        from peft import PeftConfig, PeftModel
        from peft.utils import get_peft_model_state_dict, load_peft_weights
    except ImportError as error:
        raise ImportError("adapters need peft: pip install 'instructblip-hf[train]'") from error
    config = PeftConfig.from_pretrained(str(adapter), **options)
    name = str(base if base is not None else config.base_model_name_or_path)
    path = str(bundled_checkpoint(name)) if name in BUNDLED_CHECKPOINTS and not Path(name).is_dir() else name
    loading: dict[str, Any] = {"dtype": dtype, **options}
    if base is None and config.revision is not None and not Path(path).is_dir():
        loading["revision"] = config.revision
    if quantization is not None:
        compute_dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
        loading["quantization_config"] = quantization_config(quantization, compute_dtype)
    try:
        _, model_class = family_of(path, **{name: value for name, value in loading.items() if name in HUB_OPTIONS})
        model = model_class.from_pretrained(path, **loading)
    except OSError as error:
        raise OSError(f"the adapter {adapter} belongs to {name}, which cannot be loaded: {error}") from error

    keep_weights_as_loaded(model)
    weights = load_peft_weights(str(adapter), device="cpu", **options)
    own = {PREFIX + key for key in model.state_dict()}
    wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable, **options)
    adapted = get_peft_model_state_dict(wrapped).keys()
    _raise_on_differences(adapter, adapted - weights.keys(), weights.keys() - adapted - own)
    return wrapped.train(is_trainable)


def merge_adapter(
    adapter: str | Path,
    output: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype | str = torch.float32,
    **options: Any,
) -> Any:
    """Adds an adapter to its base and saves the sum as a model of its own, with its processor.

    The base is loaded with all its bits, also where the adapter was trained on a quantised one.

    Args:
        adapter, base, dtype, options: As for `load_adapter`.
        output (`str` or `Path`): Folder for the model; it may not hold anything.

    Returns:
        `PreTrainedModel`: The merged model.

    Raises:
        FileExistsError: If `output` is not empty.
        ValueError: If the base is a quantised checkpoint, or the merged weights are not finite.
    """
    folder = Path(output)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"the output folder {folder} is not empty")
    wrapped = load_adapter(adapter, base, dtype, **options)
    if is_quantized(wrapped.get_base_model()):
        raise ValueError(f"the base of {adapter} has quantised weights, which LoRA cannot be added to exactly")
    family = FAMILIES[wrapped.get_base_model().config.model_type]
    processor = family.processor_class.from_pretrained(str(adapter), **options)
    merged = wrapped.merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)
    return merged


def _raise_on_differences(source: str | Path, missing: Any, unexpected: Any) -> None:
    problems = [
        f"{len(keys)} {kind} tensors: {', '.join(sorted(keys)[:20])}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if problems:
        raise KeyError(f"the adapter {source} does not fit: {'; '.join(problems)}")


__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "base_of",
    "check_base_is_unchanged",
    "is_adapter",
    "load_adapter",
    "load_trained_weights",
    "merge_adapter",
    "save_adapter",
]
