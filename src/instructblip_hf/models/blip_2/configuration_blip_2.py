"""Configuration of the BLIP-2 family.

Field names, defaults and ``model_type`` values are those of published checkpoints, so a ``config.json`` written
here is read by stock transformers and the other way round.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..connectors.configuration_qformer import QFormerConfig
from ..sub_configs import is_decoder_only, sub_config
from ..vision_towers.configuration_eva_vit import EvaVitConfig


@strict
class Blip2VisionConfig(EvaVitConfig):
    """Configuration of BLIP-2's vision tower, an [`EvaVitConfig`] with its options and defaults."""

    model_type = "blip_2_vision_model"


@strict
class Blip2QFormerConfig(QFormerConfig):
    """Configuration of BLIP-2's Q-Former, a [`QFormerConfig`] with its options and defaults but one.

    ``use_qformer_text_input`` is `False` by default, as the second stage and inference have it: the Q-Former then has
    no feed-forward layers for text. The models of the first stage need it to be `True`.
    """

    model_type = "blip_2_qformer"

    use_qformer_text_input: bool = False


@strict
class Blip2Config(PreTrainedConfig):
    """Configuration of BLIP-2: a vision tower, a Q-Former and, but in the first stage, a language model.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Vision tower. Without a ``model_type`` it is a [`Blip2VisionConfig`]; any vision configuration known to
            transformers is accepted (CLIP, SigLIP, DINOv2, ...).
        qformer_config (`dict` or `Blip2QFormerConfig`, *optional*): Q-Former.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Language model, causal or sequence-to-sequence. Without a ``model_type`` it is OPT. The models of the
            first stage have none and do not look at it.
        num_query_tokens (`int`, *optional*, defaults to 32): Query tokens, and so placeholders, an image.
        image_text_hidden_size (`int`, *optional*, defaults to 256):
            Width of the space that images and texts are compared in.
        image_token_index (`int`, *optional*): Token id of the image placeholder, also as ``image_token_id``.
        initializer_factor (`float`, *optional*, defaults to 1.0): Kept for the file format, not used.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of new projections and heads.

    Raises:
        ValueError: If a sub-configuration names a ``model_type`` that transformers does not know.
    """

    model_type = "blip-2"
    attribute_map = {"image_token_id": "image_token_index"}
    sub_configs = {
        "vision_config": Blip2VisionConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": AutoConfig,
    }
    # Large, and not predictions: Trainer would otherwise gather them at every evaluation.
    keys_to_ignore_at_inference = ["vision_outputs", "qformer_outputs", "language_model_outputs"]

    # Given as a dict, a configuration or nothing; a configuration from __post_init__ on.
    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    num_query_tokens: int = 32
    image_text_hidden_size: int = 256
    image_token_index: int | None = None
    initializer_factor: float = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = sub_config("vision_config", self.vision_config, Blip2VisionConfig)
        self.qformer_config = sub_config("qformer_config", self.qformer_config, Blip2QFormerConfig)
        self.text_config = sub_config("text_config", self.text_config, CONFIG_MAPPING["opt"])
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        self.use_decoder_only_language_model = is_decoder_only(self.text_config)
        self.is_encoder_decoder = not self.use_decoder_only_language_model
        for derived in ("use_decoder_only_language_model", "is_encoder_decoder"):
            kwargs.pop(derived, None)
        super().__post_init__(**kwargs)


__all__ = ["Blip2Config", "Blip2QFormerConfig", "Blip2VisionConfig"]
