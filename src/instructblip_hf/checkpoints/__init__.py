"""The small trained checkpoints that ship with the package."""

from __future__ import annotations

from pathlib import Path


BUNDLED_CHECKPOINTS = ("instructblip-shapes-tiny", "instructblip-shapes-tiny-pretrained", "blip2-shapes-tiny")
"""Names that `bundled_checkpoint` knows: the instruction-tuned model, the one before instruction tuning, and BLIP-2's first
stage, which compares and matches images and texts."""


def bundled_checkpoint(name: str = "instructblip-shapes-tiny") -> Path:
    """Folder of a checkpoint that ships with the package, to hand to any ``from_pretrained``.

    Args:
        name (`str`, *optional*, defaults to `"instructblip-shapes-tiny"`): One of `BUNDLED_CHECKPOINTS`.

    Returns:
        `pathlib.Path`: A folder with configuration, safetensors weights and processor.

    Raises:
        KeyError: If there is no bundled checkpoint of that name.
    """
    if name not in BUNDLED_CHECKPOINTS:
        raise KeyError(f"no bundled checkpoint {name!r}; there are: {', '.join(BUNDLED_CHECKPOINTS)}")
    return Path(__file__).parent / name
