"""The filter: how well each text fits its image, and which are kept, from the web and from the captioner alike.

BLIP leaves out texts that its matching head finds noisy (section 3.3). BLIP-2 ranks texts by the cosine of image and text
and keeps the two best (section 3.4; there by CLIP ViT-L/14, here by the same model's own cosine). Both are settings here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..retrieval.encoding import RetrievalEncoder
from ..utils.caption_text import clean_caption


SCORES = ("itm", "itc")
"""The matching head's probability of a match, and the cosine of the best query and the text."""

_PAIRS_AT_ONCE = 64
_DIGITS = 6


@dataclass(frozen=True)
class FilterOptions:
    """Which texts are kept.

    Args:
        rank_by (`str`, *optional*, defaults to `"itm"`): One of `SCORES`, by which texts are ordered.
        min_itm (`float`, *optional*): Least probability of a match.
        min_itc (`float`, *optional*): Least cosine.
        top_k (`int`, *optional*, defaults to 2): Most texts of an image that are kept; `None` for all of them, so that
            without thresholds texts are put in order and no more.

    Raises:
        ValueError: If one is out of its range.
    """

    rank_by: str = "itm"
    min_itm: float | None = None
    min_itc: float | None = None
    top_k: int | None = 2

    def __post_init__(self) -> None:
        if self.rank_by not in SCORES:
            raise ValueError(f"rank_by is {self.rank_by!r}; allowed are {', '.join(SCORES)}")
        if self.min_itm is not None and not 0 <= self.min_itm <= 1:
            raise ValueError(f"min_itm is {self.min_itm}; a probability is from 0 to 1")
        if self.min_itc is not None and not -1 <= self.min_itc <= 1:
            raise ValueError(f"min_itc is {self.min_itc}; a cosine is from -1 to 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")

    @property
    def minimums(self) -> dict[str, float]:
        """Thresholds that there are, by score."""
        given = {"itm": self.min_itm, "itc": self.min_itc}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that are needed."""
        return tuple(name for name in SCORES if name == self.rank_by or name in self.minimums)


@dataclass(frozen=True)
class Candidate:
    """A text that may be an image's caption.

    Attributes:
        text (`str`): The text.
        source (`str`): `"web"` or `"synthetic"`.
        scores (`dict[str, float]`): By name of `SCORES`.
        kept (`bool`): Whether it is kept.
    """

    text: str
    source: str
    scores: dict[str, float] = field(default_factory=dict)
    kept: bool = False

    def record(self) -> dict[str, Any]:
        """As it is written."""
        scores = {name: round(value, _DIGITS) for name, value in self.scores.items()}
        return {"text": self.text, "source": self.source, **scores, "kept": self.kept}


def candidates_of(web: Sequence[str], synthetic: Sequence[str]) -> list[Candidate]:
    """Texts of an image, each once: web texts first, and captions that are none of them.

    Texts that are the same to the filter, which reads them in lower case and without punctuation, count as one.
    """
    found: dict[str, Candidate] = {}
    for source, texts in (("web", web), ("synthetic", synthetic)):
        for text in texts:
            known_by = clean_caption(text)
            if known_by:
                found.setdefault(known_by, Candidate(text, source))
    return list(found.values())


def select(candidates: Sequence[Candidate], options: FilterOptions) -> list[Candidate]:
    """Orders scored texts, best first, and marks those that are kept.

    Of equal ones that comes first which did. Kept are the first `top_k` of those that reach every threshold.
    """
    ordered = sorted(candidates, key=lambda one: -one.scores[options.rank_by])
    selected, kept = [], 0
    for one in ordered:
        is_kept = all(one.scores[name] >= least for name, least in options.minimums.items())
        is_kept = is_kept and (options.top_k is None or kept < options.top_k)
        kept += is_kept
        selected.append(replace(one, kept=is_kept))
    return selected


class CaptionFilter:
    """A model that scores texts of images.

    Args:
        encoder (`RetrievalEncoder`): A BLIP-2 for retrieval or of the first stage.
        options (`FilterOptions`, *optional*): Which texts are kept.
    """

    def __init__(self, encoder: RetrievalEncoder, options: FilterOptions | None = None) -> None:
        self.encoder = encoder
        self.options = options or FilterOptions()

    def facts(self) -> dict[str, Any]:
        """What the result depends on, beside images and texts."""
        return {**self.encoder.facts(), **asdict(self.options)}

    def __call__(self, images: Sequence[Any], candidates: Sequence[Sequence[Candidate]]) -> list[list[Candidate]]:
        """Texts of each image with their scores, best first, and which are kept.

        Args:
            images (`Sequence[PIL.Image.Image]`): Images.
            candidates (`Sequence[Sequence[Candidate]]`): Texts of each, from `candidates_of`.

        Raises:
            ValueError: If a score is not a number.
        """
        pairs = [(row, one) for row, of_image in enumerate(candidates) for one in of_image]
        if not pairs:
            return [[] for _ in images]
        features, states = self.encoder.encode_images(self.encoder.pixels(images))
        scored: list[list[Candidate]] = [[] for _ in images]
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            chunk = pairs[start : start + _PAIRS_AT_ONCE]
            texts = [one.text for _, one in chunk]
            rows = torch.tensor([row for row, _ in chunk])
            values: dict[str, torch.Tensor] = {}
            if "itm" in self.options.scores:
                values["itm"] = self.encoder.match_probability(states, texts, rows)
            if "itc" in self.options.scores:
                of_texts = self.encoder.encode_texts(texts)  # [pairs, size]
                values["itc"] = torch.einsum("pqd,pd->pq", features[rows], of_texts).amax(1)
            for place, (row, one) in enumerate(chunk):
                scores = {name: float(values[name][place]) for name in self.options.scores}
                wrong = [name for name, value in scores.items() if not math.isfinite(value)]
                if wrong:
                    raise ValueError(f"the filter's {wrong[0]} of {one.text!r} is {scores[wrong[0]]}")
                scored[row].append(replace(one, scores=scores))
        return [select(of_image, self.options) for of_image in scored]


__all__ = ["SCORES", "Candidate", "CaptionFilter", "FilterOptions", "candidates_of", "select"]
