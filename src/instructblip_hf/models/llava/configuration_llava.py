"""Configuration of the LLaVA family.

Field names, defaults and ``model_type`` are those of published checkpoints, so a ``config.json`` written here is read by
stock transformers and the other way round. What stock transformers does not know is which connector it is:
``projector_type``, and for a Q-Former its configuration.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..blip_2.configuration_blip_2 import Blip2QFormerConfig
from ..sub_configs import is_decoder_only, sub_config


PROJECTOR_TYPES = ("mlp", "linear", "qformer")
SELECT_STRATEGIES = ("default", "full")
# CLIP ViT-L/14 for images of 336 pixels, LLaVA 1.5's.
_VISION_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
}


@strict
class LlavaConfig(PreTrainedConfig):
    """Configuration of LLaVA: a vision tower, a connector and a causal language model.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Vision tower. Without a ``model_type`` it is CLIP's; by default its ViT-L/14 for images of 336 pixels.
            Any vision configuration known to transformers is accepted (SigLIP, DINOv2, ...).
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Causal language model. Without a ``model_type`` it is LLaMA.
        image_token_index (`int`, *optional*, defaults to 32000):
            Token id of the image placeholder, also as ``image_token_id``.
        image_seq_length (`int`, *optional*, defaults to 576): Placeholders an image, for the file format: processors
            count them from sizes of images and patches.
        projector_hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation between the layers of an MLP. Of the
            other connectors it is `"linear"` and `"qformer"`.
        vision_feature_select_strategy (`str`, *optional*, defaults to `"default"`):
            `"default"` leaves out the first token of the tower, CLIP's class token; `"full"` keeps all.
        vision_feature_layer (`int` or `list[int]`, *optional*, defaults to -2):
            State of the tower that the connector reads: 0 is before the first block, -1 after the last. Of several,
            the features stand side by side.
        multimodal_projector_bias (`bool`, *optional*, defaults to `True`): Whether linear layers of the connector have
            a bias.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`): The language model's own, where it is tied.
        projector_type (`str`, *optional*, defaults to `"mlp"`):
            Connector: `"mlp"` of two layers (LLaVA 1.5), `"linear"` (the paper), or `"qformer"`, BLIP-2's with a
            linear layer behind it.
        qformer_config (`dict` or `Blip2QFormerConfig`, *optional*): Of a Q-Former.
        num_query_tokens (`int`, *optional*): Queries, and so placeholders, an image; with a Q-Former alone, by default
            32.

    Raises:
        ValueError: If an option is none of those that are allowed, options contradict, or a sub-configuration names a
            ``model_type`` that transformers does not know or that is no causal language model.
    """

    model_type = "llava"
    attribute_map = {"image_token_id": "image_token_index"}
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "qformer_config": Blip2QFormerConfig}
    # Large, and not predictions: Trainer would otherwise gather them at every evaluation.
    keys_to_ignore_at_inference = [
        "past_key_values",
        "image_hidden_states",
        "vision_outputs",
        "qformer_outputs",
        "language_model_outputs",
    ]

    # Given as a dict, a configuration or nothing; a configuration from __post_init__ on.
    vision_config: Any = None
    text_config: Any = None
    image_token_index: int = 32000
    image_seq_length: int = 576
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: str = "default"
    vision_feature_layer: int | list[int] = -2
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False
    projector_type: str = "mlp"
    qformer_config: Any = None
    num_query_tokens: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        vision = self.vision_config if self.vision_config is not None else _VISION_DEFAULTS
        self.vision_config = sub_config("vision_config", vision, CLIPVisionConfig)
        self.text_config = sub_config("text_config", self.text_config, CONFIG_MAPPING["llama"])
        if not is_decoder_only(self.text_config):
            raise ValueError(
                f"text_config has model_type {self.text_config.model_type!r}; LLaVA needs a causal language model"
            )
        self._check_choice("projector_type", PROJECTOR_TYPES)
        self._check_choice("vision_feature_select_strategy", SELECT_STRATEGIES)
        if self.projector_type == "qformer":
            self.qformer_config = sub_config("qformer_config", self.qformer_config, Blip2QFormerConfig)
            self.qformer_config.encoder_hidden_size = self.image_features_size
            self.num_query_tokens = 32 if self.num_query_tokens is None else self.num_query_tokens
            self.image_seq_length = self.num_query_tokens
        elif self.qformer_config is not None or self.num_query_tokens is not None:
            raise ValueError(
                "qformer_config and num_query_tokens are for projector_type='qformer', and it is "
                f"{self.projector_type!r}"
            )
        if self.projector_type != "mlp":
            # A single linear layer is saved as an MLP that stock transformers computes the same with; of a Q-Former
            # it knows nothing, and is to say so.
            self.projector_hidden_act = self.projector_type
        self.tie_word_embeddings = self.tie_word_embeddings or bool(
            getattr(self.text_config, "tie_word_embeddings", False)
        )
        self.is_encoder_decoder = False
        kwargs.pop("is_encoder_decoder", None)
        super().__post_init__(**kwargs)

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")

    @property
    def vision_feature_layers(self) -> list[int]:
        """States of the tower that the connector reads, as a list."""
        layers = self.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    @property
    def image_features_size(self) -> int:
        """Width of what the connector reads: the tower's, once for each state."""
        return self.vision_config.hidden_size * len(self.vision_feature_layers)


__all__ = ["PROJECTOR_TYPES", "SELECT_STRATEGIES", "LlavaConfig"]
