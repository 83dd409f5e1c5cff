"""Tiny random models of both kinds for the tests of training and of the command line."""

import torch
from transformers import BlipImageProcessorPil, LlamaConfig, OPTConfig, T5Config

from instructblip_hf import InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor
from instructblip_hf.data.sources.shapes_world import build_tokenizer


def text_config(kind, vocabulary, dropout):
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "causal":
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=dropout,
            max_position_embeddings=256,
            **ids,
        )
    if kind == "opt":
        return OPTConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            dropout=dropout,
            word_embed_proj_dim=32,
            **ids,
        )
    return T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )


def tiny_model(kind="causal", dropout=0.0, seed=0):
    """An InstructBLIP of about 50k parameters for 56x56 images and the tokenizer of the shapes world."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = InstructBlipConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "attention_dropout": dropout,
            "initializer_range": 0.1,
        },
        qformer_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "max_position_embeddings": 64,
            "initializer_range": 0.1,
        },
        text_config=text_config(kind, len(tokenizer), dropout).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return InstructBlipForConditionalGeneration(config)


def tiny_processor():
    """The processor that goes with `tiny_model`."""
    return InstructBlipProcessor(
        image_processor=BlipImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=build_tokenizer(),
        qformer_tokenizer=build_tokenizer(for_qformer=True, model_max_length=64),
        num_query_tokens=4,
    )


def save_tiny_checkpoint(folder, kind="causal", seed=0):
    """Writes `tiny_model` and `tiny_processor` to a folder, and returns it."""
    tiny_model(kind, seed=seed).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder
