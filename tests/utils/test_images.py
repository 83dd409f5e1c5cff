"""`load_image` on every kind of source, good and bad."""

from __future__ import annotations

import base64
import http.server
import io
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from instructblip_hf.utils import images as images_module
from instructblip_hf.utils.images import describe_source, is_single_image, load_image, sample_frames


PIXELS = np.random.RandomState(0).randint(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(source: Any, **options: Any) -> np.ndarray:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


PNG = encoded(Image.fromarray(PIXELS))


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
            return
        if self.path == "/silent":
            time.sleep(2)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/drip":
            for byte in PNG:
                try:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.05)
            return
        self.wfile.write(b"<html></html>" if self.path == "/page" else PNG)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http_server.daemon_threads = True
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http_server.server_address[1]}"
    http_server.shutdown()
    http_server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


# --- where from ---------------------------------------------------------------------------------------------------


def test_the_same_pixels_from_every_source(tmp_path: Path, server: str) -> None:
    path = tmp_path / "an image.png"
    path.write_bytes(PNG)
    text = base64.b64encode(PNG).decode()
    sources = [
        Image.fromarray(PIXELS),
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        io.BytesIO(PNG),
        path,
        str(path),
        path.as_uri(),
        f"data:image/png;base64,{text}",
        text,
        "\n".join(text[start : start + 40] for start in range(0, len(text), 40)),
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()),
        torch.from_numpy(PIXELS),
        PIXELS / 255.0,
        torch.from_numpy(PIXELS / 255.0).float(),
        {"bytes": PNG, "path": None},
        {"bytes": None, "path": str(path)},
        f"{server}/image.png",
        f"{server}/moved",
    ]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), PIXELS, err_msg=describe_source(source))


def test_an_image_is_not_tied_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    image = load_image(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_bfloat16_tensors() -> None:
    half = torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16)
    assert pixels(half).max() == 128


# --- modes --------------------------------------------------------------------------------------------------------


def test_transparency_is_laid_over_white() -> None:
    colors = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    expected = [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    np.testing.assert_array_equal(pixels(Image.fromarray(colors)), expected)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(colors))), expected)
    np.testing.assert_array_equal(pixels(colors), expected)


def test_gray_with_alpha() -> None:
    gray = Image.fromarray(np.array([[[0, 0], [100, 255]]], dtype=np.uint8))
    assert gray.mode == "LA"
    np.testing.assert_array_equal(pixels(gray), [[[255] * 3, [100] * 3]])
    np.testing.assert_array_equal(pixels(gray.convert("La")), [[[255] * 3, [100] * 3]])


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(palette), [[[10, 20, 30], [200, 100, 50]]])
    transparent = encoded(palette, transparency=0)
    np.testing.assert_array_equal(pixels(transparent), [[[255, 255, 255], [200, 100, 50]]])
    np.testing.assert_array_equal(pixels(palette.convert("RGBA").convert("PA")), [[[10, 20, 30], [200, 100, 50]]])


def test_transparent_color_of_rgb_and_gray_files() -> None:
    rgb = encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)), transparency=(1, 2, 3))
    np.testing.assert_array_equal(pixels(rgb), [[[255, 255, 255], [4, 5, 6]]])
    gray = encoded(Image.fromarray(np.array([[7, 8]], dtype=np.uint8)), transparency=7)
    np.testing.assert_array_equal(pixels(gray), [[[255] * 3, [8] * 3]])


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_other_color_spaces(mode: str) -> None:
    red = Image.new("RGB", (2, 2), (250, 10, 20)).convert(mode)
    assert np.abs(pixels(red).astype(int) - [250, 10, 20]).max() <= 3


def test_cmyk_jpeg() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(pixels(encoded(cyan, "JPEG")).astype(int) - [0, 255, 255]).max() <= 3


def test_bilevel() -> None:
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(bilevel), [[[0] * 3, [255] * 3]])
    np.testing.assert_array_equal(pixels(np.array([[False, True]])), [[[0] * 3, [255] * 3]])


def test_16_bit_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    expected = np.array([[0, 1, 128, 255]])[..., None].repeat(3, -1)
    image = Image.fromarray(values)
    assert image.mode.startswith("I;16")
    np.testing.assert_array_equal(pixels(image), expected)
    np.testing.assert_array_equal(pixels(encoded(image)), expected)
    np.testing.assert_array_equal(pixels(encoded(image, "TIFF")), expected)
    np.testing.assert_array_equal(pixels(values), expected)
    np.testing.assert_array_equal(pixels(Image.fromarray(values.astype(np.int32))), expected)


def test_a_dark_16_bit_file_stays_dark() -> None:
    dark = encoded(Image.fromarray(np.array([[0, 200]], dtype=np.uint16)))
    assert pixels(dark).max() <= 1


def test_32_bit_integers_and_floats() -> None:
    np.testing.assert_array_equal(pixels(Image.fromarray(np.array([[0, 200]], dtype=np.int32)))[..., 0], [[0, 200]])
    np.testing.assert_array_equal(
        pixels(Image.fromarray(np.array([[0.0, 0.4, 1.0]], dtype=np.float32)))[..., 0], [[0, 102, 255]]
    )


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (1, 5, 7)])
def test_gray_arrays(shape: tuple[int, ...]) -> None:
    gray = PIXELS[..., 0]
    np.testing.assert_array_equal(pixels(gray.reshape(shape)), gray[..., None].repeat(3, -1))


