"""Which classes open a checkpoint: the families by ``model_type``, and their models by what the checkpoint names.

The one table of the families. Nothing of them is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Family:
    """Names of a family's classes, which its package exports.

    Args:
        package (`str`): Its package in ``models``.
        model (`str`): The model with a language model.
        processor (`str`): The processor.
        others (`tuple[str, ...]`): Further models, which a checkpoint names in its ``architectures``.
    """

    package: str
    model: str
    processor: str
    others: tuple[str, ...] = ()

    @property
    def model_class(self) -> Any:
        """The model with a language model."""
        return self._class(self.model)

    @property
    def processor_class(self) -> Any:
        """The processor."""
        return self._class(self.processor)

    def model_class_named(self, architecture: str | None) -> Any:
        """The model that a checkpoint names; the one with a language model where that is none of the others."""
        return self._class(architecture) if architecture in self.others else self.model_class

    def _class(self, name: str) -> Any:
        return getattr(importlib.import_module(f".{self.package}", __package__), name)


FAMILIES = {
    "instructblip": Family("instructblip", "InstructBlipForConditionalGeneration", "InstructBlipProcessor"),
    "blip-2": Family(
        "blip_2",
        "Blip2ForConditionalGeneration",
        "Blip2Processor",
        ("Blip2ForImageTextRetrieval", "Blip2ForPreTraining"),
    ),
    "llava": Family("llava", "LlavaForConditionalGeneration", "LlavaProcessor"),
}


def family_of(source: str | os.PathLike[str], **options: Any) -> tuple[Family, Any]:
    """A checkpoint's family, and the class of it that the checkpoint was saved from.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        options: For reading ``config.json`` from the Hub, like ``revision``.

    Returns:
        `tuple`: [`Family`] and a model class: the one that ``architectures`` names, or that with a language model.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If its ``model_type`` is none of this package's families, or it is a folder of LLaVA's own code.
    """
    config, _ = PreTrainedConfig.get_config_dict(source, **options)
    model_type = config.get("model_type")
    if "mm_vision_tower" in config:
        raise ValueError(
            f"{source} is a folder of LLaVA's own code: instructblip convert makes one of it that opens here"
        )
    if model_type not in FAMILIES:
        found = f"is of model_type {model_type!r}" if config else "has no config.json"
        raise ValueError(f"{source} {found}; this package has models of: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    return family, family.model_class_named((config.get("architectures") or [None])[0])


__all__ = ["FAMILIES", "Family", "family_of"]
