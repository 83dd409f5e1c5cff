"""Pre-trains the parts of the tiny InstructBLIP together: Q-Former, projection and language model, tower frozen.

Second step, after ``pretrain_vision.py``; ``instruct.py`` follows:

    python examples/shapes_world/pretrain.py --vision runs/shapes/vision --output runs/shapes/pretrained

The published InstructBLIP starts from a language model that knows language and a Q-Former that BLIP-2 has
pre-trained. Nothing that small exists, so here both learn together, on the training wordings; a few rows without a
picture teach the language model to look a letter up and to compare places. Instruction tuning then keeps only the
tower and the language model, frozen, and starts from a new Q-Former.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from common import (
    ATTENTION,
    QuestionSampler,
    RowEncoder,
    answer_loss,
    build_model,
    cached_bank,
    forced_accuracy,
    row_length,
    text_only_row,
    weights_from,
)
from pretrain_vision import PIXEL_MEAN, PIXEL_STD
from torch import nn

from instructblip_hf.models.instructblip import InstructBlipForConditionalGeneration, InstructBlipVisionModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", required=True, help="folder that pretrain_vision.py wrote")
    parser.add_argument("--output", required=True, help="folder for the model")
    parser.add_argument("--continue-from", help="folder of an earlier run to go on from, with a fresh schedule")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--text-share", type=float, default=0.1, help="share of rows without a picture")
    parser.add_argument("--unknown-share", type=float, default=0.02)
    parser.add_argument("--weight", action="append", default=[], help="task=relative frequency, may be repeated")
    parser.add_argument("--scenes", type=int, default=24000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    output = Path(args.output)
    vision = InstructBlipVisionModel.from_pretrained(args.vision)
    if args.continue_from:
        model = InstructBlipForConditionalGeneration.from_pretrained(
            args.continue_from, attn_implementation=ATTENTION
        ).train()
    else:
        model = build_model(vision, args.seed).train()
    model.vision_model.requires_grad_(False)
    bank = cached_bank(vision, args.scenes, args.seed, PIXEL_MEAN, PIXEL_STD, output.parent / "bank.pt")
    held_back = cached_bank(vision, 1000, args.seed + 1000, PIXEL_MEAN, PIXEL_STD, output.parent / "bank_check.pt")
    sampler = QuestionSampler(bank, args.seed, weights_from(args.weight))
    encoder = RowEncoder(bank, args.unknown_share, args.seed)
    rng = np.random.default_rng([args.seed, 3])
    check_rows = QuestionSampler(held_back, 77, dict.fromkeys(sampler.tasks, 1.0)).draw(1300)
    check_rows += [text_only_row(rng) for _ in range(128)]
    check_encoder = RowEncoder(held_back)

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
    )
    started, recent = time.time(), []
    for step in range(args.steps):
        rate = args.learning_rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        num_text = int(args.batch_size * args.text_share)
        rows = sampler.draw(args.batch_size - num_text) + [text_only_row(rng) for _ in range(num_text)]
        rows.sort(key=row_length)
        optimizer.zero_grad()
        # Long rows apart from short ones: the same gradient with less padding.
        cut = int(len(rows) * 0.7)
        for part in (rows[:cut], rows[cut:]):
            batch = encoder(part)
            labels = batch.pop("labels")
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(**batch)
            loss = answer_loss(outputs, labels) * len(part) / len(rows)
            loss.backward()
            recent.append(loss.item())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            report = {
                "step": step + 1,
                "seconds": round(time.time() - started),
                "cpu_seconds": round(time.process_time()),
                "loss": round(2 * np.mean(recent), 3),
            }
            print(json.dumps({**report, **forced_accuracy(model, check_encoder, check_rows)}), flush=True)
            recent = []
            model.save_pretrained(output)


if __name__ == "__main__":
    main()
