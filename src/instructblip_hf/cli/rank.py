"""`instructblip rank`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .answering import BATCH_SIZE, open_images
from .errors import fail, user_errors
from .loading import load_generating


def run_rank(
    names: Sequence[str],
    question: str,
    candidates: Sequence[str],
    candidates_file: Path | None,
    top_k: int | None,
    length_penalty: float,
    model: str | None,
    as_json: bool,
    device: str | None,
    dtype: str | None,
) -> None:
    """Shows candidate answers about each image, the likeliest first."""
    texts = _read_candidates(candidates, candidates_file)
    with user_errors():
        images = open_images(names)
        loaded = load_generating(model, device, dtype)

        from ..pipelines.vocabulary_ranking import VocabularyRankingPipeline

        ranker = VocabularyRankingPipeline(model=loaded.model, processor=loaded.processor)
        options: dict[str, Any] = {"candidates": texts, "top_k": top_k, "length_penalty": length_penalty}
        prompt = loaded.processor.user_turn(question)
        rankings = ranker(images, prompt=prompt, batch_size=BATCH_SIZE, **options)
    for name, ranking in zip(names, rankings):
        if as_json:
            record = {"image": name, "question": question, "ranking": ranking, "model": loaded.name}
            print(json.dumps(record, ensure_ascii=False), flush=True)
            continue
        if len(names) > 1:
            print(name)
        for entry in ranking:
            print(f"{entry['score']:7.1%}  {entry['label']}")


def _read_candidates(given: Sequence[str], file: Path | None) -> list[str]:
    """Texts between commas, and lines of a file; what is there twice counts once."""
    texts = [text for group in given for text in group.split(",")]
    if file is not None:
        try:
            texts += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"--candidates-file: {file} cannot be read: {error}")
    texts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not texts:
        fail("rank needs something to choose from: --candidates red,green or --candidates-file FILE, one a line")
    return texts
