"""Draws examples of the shapes world on one sheet: picture, instruction, answer.

python examples/shapes_world/contact_sheet.py docs/images/shapes_world.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from instructblip_hf.data.sources.shapes_world import HELD_OUT_TASKS, TASKS, ShapesWorld


SCALE = 3
PICTURE = 56 * SCALE
TEXT_HEIGHT = 78
COLUMNS = 6
MARGIN = 8


def describe(example: dict[str, Any]) -> list[str]:
    """Instruction and answer of an example, wrapped to the width of a picture."""
    if "messages" in example:
        texts = [("> " if turn["role"] == "assistant" else "") + turn["content"] for turn in example["messages"]]
    else:
        texts = [example["prompt"], "> " + example["completion"]]
    return [line for text in texts for line in textwrap.wrap(text, 29)]


def sheet(examples: list[dict[str, Any]]) -> Image.Image:
    """All examples, six a row."""
    rows = -(-len(examples) // COLUMNS)
    width, height = PICTURE + MARGIN, PICTURE + TEXT_HEIGHT + MARGIN
    canvas = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for index, example in enumerate(examples):
        left, top = MARGIN + index % COLUMNS * width, MARGIN + index // COLUMNS * height
        picture = example["images"][0].resize((PICTURE, PICTURE), Image.Resampling.NEAREST)
        canvas.paste(picture, (left, top))
        for line_number, line in enumerate(describe(example)[:6]):
            draw.text((left, top + PICTURE + 2 + 12 * line_number), line, fill="black")
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    worlds = [ShapesWorld(args.seed, split="test", handwritten=handwritten) for handwritten in (False, True)]
    examples = [worlds[index % 2].example(index, task) for index, task in enumerate((*TASKS, *HELD_OUT_TASKS))]
    examples.append(worlds[1].example(100, "digit"))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet(examples).quantize(256, Image.Quantize.MAXCOVERAGE).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
