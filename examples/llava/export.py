"""Packs a second stage of `stages.py` into a folder that loads by itself: rounded weights, processor, card.

    python examples/llava/export.py --model outputs/llava-stages/llava_linear_stage2 --output llava-shapes-tiny

Weights are stored rounded to bfloat16, half the size, while the configuration says float32, so that `from_pretrained`
computes in float32. The card's figures are those of the rounded weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from stages import QUESTIONS, measure

from instructblip_hf import LlavaForConditionalGeneration, LlavaProcessor


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- llava
- image-to-text
---

# llava-shapes-tiny

A LLaVA of {million:.1f} million parameters that answers questions about 56x56 drawings of coloured shapes and digits, and knows
nothing else: the vision tower and the language model of `instructblip-shapes-tiny-pretrained`, one linear layer between them,
trained in LLaVA's two stages on generated captions and dialogues (`examples/llava/shapes_dialogues.py`, `examples/llava/stages.py`).

```bash
instructblip ask IMAGE "What color is the circle?" --model llava-shapes-tiny
instructblip chat IMAGE --model llava-shapes-tiny
```

Right answers on {scenes} unseen scenes a task (`python examples/llava/export.py --model STAGE2 --output llava-shapes-tiny`, CPU):

| task | accuracy |
|---|---|
{rows}
| mean | {mean:.3f} |

The weights are under the licence of the package, Apache 2.0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the second stage")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--scenes", type=int, default=500, help="unseen scenes a task to measure on")
    args = parser.parse_args()

    model = LlavaForConditionalGeneration.from_pretrained(args.model).float()
    for config in (model.config.vision_config, model.config.text_config):
        config._name_or_path = ""  # no folder of the machine that trained it
    model.save_pretrained(args.output)
    weights = args.output / "model.safetensors"
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(rounded, weights, {"format": "pt"})
    weights.chmod(0o644)
    processor = LlavaProcessor.from_pretrained(args.model)
    processor.save_pretrained(args.output)

    model = LlavaForConditionalGeneration.from_pretrained(args.output).eval()
    found = measure(model, processor, args.scenes)
    card = CARD.format(
        million=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        scenes=args.scenes,
        rows="\n".join(f"| {task} | {found['accuracy'][task]:.3f} |" for task in QUESTIONS),
        mean=found["mean"],
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
