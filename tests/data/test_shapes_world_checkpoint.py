"""The bundled checkpoints answer fresh scenes, and answer from the picture and the instruction."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from instructblip_hf import BUNDLED_CHECKPOINTS, bundled_checkpoint
from instructblip_hf.data.sources.shapes_world import TASKS, ShapesWorld, score


EXAMPLES = Path(__file__).parents[2] / "examples" / "shapes_world"
FRESH_SEED = 424242
PER_TASK = 12


@pytest.fixture(scope="module")
def evaluation():
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("shapes_world_evaluate", EXAMPLES / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def answerer(evaluation):
    return evaluation.Answerer(bundled_checkpoint())


def accuracy(answerer, evaluation, blank: bool = False, uninstructed: bool = False) -> float:
    right = []
    for task in TASKS:
        examples = list(ShapesWorld(FRESH_SEED, split="test").examples(PER_TASK, task=task))
        shown = [{**example, "images": [evaluation.blank_image(0)]} for example in examples] if blank else examples
        answers = answerer(shown, uninstructed=uninstructed)
        right += [score(example, answer) for example, answer in zip(examples, answers)]
    return sum(right) / len(right)


def test_instruction_tuned_checkpoint_is_right_about_fresh_scenes(answerer, evaluation):
    assert accuracy(answerer, evaluation) >= 0.85


def test_it_looks_at_the_picture(answerer, evaluation):
    assert accuracy(answerer, evaluation, blank=True) <= 0.5


def test_its_qformer_reads_the_instruction(answerer, evaluation):
    assert accuracy(answerer, evaluation, uninstructed=True) <= 0.7


@pytest.mark.parametrize("name", BUNDLED_CHECKPOINTS)
def test_weights_are_small_on_disk_and_float32_in_memory(name):
    from instructblip_hf import InstructBlipForConditionalGeneration

    folder = bundled_checkpoint(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * 2**20
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = InstructBlipForConditionalGeneration.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("name", BUNDLED_CHECKPOINTS)
def test_stock_transformers_opens_them(name):
    from transformers import InstructBlipForConditionalGeneration as Stock

    _, info = Stock.from_pretrained(bundled_checkpoint(name), output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_both_share_vision_tower_and_language_model():
    files = [safe_open(bundled_checkpoint(name) / "model.safetensors", "pt") for name in BUNDLED_CHECKPOINTS]
    for key in files[0].keys():  # noqa: SIM118
        if key.startswith(("vision_model", "language_model")):
            assert torch.equal(files[0].get_tensor(key), files[1].get_tensor(key))
