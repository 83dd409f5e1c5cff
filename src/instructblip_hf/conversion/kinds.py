"""What can be converted: the models, and what each of them has."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A model that exists on both sides.

    Args:
        name (`str`): As users name it.
        model_class (`str`): Class of this package, below `instructblip_hf.models`, as ``"module:class"``.
        config_class (`str`): Its configuration class, beside it.
        language_model (`bool`): Whether a language model and a projection into it are part of it.
        qformer_text (`str`): Where the Q-Former's text embeddings live in our layout: `"inside"` the Q-Former,
            `"beside"` it, or `"none"`.
        first_stage (`bool`): Whether it has the projections and the matching head of the first stage.
        language_head (`bool`): Whether it has the first stage's temperature and language-model head.
    """

    name: str
    model_class: str
    config_class: str
    language_model: bool
    qformer_text: str
    first_stage: bool = False
    language_head: bool = False

    def model(self) -> Any:
        """The model class."""
        module, name = self.model_class.split(":")
        return getattr(importlib.import_module(f"..models.{module}", __package__), name)

    def config(self) -> Any:
        """The configuration class."""
        module, name = self.config_class.split(":")
        return getattr(importlib.import_module(f"..models.{module}", __package__), name)


_INSTRUCTBLIP = ("instructblip:InstructBlipForConditionalGeneration", "instructblip:InstructBlipConfig")
_GENERATION = ("blip_2:Blip2ForConditionalGeneration", "blip_2:Blip2Config")
_RETRIEVAL = ("blip_2:Blip2ForImageTextRetrieval", "blip_2:Blip2Config")
_PRETRAINING = ("blip_2:Blip2ForPreTraining", "blip_2:Blip2Config")
_ALL = (
    Kind("instructblip", *_INSTRUCTBLIP, language_model=True, qformer_text="inside"),
    Kind("instructblip-without-text", *_INSTRUCTBLIP, language_model=True, qformer_text="none"),
    Kind("blip-2", *_GENERATION, language_model=True, qformer_text="none"),
    Kind("blip-2-retrieval", *_RETRIEVAL, language_model=False, qformer_text="beside", first_stage=True),
    Kind(
        "blip-2-pretraining",
        *_PRETRAINING,
        language_model=False,
        qformer_text="beside",
        first_stage=True,
        language_head=True,
    ),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}

__all__ = ["KINDS", "Kind"]
