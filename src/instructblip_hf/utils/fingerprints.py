"""Models and processors as short texts: what was computed with one of them is known again by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def describe_model(model: Any, name: str) -> dict[str, Any]:
    """What a result says of its model: name, class, parameters, dtype, and a fingerprint of configuration and weights."""
    import torch

    digest = hashlib.sha256()
    digest.update(json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode())
    for parameter_name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        # Training changes all of a tensor, so a part of it tells.
        sample = flat[:: max(1, len(flat) // 256)][:256].cpu().contiguous()
        digest.update(f"{parameter_name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return {
        "name": name,
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": digest.hexdigest()[:16],
    }


def fingerprint_of_processor(processor: Any) -> str:
    """Of what it does to images, and of its vocabulary."""
    images = processor.image_processor.to_dict() if hasattr(processor, "image_processor") else {}
    vocabulary = sorted(processor.tokenizer.get_vocab().items())
    return fingerprint_of([{key: value for key, value in images.items() if not key.startswith("_")}, vocabulary])


def fingerprint_of(content: Any) -> str:
    """Of anything that can be written as JSON, 16 characters."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _lasting(config: Any) -> Any:
    """A configuration without what saving and loading write into it."""
    if not isinstance(config, Mapping):
        return config
    passing = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
    return {
        key: _lasting(value) for key, value in config.items() if key not in passing and not str(key).startswith("_")
    }


__all__ = ["describe_model", "fingerprint_of", "fingerprint_of_processor"]
