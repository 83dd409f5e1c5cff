"""LAVIS's Q-Former out of its own file, on the weights of stock transformers' one.

LAVIS is written for transformers 4; its file (`lavis/models/blip2_models/Qformer.py`) runs on a later one with the few
helpers given back that have been removed since. None of them computes anything in a forward pass but the mask.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import modeling_utils, pytorch_utils


def load(path: Path, stock: Any) -> Any:
    """A ``BertModel`` of LAVIS's with the weights of ``stock``, an `InstructBlipQFormerModel`.

    Raises:
        RuntimeError: If its parameters are others by name or shape.
    """
    for name in ("apply_chunking_to_forward", "prune_linear_layer", "find_pruneable_heads_and_indices"):
        if not hasattr(modeling_utils, name):
            setattr(modeling_utils, name, getattr(pytorch_utils, name, None))
    spec: Any = importlib.util.spec_from_file_location("lavis_qformer", path)
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.BertModel.init_weights = lambda self: None
    module.BertModel.get_head_mask = lambda self, mask, layers: [None] * layers
    module.BertModel.invert_attention_mask = _invert
    config = module.BertConfig(**{key: getattr(stock.config, key) for key in _SHARED})
    config.encoder_width = stock.config.encoder_hidden_size
    config.cross_attention_freq = stock.config.cross_attention_frequency
    config.add_cross_attention, config.is_decoder, config.chunk_size_feed_forward = True, False, 0
    with torch.device(next(stock.parameters()).device):
        model = module.BertModel(config, add_pooling_layer=False)
    weights = {_name(name): value for name, value in stock.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    wrong = [name for name in missing if not name.endswith("position_ids")] + unexpected
    if wrong:
        raise RuntimeError(f"{path} has other parameters: {wrong[:5]}")
    return model.eval()


def _invert(self: Any, mask: torch.Tensor) -> torch.Tensor:
    return (1.0 - mask[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min


def _name(name: str) -> str:
    return (
        name.replace(".attention.attention.", ".attention.self.")
        .replace(".crossattention.attention.", ".crossattention.self.")
        .replace("embeddings.layernorm", "embeddings.LayerNorm")
    )


_SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "layer_norm_eps",
    "pad_token_id",
)
