"""The processor of a converted model, from the tokenizers that LAVIS builds its models with.

LAVIS opens BERT's tokenizer and adds ``[DEC]`` as beginning token; Vicuna's gets ``[PAD]`` and has ``</s>`` as beginning,
end and unknown token (`blip2.py`, `blip2_vicuna_instruct.py`). Images are squashed to a square with bicubic resampling
and normalised as CLIP's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BlipImageProcessorPil

from .kinds import Kind
from .stored_tensors import ConversionError


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "spiece.model")
_DECODE_TOKEN, _END, _PADDING = "[DEC]", "</s>", "[PAD]"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def build_processor(
    kind: Kind,
    config: Any,
    tokenizer: Path | None,
    qformer_tokenizer: Path | None,
    saved: Path | None = None,
) -> Any:
    """Processor of a model, or `None` where a tokenizer that it needs is not given.

    Args:
        kind ([`Kind`]): The model.
        config (`PreTrainedConfig`): Its configuration.
        tokenizer (`Path`, *optional*): Folder of the language model's tokenizer.
        qformer_tokenizer (`Path`, *optional*): Folder of the Q-Former's, BERT's.
        saved (`Path`, *optional*): Folder of a processor, which is taken as it is.

    Raises:
        ConversionError: If a tokenizer has tokens that the model has no embedding for.
    """
    if saved is not None:
        if tokenizer is not None or qformer_tokenizer is not None:
            raise ConversionError(["give either a processor or tokenizers for a new one"])
        return _saved_processor(kind, config, saved)
    size = config.vision_config.image_size
    image_processor = BlipImageProcessorPil(size={"height": size, "width": size})
    instructblip = kind.name.startswith("instructblip")
    if (kind.language_model and tokenizer is None) or (
        (instructblip or not kind.language_model) and qformer_tokenizer is None
    ):
        return None
    bert = None
    if qformer_tokenizer is not None:
        rows = config.qformer_config.vocab_size if kind.qformer_text != "none" else None
        bert = _qformer_tokenizer(qformer_tokenizer, rows, "left" if instructblip else "right")
    language = _language_tokenizer(str(tokenizer), config.text_config.model_type) if kind.language_model else None
    tokenizers = [tokenizer for tokenizer in (language, bert) if tokenizer is not None]
    if kind.name == "blip-2":
        tokenizers = [language]
    return _processor_class(kind)(image_processor, *tokenizers, num_query_tokens=config.num_query_tokens)


def language_side(kind: Kind, config: Any, tokenizer: Path | None) -> Any:
    """Processor of the language model alone, for its tokens; `None` without a language model or its tokenizer."""
    if not kind.language_model or tokenizer is None:
        return None
    from ..models.blip_2 import Blip2Processor

    language = _language_tokenizer(str(tokenizer), config.text_config.model_type)
    return Blip2Processor(BlipImageProcessorPil(), language, num_query_tokens=config.num_query_tokens)


def _processor_class(kind: Kind) -> Any:
    if kind.name.startswith("instructblip"):
        from ..models.instructblip import InstructBlipProcessor

        return InstructBlipProcessor
    from ..models.blip_2 import Blip2Processor

    return Blip2Processor


def _saved_processor(kind: Kind, config: Any, folder: Path) -> Any:
    processor = _processor_class(kind).from_pretrained(folder)
    if processor.num_query_tokens not in (None, config.num_query_tokens):
        raise ConversionError(
            [
                f"processor: {folder} is for {processor.num_query_tokens} query tokens, the model has {config.num_query_tokens}"
            ]
        )
    return processor


def _qformer_tokenizer(folder: Path, rows: int | None, truncation_side: str) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, truncation_side=truncation_side)
    if tokenizer.cls_token is None:
        raise ConversionError([f"qformer_tokenizer: the tokenizer of {folder} has no CLS token, so it is no BERT's"])
    if rows is None or len(tokenizer) < rows:
        tokenizer.add_special_tokens({"bos_token": _DECODE_TOKEN})
    if rows is not None and len(tokenizer) > rows:
        raise ConversionError(
            [f"qformer_tokenizer: {folder} has {len(tokenizer)} tokens, the Q-Former embeddings for {rows}"]
        )
    return tokenizer


def _language_tokenizer(folder: str, model_type: str) -> Any:
    options = {} if model_type == "opt" else {"truncation_side": "left"}
    # Prompts of a batch end where the answers begin, unless an encoder reads them.
    options["padding_side"] = "right" if model_type == "t5" else "left"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
    if model_type != "llama":
        return tokenizer
    special = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
    if tokenizer.convert_tokens_to_ids(_END) is None:
        raise ConversionError([f"tokenizer: {folder} has no token {_END}, which LAVIS begins and ends texts with"])
    tokenizer.add_special_tokens({**special, "pad_token": _PADDING})
    # What is put in front of a text is part of the file, and still the old beginning token.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{_END} $A",
        pair=f"{_END} $A {_END} $B",
        special_tokens=[(_END, tokenizer.eos_token_id)],
    )
    return tokenizer


__all__ = ["build_processor", "has_tokenizer", "language_side"]
