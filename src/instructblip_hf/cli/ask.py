"""`instructblip ask` and `instructblip caption`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .answering import Question, answer, is_address, open_images
from .errors import fail, user_errors
from .loading import LoadedModel, load_generating


QUIT = "/quit"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


def run_ask(
    arguments: Sequence[str],
    questions: Sequence[str],
    together: bool,
    model: str | None,
    as_json: bool,
    device: str | None,
    dtype: str | None,
    cache_implementation: str | None,
    generate_options: dict[str, Any],
) -> None:
    """Answers each question about each image, or, without a question, asks for questions."""
    names, questions = split_arguments(arguments, questions)
    with user_errors():
        images = open_images(names)
        loaded = load_generating(model, device, dtype, cache_implementation)
    if questions:
        _answer_all(loaded, names, images, questions, together, as_json, generate_options)
        return
    several = len(names) > 1
    for question in _questions_from_terminal(names):
        _answer_all(loaded, names, images, [question], together, as_json, generate_options, with_names=several)


def run_caption(
    names: Sequence[str],
    prompt: str,
    model: str | None,
    as_json: bool,
    device: str | None,
    dtype: str | None,
    cache_implementation: str | None,
    generate_options: dict[str, Any],
) -> None:
    """Describes each image."""
    with user_errors():
        images = open_images(names)
        loaded = load_generating(model, device, dtype, cache_implementation)
    _answer_all(loaded, names, images, [prompt], False, as_json, generate_options, with_question=False)


def split_arguments(arguments: Sequence[str], questions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images and questions of ``ask IMAGE... "question"``: without --question the last argument may be a question."""
    names, questions = list(arguments), list(questions)
    if not questions and len(names) > 1 and not _looks_like_image(names[-1]):
        questions = [names.pop()]
    for question in questions:
        if not question.strip():
            fail("a question is empty")
    return names, questions


def _looks_like_image(argument: str) -> bool:
    if is_address(argument):
        return True
    try:
        if Path(argument).exists():
            return True
    except OSError:  # longer than a file name can be
        return False
    return " " not in argument and argument.lower().endswith(IMAGE_SUFFIXES)


def _questions_from_terminal(names: Sequence[str]) -> Iterator[str]:
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"Ask about {', '.join(names)}. {QUIT} or Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            if interactive and not sys.stdout.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            question = input("> " if interactive and sys.stdout.isatty() else "").strip()
        except EOFError:
            if interactive:
                print(file=sys.stderr)
            return
        if question == QUIT:
            return
        if question:
            yield question


def _answer_all(
    loaded: LoadedModel,
    names: Sequence[str],
    images: Sequence[Any],
    questions: Sequence[str],
    together: bool,
    as_json: bool,
    generate_options: dict[str, Any],
    with_names: bool | None = None,
    with_question: bool = True,
) -> None:
    groups = [(list(names), list(images))] if together else [([name], [image]) for name, image in zip(names, images)]
    asked = [Question(text, group, group_names) for group_names, group in groups for text in questions]
    if with_names is None:
        with_names = len(groups) > 1
    shown: list[str] = []
    for question, text in answer(loaded, asked, **generate_options):
        if as_json:
            record = {"images": question.names, "question": question.text, "answer": text, "model": loaded.name}
            print(json.dumps(record, ensure_ascii=False), flush=True)
            continue
        if with_names and with_question and len(questions) > 1:
            if question.names != shown:
                print(", ".join(question.names))
                shown = question.names
            print(f"  {question.text}  {text}", flush=True)
        elif with_names:
            print(f"{', '.join(question.names)}: {text}", flush=True)
        elif len(questions) > 1:
            print(f"{question.text}  {text}", flush=True)
        else:
            print(text, flush=True)
