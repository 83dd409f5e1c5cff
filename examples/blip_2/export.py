"""Packs the first stage of `stages.py` into a folder that loads by itself: rounded weights, processor, card.

    python examples/blip_2/export.py --model runs/stages/first_stage --output blip2-shapes-tiny

Weights are stored rounded to bfloat16, half the size, while the configuration says float32, so that `from_pretrained`
computes in float32. The card's figures are those of the rounded weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from stages import measure_first_stage

from instructblip_hf import Blip2ForPreTraining, Blip2Processor


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- blip-2
- image-text-retrieval
---

# blip2-shapes-tiny

BLIP-2's first stage on the shapes world: {million:.1f} million parameters that compare and match 56x56 drawings of coloured
shapes and digits with captions such as "red triangle, green digit, white diamond", and know nothing else. The vision tower is that of `instructblip-shapes-tiny`; all else began with random weights.

```bash
instructblip index IMAGES --model blip2-shapes-tiny
instructblip search IMAGES.index "red triangle, green digit"
```

{steps} steps of 128 scenes and captions (`python examples/blip_2/stages.py --output runs/stages`). On {scenes} unseen scenes, no
two of the same caption, scored as LAVIS does (matching logit and cosine, 128 of each row):

| | R@1 | R@5 | R@10 |
|---|---|---|---|
| image to text | {txt[R@1]:.3f} | {txt[R@5]:.3f} | {txt[R@10]:.3f} |
| text to image | {img[R@1]:.3f} | {img[R@5]:.3f} | {img[R@10]:.3f} |

R@1 by chance is {chance}. The matching head takes {right:.3f} of the right captions and turns down {wrong:.3f} of those of
another scene (`python examples/blip_2/export.py --model runs/stages/first_stage --output blip2-shapes-tiny`, CPU).

The weights are under the licence of the package, Apache 2.0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the first stage")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--scenes", type=int, default=500, help="unseen scenes to measure on")
    parser.add_argument("--steps", type=int, default=600, help="of the training, for the card")
    args = parser.parse_args()

    model = Blip2ForPreTraining.from_pretrained(args.model).float()
    for config in (model.config.vision_config, model.config.qformer_config, model.config.text_config):
        config._name_or_path = ""  # no folder of the machine that trained it
    model.save_pretrained(args.output)
    weights = args.output / "model.safetensors"
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(rounded, weights, {"format": "pt"})
    weights.chmod(0o644)
    processor = Blip2Processor.from_pretrained(args.model)
    processor.save_pretrained(args.output)

    model = Blip2ForPreTraining.from_pretrained(args.output)
    found = measure_first_stage(model.eval(), processor, args.scenes)
    card = CARD.format(
        million=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        steps=args.steps,
        scenes=args.scenes,
        txt=found["image_to_text"],
        img=found["text_to_image"],
        chance=found["chance_R@1"],
        right=found["matching"]["right captions"],
        wrong=found["matching"]["wrong captions"],
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
