"""Recipes as they run: the shipped ones and the examples', found by glob, and what a run leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import instructblip_hf
from instructblip_hf import InstructBlipForConditionalGeneration
from instructblip_hf.training import load_recipe, prepare_run, reinitialize, run_recipe, shipped_recipes
from tiny_shapes import save_tiny_checkpoint, tiny_model


ROOT = Path(__file__).parents[2]
RECIPES = sorted((Path(instructblip_hf.__file__).parent / "recipes").glob("*.yaml")) + sorted(
    ROOT.glob("examples/**/*recipe*.yaml")
)
OWN_IMAGES = ROOT / "examples" / "own_images" / "recipe.yaml"
SMALL = [
    "training.max_steps=2",
    "training.per_device_train_batch_size=2",
    "training.per_device_eval_batch_size=2",
    "training.use_cpu=true",
    "training.disable_tqdm=true",
    "training.eval_strategy=no",
    "training.save_strategy=no",
    "training.dataloader_num_workers=0",
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_runs(path, checkpoint, tmp_path):
    changes = [*SMALL, f"model.path={checkpoint}"]
    recipe = load_recipe(path)
    if isinstance(recipe.data.evaluation, dict):
        changes.append("data.evaluation.shapes_world.examples=3")
    recipe = load_recipe(path, changes)
    result = run_recipe(recipe, output_dir=tmp_path / "out")
    assert result.train_metrics["train_loss"] > 0
    assert (result.eval_metrics.get("eval_loss", 0) > 0) == (recipe.data.evaluation is not None)
    InstructBlipForConditionalGeneration.from_pretrained(result.output_dir)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_opens_with_the_command_that_runs_it(path):
    name = path.stem if path.stem in shipped_recipes() else path.relative_to(ROOT).as_posix()
    assert path.read_text().splitlines()[0] == f"# instructblip train {name}"


def test_own_images_end_to_end(checkpoint, tmp_path):
    recipe = load_recipe(OWN_IMAGES, [*SMALL, f"model.path={checkpoint}"])
    run = prepare_run(recipe, tmp_path / "out")
    assert len(run.trainer.train_dataset) == 24
    assert len(run.trainer.eval_dataset) == 6
    run.run()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "trainer_state.json", "eval_results.json"} <= written
    card = (tmp_path / "out" / "README.md").read_text()
    assert "train.jsonl" in card
    assert str(ROOT) not in card
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in before.items():
        if name.startswith(("language_model.", "vision_model.encoder.")):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(before["query_tokens"], after["query_tokens"])


def test_resume_goes_on_from_the_newest_checkpoint(checkpoint, tmp_path):
    changes = [*SMALL, f"model.path={checkpoint}", "training.save_strategy=steps", "training.save_steps=1"]
    out = tmp_path / "out"
    run_recipe(load_recipe(OWN_IMAGES, changes), out)
    recipe = load_recipe(OWN_IMAGES, [*changes, "training.max_steps=3"])
    with pytest.raises(FileExistsError, match="--resume"):
        prepare_run(recipe, out)
    run = prepare_run(recipe, out, resume=True)
    assert run.checkpoint.endswith("checkpoint-2")
    run.run()
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 3


def test_resume_starts_where_there_is_nothing_yet(checkpoint, tmp_path):
    recipe = load_recipe(OWN_IMAGES, [*SMALL, f"model.path={checkpoint}"])
    assert prepare_run(recipe, tmp_path / "out", resume=True).checkpoint is None


def test_reinitialize_draws_anew_from_the_seed_and_leaves_the_rest():
    parts = ["qformer", "query_tokens", "language_projection"]

    def fresh(seed):
        model = tiny_model()
        state = torch.random.get_rng_state()
        reinitialize(model, parts, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return model.state_dict()

    original, first, again, other = tiny_model().state_dict(), fresh(1), fresh(1), fresh(2)
    for name, tensor in original.items():
        assert torch.equal(first[name], again[name]), name
        if not name.startswith(tuple(parts)):
            assert torch.equal(first[name], tensor), name
        elif tensor.std() > 0 and name.endswith("weight") and "orm" not in name:
            assert not torch.equal(first[name], tensor), name
            assert not torch.equal(first[name], other[name]), name
            assert first[name].std() == pytest.approx(tensor.std(), rel=0.25), name
    assert not torch.equal(first["query_tokens"], original["query_tokens"])


def test_reinitialize_one_part_does_not_depend_on_the_others():
    one, several = tiny_model(), tiny_model()
    reinitialize(one, ["language_projection"], seed=4)
    reinitialize(several, ["qformer", "language_projection"], seed=4)
    assert torch.equal(one.language_projection.weight, several.language_projection.weight)


def test_reinitialize_an_unknown_part():
    with pytest.raises(ValueError, match="no component 'projection'"):
        reinitialize(tiny_model(), ["projection"])
