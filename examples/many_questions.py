"""Many questions about one image, which is encoded once: the same answers in less time.

    python examples/many_questions.py examples/scene.png "what color is the circle ?" "how many objects are there ?"
    python examples/many_questions.py photo.jpg "Who is there?" "Where is it?" --model Salesforce/instructblip-flan-t5-xl

Without questions it asks eight of the shapes world.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from instructblip_hf import bundled_checkpoint
from instructblip_hf.models.families import family_of
from instructblip_hf.models.language_models.adapter import padding_side
from instructblip_hf.utils.images import load_image


QUESTIONS = (
    "what color is the circle ?",
    "how many objects are there ?",
    "is there a red circle ?",
    "what is at the top left ?",
    "where is the circle ?",
    "is there a blue square ?",
    "what is at the bottom right ?",
    "describe the image",
)


def answers(model: Any, processor: Any, image: Any, questions: list[str], **options: Any) -> list[str]:
    """Answers of a batch with a question a row; ``options`` say where the image comes from."""
    inputs = processor(
        images=[[image]] * len(questions),
        text=[processor.user_turn(question) for question in questions],
        padding=True,
        padding_side=padding_side(model.config.is_encoder_decoder),
        return_tensors="pt",
        **options,
    )
    ids = model.generate(**inputs, return_full_text=False, max_new_tokens=20, **processor.generation_options())
    texts: list[str] = processor.answers(ids)
    return texts


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask many questions about an image.")
    parser.add_argument("image")
    parser.add_argument("questions", nargs="*")
    parser.add_argument("--model", default=str(bundled_checkpoint()))
    given = parser.parse_args(arguments)

    family, model_class = family_of(given.model)
    processor = family.processor_class.from_pretrained(given.model)
    model: Any = model_class.from_pretrained(given.model).eval()
    image, questions = load_image(given.image), list(given.questions or QUESTIONS)

    begin = time.process_time()
    plain = answers(model, processor, image, questions)
    seconds = time.process_time() - begin

    begin = time.process_time()
    cache = model.encode_images(processor(images=image, return_tensors="pt")["pixel_values"])
    index = torch.zeros(len(questions), dtype=torch.long)  # every question is about the first image
    kept = {"image_cache": cache, "image_index": index}
    cached = answers(model, processor, image, questions, image_inputs=lambda images: kept)
    cached_seconds = time.process_time() - begin

    for question, first, second in zip(questions, plain, cached, strict=True):
        if first != second:
            raise SystemExit(f"{question!r} is answered {first!r}, and with the cache {second!r}")
        print(f"{question}  {second}")
    print(
        f"{len(questions)} questions: {seconds:.2f} s, with the image encoded once {cached_seconds:.2f} s of CPU time"
    )
    print(f"the cache holds {len(cache)} image in {cache.nbytes:,} bytes")


if __name__ == "__main__":
    main()
