"""A tiny random LLaVA for the tests of training and of the command line."""

import torch
from transformers import BlipImageProcessorPil

from instructblip_hf import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from instructblip_hf.data.sources.shapes_world import build_tokenizer
from tiny_shapes import text_config


def tiny_llava(dropout=0.0, seed=0, **options):
    """A LLaVA with CLIP's tower for 56x56 images, 16 patches each, and the tokenizer of the shapes world."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "attention_dropout": dropout,
        },
        text_config=text_config("causal", len(tokenizer), dropout).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        **options,
    )
    return LlavaForConditionalGeneration(config)


def tiny_llava_processor(**options):
    """The processor that goes with `tiny_llava`."""
    return LlavaProcessor(
        image_processor=BlipImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=build_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **options,
    )


def save_tiny_llava(folder, seed=0, **options):
    """Writes `tiny_llava` and `tiny_llava_processor` to a folder, and returns it."""
    tiny_llava(seed=seed, **options).save_pretrained(folder)
    tiny_llava_processor().save_pretrained(folder)
    return folder
