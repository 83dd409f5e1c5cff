"""Pre-trains the tiny vision tower of the shapes world: every patch names the object that covers it.

Run it first, then ``pretrain.py``:

    python examples/shapes_world/pretrain_vision.py --output runs/shapes/vision

Scenes are drawn as they are needed, half of them as the world draws them and half crowded with 2 to 9 objects. A
linear head for each property predicts, from each patch's output, colour, shape (or which digit), size and cell of the
object on it, and the patch's own row and column; from the class token's output, how many objects of each noun there
are, and how many in all. The heads are thrown away; the tower is saved with `save_pretrained`.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from instructblip_hf.data.sources.shapes_world.scenes import (
    COLORS,
    GRID,
    NOUNS,
    SHAPES,
    SIZES,
    HandwrittenDigits,
    Scene,
    patch_owners,
    render,
    sample_scene,
)
from instructblip_hf.models.instructblip import InstructBlipVisionConfig, InstructBlipVisionModel


PIXEL_MEAN, PIXEL_STD = 0.35, 0.3
NUM_CLASSES = {"color": 7, "shape": 17, "size": 3, "cell": 10, "row": 7, "column": 7}
LOSS_WEIGHTS = {"color": 1.0, "shape": 2.0, "size": 0.5, "cell": 1.0, "row": 0.3, "column": 0.3}
BACKGROUND_WEIGHT = 0.3
COUNT_WEIGHT = 1.0
MAX_COUNT = 9


def vision_config() -> InstructBlipVisionConfig:
    """The tiny tower: 4 layers of width 128 over 7x7 patches of 8x8 pixels, 0.7M parameters."""
    return InstructBlipVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=56,
        patch_size=8,
        initializer_range=0.05,  # the published default of 1e-10 is for weights about to be overwritten
    )


def to_pixel_values(images: np.ndarray) -> torch.Tensor:
    """Uint8 pictures [batch, 56, 56, 3] as normalised floats [batch, 3, 56, 56]."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def patch_labels(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """Class of each patch for each property, in the order of `NUM_CLASSES`; int64 [49, 6]."""
    shape_ids = {shape: index + 1 for index, shape in enumerate(SHAPES)}
    rows = [[0, 0, 0, 0]]
    for item in scene.objects:
        shape = 7 + item.digit if item.digit is not None else shape_ids[item.noun]
        rows.append([list(COLORS).index(item.color) + 1, shape, SIZES.index(item.size) + 1, item.cell + 1])
    patches = np.arange(49)
    position = np.stack([patches // 7, patches % 7], 1)
    return np.concatenate([np.array(rows)[patch_owners(owner) + 1], position], 1)


def draw_batch(
    rng: np.random.Generator, size: int, handwritten: HandwrittenDigits, crowded: float = 0.0, share: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixel values [size, 3, 56, 56], patch labels [size, 49, 6] and counts [size, 8] of each noun and of all objects.

    ``crowded`` and ``share`` are the probabilities that a scene is crowded and that its digits are handwritten.
    """
    images, labels, counts = [], [], []
    for _ in range(size):
        if rng.random() < crowded:
            scene = sample_scene(rng, int(rng.integers(2, GRID * GRID + 1)), unique_colors=False, digit_share=0.35)
        else:
            scene = sample_scene(rng)
        counts.append([*(len(scene.with_noun(noun)) for noun in NOUNS), len(scene.objects)])
        image, owner = render(scene, rng, handwritten if rng.random() < share else None)
        images.append(image)
        labels.append(patch_labels(scene, owner))
    return to_pixel_values(np.stack(images)), torch.from_numpy(np.stack(labels)), torch.tensor(counts)


@torch.no_grad()
def patch_accuracy(model: nn.Module, heads: nn.ModuleDict, handwritten: HandwrittenDigits, share: float) -> dict:
    """Share of covered patches that each head gets right, and of right counts, on 400 fresh scenes."""
    pixel_values, labels, counts = draw_batch(np.random.default_rng(10**6), 400, handwritten, share=share)
    model.eval()
    hidden = model(pixel_values).last_hidden_state  # [batch, 50, hidden]
    model.train()
    covered = labels[..., 0] > 0
    guesses = heads["count"](hidden[:, 0]).unflatten(1, (counts.shape[1], -1)).argmax(-1)
    result = {"count": round((guesses == counts).float().mean().item(), 4)}
    for index, name in enumerate(NUM_CLASSES):
        right = heads[name](hidden[:, 1:]).argmax(-1) == labels[..., index]
        result[name] = round(right[covered].float().mean().item(), 4)
        if name == "shape":
            result["digit"] = round(right[labels[..., index] > 6].float().mean().item(), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for the tower")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, 5])
    train_digits, test_digits = HandwrittenDigits("train"), HandwrittenDigits("test")
    model = InstructBlipVisionModel(vision_config()).train()
    model.set_attn_implementation("eager")  # on a CPU its backward pass is the faster one at this size
    heads = nn.ModuleDict({name: nn.Linear(128, classes) for name, classes in NUM_CLASSES.items()})
    heads["count"] = nn.Linear(128, (len(NOUNS) + 1) * (MAX_COUNT + 1))
    groups = [
        {"params": list(model.parameters()), "scale": 1.0},
        {"params": list(heads.parameters()), "scale": 4.0},
    ]
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    started = time.time()
    for step in range(args.steps):
        decay = 0.5 * (1 + np.cos(np.pi * step / args.steps)) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * args.learning_rate * min(1, (step + 1) / 50) * decay
        pixel_values, labels, counts = draw_batch(rng, args.batch_size, train_digits, crowded=0.5)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(pixel_values).last_hidden_state
        hidden = hidden.float()
        logits = heads["count"](hidden[:, 0]).view(-1, MAX_COUNT + 1)
        loss = COUNT_WEIGHT * functional.cross_entropy(logits, counts.flatten())
        for index, name in enumerate(NUM_CLASSES):
            weight = torch.ones(NUM_CLASSES[name])
            if name not in ("row", "column"):
                weight[0] = BACKGROUND_WEIGHT
            logits = heads[name](hidden[:, 1:]).flatten(0, 1)
            loss = loss + LOSS_WEIGHTS[name] * functional.cross_entropy(logits, labels[..., index].flatten(), weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            report = {
                "step": step + 1,
                "seconds": round(time.time() - started),
                "cpu_seconds": round(time.process_time()),
                "loss": round(loss.item(), 3),
                "drawn": patch_accuracy(model, heads, test_digits, 0.0),
                "handwritten": patch_accuracy(model, heads, test_digits, 1.0),
            }
            print(json.dumps(report), flush=True)
            model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
