"""Tiny random parts of LLaVA, each in a folder as it would come from the Hub, and files in its data's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from instructblip_hf.training.arguments import PartsArguments
from instructblip_hf.training.composition import compose


RECORDED = json.loads((Path(__file__).parent / "models" / "llava_rows.json").read_text(encoding="utf-8"))
"""What LLaVA's own code made of conversations, and the tokenizer that it had; see `models/test_conversation_rows.py`."""

IMAGE_SIZE, PATCH_SIZE = 28, 14


def recorded_tokenizer(kind="legacy"):
    """A small tokenizer with LLaMA's ways: ``"legacy"`` marks each beginning of text, ``"first"`` the first alone."""
    content = {"version": "1.0", "truncation": None, "padding": None, "model": RECORDED["model"]}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content | RECORDED["tokenizers"][kind])),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    )


def save_llava_parts(folder):
    """Folders of a CLIP tower (``vision``), a LLaMA (``text``), and of a LLaVA made of the two (``llava``)."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=0.1,
    )
    CLIPVisionModel(vision).save_pretrained(folder / "vision")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder / "vision")
    tokenizer = recorded_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(text).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    model, processor = compose(PartsArguments(vision=str(folder / "vision"), text=str(folder / "text")), torch.float32)
    model.save_pretrained(folder / "llava")
    processor.save_pretrained(folder / "llava")
    return {name: folder / name for name in ("vision", "text", "llava")}


def save_conversations(folder, rows=12, texts=4):
    """``rows.json`` in LLaVA's format with images in ``images``: `rows` with an image, `texts` of text alone; and
    ``captions.json``, as for a first stage."""
    (folder / "images").mkdir(parents=True)
    content = []
    for number in range(rows):
        name = f"{number:03}.png"
        values = np.random.RandomState(number).randint(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / name)
        question = "<image>\nWhat color is the circle?" if number % 2 else "What color is the circle?\n<image>"
        turns = [(question, "The circle is red."), ("Where is it?", "It is in the upper right corner." * (number % 3))]
        content.append({"id": name, "image": name, "conversations": _turns(turns[: 1 + (number % 3 > 0)])})
    for number in range(texts):
        content.append(
            {"id": f"text {number}", "conversations": _turns([("How many shapes are there?", "three " * 20)])}
        )
    (folder / "rows.json").write_text(json.dumps(content))
    captions = [{**row, "conversations": row["conversations"][:2]} for row in content[:rows]]
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder / "rows.json"


def _turns(pairs):
    return [{"from": who, "value": words} for pair in pairs for who, words in zip(("human", "gpt"), pair)]
