"""The shapes world in COCO's form and the stand-in endpoint: what it says is true of the scene, in the world's words."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instructblip_hf.data.sources.shapes_world import TASKS, sample_scene
from instructblip_hf.data.sources.shapes_world.scenes import CELLS, COLORS, NOUNS
from instructblip_hf.data.sources.shapes_world.scoring import named_objects, score
from instructblip_hf.data.sources.shapes_world.tasks import PLURALS, RELATIONS, solve
from instructblip_hf.data.sources.shapes_world.tokenizer import vocabulary
from instructblip_hf.data.sources.shapes_world.wordings import simplify, wordings
from instructblip_hf.instruction_data import coco_contexts


FOLDER = Path(__file__).parents[2] / "examples" / "llava"
IMAGES = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The example as a command, with a twentieth of the requests in trouble at first."""
    folder = tmp_path_factory.mktemp("shapes")
    command = [sys.executable, str(FOLDER / "shapes_dialogues.py"), str(folder), "--images", str(IMAGES)]
    done = subprocess.run([*command, "--trouble", "0.05"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def scene_of(number):
    return sample_scene(np.random.default_rng([0, 2, number]))


def rows_of(made, name):
    return json.loads((made / "data" / f"{name}.json").read_text())


def turns_of(row):
    said = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
    return list(zip(said[::2], said[1::2]))


def test_boxes_are_around_what_is_drawn(made):
    contexts = coco_contexts(made / "coco" / "captions.json", made / "coco" / "instances.json")
    for number, context in enumerate(contexts):
        scene = scene_of(number)
        assert context.image == f"{number:012}.png"
        assert len(context.captions) == 5
        assert [item.category for item in context.objects] == [item.noun for item in scene.objects]
        assert named_objects(context.captions[0]) == named_objects(", ".join(item.name for item in scene.objects))
        pixels = np.asarray(Image.open(made / "coco" / "images" / context.image), dtype=float)
        background = np.median(pixels.reshape(-1, 3), 0)
        is_far = (abs(pixels - background) > 60).any(-1)
        inside = np.zeros_like(is_far)
        for item, boxed in zip(scene.objects, context.objects):
            left, top, right, bottom = (round(56 * end) for end in boxed.box)
            inside[top:bottom, left:right] = True
            color = np.array(COLORS[item.color])
            part = pixels[top:bottom, left:right][is_far[top:bottom, left:right]]
            assert abs(np.median(part, 0) - color).max() < 50
            # The box ends where the object does.
            for edge in (is_far[top, left:right], is_far[bottom - 1, left:right]):
                assert edge.any()
        assert not (is_far & ~inside).any()


SLOTS = {
    "color": COLORS,
    "noun": NOUNS,
    "place": CELLS,
    "things": [*PLURALS.values(), "objects"],
    "relation": RELATIONS,
    "a": [f"{color} {noun}" for color in COLORS for noun in NOUNS],
    "b": [f"{color} {noun}" for color in COLORS for noun in NOUNS],
    "answer": [*COLORS, *NOUNS, *CELLS],
}
PREFIXES = ("In the image, ", "Look at the image. ", "Please answer: ", "In this picture, ")


@cache
def patterns():
    found = []
    for task in TASKS:
        for wording in wordings(task) if task != "dialogue" else ():
            parts = re.split(r"\{(\w+)\}", wording)
            named = [
                f"(?P<{part}>{'|'.join(SLOTS[part]) if part in SLOTS else '.+'})"
                if index % 2
                else re.escape(simplify(part))
                for index, part in enumerate(parts)
            ]
            before = "|".join(simplify(prefix) for prefix in PREFIXES)
            found.append((task, re.compile(f"(?:(?:{before}) )?{' '.join(part for part in named if part)}")))
    return found


def readings(question):
    """Tasks and slots as whose wordings a question can be read."""
    matches = [(task, pattern.fullmatch(simplify(question))) for task, pattern in patterns()]
    return [(task, match.groupdict()) for task, match in matches if match]


@pytest.mark.parametrize("name", ["conversation", "complex_reasoning"])
def test_answers_are_true_and_cover_the_worlds_tasks(made, name):
    asked = dict.fromkeys(TASKS, 0)
    about_it = 0
    rows = rows_of(made, name)
    assert len(rows) > 0.95 * IMAGES
    for row in rows:
        scene = scene_of(int(row["id"]))
        for question, answer in turns_of(row):
            understood = readings(question)
            if not understood:
                assert " it" in question.lower() or "its" in question.lower()
                assert any(answer in (item.size, item.place) for item in scene.objects)
                about_it += 1
                continue
            truths = []
            for task, slots in understood:
                if task == "question":
                    example = {"task": task, "slots": slots, "scene": scene}
                    truths.append(answer if score(example, answer) else None)
                elif task == "choice":
                    asked_color = [part for part in question.split("(") if part.startswith(f"{answer})")]
                    truths.append(answer if solve("color", scene, slots) in asked_color[0] else None)
                else:
                    truths.append(solve(task, scene, slots))
            assert answer in truths, (question, answer, truths)
            asked[understood[0][0]] += 1
    expected = {"conversation": {"color", "shape", "size", "where", "at", "digit", "count", "exist", "relation"}}
    for task in expected.get(name, {"relation", "choice", "question", "exist"}):
        assert asked[task] > 5, asked
    assert (about_it > 20) == (name == "conversation")


def test_descriptions_name_everything_once_with_size_and_place(made):
    rows = rows_of(made, "detail")
    assert len(rows) == IMAGES
    for row in rows:
        scene = scene_of(int(row["id"]))
        ((_, answer),) = turns_of(row)
        assert score({"task": "caption", "scene": scene}, answer)
        assert sorted(part.rpartition(" at the ")[2] for part in answer.split(", ")) == sorted(
            item.place for item in scene.objects
        )
        assert sorted(part.split()[0] for part in answer.split(", ")) == sorted(item.size for item in scene.objects)


def test_the_worlds_tokenizer_knows_every_word(made):
    known = set(vocabulary())
    words = {
        word
        for row in rows_of(made, "llava_instruct")
        for turn in row["conversations"]
        for word in simplify(turn["value"].replace("<image>", "")).split()
    }
    assert words <= known


def test_trouble_changes_nothing(made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from shapes_dialogues import make_dialogues

    data = make_dialogues(tmp_path, IMAGES)
    for name in ("llava_instruct.json", "raw.jsonl", "report.json"):
        assert (data / name).read_bytes() == (made / "data" / name).read_bytes()
    report = json.loads((data / "report.json").read_text())
    assert {name: one["rejected"] for name, one in report["types"].items()} == {
        "conversation": {},
        "detail": {},
        "complex_reasoning": {},
    }


def test_what_it_does_not_know_it_refuses(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from stand_in_endpoint import answer

    captions = "a large red circle at the top left, a large blue digit seven at the center"
    boxes = "\n\ncircle: [0.04, 0.04, 0.3, 0.3]\ndigit: [0.4, 0.36, 0.59, 0.61]"
    system = {"role": "system", "content": "Tell a joke"}
    asked = [system, {"role": "user", "content": captions + boxes}]
    with pytest.raises(ValueError, match="I only know"):
        answer(asked)
    system["content"] = "Write a conversation with a description"
    assert "Question:\n" in answer(asked)
    with pytest.raises(ValueError, match="another picture"):
        answer([system, {"role": "user", "content": captions + boxes.replace("0.04, 0.04, 0.3", "0.7, 0.04, 0.9")}])
    with pytest.raises(ValueError, match="no shapes"):
        answer([system, {"role": "user", "content": "A dog."}])
