"""Recipes: what a good one becomes, and that a bad one is told all that is wrong, before anything heavy starts."""

import json
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from instructblip_hf.training import OptimizationArguments, RecipeError, load_recipe, shipped_recipes


GOOD = {
    "model": {"path": "model"},
    "freezing": "instructblip",
    "data": {"train": "rows.jsonl", "evaluation": {"shapes_world": {"examples": 5, "split": "test"}}},
    "training": {"max_steps": 2, "learning_rate": "1e-4", "eval_strategy": "steps"},
}
LORA = {"components": {"language_model": "lora"}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "p", "completion": "c"}))
    return tmp_path


def write(folder, content):
    path = folder / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(**sections):
    """The good recipe with keys of its sections replaced, or whole sections."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in GOOD.items()}
    for name, values in sections.items():
        if isinstance(values, dict) and isinstance(result.get(name), dict):
            result[name] = {**result[name], **values}
        else:
            result[name] = values
    return result


def problems(folder, content, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, content), overrides)
    return caught.value.problems


def test_a_good_recipe(folder):
    recipe = load_recipe(write(folder, GOOD))
    assert recipe.model.path == str(folder / "model")
    assert recipe.data.train == str(folder / "rows.jsonl")
    assert recipe.freezing.preset == "instructblip"
    assert recipe.optimization == OptimizationArguments()
    assert recipe.output_dir.name == "recipe"
    arguments = recipe.training_arguments("somewhere")
    assert arguments.learning_rate == 1e-4, "YAML reads 1e-4 as text"
    assert arguments.output_dir == "somewhere"
    assert arguments.remove_unused_columns is False
    assert arguments.label_names == ["labels"]


def test_learning_rates_by_name(folder):
    text = yaml.safe_dump(GOOD) + "optimization:\n  learning_rates: {'^qformer\\.': 1e-4, b: 1}\n  layer_decay: 0.9\n"
    recipe = load_recipe(write(folder, text))
    assert recipe.optimization.learning_rates == {r"^qformer\.": 1e-4, "b": 1.0}, "YAML reads 1e-4 as text"
    assert recipe.optimization.layer_decay == 0.9


def test_overrides_win(folder):
    overrides = [
        "training.max_steps=7",
        "freezing.components={vision_model.post_layernorm: frozen}",
        "data.evaluation=null",
        "training.eval_strategy=no",
        "training.learning_rate=3e-5",
    ]
    recipe = load_recipe(write(folder, GOOD), overrides)
    assert recipe.training["max_steps"] == 7
    assert recipe.training["learning_rate"] == 3e-5
    assert recipe.freezing.preset == "instructblip"
    assert recipe.freezing.components == {"vision_model.post_layernorm": "frozen"}
    assert recipe.data.evaluation is None
    assert recipe.training["eval_strategy"] == "no", "YAML reads no as false"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(modle={}), "modle: unknown section; did you mean 'model'?"),
        (changed(model={"pth": "x"}), "model.pth: unknown key; did you mean 'path'?"),
        (changed(model="x"), "model: must be a mapping of keys to values, not 'x'"),
        ({key: value for key, value in GOOD.items() if key != "model"}, "model.path: missing"),
        (changed(model={"path": "nowhere"}), "model.path: there is no folder"),
        (changed(model={"path": "."}), "has no config.json"),
        (changed(model={"dtype": "int8"}), "model: dtype is 'int8'; allowed are: float32"),
        (changed(model={"frozen_dtype": "auto"}), "model: frozen_dtype is 'auto'; allowed are: float32, bfloat16"),
        (changed(freezing={"frozen_dropout": "qformer"}), "freezing.frozen_dropout: must be a list of texts"),
        (changed(model={"reinitialize": "qformer"}), "model.reinitialize: must be a list of texts, not 'qformer'"),
        (changed(model={"reinitialize": ["q_former"]}), "reinitialize names 'q_former'; the components are:"),
        (changed(model={"reinitialize_seed": 1.5}), "model.reinitialize_seed: must be a whole number, not 1.5"),
        (changed(freezing="instructblip3"), "freezing: preset is 'instructblip3'; there are:"),
        (changed(freezing={"components": {"qformer": "thawed"}}), "'thawed'; allowed are: frozen, train, lora"),
        (changed(freezing={"lora_rank": 0}), "lora_rank is 0"),
        (changed(freezing=["qformer"]), "freezing: must be a mapping"),
        (changed(freezing={"save": "both"}), "freezing: save is 'both'; allowed are: merged, adapter"),
        (changed(freezing={"save": "adapter"}), "save is 'adapter', but no component is marked lora"),
        (changed(model={"quantization": "nf5"}), "model: quantization is 'nf5'; allowed are: nf4, int8"),
        (changed(model={"quantization": "nf4"}), "model.quantization: quantised weights cannot train themselves"),
        (changed(model={"quantization": "nf4"}, freezing={**LORA, "save": "merged"}), "freezing: save is 'merged'"),
        (
            changed(model={"qformer_instruction": False}, freezing={**LORA, "save": "adapter"}),
            "model.qformer_instruction: an adapter belongs to the checkpoint as it is",
        ),
        (changed(freezing={"components": {"qformer": 3}}), "freezing.components: qformer: must be text, not 3"),
        (changed(optimization={"learning_rates": {"qformer(": 1}}), "optimization: learning_rates has 'qformer('"),
        (changed(optimization={"learning_rates": {"^qformer": "fast"}}), "^qformer: must be a number, not 'fast'"),
        (changed(optimization={"learning_rates": {3: 1e-3}}), "has the key 3; keys must be text"),
        (changed(optimization={"layer_decay": 2}), "layer_decay is 2.0"),
        (changed(optimization={"lr": 2}), "optimization.lr: unknown key"),
        (changed(data={"train": "none.jsonl"}), "data.train: there is no file"),
        (changed(data={"train": "recipe.yaml"}), "data.train: recipe.yaml is neither of .jsonl, .csv"),
        (changed(data={"train": {"imagenet": {}}}), "the one key mixture or shapes_world"),
        (changed(data={"train": {"shapes_world": {"examples": 0}}}), "data.train.shapes_world: examples is 0"),
        (changed(data={"train": {"shapes_world": {}}}), "data.train.shapes_world.examples: missing"),
        (changed(data={"train": {"shapes_world": {"examples": 3, "tasks": ["x"]}}}), "task='x' is not one of"),
        (changed(data={"train": {"shapes_world": {"examples": 3, "split": "dev"}}}), "split='dev'"),
        (changed(data={"image_root": "none"}), "data.image_root: there is no folder"),
        (changed(data={"max_prompt_length": 0}), "max_prompt_length is 0"),
        (changed(data={"augmentation": "mixup"}), "augmentation is 'mixup'; allowed are: crop_and_flip"),
        (changed(data={"augmentation": "crop_and_flip", "image_features": "x"}), "augmentation makes a new image"),
        (changed(training={"learning_rte": 1}), "training.learning_rte: unknown key; did you mean 'learning_rate'?"),
        (changed(training={"max_steps": "ten"}), "training.max_steps: must be a whole number, not 'ten'"),
        (changed(training={"max_steps": 1.5}), "training.max_steps: must be a whole number, not 1.5"),
        (changed(training={"bf16": "yes, please"}), "training.bf16: must be true or false"),
        (changed(training={"learning_rate": "fast"}), "training.learning_rate: must be a number, not 'fast'"),
        (changed(training={"learning_rate": -1}), "training.learning_rate: is -1.0; it must be at least 0"),
        (changed(training={"per_device_train_batch_size": 0}), "it must be at least 1"),
        (changed(training={"lr_scheduler_type": "cosin"}), "cosin is not a valid SchedulerType"),
        (changed(training={"remove_unused_columns": True}), "training.remove_unused_columns: may not be set"),
        (changed(training={"resume_from_checkpoint": "x"}), "resume with --resume"),
        (changed(data={"evaluation": None}), "training.eval_strategy: needs data.evaluation"),
        ("model: [1, 2", "line "),
        ("model: {path: a, path: b}", "the key 'path' stands here for the second time"),
        ("- a\n- b", "must be a mapping with the sections"),
    ],
)
def test_bad_recipes(folder, content, message):
    found = problems(folder, content)
    assert len(found) == 1, found
    assert message in found[0]
    assert found[0].startswith("recipe.yaml: ")
    assert "\n" not in found[0]


def test_everything_that_is_wrong_is_told_at_once(folder):
    content = changed(
        model={"path": "nowhere", "colour": "red"}, data={"train": "none.jsonl"}, training={"max_stepz": 1}, extra={}
    )
    found = problems(folder, content, ["training.max_steps", "nonsense"])
    for part in (
        "model.colour",
        "nowhere",
        "none.jsonl",
        "max_stepz",
        "extra",
        "--set training.max_steps",
        "nonsense",
    ):
        assert any(part in line for line in found), part


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training=3", "must look like section.key=value"),
        ("training.max_steps", "must look like section.key=value"),
        ("model.path.x=1", "path is not a mapping in this recipe"),
        ("training.max_steps=[1", "not readable as YAML"),
    ],
)
def test_bad_overrides(folder, override, message):
    assert any(message in line for line in problems(folder, GOOD, [override]))


def test_an_adapter_is_no_model_to_start_from(folder):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (found,) = problems(folder, changed(model={"path": "adapter"}))
    assert "holds an adapter; make a model of it with instructblip merge" in found


def test_an_unknown_recipe_lists_the_shipped_ones(tmp_path):
    with pytest.raises(RecipeError, match="shipped: ") as caught:
        load_recipe(tmp_path / "none.yaml")
    assert all(name in str(caught.value) for name in shipped_recipes())


def test_a_broken_recipe_is_refused_without_torch(tmp_path):
    """Checking the text must not wait for torch to load."""
    path = tmp_path / "recipe.yaml"
    path.write_text("model: [")
    code = (
        "import sys\nfrom instructblip_hf.training import load_recipe\n"
        "try:\n    load_recipe(sys.argv[1])\nexcept ValueError:\n    sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


# --- models made of parts -----------------------------------------------------------------------------------------


def test_parts_are_folders_relative_to_the_recipe_or_hub_ids(folder):
    model = {"parts": {"vision": "model", "bert": "bert-base-uncased"}}
    recipe = load_recipe(write(folder, {**GOOD, "model": model, "first_stage": {"objectives": ["itc"]}}))
    assert recipe.model.parts == {"vision": str(folder / "model"), "bert": "bert-base-uncased"}
    assert recipe.model.sources == [str(folder / "model"), "bert-base-uncased"]
    assert recipe.first_stage.objectives == ["itc"]
    assert recipe.base_model is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"parts": {"vision": "model"}}, "model.parts: parts are vision; allowed are: vision with bert, first_stage"),
        ({"parts": {"vision": "model", "brt": "x"}}, "model.parts.brt: unknown key; did you mean 'bert'?"),
        ({"parts": {"vision": "no/such/folder", "bert": "x"}}, "model.parts.vision: there is no folder"),
        ({"parts": {"vision": "a", "bert": "b", "end_token": "!"}}, "end_token is given without text"),
        ({"path": "model", "parts": {"vision": "a", "bert": "b"}}, "model: path and parts are both given"),
        ({"parts": {"vision": "a", "bert": "b"}, "revision": "main"}, "model: revision belongs to path"),
        ({}, "model.path: missing; or model.parts, what the model is made of"),
        ({"path": "model", "image_size": 0}, "model: image_size is 0; it must be at least 1"),
    ],
)
def test_parts_that_do_not_make_a_model_are_named(folder, model, message):
    assert any(message in problem for problem in problems(folder, {**GOOD, "model": model}))
