"""Configuration of the InstructBLIP family.

Field names, defaults and ``model_type`` values are those of published checkpoints, so a ``config.json`` written
here is read by stock transformers and the other way round.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@strict
class InstructBlipVisionConfig(PreTrainedConfig):
    """Configuration of the EVA-CLIP ViT; the defaults are ViT-g/14 without its last block (39 layers).

    Args:
        hidden_size (`int`, *optional*, defaults to 1408): Width of the residual stream.
        intermediate_size (`int`, *optional*, defaults to 6144): Width of the feed-forward layers.
        num_hidden_layers (`int`, *optional*, defaults to 39): Number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 16): Number of attention heads.
        image_size (`int`, *optional*, defaults to 224): Side of the images, in pixels.
        patch_size (`int`, *optional*, defaults to 14): Side of a patch, in pixels.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of every LayerNorm.
        attention_dropout (`float`, *optional*, defaults to 0.0): Dropout of attention probabilities.
        initializer_range (`float`, *optional*, defaults to 1e-10):
            Standard deviation of newly initialised weights. The published default is made for loading weights;
            to train a tower from scratch set something like 0.02.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether the fused query-key-value projection has a bias.
    """

    model_type = "instructblip_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    initializer_range: float = 1e-10
    qkv_bias: bool = True


@strict
class InstructBlipQFormerConfig(PreTrainedConfig):
    """Configuration of the Q-Former; the defaults have BERT-base's shape.

    Args:
        vocab_size (`int`, *optional*, defaults to 30522): Rows of the text embedding (published: 30523).
        hidden_size (`int`, *optional*, defaults to 768): Width of queries and text.
        num_hidden_layers (`int`, *optional*, defaults to 12): Number of layers.
        num_attention_heads (`int`, *optional*, defaults to 12): Number of attention heads.
        intermediate_size (`int`, *optional*, defaults to 3072): Width of the feed-forward layers.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layers.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1): Dropout of embeddings and layer outputs.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1): Dropout of attention probabilities.
        max_position_embeddings (`int`, *optional*, defaults to 512): Longest instruction, in tokens.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of newly initialised weights and of the query tokens.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12): Epsilon of every LayerNorm.
        pad_token_id (`int`, *optional*, defaults to 0): Padding id of the instruction.
        cross_attention_frequency (`int`, *optional*, defaults to 2): Every n-th layer attends to the image.
        encoder_hidden_size (`int`, *optional*, defaults to 1408): Width of the image features.
        use_qformer_text_input (`bool`, *optional*, defaults to `True`):
            `False` is the paper's ablation without instruction in the Q-Former (arXiv 2305.06500, table 2): the
            Q-Former then has no text embeddings and no text feed-forward layers. Stock transformers cannot load
            such an InstructBLIP checkpoint.
    """

    model_type = "instructblip_qformer"
    base_config_key = "qformer_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 1408
    use_qformer_text_input: bool = True


@strict
class InstructBlipConfig(PreTrainedConfig):
    """Configuration of InstructBLIP: a vision tower, a Q-Former and a language model.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Vision tower. Without a ``model_type`` it is an [`InstructBlipVisionConfig`]; any vision configuration
            known to transformers is accepted (CLIP, SigLIP, DINOv2, ...).
        qformer_config (`dict` or `InstructBlipQFormerConfig`, *optional*): Q-Former.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Language model, causal or sequence-to-sequence. Without a ``model_type`` it is OPT.
        num_query_tokens (`int`, *optional*, defaults to 32): Query tokens, and so placeholders, an image.
        image_token_index (`int`, *optional*): Token id of the image placeholder, also as ``image_token_id``.
        initializer_factor (`float`, *optional*, defaults to 1.0): Kept for the file format, not used.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of the new projection.
        qformer_text_input (`bool`, *optional*):
            Shorthand that sets ``qformer_config.use_qformer_text_input`` (LAVIS's name for it).

    Raises:
        ValueError: If a sub-configuration names a ``model_type`` that transformers does not know.
    """

    model_type = "instructblip"
    attribute_map = {"image_token_id": "image_token_index"}
    sub_configs = {
        "vision_config": InstructBlipVisionConfig,
        "qformer_config": InstructBlipQFormerConfig,
        "text_config": AutoConfig,
    }
    # Large, and not predictions: Trainer would otherwise gather them at every evaluation.
    keys_to_ignore_at_inference = ["vision_outputs", "qformer_outputs", "language_model_outputs"]

    # Given as a dict, a configuration or nothing; a configuration from __post_init__ on.
    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    num_query_tokens: int = 32
    image_token_index: int | None = None
    initializer_factor: float = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        qformer_text_input = kwargs.pop("qformer_text_input", None)
        self.vision_config = _sub_config("vision_config", self.vision_config, InstructBlipVisionConfig)
        self.qformer_config = _sub_config("qformer_config", self.qformer_config, InstructBlipQFormerConfig)
        self.text_config = _sub_config("text_config", self.text_config, CONFIG_MAPPING["opt"])
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        if qformer_text_input is not None:
            self.qformer_config.use_qformer_text_input = bool(qformer_text_input)
        # The rule of the published checkpoints: a type with a causal head is used as a decoder-only model.
        self.use_decoder_only_language_model = self.text_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        self.is_encoder_decoder = not self.use_decoder_only_language_model
        for derived in ("use_decoder_only_language_model", "is_encoder_decoder"):
            kwargs.pop(derived, None)
        super().__post_init__(**kwargs)


def _sub_config(
    name: str, value: dict[str, Any] | PreTrainedConfig | None, default: type[PreTrainedConfig]
) -> PreTrainedConfig:
    """Build one part's configuration; stock transformers' class of our type is turned into ours."""
    if value is None:
        return default()
    if isinstance(value, PreTrainedConfig):
        if value.model_type != default.model_type or isinstance(value, default):
            return value
        attn_implementation = value._attn_implementation
        converted = default.from_dict(value.to_dict())
        converted._attn_implementation = attn_implementation
        return converted
    model_type = value.get("model_type", default.model_type)
    if model_type == default.model_type:
        return default(**value)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{name} has model_type {model_type!r}, which transformers does not know")
    return CONFIG_MAPPING[model_type](**value)


__all__ = ["InstructBlipConfig", "InstructBlipQFormerConfig", "InstructBlipVisionConfig"]
