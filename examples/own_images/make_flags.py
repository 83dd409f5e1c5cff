"""Draws the sample data of this folder: thirty two-coloured flags, each with a number to learn.

    python examples/own_images/make_flags.py

writes ``images/*.png``, ``train.jsonl`` (24 flags) and ``evaluation.jsonl`` (6 other flags) beside this script. Your
own folder needs the same three things: images, and one JSON object a line that names an image, a prompt and the
completion to learn.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from PIL import Image

from instructblip_hf.data.sources.shapes_world.scenes import COLORS, IMAGE_SIZE


HERE = Path(__file__).parent
QUESTION = "What number is this picture?"
NUMBERS = dict(zip(COLORS, ("one", "two", "three", "four", "five", "six")))
"""What is to be learned: the colour on the left decides a flag's number."""


def main() -> None:
    flags = list(itertools.permutations(COLORS, 2))
    random.Random(0).shuffle(flags)
    (HERE / "images").mkdir(exist_ok=True)
    for name, chosen in (("train", flags[:24]), ("evaluation", flags[24:])):
        with (HERE / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for left, right in chosen:
                image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), COLORS[left])
                image.paste(COLORS[right], (IMAGE_SIZE // 2, 0, IMAGE_SIZE, IMAGE_SIZE))
                path = f"images/{left}-{right}.png"
                image.save(HERE / path, optimize=True)
                row = {"image": path, "prompt": QUESTION, "completion": NUMBERS[left]}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
