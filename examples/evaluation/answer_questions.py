"""Answers to a file of questions in LLaVA's form, as `instructblip judge` reads them.

    python examples/evaluation/answer_questions.py qa90_questions.jsonl --images val2014 --image-prefix COCO_val2014_ \\
        --model MODEL --output my_answers.jsonl

Questions are lines with ``question_id``, ``image`` and ``text``; answers get LLaVA's fields. Answers that are in the output
already stay, so the same command after a kill goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from instructblip_hf.cli.answering import Question, answer
from instructblip_hf.cli.loading import LoadedModel, load_generating
from instructblip_hf.utils.images import load_image


def answer_file(
    questions: Path,
    images: Path,
    output: Path,
    loaded: LoadedModel,
    image_prefix: str = "",
    batch_size: int = 8,
    **generate_options: Any,
) -> int:
    """Answers the questions that the output has no answer to, and returns how many these were.

    Args:
        questions (`Path`): A JSON object a line.
        images (`Path`): Folder of the images.
        output (`Path`): A line for each answer is added to it.
        loaded (`LoadedModel`): Who answers.
        image_prefix (`str`, *optional*): What stands before a question's ``image`` in the file's name.
        batch_size (`int`, *optional*, defaults to 8): Questions answered at a time.
        generate_options: For `generate`.
    """
    done = answered(output)
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").split("\n") if line.strip()]
    left = [row for row in rows if str(row["question_id"]) not in done]
    with output.open("a", encoding="utf-8") as stream:
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            asked = [
                Question(row["text"], [load_image(images / f"{image_prefix}{row['image']}")], [row["image"]])
                for row in batch
            ]
            for row, (_, text) in zip(batch, answer(loaded, asked, batch_size, **generate_options)):
                content = {"question_id": row["question_id"], "prompt": row["text"], "text": text}
                content |= {
                    "answer_id": f"{loaded.name}-{row['question_id']}",
                    "model_id": loaded.name,
                    "metadata": {},
                }
                stream.write(json.dumps(content, ensure_ascii=False) + "\n")
                stream.flush()
    return len(left)


def answered(output: Path) -> set[str]:
    """Ids of the questions that are answered; half a line at the end of the file is cut off."""
    if not output.exists():
        return set()
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        output.write_bytes(whole)
    return {str(json.loads(line)["question_id"]) for line in whole.splitlines()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--image-prefix", default="", help="what stands before a question's image in the file's name")
    parser.add_argument("--model", help="folder or Hub id; the bundled tiny one by default")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    loaded = load_generating(options.model, options.device, options.dtype)
    made = answer_file(
        options.questions,
        options.images,
        options.output,
        loaded,
        options.image_prefix,
        options.batch_size,
        max_new_tokens=options.max_new_tokens,
    )
    print(f"{made} answers in {options.output}")


if __name__ == "__main__":
    main()
