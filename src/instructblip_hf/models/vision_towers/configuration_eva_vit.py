"""Configuration of the EVA-CLIP vision transformer; the families give it their ``model_type``."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class EvaVitConfig(PreTrainedConfig):
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


__all__ = ["EvaVitConfig"]
