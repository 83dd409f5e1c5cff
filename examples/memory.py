"""Bytes a GPU holds for weights, gradients and optimiser states of the published InstructBLIP models, computed.

    python examples/memory.py --processes 8

The models are built at their true size without memory (torch's meta device) and frozen as the recipes freeze them. What
trains is kept in float32 with its gradient and Adam's two moments, what is frozen in bfloat16. Activations, gathered
layers and buffers come on top and are not in the table.
"""

import argparse

import torch
from transformers import LlamaConfig, T5Config

from instructblip_hf import InstructBlipConfig, InstructBlipForConditionalGeneration
from instructblip_hf.training import apply_freezing


T5 = {"vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LANGUAGE_MODELS = {
    "FlanT5-XL": T5Config(d_model=2048, d_ff=5120, num_layers=24, num_heads=32, **T5),
    "FlanT5-XXL": T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, **T5),
    "Vicuna-7B": LlamaConfig(vocab_size=32001),
    "Vicuna-13B": LlamaConfig(
        vocab_size=32001, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
}


def gigabytes(frozen: int, trained: int, processes: int) -> dict[str, float]:
    """By way of training: 2 bytes a frozen weight; 4 each for a trained one, its gradient and its two moments."""
    return {
        "DDP": 2 * frozen + 16 * trained,
        "ZeRO-2": 2 * frozen + 4 * trained + 12 * trained / processes,
        "FSDP2, ZeRO-3": (2 * frozen + 16 * trained) / processes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=8, help="number of GPUs")
    processes = parser.parse_args().processes
    print(f"| model | trains | frozen (M) | trained (M) | {' | '.join(gigabytes(0, 0, processes))} |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, text_config in LANGUAGE_MODELS.items():
        with torch.device("meta"):
            model = InstructBlipForConditionalGeneration(InstructBlipConfig(text_config=text_config.to_dict()))
        for preset in ("instructblip", "all"):
            report = apply_freezing(model, preset)
            frozen = report.total - report.trainable
            columns = [f"{value / 1e9:.1f}" for value in gigabytes(frozen, report.trainable, processes).values()]
            print(
                f"| {name} | {preset} | {frozen / 1e6:,.1f} | {report.trainable / 1e6:,.1f} | {' | '.join(columns)} |"
            )


if __name__ == "__main__":
    main()
