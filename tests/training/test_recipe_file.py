"""Recipes that extend others: what is merged, what is replaced, and whose folder a path is relative to."""

import json

import pytest
import yaml
from PIL import Image

from instructblip_hf.training import RecipeError, load_recipe, read_recipe


@pytest.fixture
def folder(tmp_path):
    """A folder ``shared`` with a model, data and a base recipe, and an empty one beside it."""
    shared = tmp_path / "shared"
    (shared / "model").mkdir(parents=True)
    (shared / "model" / "config.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(shared / "a.png")
    for name in ("rows", "dev"):
        (shared / f"{name}.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "p", "completion": "c"}))
    (shared / "base.yaml").write_text(
        "model: {path: model, reinitialize: [qformer, query_tokens]}\n"
        "freezing: instructblip\n"
        "data: {train: rows.jsonl, evaluation: dev.jsonl, image_root: .}\n"
        "training: {max_steps: 2, learning_rate: 1.0e-4, eval_strategy: steps}\n"
    )
    (tmp_path / "own").mkdir()
    return tmp_path


def write(folder, text, name="own/recipe.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_mappings_are_merged_and_the_rest_is_replaced(folder):
    path = write(
        folder,
        "extends: ../shared/base.yaml\n"
        "model: {reinitialize: [qformer]}\n"
        "freezing: {components: {qformer: frozen}}\n"
        "training: {max_steps: 5, seed: 3}\n",
    )
    recipe = load_recipe(path)
    assert recipe.model.reinitialize == ["qformer"], "a list is replaced"
    assert (recipe.freezing.preset, recipe.freezing.components) == ("instructblip", {"qformer": "frozen"})
    assert recipe.training == {"max_steps": 5, "learning_rate": 1e-4, "eval_strategy": "steps", "seed": 3}
    assert recipe.output_dir.name == "recipe"


def test_paths_are_relative_to_the_file_that_wrote_them(folder):
    write(folder, json.dumps({"image": "../shared/a.png", "prompt": "p", "completion": "c"}), "own/rows.jsonl")
    recipe = load_recipe(write(folder, "extends: ../shared/base.yaml\ndata: {train: rows.jsonl}\n"))
    assert recipe.model.path == str(folder / "shared" / "model")
    assert recipe.data.train == str(folder / "own" / "rows.jsonl")
    assert recipe.data.evaluation == str(folder / "shared" / "dev.jsonl")
    assert recipe.data.image_root == str(folder / "shared")
    assert all(type(value) is str for value in (recipe.model.path, recipe.data.evaluation, recipe.data.image_root))


def test_paths_of_mixtures_are_relative_to_the_file_that_wrote_them(folder):
    write(
        folder,
        "extends: base.yaml\n"
        "data:\n"
        "  train: !replace\n"
        "    mixture:\n"
        "      root: disk\n"
        "      datasets: {flags: {file: rows.jsonl}, okvqa: {image_root: coco}, vqav2: {root: elsewhere}}\n",
        "shared/mixture.yaml",
    )
    path = write(
        folder,
        "extends: ../shared/mixture.yaml\n"
        "data: {train: {mixture: {datasets: {cats: {folder: cats}, vqav2: {root: mine}}}}}\n",
    )
    datasets = load_recipe(path, data_files=False).data.train["mixture"]["datasets"]
    disk = folder / "shared" / "disk"
    assert datasets["flags"]["file"] == str(folder / "shared" / "rows.jsonl")
    assert datasets["cats"]["folder"] == str(folder / "own" / "cats")
    assert (datasets["okvqa"]["root"], datasets["okvqa"]["image_root"]) == (str(disk / "okvqa"), str(disk / "coco"))
    assert datasets["vqav2"]["root"] == str(disk / "mine")
    moved = load_recipe(path, ["data.train.mixture.root=../disks"], data_files=False).data.train["mixture"]
    assert moved["datasets"]["okvqa"]["root"] == str(folder / "disks" / "okvqa")


def test_replace_takes_the_place_of_a_mapping_through_the_whole_chain(folder):
    write(
        folder,
        "extends: base.yaml\ntraining: !replace {max_steps: 7}\ndata: {evaluation: null}\n",
        "shared/middle.yaml",
    )
    recipe = load_recipe(write(folder, "extends: ../shared/middle.yaml\ntraining: {seed: 1}\n"))
    assert recipe.training == {"max_steps": 7, "seed": 1}
    assert recipe.data.evaluation is None


def test_what_a_recipe_in_the_middle_takes_away_stays_away(folder):
    write(folder, "data: {train: {mixture: {root: a, seed: 1}}}\n", "own/base.yaml")
    write(folder, "extends: base.yaml\ndata: {train: null}\n", "own/middle.yaml")
    path = write(folder, "extends: middle.yaml\ndata: {train: {mixture: {seed: 2}}}\n")
    assert read_recipe(path).content == {"data": {"train": {"mixture": {"seed": 2}}}}


def test_a_preset_by_name_replaces_a_whole_policy(folder):
    write(folder, "extends: base.yaml\nfreezing: {components: {qformer: frozen}}\n", "shared/middle.yaml")
    recipe = load_recipe(write(folder, "extends: ../shared/middle.yaml\nfreezing: all\n"))
    assert (recipe.freezing.preset, recipe.freezing.components) == ("all", {})


def test_a_shipped_recipe_by_name_and_a_file_of_that_name_first(folder):
    path = write(folder, "extends: shapes_instruct\ntraining: {max_steps: 3}\n")
    recipe = load_recipe(path)
    assert recipe.training["max_steps"] == 3
    assert recipe.data.evaluation == {"shapes_world": {"examples": 1000, "seed": 2, "split": "test"}}
    write(folder, (folder / "shared" / "base.yaml").read_text(), "own/shapes_instruct")
    assert read_recipe(path).content["data"]["train"] == "rows.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: recipe.yaml", "extends: a recipe cannot extend itself: recipe.yaml -> recipe.yaml"),
        ("extends: other.yaml", "extends: a recipe cannot extend itself: recipe.yaml -> other.yaml -> recipe.yaml"),
        ("extends: gone.yaml", "extends: there is no file"),
        ("extends: instructblip_vicuna", "nor a shipped recipe 'instructblip_vicuna'; shipped: "),
        ("extends: [a, b]", "extends: must be the name of a shipped recipe or a file, not ['a', 'b']"),
        ("extends: broken.yaml", "broken.yaml: line 1: not readable as YAML"),
        ("extends: twice.yaml", "twice.yaml: line 2: not readable as YAML: the key 'path' stands here for the second"),
        ("training: !replace [1]", "!replace is for mappings"),
        (
            "extends: ../shared/base.yaml\ndata: {train: {shapes_world: {examples: 1}, mixture: {}}}",
            "not ['shapes_world', 'mixture'] (what a base says is replaced by !replace {...})",
        ),
    ],
)
def test_what_cannot_be_extended(folder, text, message):
    write(folder, "extends: recipe.yaml", "own/other.yaml")
    write(folder, "model: [", "own/broken.yaml")
    write(folder, "model:\n  {path: a, path: b}", "own/twice.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text))
    assert len(caught.value.problems) == 1, caught.value.problems
    assert message in caught.value.problems[0]


def test_as_yaml_a_merged_recipe_says_the_same(folder):
    path = write(folder, "extends: ../shared/base.yaml\ndata: {train: !replace {shapes_world: {examples: 3}}}\n")
    file = read_recipe(path)
    text = file.to_yaml()
    assert yaml.safe_load(text) == file.content
    assert text.startswith(f"# {path}\n# extends {path.parent}/../shared/base.yaml\n")
    assert "relative to the file that wrote them" in text
