"""Packs a trained model of the shapes world into a folder that loads by itself: weights, processor, card.

    python examples/shapes_world/export.py --model runs/shapes/instruct --output shapes-tiny

Weights are stored rounded to bfloat16, half the size, while the configuration says float32, so that
`from_pretrained` computes in float32. With ``--card`` and ``--results`` (of evaluate.py) the model card is written
from a template in which ``{table}`` and ``{command}`` stand for the measured accuracies and how they were made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from common import MAX_TEXT, NUM_QUERIES, table
from pretrain_vision import PIXEL_MEAN, PIXEL_STD
from safetensors.torch import load_file, save_file
from transformers import BlipImageProcessor, GenerationConfig

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor
from instructblip_hf.data.sources.shapes_world import build_tokenizer


def build_processor() -> InstructBlipProcessor:
    """The tiny model's processor: 56x56 pictures, one word-level vocabulary on both sides."""
    return InstructBlipProcessor(
        image_processor=BlipImageProcessor(
            size={"height": 56, "width": 56}, image_mean=[PIXEL_MEAN] * 3, image_std=[PIXEL_STD] * 3
        ),
        tokenizer=build_tokenizer(),
        qformer_tokenizer=build_tokenizer(for_qformer=True, model_max_length=MAX_TEXT),
        num_query_tokens=NUM_QUERIES,
    )


def export(model: InstructBlipForConditionalGeneration, output: Path) -> None:
    """Writes configuration, rounded weights, generation settings and processor."""
    model = model.float()
    tokenizer = build_tokenizer()
    model.generation_config = GenerationConfig(
        max_new_tokens=24,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for config in (model.config.vision_config, model.config.qformer_config, model.config.text_config):
        config._name_or_path = ""  # no folder of the machine that trained it
    model.save_pretrained(output)
    weights = output / "model.safetensors"
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(rounded, weights, {"format": "pt"})
    weights.chmod(0o644)
    build_processor().save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of pretrain.py or instruct.py; without it only the card is written")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--card", type=Path, help="template of the model card")
    parser.add_argument("--results", type=Path, help="results.json of evaluate.py")
    args = parser.parse_args()

    if args.model:
        export(InstructBlipForConditionalGeneration.from_pretrained(args.model), args.output)
    if args.card:
        record = json.loads(args.results.read_text(encoding="utf-8"))
        columns = list(next(iter(record["accuracy"].values())))
        text = args.card.read_text(encoding="utf-8")
        text = text.replace("{table}", table(record["accuracy"], columns)).replace("{command}", record["command"])
        (args.output / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
