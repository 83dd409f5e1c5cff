"""InstructBLIP with a Q-Former that does not read the instruction (the paper's ablation, section 3.2 and table 2).

Such a Q-Former has no embeddings of words and positions and no feed-forward layers for text: LAVIS builds it with
``qformer_text_input=False``. What it has in common with the Q-Former of a published checkpoint is loaded from there.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..strict_loading import raise_on_key_differences
from .configuration_instructblip import InstructBlipConfig
from .modeling_instructblip import InstructBlipForConditionalGeneration
from .modeling_instructblip_parts import InstructBlipQFormerModel


logger = logging.getLogger(__name__)


def load_without_instruction(
    pretrained_model_name_or_path: Any, **kwargs: Any
) -> InstructBlipForConditionalGeneration:
    """Loads a checkpoint whose Q-Former reads the instruction into a model whose Q-Former does not.

    Exactly the Q-Former's weights for text are left out, and a warning says so. A checkpoint without them is loaded as
    it is.

    Args:
        pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
        kwargs: As for `InstructBlipForConditionalGeneration.from_pretrained`, without ``config`` and ``strict``.

    Returns:
        [`InstructBlipForConditionalGeneration`]: With ``config.qformer_config.use_qformer_text_input`` set to `False`.

    Raises:
        KeyError: If other keys are unexpected or missing, or some of the Q-Former's text weights are not there.
    """
    hub_options = {
        name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs
    }
    config = InstructBlipConfig.from_pretrained(pretrained_model_name_or_path, **hub_options)
    text_keys = qformer_text_keys(config)
    config.qformer_config.use_qformer_text_input = False
    model, info = InstructBlipForConditionalGeneration.from_pretrained(
        pretrained_model_name_or_path, config=config, strict=False, output_loading_info=True, **kwargs
    )
    unexpected = set(map(str, info["unexpected_keys"]))
    raise_on_key_differences(
        type(model).__name__,
        pretrained_model_name_or_path,
        {
            "missing_keys": set(map(str, info["missing_keys"])) | (text_keys - unexpected),
            "unexpected_keys": unexpected - text_keys,
        },
        advice="",
    )
    if text_keys:
        logger.warning(
            "the Q-Former does not read the instruction: %d weights of %s are left out (%s)",
            len(text_keys),
            pretrained_model_name_or_path,
            _summary(text_keys),
        )
    return model


def qformer_text_keys(config: InstructBlipConfig) -> set[str]:
    """Names of the weights that only a Q-Former with text has; none if the configuration is of one without."""

    def names(qformer_config: Any) -> set[str]:
        with torch.device("meta"):
            return {f"qformer.{name}" for name in InstructBlipQFormerModel(qformer_config).state_dict()}

    without = type(config.qformer_config).from_dict(
        {**config.qformer_config.to_dict(), "use_qformer_text_input": False}
    )
    return names(config.qformer_config) - names(without)


def _summary(keys: set[str]) -> str:
    kinds = {".".join(part if not part.isdigit() else "*" for part in key.split(".")[:-1]) for key in keys}
    return ", ".join(sorted(kinds))


__all__ = ["load_without_instruction", "qformer_text_keys"]
