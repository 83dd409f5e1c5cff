"""Tiny random models and batches, built in memory, for the tests of every floor."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from instructblip_hf.models.blip_2 import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval
from instructblip_hf.models.instructblip import InstructBlipConfig, InstructBlipForConditionalGeneration
from instructblip_hf.models.llava import LlavaConfig, LlavaForConditionalGeneration


IMAGE_TOKEN_ID = 98
VOCABULARY = 99
NUM_QUERY_TOKENS = 4
IMAGE_SIZE = 28
LANGUAGE_MODELS = ("llama", "t5")


def text_config(kind: str) -> transformers.PreTrainedConfig:
    """Configuration of a two-layer language model of width 32 with 99 tokens."""
    common: dict[str, Any] = {"vocab_size": VOCABULARY}
    decoder: dict[str, Any] = {
        **common,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if kind == "llama":
        return transformers.LlamaConfig(**decoder, intermediate_size=64)
    if kind == "qwen":
        return transformers.Qwen2Config(**decoder, intermediate_size=64, num_key_value_heads=2)
    if kind == "gemma":
        return transformers.GemmaConfig(**decoder, intermediate_size=64, num_key_value_heads=2, head_dim=8)
    if kind == "opt":
        return transformers.OPTConfig(**decoder, ffn_dim=64, word_embed_proj_dim=32)
    if kind == "t5":
        return transformers.T5Config(
            **common,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
            feed_forward_proj="gated-gelu",
        )
    raise ValueError(f"no tiny language model {kind!r}")


def config_dict(kind: str, **qformer: Any) -> dict[str, Any]:
    """Arguments for an InstructBLIP or BLIP-2 configuration, ours or stock's."""
    return {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            "initializer_range": 0.02,
        },
        "qformer_config": {
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
            **qformer,
        },
        "text_config": text_config(kind).to_dict(),
        "num_query_tokens": NUM_QUERY_TOKENS,
        "image_token_index": IMAGE_TOKEN_ID,
    }


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter anew and large enough that no part of the model is near silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.15 * noise)
    return model


def our_model(kind: str = "llama", seed: int = 0, **qformer: Any) -> InstructBlipForConditionalGeneration:
    """A tiny InstructBLIP of this package, in evaluation mode."""
    model = InstructBlipForConditionalGeneration(InstructBlipConfig(**config_dict(kind, **qformer)))
    return randomise(model, seed).eval()


def stock_model(kind: str = "llama", seed: int = 0) -> transformers.InstructBlipForConditionalGeneration:
    """A tiny InstructBLIP of transformers, in evaluation mode."""
    config = transformers.InstructBlipConfig(**config_dict(kind))
    return randomise(transformers.InstructBlipForConditionalGeneration(config), seed).eval()


def our_blip_2(kind: str = "opt", seed: int = 0, **qformer: Any) -> Blip2ForConditionalGeneration:
    """A tiny BLIP-2 of this package, in evaluation mode."""
    return randomise(Blip2ForConditionalGeneration(Blip2Config(**config_dict(kind, **qformer))), seed).eval()


def stock_blip_2(kind: str = "opt", seed: int = 0) -> transformers.Blip2ForConditionalGeneration:
    """A tiny BLIP-2 of transformers, in evaluation mode."""
    config = transformers.Blip2Config(**config_dict(kind))
    return randomise(transformers.Blip2ForConditionalGeneration(config), seed).eval()


def llava_config_dict(kind: str = "llama", **options: Any) -> dict[str, Any]:
    """Arguments for a LLaVA configuration, ours or stock's: 4 patches an image, and a class token that is left out."""
    vision = {**config_dict(kind)["vision_config"], "num_hidden_layers": 3, "projection_dim": 16}
    return {
        "vision_config": {**vision, "model_type": "clip_vision_model"},
        "text_config": text_config(kind).to_dict(),
        "image_token_index": IMAGE_TOKEN_ID,
        "image_seq_length": 4,
        **options,
    }


def our_llava(kind: str = "llama", seed: int = 0, **options: Any) -> LlavaForConditionalGeneration:
    """A tiny LLaVA of this package, in evaluation mode."""
    return randomise(LlavaForConditionalGeneration(LlavaConfig(**llava_config_dict(kind, **options))), seed).eval()


def stock_llava(kind: str = "llama", seed: int = 0, **options: Any) -> transformers.LlavaForConditionalGeneration:
    """A tiny LLaVA of transformers, in evaluation mode."""
    config = transformers.LlavaConfig(**llava_config_dict(kind, **options))
    return randomise(transformers.LlavaForConditionalGeneration(config), seed).eval()


def first_stage_config(**options: Any) -> dict[str, Any]:
    """Arguments for the configuration of BLIP-2 without a language model, ours or stock's."""
    parts = config_dict("opt", use_qformer_text_input=True)
    return {**parts, "image_token_index": 59, "image_text_hidden_size": 16, **options}


def our_retrieval_model(seed: int = 0, **options: Any) -> Blip2ForImageTextRetrieval:
    """A tiny BLIP-2 of this package that compares images and texts, in evaluation mode."""
    return randomise(Blip2ForImageTextRetrieval(Blip2Config(**first_stage_config(**options))), seed).eval()


def batch(
    images_per_row: tuple[int, ...] = (1, 1),
    text_lengths: tuple[int, ...] = (6, 6),
    instruction_lengths: tuple[int, ...] = (7, 4),
    padding_side: str = "left",
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Model inputs whose rows hold the given numbers of images, prompt tokens and instruction tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int, top: int) -> list[int]:
        return torch.randint(3, top, (length,), generator=generator).tolist()

    rows = [
        [IMAGE_TOKEN_ID] * (NUM_QUERY_TOKENS * images) + ids(length, 90)
        for images, length in zip(images_per_row, text_lengths)
    ]
    width = max(map(len, rows))
    input_ids, attention_mask = [], []
    for row in rows:
        padding = [0] * (width - len(row))
        ones = [1] * len(row)
        input_ids.append(padding + row if padding_side == "left" else row + padding)
        attention_mask.append(padding + ones if padding_side == "left" else ones + padding)

    instructions = [ids(length, 60) for length in instruction_lengths]
    longest = max(instruction_lengths)
    qformer_ids, qformer_mask = [], []
    for images, instruction in zip(images_per_row, instructions):
        padding = [0] * (longest - len(instruction))
        qformer_ids += [instruction + padding] * images
        qformer_mask += [[1] * len(instruction) + padding] * images
    inputs = {"input_ids": torch.tensor(input_ids), "attention_mask": torch.tensor(attention_mask)}
    if sum(images_per_row):
        inputs["pixel_values"] = torch.randn(sum(images_per_row), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        inputs["qformer_input_ids"] = torch.tensor(qformer_ids)
        inputs["qformer_attention_mask"] = torch.tensor(qformer_mask)
    return inputs


def labels_for(kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Labels that leave out placeholders and padding (causal), or a short padded target (T5)."""
    if kind == "t5":
        labels = torch.randint(3, 90, (inputs["input_ids"].shape[0], 5), generator=torch.Generator().manual_seed(5))
        labels[-1, 3:] = -100
        return labels
    labels = inputs["input_ids"].clone()
    labels[(inputs["attention_mask"] == 0) | (labels == IMAGE_TOKEN_ID)] = -100
    return labels
