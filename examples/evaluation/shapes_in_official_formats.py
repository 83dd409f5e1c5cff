"""Questions about the shapes world in the official formats of GQA and IconQA, to try an evaluation on.

    python examples/evaluation/shapes_in_official_formats.py outputs/shapes-data
    instructblip evaluate --tasks gqa,iconqa --data-root outputs/shapes-data --output outputs/evaluation --prompt "{question}"

Those are datasets of photographs, which the bundled tiny model knows nothing about; here their files hold pictures that
it knows. The prompt is the question as it stands, since the model has not learnt the protocol's words. GQA's questions
are to be answered in words, IconQA's by choosing one of four colours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.data.sources.shapes_world.scenes import COLORS


OPEN, BINARY = ("color", "shape", "where", "count"), ("exist", "relation")


def write_gqa(root: Path, world: ShapesWorld, count: int) -> None:
    """Test-dev of GQA: one picture and one question each."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    tasks = (*OPEN, *BINARY)
    questions: dict[str, Any] = {}
    for number in range(count):
        task = tasks[number % len(tasks)]
        example = world.example(number, task)
        example["images"][0].save(root / "images" / f"{number}.jpg", quality=95)
        questions[f"{number:06d}"] = {
            "imageId": str(number),
            "question": example["prompt"],
            "answer": example["completion"],
            "isBalanced": True,
            "types": {"structural": "verify" if task in BINARY else "query", "semantic": task},
        }
    write(root / "testdev_balanced_questions.json", questions)


def write_iconqa(root: Path, world: ShapesWorld, count: int) -> None:
    """Test problems of IconQA with choices in words."""
    problems: dict[str, Any] = {}
    for number in range(count):
        example = world.example(1_000_000 + number, "color")
        right = example["completion"]
        choices = sorted([right, *[color for color in COLORS if color != right][:3]])
        folder = root / "iconqa" / "test" / "choose_txt" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        example["images"][0].save(folder / "image.png")
        problems[str(number)] = {
            "question": example["prompt"],
            "choices": choices,
            "answer": choices.index(right),
            "ques_type": "choose_txt",
            "grade": "grade1",
            "skills": ["color"],
            "label": "S",
            "split": "test",
        }
    write(root / "problems.json", problems)
    write(root / "pid_splits.json", {"choose_txt_test": list(problems)})


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to; a folder for each dataset is made in it")
    parser.add_argument("--rows", type=int, default=200, help="questions of each dataset")
    parser.add_argument("--seed", type=int, default=7, help="of the world")
    options = parser.parse_args()
    world = ShapesWorld(options.seed, split="test")
    write_gqa(options.folder / "gqa", world, options.rows)
    write_iconqa(options.folder / "iconqa", world, options.rows)
    print(f"{options.rows} questions each in {options.folder / 'gqa'} and {options.folder / 'iconqa'}")


if __name__ == "__main__":
    main()
