"""Tiny tokenizers and processors, built in memory, that fit the models of `tiny_models`."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BlipImageProcessorPil, PreTrainedTokenizerFast

from instructblip_hf.models.instructblip import InstructBlipProcessor
from tiny_models import IMAGE_SIZE, IMAGE_TOKEN_ID, NUM_QUERY_TOKENS


WORDS = [
    "what",
    "color",
    "is",
    "the",
    "circle",
    "?",
    "red",
    "green",
    "blue",
    "a",
    "square",
    "left",
    "of",
    "right",
    "user",
    "assistant",
    ":",
    "short",
    "answer",
]


def language_tokenizer(kind: str = "llama", image_token: bool = True) -> PreTrainedTokenizerFast:
    """Word-level tokenizer of 99 tokens; the image placeholder is the last of them."""
    special = ["<pad>", "</s>", "<unk>"] if kind == "t5" else ["<pad>", "<s>", "</s>", "<unk>"]
    tokens = [*special, *WORDS]
    tokens += [f"w{index}" for index in range(len(tokens), IMAGE_TOKEN_ID)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bracket = {"single": "$A </s>", "special_tokens": [("</s>", 1)]} if kind == "t5" else None
    bracket = bracket or {"single": "<s> $A", "special_tokens": [("<s>", 1)]}
    backend.post_processor = processors.TemplateProcessing(**bracket)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token=None if kind == "t5" else "<s>",
        padding_side="right" if kind == "t5" else "left",
        model_max_length=256,
    )
    if image_token:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def qformer_tokenizer() -> PreTrainedTokenizerFast:
    """BERT-like word-level tokenizer of at most 60 tokens."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=40,
    )


def our_processor(kind: str = "llama", **kwargs: Any) -> InstructBlipProcessor:
    """A processor of this package for `tiny_models.our_model(kind)`."""
    return InstructBlipProcessor(
        image_processor=BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=language_tokenizer(kind),
        qformer_tokenizer=qformer_tokenizer(),
        num_query_tokens=NUM_QUERY_TOKENS,
        **kwargs,
    )
