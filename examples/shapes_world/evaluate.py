"""Measures a model on fresh scenes of the shapes world, by task type, and writes JSON and a Markdown table.

    python examples/shapes_world/evaluate.py --model instructblip-shapes-tiny --output runs/shapes/evaluation

Answers are generated greedily through processor and model as any user would, and scored by exact match after
normalisation (captions: every object named, none invented; questions: a wording that the world understands and whose
answer about the scene is the given one; dialogues: every turn right, with the model's own answers as history).

Columns: training wordings, held-out wordings, and, with training wordings, a picture of an empty scene instead of the
scene, another scene's picture, and an empty instruction for the Q-Former (the language model still reads it).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import COLUMNS, table
from PIL import Image

from instructblip_hf import (
    BUNDLED_CHECKPOINTS,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    bundled_checkpoint,
)
from instructblip_hf.data.sources.shapes_world import HELD_OUT_TASKS, TASKS, Scene, ShapesWorld, render, score


HANDWRITTEN = "digit (handwritten)"


def blank_image(seed: int) -> Image.Image:
    """A picture of a scene without objects."""
    return Image.fromarray(render(Scene(()), np.random.default_rng(seed))[0])


class Answerer:
    """Answers examples in batches.

    Args:
        folder (`str` or `Path`): A saved model with its processor.
        batch_size (`int`, *optional*, defaults to 125): Examples a batch.
    """

    def __init__(self, folder: str | Path, batch_size: int = 125) -> None:
        self.model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = InstructBlipProcessor.from_pretrained(folder)
        self.batch_size = batch_size

    def __call__(self, examples: list[dict[str, Any]], uninstructed: bool = False) -> list[str | list[str]]:
        """One answer an example; for a dialogue the list of its answers."""
        answers: list[str | list[str]] = []
        for start in range(0, len(examples), self.batch_size):
            batch = examples[start : start + self.batch_size]
            if batch[0]["task"] == "dialogue":
                answers += self._converse(batch, uninstructed)
            else:
                texts = [example["prompt"] for example in batch]
                answers += self._generate([example["images"] for example in batch], texts, uninstructed)
        return answers

    def _generate(self, images: list[list[Image.Image]], texts: list[str], uninstructed: bool) -> list[str]:
        withheld = {"qformer_text": [""] * len(texts)} if uninstructed else {}
        inputs = self.processor(
            images=images, text=texts, padding=True, padding_side="left", return_tensors="pt", **withheld
        )
        sequences = self.model.generate(**inputs, return_full_text=False, do_sample=False, max_new_tokens=24)
        return [text.strip() for text in self.processor.batch_decode(sequences, skip_special_tokens=True)]

    def _converse(self, batch: list[dict[str, Any]], uninstructed: bool) -> list[str | list[str]]:
        answers: list[list[str]] = [[] for _ in batch]
        turns = [[turn["content"] for turn in example["messages"][::2]] for example in batch]
        for depth in range(max(map(len, turns))):
            open_rows = [row for row, texts in enumerate(turns) if depth < len(texts)]
            conversations = []
            for row in open_rows:
                conversation: list[dict[str, Any]] = []
                for turn, text in enumerate(turns[row][: depth + 1]):
                    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
                    if turn == 0:
                        content.insert(0, {"type": "image", "image": batch[row]["images"][0]})
                    conversation.append({"role": "user", "content": content})
                    if turn < depth:
                        said = {"type": "text", "text": answers[row][turn]}
                        conversation.append({"role": "assistant", "content": [said]})
                conversations.append(conversation)
            withheld = {"qformer_text": [""] * len(conversations)} if uninstructed else {}
            inputs = self.processor.apply_chat_template(
                conversations,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                processor_kwargs={"padding": True, "padding_side": "left", **withheld},
            )
            sequences = self.model.generate(**inputs, return_full_text=False, do_sample=False, max_new_tokens=24)
            for row, text in zip(open_rows, self.processor.batch_decode(sequences, skip_special_tokens=True)):
                answers[row].append(text.strip())
        return list(answers)


def evaluate(folder: str | Path, count: int, seed: int, columns: list[str]) -> Iterator[tuple[str, str, float]]:
    """Yields task, column and accuracy."""
    answerer = Answerer(folder)
    for task in (*TASKS, HANDWRITTEN, *HELD_OUT_TASKS):
        base = task.split(" ")[0]
        for column in columns:
            if column == "seen" and task in HELD_OUT_TASKS:
                continue
            templates = "held_out" if column == "held_out" or task in HELD_OUT_TASKS else "seen"
            world = ShapesWorld(seed, split="test", handwritten=task == HANDWRITTEN, templates=templates)
            examples = list(world.examples(count, task=base))
            shown = examples
            if column == "blank":
                shown = [{**example, "images": [blank_image(index)]} for index, example in enumerate(examples)]
            elif column == "other":
                rolled = examples[1:] + examples[:1]
                shown = [{**example, "images": other["images"]} for example, other in zip(examples, rolled)]
            answers = answerer(shown, uninstructed=column == "uninstructed")
            right = [score(example, answer) for example, answer in zip(examples, answers)]
            yield task, column, float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="instructblip-shapes-tiny", help="folder or name of a bundled checkpoint")
    parser.add_argument("--output", required=True, help="folder for results.json and results.md")
    parser.add_argument("--examples", type=int, default=500, help="fresh scenes a task type and column")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    folder = bundled_checkpoint(args.model) if args.model in BUNDLED_CHECKPOINTS else Path(args.model)
    started = time.time()
    accuracy: dict[str, dict[str, float]] = {}
    for task, column, value in evaluate(folder, args.examples, args.seed, args.columns):
        accuracy.setdefault(task, {})[column] = round(value, 4)
        print(f"{task:22} {column:14} {value:.3f}", flush=True)
    seconds = round(time.time() - started)
    command = f"python examples/shapes_world/evaluate.py --model {args.model} --examples {args.examples}"
    command += f" --seed {args.seed} --output OUTPUT"
    if args.columns != list(COLUMNS):
        command += f" --columns {' '.join(args.columns)}"
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "model": args.model,
        "command": command,
        "examples": args.examples,
        "seed": args.seed,
        "seconds": seconds,
        "threads": args.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "accuracy": accuracy,
    }
    (output / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    text = f"`{command}`, {args.examples} fresh scenes a cell, {seconds} s:\n\n{table(accuracy, args.columns)}\n"
    (output / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
