"""Options of both directions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .geometry import Heads
from .writing import DEFAULT_SHARD_BYTES


PUBLISHED_VISION_LAYERS = 39


@dataclass(frozen=True)
class ToFolder:
    """Options of a conversion from LAVIS's files.

    Args:
        kind (`str`, *optional*): A name of [`KINDS`]; by default read off the tensors.
        llm (`Path`, *optional*): Folder of the language model, where the files do not hold it.
        tokenizer (`Path`, *optional*): Folder of the language model's tokenizer; by default ``llm``, if it has one.
        qformer_tokenizer (`Path`, *optional*): Folder of the Q-Former's tokenizer, BERT's.
        processor (`Path`, *optional*): Folder of a processor, which is taken as it is, in place of both tokenizers.
        config (`Path`, *optional*):
            Folder whose ``config.json`` is that of the model, in place of reading its shape off the tensors.
        heads ([`Heads`], *optional*): Numbers of attention heads; by default those of the published models.
        vision_layers (`int`, *optional*, defaults to 39): How many blocks of `eva_vit_g.pth` are used.
        image_token_id (`int`, *optional*):
            Id of the image placeholder; by default the processor's, or a new row at the vocabulary's end.
        dtype (`torch.dtype`, *optional*): Of all weights; by default each tensor keeps its own.
        shard_bytes (`int`, *optional*, defaults to 5,000,000,000): Largest size of a file of weights.
    """

    kind: str | None = None
    llm: Path | None = None
    tokenizer: Path | None = None
    qformer_tokenizer: Path | None = None
    processor: Path | None = None
    config: Path | None = None
    heads: Heads = Heads()
    vision_layers: int = PUBLISHED_VISION_LAYERS
    image_token_id: int | None = None
    dtype: torch.dtype | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES


@dataclass(frozen=True)
class ToLavis:
    """Options of a conversion to a LAVIS file.

    Args:
        trimmed (`bool`, *optional*, defaults to `False`):
            Whether vision tower and language model stay out, as in the files of a training that froze them.
        vocabulary_rows (`int`, *optional*):
            How many rows LAVIS's language model has for its tokens. By default all but the image placeholder's, if that
            is the last one. Further rows are kept beside LAVIS's weights, where converting back finds them.
        drop_key_bias (`bool`, *optional*, defaults to `False`):
            Whether a key bias of the vision tower that is not zero, as training with an unfrozen tower makes it, is kept
            there too. It adds the same to all scores of a query, so that attention is the same without it.
    """

    trimmed: bool = False
    vocabulary_rows: int | None = None
    drop_key_bias: bool = False


__all__ = ["PUBLISHED_VISION_LAYERS", "ToFolder", "ToLavis"]
