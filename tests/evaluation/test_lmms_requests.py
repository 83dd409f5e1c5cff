"""What the lmms-eval plugin makes of requests, and its task files; lmms-eval itself is not needed for these."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from instructblip_hf.evaluation.lmms_eval import TASKS_FOLDER
from instructblip_hf.evaluation.lmms_eval.requests import (
    AnswerList,
    Generation,
    generation_of,
    images_of,
    with_markers,
)
from instructblip_hf.evaluation.tasks import CAPTION, SHORT_ANSWER, TASKS
from official_formats import write_frames, write_image


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: f"function {loader.construct_scalar(node)}")
FILES = sorted(TASKS_FOLDER.glob("*.yaml"))


def test_the_folder_is_printed():
    command = [sys.executable, "-m", "instructblip_hf.evaluation.lmms_eval"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(TASKS_FOLDER)


def test_what_is_missing_in_lmms_eval_is_here():
    wanted = {"vsr", "hateful_memes", "visdial", "aokvqa", "aokvqa_choice", "ocr_vqa", "iconqa"}
    assert {file.stem for file in FILES} >= wanted | {"msvd_qa", "msrvtt_qa", "ivqa"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_task_files_are_of_the_protocol(file):
    config = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    task = TASKS[config["dataset_name"]]
    assert config["task"] == f"instructblip_{config['dataset_name']}"
    assert config["class"].startswith("function instructblip_hf.evaluation.lmms_eval.")
    # Thousands of answers are ranked in one request.
    ranks = task.inference == "rank" and task.candidates != "train_answers"
    assert config["output_type"] == ("multiple_choice" if ranks else "generate_until")
    assert task.server is None


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_new_tokens": 256, "do_sample": False}),
        (None, {"max_new_tokens": 256, "do_sample": False}),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 3},
            {"max_new_tokens": 16, "num_beams": 3, "do_sample": False},
        ),
        ({"temperature": 0.5}, {"max_new_tokens": 256, "temperature": 0.5, "do_sample": True}),
        ({"temperature": 0.5, "do_sample": False, "top_p": None}, {"max_new_tokens": 256, "do_sample": False}),
        ({"do_sample": True, "top_p": 0.9}, {"max_new_tokens": 256, "do_sample": True, "top_p": 0.9}),
        ({"temperature": 0, "do_sample": True}, {"max_new_tokens": 256, "do_sample": False}),
        ({"length_penalty": -1}, {"max_new_tokens": 256, "do_sample": False, "length_penalty": -1}),
    ],
)
def test_options_of_tasks(given, expected):
    assert generation_of(given, False).options == expected


def test_length_penalty_by_language_model():
    given = {"length_penalty": [0.0, -1.0]}
    assert generation_of(given, False).options["length_penalty"] == 0.0
    assert generation_of(given, True).options["length_penalty"] == -1.0


@pytest.mark.parametrize("decoding", [SHORT_ANSWER, CAPTION])
def test_decoding_in_place_of_the_tasks(decoding):
    found = generation_of({"num_beams": 1, "until": ["x"]}, True, decoding)
    assert found == Generation(decoding.options(True), ("x",))


def test_options_of_other_models_are_named(caplog):
    found = generation_of({"image_aspect_ratio": "original", "num_beams": 2}, False)
    assert found.options == {"max_new_tokens": 256, "num_beams": 2, "do_sample": False}
    assert "image_aspect_ratio" in caplog.text
    assert "num_beams" not in caplog.text


@pytest.mark.parametrize(
    ("until", "text", "expected"),
    [
        (None, " red \n\n blue", "red \n\n blue"),
        ("\n\n", " red \n\n blue", "red"),
        (["ASS", "blue", "\n"], "red blue\n", "red"),
        (["blue"], "red", "red"),
        ([], "red ", "red"),
        (["red"], "red", ""),
    ],
)
def test_stop_strings(until, text, expected):
    assert generation_of({"until": until}, False).cut(text) == expected


@pytest.mark.parametrize("given", [{"until": [3]}, {"until": [""]}, {"candidates": "yes"}, {"candidates": []}])
def test_refuses(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        generation_of(given, False)


def test_an_answer_list_is_copied_and_written_short():
    answers = AnswerList([f"answer {number}" for number in range(5000)])
    assert copy.deepcopy({"candidates": answers})["candidates"] is answers
    assert generation_of({"candidates": answers}, False).candidates == answers.texts
    written = json.dumps({"candidates": answers}, default=str)
    assert "5000 answers" in written
    assert len(written) < 100
    assert repr(AnswerList(["a", "b"])) != repr(AnswerList(["a", "c"]))


# --- images -----------------------------------------------------------------------------------------------------------


def colors(images):
    return [image.getpixel((0, 0)) for image in images]


def test_images_of_all_kinds(tmp_path):
    write_image(tmp_path / "blue.png", "blue")
    red = Image.new("RGBA", (4, 4), "red")
    found = images_of(
        [red, {"type": "image", "url": red}, str(tmp_path / "blue.png"), np.zeros((4, 4, 3), dtype=np.uint8)]
    )
    assert colors(found) == [(255, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 0)]
    assert {image.mode for image in found} == {"RGB"}
    assert images_of(None) == images_of([]) == []
    assert colors(images_of(red)) == [(255, 0, 0)]


def write_video(path, frames=8, rate=4):
    """Frame k is grey of 30 k."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.full((32, 32, 3), 30 * number, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_videos_are_four_frames(tmp_path):
    write_frames(tmp_path / "frames")
    assert colors(images_of([str(tmp_path / "frames")])) == [(0, 0, 0), (40, 0, 0), (120, 0, 0), (160, 0, 0)]
    write_video(tmp_path / "clip.mp4")

    def greys(visual, **options):
        return [color[0] for color in colors(images_of([visual], **options))]

    assert greys(str(tmp_path / "clip.mp4")) == pytest.approx([0, 60, 120, 180], abs=6)
    assert greys(str(tmp_path / "clip.mp4"), num_frames=2) == pytest.approx([0, 120], abs=6)
    clip = {"type": "video", "url": str(tmp_path / "clip.mp4"), "video_start": 1.0, "video_end": 2.0}
    assert greys(clip) == pytest.approx([120, 150, 180, 210], abs=6)
    frames = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(8)]
    assert greys({"type": "video", "url": frames}) == [0, 2, 4, 6]


def test_sound_is_refused():
    with pytest.raises(ValueError, match="audio"):
        images_of([{"type": "audio", "url": "a.wav"}])


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("<image>\nwhat is it?", 1, "<image>\nwhat is it?"),
        ("<image> and <image>: same?", 2, "<image> and <image>: same?"),
        ("<image> and <image>: same?", 1, "and : same?"),
        ("<image>\nwhat is it?", 0, "what is it?"),
        ("what is it?", 3, "what is it?"),
    ],
)
def test_markers_in_prompts(text, count, expected):
    assert with_markers(text, "<image>", count) == expected