def test_ambiguous_channels_follow_the_library() -> None:
    values = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    np.testing.assert_array_equal(pixels(values), values)
    np.testing.assert_array_equal(pixels(torch.from_numpy(values)), values.transpose(1, 2, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = PIXELS
    # What a camera stores so that the given orientation turns it upright (EXIF 2.3, table of orientations).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(pixels(data), upright)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(gif)[0, 0].tolist() == [255, 0, 0]


# --- what cannot be used ------------------------------------------------------------------------------------------

TRUNCATED = encoded(Image.fromarray(np.random.RandomState(1).randint(0, 256, (64, 64, 3), dtype=np.uint8)))[:4000]
TRUNCATED_JPEG = encoded(Image.fromarray(np.tile(PIXELS, (20, 20, 1))), "JPEG", quality=95)[:2000]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", ["0 bytes", "empty"]),
        (b"not an image at all", ["19 bytes", "not in an image format"]),
        (TRUNCATED, ["4000 bytes", "PNG"]),
        (TRUNCATED_JPEG, ["2000 bytes", "truncated"]),
        (PNG[:20], ["20 bytes"]),
        ("no/such/file.jpg", ["no/such/file.jpg", "neither an existing file nor base64"]),
        ("file:///no/such/file.jpg", ["/no/such/file.jpg", "No such file"]),
        (Path("no/such.png"), ["no/such.png", "No such file"]),
        ("data:image/png;base64", ["data:", "comma"]),
        ("data:image/png;base64,@@@@", ["base64"]),
        (base64.b64encode(b"plain text, no image").decode(), ["not in an image format"]),
        ("", ["''"]),
        (Image.new("RGB", (0, 4)), ["0x4", "no pixels"]),
        (np.zeros((0, 4, 3), dtype=np.uint8), ["(0, 4, 3)"]),
        (np.zeros(4, dtype=np.uint8), ["(4,)"]),
        (np.zeros((9, 9, 9), dtype=np.uint8), ["(9, 9, 9)", "channels"]),
        (np.full((4, 4, 3), 200.0), ["floats from 200 to 200", "0 to 1"]),
        (np.full((4, 4, 3), -1.0), ["-1"]),
        (np.full((4, 4, 3), np.nan), ["nan"]),
        (np.full((4, 4, 3), 300, dtype=np.int64), ["300", "0 to 255"]),
        (np.full((4, 4, 3), "x"), ["bools, integers or floats"]),
        (torch.zeros(2, 3, 4, 4), ["Tensor", "(2, 3, 4, 4)"]),
        (Image.fromarray(np.full((2, 2), 1e6, dtype=np.float32)), ["mode F"]),
        (Image.fromarray(np.full((2, 2), -5, dtype=np.int32)), ["mode I", "-5"]),
        (None, ["NoneType", "an image can be"]),
        (3, ["int", "an image can be"]),
        ({"url": "x"}, ["url", "an image can be"]),
        ("http://", ["http://"]),
        ("http://[", ["http://["]),
    ],
    ids=lambda value: None if isinstance(value, list) else describe_source(value)[:40],
)
def test_bad_sources_are_named(source: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_image(source, timeout=2)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 900


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the image file"):
        load_image(tmp_path)


def test_decompression_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(Image.new("1", (3000, 3000)))
    for limit in (3000 * 2999, 3000 * 1000):  # what PIL warns of, and what it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(ValueError, match="bytes that start with.*pixels"):
                load_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(bomb).size == (3000, 3000)


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str) -> None:
    monkeypatch.setattr(images_module, "MAX_IMAGE_BYTES", 20)
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    for source in (path, io.BytesIO(PNG), base64.b64encode(PNG).decode(), f"{server}/image.png"):
        with pytest.raises(ValueError, match="too large|at most 20 bytes"):
            load_image(source)


@pytest.mark.parametrize(("path", "words"), [("/missing", "404"), ("/page", "not in an image format")])
def test_bad_answers_of_a_server(server: str, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        load_image(server + path)
    assert path in str(error.value)


@pytest.mark.parametrize("path", ["/silent", "/drip"])
def test_timeouts(server: str, path: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match="timeout=0.3"):
        load_image(server + path, timeout=0.3)
    assert time.monotonic() - begin < 1.9


def test_nobody_listening() -> None:
    with pytest.raises(ValueError, match="cannot download 'http://127.0.0.1:9/x.png'"):
        load_image("http://127.0.0.1:9/x.png", timeout=2)


def test_no_setting_of_pil_is_changed() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    with pytest.raises(ValueError, match="truncated|PNG"):
        load_image(TRUNCATED)
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_the_module_does_not_import_torch() -> None:
    code = "import sys, instructblip_hf.utils.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- helpers ------------------------------------------------------------------------------------------------------


def test_is_single_image() -> None:
    assert all(map(is_single_image, ["path", b"", PIXELS, torch.zeros(3, 2, 2), Image.new("L", (1, 1)), {}]))
    assert not any(map(is_single_image, [[], (), None, [PIXELS], torch.zeros(1, 3, 2, 2), PIXELS[None]]))


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(0, 4, []), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (8, 4, [0, 2, 4, 6]), (9, 4, [0, 2, 4, 6]), (10, 1, [0])],
)
def test_sample_frames(total: int, count: int, expected: list[int]) -> None:
    assert sample_frames(list(range(total)), count) == expected


def test_sample_frames_of_an_array_and_bad_counts() -> None:
    assert [int(frame[0]) for frame in sample_frames(np.arange(8)[:, None], 2)] == [0, 4]
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        sample_frames([1, 2], 0)
