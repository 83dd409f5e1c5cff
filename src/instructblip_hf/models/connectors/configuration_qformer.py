"""Configuration of the Q-Former; the families give it their ``model_type``."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class QFormerConfig(PreTrainedConfig):
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
            Whether the Q-Former reads text beside its queries; without, it has no feed-forward layers for text.
    """

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


__all__ = ["QFormerConfig"]
