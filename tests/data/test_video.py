"""Frames of videos: which, in which order, in which channels."""

import builtins

import numpy as np
import pytest
from PIL import Image

from instructblip_hf.data.video import read_frames


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        # Ten sorts before two by name.
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"frame{number}.png")
    return tmp_path


def reds(frames):
    return [int(np.asarray(frame)[..., 0].mean()) // 20 for frame in frames]


def test_a_folder_of_frames_is_taken_in_the_order_of_numbers(folder):
    assert reds(read_frames(folder)) == [0, 3, 6, 9]
    assert reds(read_frames(folder, 12)) == list(range(12))
    assert reds(read_frames(folder, 40)) == list(range(12))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no frames"):
        read_frames(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no video"):
        read_frames(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        read_frames(tmp_path, 0)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(ImportError, match=r"instructblip-hf\[video\]"):
        read_frames(tmp_path / "a.mp4")


def write_video(path, codec="mpeg4", frames=20, rate=10, **options):
    """A video of 10 frames a second whose frame k has 12 * k in red and green and 240 in blue."""
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[..., :2], pixels[..., 2] = 12 * number, 240
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames):
    for frame in frames:
        assert frame.mode == "RGB"
        # Blue stays blue: OpenCV's order would have it in the first channel.
        assert np.asarray(frame)[..., 2].mean() > 200
    return [round(float(np.asarray(frame)[..., 0].mean()) / 12) for frame in frames]


FILES = [
    ("a.mp4", "mpeg4", {}),
    ("b.avi", "mpeg4", {}),
    ("c.mp4", "mpeg4", {"bf": "2"}),
    ("d.mkv", "mpeg4", {"bf": "2"}),
    # Seeking in it goes past the key frame.
    ("e.avi", "mpeg4", {"bf": "2"}),
    ("f.mp4", "libx264", {"bf": "3", "g": "8"}),
    ("g.webm", "libvpx-vp9", {"cpu-used": "8"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), FILES)
def test_frames_are_even_in_order_and_rgb(tmp_path, name, codec, options):
    video = write_video(tmp_path / name, codec, **options)
    assert numbers(read_frames(video)) == [0, 5, 10, 15]
    assert numbers(read_frames(video, 1)) == [0]
    every = numbers(read_frames(video, 30))
    assert every == list(range(20))


@pytest.mark.parametrize(("name", "codec", "options"), FILES)
def test_a_clip_has_the_frames_from_its_start_to_before_its_end(tmp_path, name, codec, options):
    video = write_video(tmp_path / name, codec, **options)
    assert numbers(read_frames(video, 4, start=1.0, end=1.8)) == [10, 12, 14, 16]
    assert numbers(read_frames(video, 2, start=1.6)) == [16, 18]
    with pytest.raises(ValueError, match=r"has no frame from 5.0 s"):
        read_frames(video, 4, start=5.0)


def test_of_a_video_that_is_cut_off_the_frames_that_are_there_are_taken(tmp_path):
    video = write_video(tmp_path / "d.mkv", bf="2")
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    found = numbers(read_frames(video))
    assert len(found) == 4
    assert found == sorted(set(found))
    assert found[-1] < 15


def test_a_damaged_video_is_named(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(ValueError, match=r"cannot read the video .*a\.mp4"):
        read_frames(tmp_path / "a.mp4")
