"""Tiny random parts of BLIP-2, each in a folder as it would come from the Hub, and what the stages make of them."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BertConfig, BertForMaskedLM

from instructblip_hf.data.sources.shapes_world import build_tokenizer
from instructblip_hf.training.arguments import PartsArguments
from instructblip_hf.training.composition import compose
from tiny_shapes import save_tiny_checkpoint, text_config


def save_parts(folder):
    """Folders of a vision tower, a BERT and language models, by name: ``vision``, ``bert``, ``opt``, ``causal``, ``seq2seq``."""
    tokenizer = build_tokenizer(for_qformer=True, model_max_length=64)
    torch.manual_seed(0)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
        )
    )
    bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    save_tiny_checkpoint(folder / "vision")
    for kind in ("opt", "causal", "seq2seq"):
        tokenizer = build_tokenizer()
        auto = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
        auto.from_config(text_config(kind, len(tokenizer), 0.0)).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return {name: folder / name for name in ("vision", "bert", "opt", "causal", "seq2seq")}


def save_stages(folder, kind="opt"):
    """`save_parts`, and in ``first_stage`` and ``second_stage`` what they make."""
    parts = save_parts(folder)
    for name, chosen in (
        ("first_stage", {"vision": parts["vision"], "bert": parts["bert"], "num_query_tokens": 4}),
        ("second_stage", {"first_stage": folder / "first_stage", "text": parts[kind]}),
    ):
        model, processor = compose(PartsArguments(**chosen), torch.float32)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        parts[name] = folder / name
    return parts
