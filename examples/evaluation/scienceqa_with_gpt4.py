"""Problems in ScienceQA's format with answers in LLaVA's, to see how a model and a text-only GPT-4 are joined.

    python examples/evaluation/scienceqa_with_gpt4.py outputs/science
    instructblip evaluate-scienceqa outputs/science/answers.jsonl --data-root outputs/science \
        --gpt4 outputs/science/gpt4.jsonl --judge outputs/science/judge.jsonl

Half of the problems show a scene of the shapes world, the other half need no image. The bundled model answers the first by
ranking and guesses at the second. A stand-in for GPT-4, which sees no images, answers the second and says so of the first;
asked again with both answers before it, it keeps its own, or else takes the model's.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from transformers import pipeline

from instructblip_hf import bundled_checkpoint
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.data.sources.shapes_world.scenes import COLORS, NOUNS


LETTERS = "ABCD"


def seen_problem(folder: Path, world: ShapesWorld, number: int) -> dict[str, Any]:
    """A question about a picture, which is saved."""
    example = world.example(number, "color")
    right = example["completion"]
    choices = sorted([right, *[color for color in COLORS if color != right][:3]])
    picture = folder / "test" / str(number) / "image.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    example["images"][0].save(picture)
    facts = {"subject": "natural science", "grade": "grade2", "image": "image.png"}
    return {"question": example["prompt"], "choices": choices, "answer": choices.index(right), "hint": "", **facts}


def told_problem(number: int) -> dict[str, Any]:
    """A question that needs no picture."""
    draw = random.Random(number)
    right = draw.choice(list(COLORS))
    choices = draw.sample([noun for noun in NOUNS if noun != "digit"], 3)
    choices.insert(draw.randrange(4), right)
    facts = {
        "subject": "language science",
        "grade": "grade8",
        "image": None,
        "hint": "Shapes have names, colours too.",
    }
    return {
        "question": "Which of these words is a colour?",
        "choices": choices,
        "answer": choices.index(right),
        **facts,
    }


def main() -> None:
    """Writes problems, pictures and three files of answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=100, help="problems")
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    world = ShapesWorld(seed=0, split="test")
    ranker = pipeline("vocabulary-ranking", model=str(bundled_checkpoint()))

    problems, answers, gpt4, judge = {}, {}, {}, {}
    for number in range(1, arguments.count + 1):
        name, seen = str(number), number % 2 == 1
        problem = seen_problem(folder, world, number) if seen else told_problem(number)
        problems[name] = {"topic": "shapes", "lecture": "", "solution": "", "split": "test", **problem}
        right = f"The answer is {LETTERS[problem['answer']]}."
        if seen:
            picture = str(folder / "test" / name / "image.png")
            (best,) = ranker(picture, prompt=problem["question"], candidates=problem["choices"], top_k=1)
            answers[name] = f"The answer is {LETTERS[problem['choices'].index(best['label'])]}."
            gpt4[name] = "There is no image, so I cannot tell."
        else:
            answers[name] = "The answer is A."
            gpt4[name] = f"It is the word for a colour. {right}"
        judge[name] = answers[name] if seen else gpt4[name]
    (folder / "problems.json").write_text(json.dumps(problems))
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": list(problems)}
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    for file, texts in (("answers", answers), ("gpt4", gpt4), ("judge", judge)):
        lines = (json.dumps({"question_id": name, "text": text}) + "\n" for name, text in texts.items())
        (folder / f"{file}.jsonl").write_text("".join(lines))
    print(f"{len(problems)} problems and answers to them are in {folder}")


if __name__ == "__main__":
    main()
