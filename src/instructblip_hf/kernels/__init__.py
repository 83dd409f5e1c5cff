"""Fused operations of the Q-Former: attention that reads images through an index, attention over packed text, and the
end of a sub-layer. Each is a function of tensors that picks Triton or plain torch by itself (docs/kernels.md).
"""

from .checks import check_index
from .cross_attention import ImageIndex, cross_attention
from .dispatch import log_once, measured_faster, why_not_triton
from .packed_attention import packed_attention
from .reference import fold_places
from .residual_norm import dropout_add_layer_norm


__all__ = [
    "ImageIndex",
    "check_index",
    "cross_attention",
    "dropout_add_layer_norm",
    "fold_places",
    "log_once",
    "measured_faster",
    "packed_attention",
    "why_not_triton",
]
