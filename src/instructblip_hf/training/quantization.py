"""Language models in 4 or 8 bits to train LoRA on: QLoRA, arXiv 2305.14314, through bitsandbytes.

Vision tower, Q-Former and projection keep their weights (`VisionLanguageModel._keep_image_side_whole`): they are small,
and the Q-Former trains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .arguments import QUANTIZATIONS
from .lora import has_lora


def quantization_config(name: str, compute_dtype: torch.dtype = torch.float32) -> Any:
    """What ``model.quantization`` of a recipe stands for.

    Args:
        name (`str`):
            ``"nf4"`` (4-bit NormalFloat with double quantisation, as in QLoRA) or ``"int8"`` (LLM.int8).
        compute_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            In which 4-bit weights are multiplied.

    Returns:
        `transformers.BitsAndBytesConfig`

    Raises:
        ImportError: If bitsandbytes is not installed.
        ValueError: For another name.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantization is {name!r}; allowed are: {', '.join(QUANTIZATIONS)}")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError(f"quantization {name!r} needs bitsandbytes: pip install 'instructblip-hf[quant]'") from error
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def is_quantized(model: nn.Module) -> bool:
    """Whether the model was loaded with quantised weights."""
    return bool(getattr(model, "is_quantized", False))


def keep_weights_as_loaded(model: nn.Module) -> None:
    """Keeps 4-bit weights as they are on CPUs, where bitsandbytes packs them anew when they are first evaluated.

    Packing rounds their scales to bfloat16 and leaves weights that gradients cannot go through, so a run would not be the
    same after its first evaluation. Accelerators know no packing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


@contextlib.contextmanager
def trainable_when_quantized(model: nn.Module) -> Iterator[None]:
    """Lets Trainer take a quantised model whose LoRA layers `apply_freezing` put in.

    Trainer takes quantised models with adapters alone, and looks for those that transformers' own `add_adapter` put in.
    """
    declared: Any = getattr(model, "_hf_peft_config_loaded", False)
    if not (is_quantized(model) and has_lora(model)):
        yield
        return
    try:
        vars(model)["_hf_peft_config_loaded"] = True
        yield
    finally:
        vars(model)["_hf_peft_config_loaded"] = declared


def parameter_count(parameter: nn.Parameter) -> int:
    """Number of weights that a parameter stands for, also where two of 4 bits share a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


__all__ = [
    "is_quantized",
    "keep_weights_as_loaded",
    "parameter_count",
    "quantization_config",
    "trainable_when_quantized",
]
