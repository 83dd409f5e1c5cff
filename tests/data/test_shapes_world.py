"""The shapes world: determinism, wordings, and answers recomputed from the scene by other means."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from instructblip_hf.data.sources.shapes_world import (
    HELD_OUT_TASKS,
    TASKS,
    HandwrittenDigits,
    Scene,
    SceneObject,
    ShapesWorld,
    build_tokenizer,
    render,
    sample_scene,
    score,
    wordings,
)
from instructblip_hf.data.sources.shapes_world.scenes import CELLS, COLORS, NOUNS, NUMBERS, patch_owners
from instructblip_hf.data.sources.shapes_world.scoring import asks_for
from instructblip_hf.data.sources.shapes_world.tokenizer import vocabulary
from instructblip_hf.data.sources.shapes_world.wordings import all_texts, simplify


ALL_TASKS = TASKS + HELD_OUT_TASKS
FOLLOW_UPS = ("where_follow_up", "size_follow_up")


def truth(example: dict) -> str:
    """The answer, from coordinates and counts instead of the world's own solvers."""
    slots, objects = example["slots"], example["scene"].objects
    grid = {(item.cell // 3, item.cell % 3): item for item in objects}
    places = {name: divmod(index, 3) for index, name in enumerate(CELLS)}
    task = example["task"]
    if task in ("color", "choice", "shape", "choice_shape", "size", "where"):
        wanted = {("color", slots.get("color")), ("noun", slots.get("noun"))}
        (item,) = [o for o in objects if {("color", o.color), ("noun", o.noun)} >= {w for w in wanted if w[1]}]
        if task == "where":
            return next(name for name, place in places.items() if grid.get(place) is item)
        value = {"color": item.color, "choice": item.color, "size": item.size}.get(task, item.noun)
        if task.startswith("choice"):
            return re.search(rf"\((\w)\) {value}\b", slots["options"]).group(1)
        return value
    if task in ("at", "color_at"):
        item = grid.get(places[slots["place"]])
        if item is None:
            return "nothing"
        return item.color if task == "color_at" else f"{item.color} {item.noun}"
    if task == "digit":
        (number,) = [item.digit for item in objects if item.digit is not None]
        return NUMBERS[number]
    if task == "count":
        singular = {"objects": "", "crosses": "cross"}.get(slots["things"], slots["things"].rstrip("s"))
        return NUMBERS[len([item for item in objects if item.noun.startswith(singular)])]
    if task == "exist":
        return "yes" if (slots["color"], slots["noun"]) in [(o.color, o.noun) for o in objects] else "no"
    if task == "exist_shape":
        return "yes" if slots["noun"] in [o.noun for o in objects] else "no"
    if task in ("relation", "relation_color"):
        (row_a, column_a), (row_b, column_b) = (
            next(place for place, o in grid.items() if o.color == slots[name].split()[0]) for name in "ab"
        )
        holds = {
            "left of": column_a < column_b,
            "right of": column_b < column_a,
            "above": row_a < row_b,
            "below": row_b < row_a,
        }
        return "yes" if holds[slots["relation"]] else "no"
    assert task == "caption"
    return ", ".join(f"{o.color} {o.noun}" for color in COLORS for o in objects if o.color == color)


@pytest.mark.parametrize("task", [task for task in ALL_TASKS if task not in ("question", "dialogue")])
def test_answers_are_true(task):
    for example in ShapesWorld(3, split="test").examples(200, task=task):
        assert example["completion"] == truth(example)
        assert score(example, example["completion"])


def test_yes_and_no_are_balanced():
    for task in ("exist", "relation", "exist_shape", "relation_color"):
        answers = [example["completion"] for example in ShapesWorld(0).examples(600, task=task)]
        assert 0.42 < answers.count("yes") / len(answers) < 0.58


@pytest.mark.parametrize("templates", ["seen", "held_out"])
def test_generated_questions_are_checked_against_the_scene(templates):
    for example in ShapesWorld(5, templates=templates).examples(150, task="question"):
        assert score(example, example["completion"])
        other = next(word for word in (*COLORS, *NOUNS, *CELLS) if word != example["slots"]["answer"])
        assert not asks_for(example["completion"], other, example["scene"])
        assert not score(example, example["slots"]["answer"])


def test_ambiguous_or_meaningless_questions_score_nothing():
    scene = Scene((SceneObject(0, "circle", "red", "small"), SceneObject(4, "circle", "blue", "large")))
    example = {"task": "question", "scene": scene, "slots": {"answer": "red"}}
    assert not score(example, "what color is the circle?")
    assert not score(example, "what color is the square?")
    assert not score(example, "red")
    assert score(example | {"slots": {"answer": "circle"}}, "What shape is the red object?")
    assert score(example | {"slots": {"answer": "center"}}, "Where is the blue circle?")


def test_captions_have_to_name_every_object_and_invent_none():
    scene = Scene((SceneObject(0, "circle", "red", "small"), SceneObject(8, "digit", "blue", "large", 4)))
    example = {"task": "caption", "scene": scene, "slots": {}}
    assert score(example, "a blue digit and a red circle")
    assert not score(example, "red circle")
    assert not score(example, "red circle, blue digit, white ring")
    assert not score(example, "red digit, blue circle")


def test_dialogues_go_on_about_one_object():
    lengths = set()
    for example in ShapesWorld(1).examples(150, task="dialogue"):
        messages = example["messages"]
        lengths.add(len(messages) // 2)
        assert [turn["role"] for turn in messages] == ["user", "assistant"] * (len(messages) // 2)
        slots = example["slots"]
        items = [
            item
            for item in example["scene"].objects
            if all(getattr(item, key) == slots[key] for key in ("color", "noun", "place") if key in slots)
        ]
        assert len(items) == 1
        for turn in messages[3::2]:
            assert turn["content"] in (items[0].place, items[0].size)
        answers = [turn["content"] for turn in messages[1::2]]
        assert score(example, answers)
        assert score(example, answers[-1])
        assert not score(example, ["nonsense", *answers[1:]])
        with pytest.raises(ValueError, match="answers given to a dialogue"):
            score(example, answers[:-1])
    assert lengths == {2, 3}


def test_examples_depend_on_seed_split_and_index_alone():
    world = ShapesWorld(7, split="test")
    late_first = [world.example(index) for index in (9, 2, 0)]
    again = [ShapesWorld(7, split="test").example(index) for index in (0, 2, 9)][::-1]
    for left, right in zip(late_first, again):
        assert left["images"][0].tobytes() == right["images"][0].tobytes()
        assert {k: v for k, v in left.items() if k != "images"} == {k: v for k, v in right.items() if k != "images"}
    for other in (ShapesWorld(8, split="test"), ShapesWorld(7, split="train")):
        assert other.example(0, "color")["images"][0].tobytes() != world.example(0, "color")["images"][0].tobytes()


def test_a_world_can_be_limited_to_tasks():
    world = ShapesWorld(0, tasks=("color", "exist_shape"))
    assert {world.example(index)["task"] for index in range(30)} == {"color", "exist_shape"}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_ten_wordings_a_task_and_held_out_ones_apart(task):
    if task == "dialogue":  # chains other tasks' wordings with its own follow-ups
        assert sum(len(wordings(name, "seen")) for name in FOLLOW_UPS) >= 10
        assert all(wordings(name, "held_out") for name in FOLLOW_UPS)
        return
    seen, held_out = wordings(task, "seen"), wordings(task, "held_out")
    assert len(set(seen)) == len(seen) >= 10
    if task in HELD_OUT_TASKS:
        assert seen == held_out
    else:
        assert len(held_out) >= 3
        assert not {simplify(text) for text in seen} & {simplify(text) for text in held_out}


def test_held_out_wordings_use_known_words():
    words = {word for text in all_texts("held_out") for word in simplify(text).split()}
    assert words <= set(vocabulary())


def test_tokenizer_round_trip():
    tokenizer, qformer_tokenizer = build_tokenizer(), build_tokenizer(for_qformer=True)
    assert 100 <= len(tokenizer) <= 200
    for example in ShapesWorld(2).examples(100):
        for text in [example["prompt"], example["completion"]] if "prompt" in example else []:
            ids = tokenizer(text).input_ids
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.unk_token_id not in ids
            assert simplify(tokenizer.decode(ids, skip_special_tokens=True)) == simplify(text)
    framed = qformer_tokenizer("Where is it?").input_ids
    assert framed[0] == qformer_tokenizer.cls_token_id
    assert framed[-1] == qformer_tokenizer.sep_token_id
    assert framed[1:-1] == tokenizer("where is it ?").input_ids[1:]


def test_tokenizer_takes_typed_text():
    tokenizer = build_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<image>Hey, WHAT colour is the circle?!").input_ids)
    assert tokens[:5] == ["<bos>", "<image>", "<unk>", ",", "what"]
    assert tokens[-3:] == ["circle", "?", "<unk>"]


def test_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "What color is the circle? Options: (a) red (b) blue (c) white"
    assert loaded(text).input_ids == tokenizer(text).input_ids


def test_pictures_show_their_scenes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng)
        pixels, owner = render(scene, rng)
        assert pixels.shape == (56, 56, 3)
        assert pixels.dtype == np.uint8
        for index, item in enumerate(scene.objects):
            covered = pixels[owner == index].mean(0)
            nearest = min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - covered).sum())
            assert nearest == item.color
            rows, columns = np.nonzero(owner == index)
            assert (round((rows.mean() - 10) / 18), round((columns.mean() - 10) / 18)) == (item.row, item.column)


def test_patch_owners_counts_pixels():
    rng = np.random.default_rng(1)
    _, owner = render(sample_scene(rng, 9, unique_colors=False), rng)
    expected = []
    for top in range(0, 56, 8):
        for left in range(0, 56, 8):
            inside = owner[top : top + 8, left : left + 8].ravel()
            covered = inside[inside >= 0]
            expected.append(np.bincount(covered).argmax() if len(covered) >= 3 else -1)
    assert patch_owners(owner).tolist() == expected


def test_handwritten_digits_are_split_into_disjoint_pools():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    train, test = HandwrittenDigits("train"), HandwrittenDigits("test")
    target = load_digits().target
    for digit in range(10):
        assert not set(train.indices[digit]) & set(test.indices[digit])
        assert set(train.indices[digit]) | set(test.indices[digit]) == set(np.flatnonzero(target == digit))
        assert len(test.indices[digit]) > 30
    rng = np.random.default_rng(0)
    glyph = test.glyph(3, rng)
    assert glyph.shape == (17, 17)
    assert 0 <= glyph.min() < 0.1
    assert 0.8 < glyph.max() <= 1


def test_handwritten_world_changes_digits_alone():
    pytest.importorskip("sklearn")
    drawn = ShapesWorld(0, split="test").example(0, "digit")
    written = ShapesWorld(0, split="test", handwritten=True).example(0, "digit")
    assert drawn["scene"] == written["scene"]
    assert drawn["prompt"] == written["prompt"]
    assert drawn["images"][0].tobytes() != written["images"][0].tobytes()


def test_handwritten_digits_name_the_extra_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"instructblip_hf\[world\]"):
        ShapesWorld(0, handwritten=True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "dev"}, "split='dev'"),
        ({"templates": "new"}, "templates='new'"),
        ({"tasks": ("colour",)}, "'colour'"),
        ({"tasks": ()}, "tasks is empty"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        ShapesWorld(0, **arguments)


def test_bad_examples_are_named():
    with pytest.raises(ValueError, match="index=-1"):
        ShapesWorld(0).example(-1)
    with pytest.raises(ValueError, match="'nothing'"):
        ShapesWorld(0).example(0, task="nothing")
    with pytest.raises(ValueError, match="num_objects=7"):
        sample_scene(np.random.default_rng(0), 7)
