"""`AutoModelForVision2Seq`, which transformers 5 removed, on the public machinery of its Auto classes.

``from_pretrained`` and ``from_config`` are those of every Auto class. InstructBLIP, BLIP-2 and LLaVA configurations, ours
and stock transformers' alike, lead to this package's models; every other type leads to the class that
``AutoModelForImageTextToText`` has for it, which includes all types of transformers 4's ``AutoModelForVision2Seq``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from .transformers_hooks import AUTO_CLASS, moved


try:
    from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping, auto_class_update
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
except ImportError as error:
    instead = "load InstructBLIP folders with instructblip_hf.InstructBlipForConditionalGeneration.from_pretrained"
    raise ImportError(moved(AUTO_CLASS, "the auto factory of transformers.models.auto", instead)) from error


_CONFIGS = ("InstructBlipConfig", "Blip2Config", "LlavaConfig")
_CONFIG_MODULES = (
    "instructblip_hf.",
    "transformers.models.instructblip.",
    "transformers.models.blip_2.",
    "transformers.models.llava.",
)


class _Vision2SeqMapping(_LazyAutoMapping):
    """Configuration class to model class, ours for our families; nothing is imported before it is asked for."""

    def __getitem__(self, key: type) -> Any:
        # Remote code has configuration classes of these names as well, and they are not ours.
        if key.__name__ in _CONFIGS and key.__module__.startswith(_CONFIG_MODULES):
            from .models.families import FAMILIES

            return FAMILIES[key.model_type].model_class  # type: ignore[attr-defined]
        return super().__getitem__(key)


# A copy: a mapping leaves a reference to itself on the names it is given, and stock's has one already.
_MAPPING = _Vision2SeqMapping(CONFIG_MAPPING_NAMES, OrderedDict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))


class AutoModelForVision2Seq(_BaseAutoModelClass):
    _model_mapping = _MAPPING  # type: ignore[assignment]


AutoModelForVision2Seq = auto_class_update(  # type: ignore[misc]
    AutoModelForVision2Seq, head_doc="vision-to-text modeling"
)

__all__ = ["AutoModelForVision2Seq"]
