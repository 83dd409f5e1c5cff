"""Frames of a video: evenly spaced, RGB, never past its end.

The paper gives the model 4 frames of a video (section 3.1). Frame k of n is the first of the k-th of n stretches of
equal length, as in `instructblip_hf.utils.images.sample_frames`. LAVIS's reader gave frames in BGR order, and asked
for one past the last, so that a frame came twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.images import load_image, sample_frames


IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_frames(
    source: str | os.PathLike[str], num_frames: int = 4, start: float | None = None, end: float | None = None
) -> list[Any]:
    """Frames of a video file or of a folder of frames.

    Args:
        source (`str` or `os.PathLike`): A video file, read with PyAV, or a folder of images, which are taken in the
            order of the numbers in their names.
        num_frames (`int`, *optional*, defaults to 4): How many frames; a shorter video gives all it has.
        start (`float`, *optional*): Where the clip starts, in seconds. A folder of frames is taken whole.
        end (`float`, *optional*): Where the clip ends, in seconds; the frame at that time is not in it.

    Returns:
        `list[PIL.Image.Image]`: RGB images, in order.

    Raises:
        ImportError: For a video file, if PyAV is not installed.
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If ``num_frames`` is below 1, a frame cannot be read, the file has no video, or the clip has no
            frame.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    path = Path(source)
    if path.is_dir():
        frames = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS), key=_by_number)
        if not frames:
            raise ValueError(f"the folder {path} has no frames ({', '.join(IMAGE_ENDINGS)})")
        return [load_image(frame) for frame in sample_frames(frames, num_frames)]
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}")
    return _read_file(path, num_frames, start, end)


def _by_number(file: Path) -> list[tuple[int, int | str]]:
    """Sorts frame2 before frame10."""
    pieces = re.split(r"(\d+)", file.name)
    return [(0, int(piece)) if piece.isdigit() else (1, piece) for piece in pieces]


def _read_file(path: Path, num_frames: int, start: float | None, end: float | None) -> list[Any]:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files needs PyAV: pip install 'instructblip-hf[video]'") from error
    try:
        times = _packet_times(av, path)
        frames = None
        if times is not None:
            frames = _decode_times(av, path, sample_frames(_clip(path, times, start, end), num_frames))
        if frames is None:
            shown = _frame_times(av, path)
            numbers = sample_frames(_clip(path, shown, start, end), num_frames)
            frames = _decode_numbers(av, path, numbers)
        return frames
    except av.FFmpegError as error:
        raise ValueError(f"cannot read the video {path}: {error}") from error


def _clip(path: Path, times: Sequence[tuple[int, float]], start: float | None, end: float | None) -> list[int]:
    """The frames, given with their seconds, that lie in the clip."""
    inside = [frame for frame, seconds in times if (start or 0) <= seconds and (end is None or seconds < end)]
    if not inside:
        last = f"its last is at {times[-1][1]:.2f} s" if times else "it has none"
        raise ValueError(f"the video {path} has no frame from {start or 0} s to {end or 'its end'}: {last}")
    return inside


def _packet_times(av: Any, path: Path) -> list[tuple[int, float]] | None:
    """When frames are shown, in the stream's unit and in seconds from the first, read without decoding.

    The number of frames that a container states is often missing or wrong. `None` if packets do not say their time.
    """
    with _open(av, path) as container:
        stream = container.streams.video[0]
        # The last one is empty: it only ends the stream.
        packets = [packet.pts for packet in container.demux(stream) if packet.size]
        if not packets or None in packets:
            return None
        times = sorted(set(packets))
        return [(time, float((time - times[0]) * stream.time_base)) for time in times]


def _decode_times(av: Any, path: Path, times: Sequence[int]) -> list[Any] | None:
    """The frames that are shown at the times, which are in order.

    `None` if one is not found at its very time: where a packet gave no frame, or seeking went too far, as in AVI.
    """
    with _open(av, path) as container:
        stream = container.streams.video[0]
        # Backward to the key frame from which the first can be decoded.
        container.seek(times[0], stream=stream)
        frames: list[Any] = []
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts > times[len(frames)]:
                return None
            if frame.pts == times[len(frames)]:
                frames.append(frame.to_image())
                if len(frames) == len(times):
                    return frames
    return None


def _frame_times(av: Any, path: Path) -> list[tuple[int, float]]:
    """Numbers and seconds of the frames that decoding gives."""
    with _open(av, path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return [(number, number / rate) for number, _ in enumerate(container.decode(stream))]


def _decode_numbers(av: Any, path: Path, numbers: Sequence[int]) -> list[Any]:
    wanted = set(numbers)
    with _open(av, path) as container:
        stream = container.streams.video[0]
        return [frame.to_image() for number, frame in enumerate(container.decode(stream)) if number in wanted]


def _open(av: Any, path: Path) -> Any:
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path} has no video in it")
    return container


__all__ = ["read_frames"]
