"""Fresh weights for chosen parts of a loaded model, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from .freezing import check_component


def reinitialize(model: PreTrainedModel, components: Sequence[str], seed: int = 0) -> None:
    """Gives components the weights that a newly built model would have, and leaves everything else bitwise alone.

    Each component draws from its own generator, so its new weights depend on the seed and its name alone.

    Args:
        model (`PreTrainedModel`): The model, changed in place.
        components (`Sequence[str]`): Dotted names of modules or parameters, like ``qformer`` or ``query_tokens``.
        seed (`int`, *optional*, defaults to 0): Seed of the new weights. Global random state is not touched.

    Raises:
        ValueError: If the model has no component of such a name.
    """
    for name in components:
        check_component(model, name)
    for name in components:
        chosen = {n for n, _ in model.named_parameters() if n == name or n.startswith(f"{name}.")}
        # transformers' own flags decide what its initialisation functions write to.
        for parameter_name, parameter in model.named_parameters():
            parameter._is_hf_initialized = parameter_name not in chosen  # type: ignore[attr-defined]
        for buffer in model.buffers():
            buffer._is_hf_initialized = True  # type: ignore[attr-defined]
        for module_name, module in model.named_modules():
            prefix = f"{module_name}." if module_name else ""
            own = {prefix + n for n, _ in module.named_parameters(recurse=False)}
            module._is_hf_initialized = not (own & chosen)
        with torch.random.fork_rng():
            torch.manual_seed(_mix(seed, name))
            model.initialize_weights()


def _mix(seed: int, name: str) -> int:
    value = seed & 0xFFFFFFFF
    for byte in name.encode():
        value = (value * 1_000_003 + byte) & 0x7FFFFFFFFFFFFFFF
    return value
