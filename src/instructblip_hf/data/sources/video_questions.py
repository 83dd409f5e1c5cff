"""MSVD-QA, MSRVTT-QA and iVQA: questions about videos.

A row points to its video, of which `instructblip_hf.data.video.read_frames` gives frames; a folder of frames may stand
in a video's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import Example
from .fields import OneOf, answer_texts, identifier, number, text
from .files import Located, completed_rows, csv_rows, json_rows


_ENDINGS = (".mp4", ".avi", ".webm", ".mkv", "")


def msvd_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``*_qa.json``, with the YouTube names of videos where ``youtube_mapping.txt`` is there."""
    names = _youtube_names(optional[0]) if optional else {}
    yield from completed_rows(
        json_rows(files[0]),
        lambda row: {**row, "video_name": names[key]} if (key := f"vid{row.get('video_id')}") in names else row,
    )


def _youtube_names(file: Path) -> dict[str, str]:
    """From ``vid12`` to the YouTube name: the file has a line ``name vid12`` for each video."""
    pairs = (line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def msrvtt_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``*_qa.json``."""
    yield from json_rows(files[0])


def msvd_qa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of MSVD-QA: ``id``, ``video_id``, ``question``, ``answer``."""
    return [_video_example(row, "msvd_qa", "vid")]


def msrvtt_qa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of MSRVTT-QA: ``id``, ``video_id``, ``question``, ``answer``."""
    return [_video_example(row, "msrvtt_qa", "video")]


def _video_example(row: Mapping[str, Any], dataset: str, prefix: str) -> Example:
    video = row.get("video")
    if video is None:
        name = str(row.get("video_name") or f"{prefix}{identifier(row, 'video_id')}")
        video = _video_names(name)
    elif isinstance(video, str):
        video = OneOf((f"videos/{video}", f"video/{video}", video))
    return {
        "id": identifier(row, "id", "question_id"),
        "dataset": dataset,
        "category": "video_qa",
        "images": [],
        "video": {"path": video, "start": None, "end": None},
        "question": text(row, "question"),
        "answers": answer_texts(row, "answer"),
    }


def ivqa_rows(files: Sequence[Path], split: str, optional: Sequence[Path]) -> Iterator[Located]:
    """Rows of ``train.csv``, ``val.csv`` and ``test.csv``; they have no ids, so their number is added."""
    for position, (where, row) in enumerate(csv_rows(files[0])):
        yield where, row if isinstance(row, str) else {**row, "number": position}


def ivqa_examples(row: Mapping[str, Any]) -> list[Example]:
    """A question of iVQA: ``video_id``, ``start``, ``end``, ``question`` and ``answer1`` to ``answer5``."""
    video_id = identifier(row, "video_id")
    answers = [row[f"answer{place}"] for place in range(1, 6) if row.get(f"answer{place}")]
    if not answers:
        raise ValueError("has none of answer1 to answer5")
    start, end = number(row, "start"), number(row, "end")
    if start is not None and end is not None and not 0 <= start < end:
        raise ValueError(f"has a clip from {start:g} to {end:g} seconds")
    row_number = row.get("number")
    return [
        {
            "id": video_id if row_number is None else f"{video_id}-{row_number}",
            "dataset": "ivqa",
            "category": "video_qa",
            "images": [],
            "video": {"path": row.get("video") or _video_names(video_id), "start": start, "end": end},
            "question": text(row, "question"),
            "answers": answer_texts({"answers": answers}, "answers"),
        }
    ]


def _video_names(name: str) -> OneOf:
    in_folders = [f"{folder}/{name}{ending}" for folder in ("videos", "video") for ending in _ENDINGS]
    return OneOf([*in_folders, f"frames/{name}", *(f"{name}{ending}" for ending in _ENDINGS)])


__all__ = [
    "ivqa_examples",
    "ivqa_rows",
    "msrvtt_qa_examples",
    "msrvtt_rows",
    "msvd_qa_examples",
    "msvd_rows",
]
