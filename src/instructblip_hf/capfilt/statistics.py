"""What is counted while rows go by: scores of web texts and captions, what is kept of them, and some rows to look at.

Each shard has its own, and those of the whole are their sum, so that a run that was killed counts nothing twice.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from .filtering import Candidate


SOURCES = ("web", "synthetic")
BINS = 40
RANGES = {"itm": (0.0, 1.0), "itc": (-1.0, 1.0)}
"""Of the histograms, by score."""

GROUPS = {
    "web": "A text from the web is kept",
    "replaced": "Texts from the web are dropped, captions are kept",
    "made": "There was no text from the web",
    "none": "Nothing is kept",
}
"""What can become of a row."""

SAMPLES_PER_GROUP = 8
_THUMBNAIL = 224
_EXPECTED_SAMPLES = 400


class Statistics:
    """Counts of rows and texts, and histograms of scores.

    Args:
        scores (`Sequence[str]`): Names of the scores that texts have.
    """

    def __init__(self, scores: Sequence[str]) -> None:
        self.rows = 0
        self.groups = dict.fromkeys(GROUPS, 0)
        self.texts = {source: {"texts": 0, "kept": 0} for source in SOURCES}
        self.sums = {score: dict.fromkeys(SOURCES, 0.0) for score in scores}
        self.histograms = {
            score: {source: {"texts": [0] * BINS, "kept": [0] * BINS} for source in SOURCES} for score in scores
        }

    def add(self, ranked: Sequence[Candidate]) -> None:
        """Counts a row."""
        self.rows += 1
        self.groups[group_of(ranked)] += 1
        for one in ranked:
            self.texts[one.source]["texts"] += 1
            self.texts[one.source]["kept"] += one.kept
            for score, value in one.scores.items():
                self.sums[score][one.source] += value
                low, high = RANGES[score]
                place = min(BINS - 1, max(0, int((value - low) / (high - low) * BINS)))
                counts = self.histograms[score][one.source]
                counts["texts"][place] += 1
                counts["kept"][place] += one.kept

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds what another one's `content` says."""
        for name in ("rows", "groups", "texts", "sums", "histograms"):
            setattr(self, name, _sum(getattr(self, name), other[name]))

    def content(self) -> dict[str, Any]:
        """As it is written."""
        return {name: getattr(self, name) for name in ("rows", "groups", "texts", "sums", "histograms")}


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        return {key: _sum(value, other[key]) for key, value in one.items()}
    if isinstance(one, list):
        return [left + right for left, right in zip(one, other)]
    return one + other


def group_of(ranked: Sequence[Candidate]) -> str:
    """Which of `GROUPS` a row belongs to."""
    if not any(one.kept for one in ranked):
        return "none"
    web = [one for one in ranked if one.source == "web"]
    if not web:
        return "made"
    return "web" if any(one.kept for one in web) else "replaced"


def sample(name: str, image: Image.Image, ranked: Sequence[Candidate], rows: int) -> dict[str, Any] | None:
    """A row to look at, if a draw that depends on its name alone takes it: some hundreds of all `rows`."""
    drawn = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    if drawn * rows >= _EXPECTED_SAMPLES:
        return None
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return {
        "drawn": drawn,
        "row": name,
        "group": group_of(ranked),
        "image": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "candidates": [one.record() for one in ranked],
    }


def first_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The samples to show of each group, by draw: neither the best nor the worst."""
    ordered = sorted(samples, key=lambda one: (one["drawn"], one["row"]))
    return {group: [one for one in ordered if one["group"] == group][:SAMPLES_PER_GROUP] for group in GROUPS}


__all__ = [
    "BINS",
    "GROUPS",
    "RANGES",
    "SAMPLES_PER_GROUP",
    "SOURCES",
    "Statistics",
    "first_samples",
    "group_of",
    "sample",
]
