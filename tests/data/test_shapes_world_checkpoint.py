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
    from instructblip_hf.models.families import family_of

    folder = bundled_checkpoint(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * 2**20
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = family_of(folder)[1].from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("name", BUNDLED_CHECKPOINTS)
def test_stock_transformers_opens_them(name):
    import transformers

    is_first_stage = name.startswith("blip2")
    kind = "Blip2ForImageTextRetrieval" if is_first_stage else "InstructBlipForConditionalGeneration"
    _, info = getattr(transformers, kind).from_pretrained(bundled_checkpoint(name), output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "mismatched_keys"))
    # What stock transformers has no place for.
    left = {key for key in info["unexpected_keys"] if not (is_first_stage and key.startswith(("temp", "cls.")))}
    assert not left


def test_all_share_vision_tower_and_language_model():
    files = [safe_open(bundled_checkpoint(name) / "model.safetensors", "pt") for name in BUNDLED_CHECKPOINTS]
    for other in files[1:]:
        shared = [key for key in other.keys() if key.startswith(("vision_model", "language_model"))]  # noqa: SIM118
        assert shared
        for key in shared:
            if not key.startswith("vision_model.post_layernorm"):
                assert torch.equal(files[0].get_tensor(key), other.get_tensor(key)), key


def test_the_first_stage_finds_captions_and_images():
    from instructblip_hf import Blip2ForImageTextRetrieval, Blip2Processor
    from instructblip_hf.retrieval import RetrievalEncoder, retrieval_scores

    folder = bundled_checkpoint("blip2-shapes-tiny")
    encoder = RetrievalEncoder(
        Blip2ForImageTextRetrieval.from_pretrained(folder).eval(), Blip2Processor.from_pretrained(folder)
    )
    world = ShapesWorld(FRESH_SEED, split="test")
    rows = {row["completion"]: row for row in world.examples(80, task="caption")}
    images = [row["images"][0] for row in rows.values()]
    to_texts, to_images = retrieval_scores(encoder, images, list(rows), progress=False)
    right = torch.arange(len(rows)).numpy()
    assert (to_texts.argmax(1) == right).mean() >= 0.9
    assert (to_images.argmax(1) == right).mean() >= 0.9
