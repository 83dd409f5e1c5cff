"""What lmms-eval asks for, in this package's terms: images, decoding options, stop strings, answers to choose from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.video import read_frames
from ...utils.images import is_single_image, load_image, sample_frames
from ..tasks import CAPTION, SHORT_ANSWER, Decoding


logger = logging.getLogger(__name__)

DECODINGS: dict[str, Decoding] = {"short_answer": SHORT_ANSWER, "caption": CAPTION}
"""LAVIS's decoding by name."""

MAX_NEW_TOKENS = 256
"""Where a task does not say; as LAVIS's `generate`."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


class AnswerList(Sequence[str]):
    """Answers that all documents of a task choose from, to be put into its generation arguments.

    lmms-eval copies these arguments for each document and writes them into each line of its logs: copies are the object
    itself, and it is written as its number and a digest.

    Args:
        texts (`Sequence[str]`): The answers.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._digest = hashlib.sha256("\0".join(self.texts).encode("utf-8")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> Any:
        return self.texts[index]

    def __deepcopy__(self, memo: Any) -> AnswerList:
        return self

    def __repr__(self) -> str:
        return f"{len(self)} answers, sha256 {self._digest}"


@dataclass(frozen=True)
class Generation:
    """How the answer to a request is made.

    Args:
        options (`dict[str, Any]`): For `generate`.
        until (`tuple[str, ...]`): Texts that an answer ends before.
        candidates (`tuple[str, ...]`, *optional*): The answer is the likeliest of these in place of a generated one.
    """

    options: dict[str, Any]
    until: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None

    def cut(self, text: str) -> str:
        """The answer up to the first stop string, without space around it."""
        ends = [place for stop in self.until if (place := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()


def generation_of(
    kwargs: Mapping[str, Any] | None, is_encoder_decoder: bool, decoding: Decoding | None = None
) -> Generation:
    """A task's generation arguments.

    Args:
        kwargs (`Mapping[str, Any]`, *optional*): Arguments of `generate`, and ``until``, a text or a list of texts;
            ``candidates``, a list of answers to choose from. ``length_penalty`` may be a pair: of causal and of
            sequence-to-sequence language models. A ``temperature`` of 0 means that nothing is sampled. What is neither
            of these, as some tasks have for other models, is left out with a warning.
        is_encoder_decoder (`bool`): Which of the two the language model is.
        decoding (`Decoding`, *optional*): In place of the task's options for `generate`.

    Raises:
        ValueError: If ``until`` or ``candidates`` are of another type.
    """
    options = dict(kwargs or {})
    until, candidates = options.pop("until", None), options.pop("candidates", None)
    until = [until] if isinstance(until, str) else list(until or ())
    if not all(isinstance(stop, str) and stop for stop in until):
        raise ValueError(f"until is {until!r}; it must be a text or a list of texts")
    if candidates is not None and (isinstance(candidates, str) or not len(candidates)):
        raise ValueError(f"candidates is {candidates!r}; it must be a list of answers to choose from")
    options = (
        _generate_options(options, is_encoder_decoder) if decoding is None else decoding.options(is_encoder_decoder)
    )
    return Generation(options, tuple(until), None if candidates is None else tuple(candidates))


def _generate_options(given: Mapping[str, Any], is_encoder_decoder: bool) -> dict[str, Any]:
    from transformers import GenerationConfig

    known = GenerationConfig()
    foreign = [name for name in given if not hasattr(known, name)]
    if foreign:
        logger.warning("generation arguments of a task that `generate` does not know: %s", ", ".join(foreign))
    options = {name: value for name, value in given.items() if name not in foreign and value is not None}
    penalty = options.get("length_penalty")
    if isinstance(penalty, (list, tuple)):
        options["length_penalty"] = penalty[is_encoder_decoder]
    temperature = options.get("temperature")
    options["do_sample"] = temperature != 0 and bool(options.get("do_sample", temperature is not None))
    if not options["do_sample"]:
        # `generate` warns of them.
        options = {name: value for name, value in options.items() if name not in _SAMPLING}
    return {"max_new_tokens": MAX_NEW_TOKENS, **options}


def images_of(visuals: Any, num_frames: int = 4) -> list[Any]:
    """Opened images of what a task's ``doc_to_visual`` gave: of a video its frames.

    Args:
        visuals (`Any`): `None`, or a list of images as `load_image` takes them, paths of videos, and lmms-eval's
            ``{"type": "image" | "video", "url" or "path": ..., "video_start": ..., "video_end": ...}``.
        num_frames (`int`, *optional*, defaults to 4): Most frames of a video.

    Raises:
        ValueError: If one is neither image nor video, or cannot be read.
    """
    if visuals is None:
        return []
    if isinstance(visuals, (str, Mapping)) or is_single_image(visuals):
        visuals = [visuals]
    images: list[Any] = []
    for visual in visuals:
        source, start, end = visual, None, None
        if isinstance(visual, Mapping) and "bytes" not in visual:
            kind = visual.get("type", "video")
            if kind not in ("image", "video"):
                raise ValueError(f"a document has {kind!r}; allowed are image and video")
            source = visual.get("url") if visual.get("url") is not None else visual.get("path")
            start, end = visual.get("video_start"), visual.get("video_end")
        if isinstance(source, (list, tuple)):
            images += [load_image(frame) for frame in sample_frames(list(source), num_frames)]
        elif isinstance(source, (str, Path)) and _is_video(source):
            images += read_frames(source, num_frames, start, end)
        else:
            images.append(load_image(source))
    return images


VIDEO_ENDINGS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")
"""What is read as a video; a folder is one of frames."""


def _is_video(source: str | Path) -> bool:
    path = Path(source)
    return path.suffix.lower() in VIDEO_ENDINGS or (len(str(source)) < 1024 and path.is_dir())


def with_markers(text: str, image_token: str, count: int) -> str:
    """A prompt whose image markers are as many as its images; otherwise without any, so that images stand in front."""
    if text.count(image_token) in (0, count):
        return text
    return " ".join(part.strip() for part in text.split(image_token) if part.strip())


__all__ = [
    "DECODINGS",
    "MAX_NEW_TOKENS",
    "AnswerList",
    "Generation",
    "generation_of",
    "images_of",
    "with_markers",
]
