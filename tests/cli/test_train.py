"""`train`: a recipe from the command line to a model that `ask` loads, and refusals before anything starts."""

import json
import re

import pytest
import yaml
from PIL import Image

from instructblip_hf.training import shipped_recipes
from official_formats import write_dataset


@pytest.fixture
def recipe(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "red").save("a.png")
    row = {"image": "a.png", "prompt": "what color ?", "completion": "red"}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    path = tmp_path / "flags.yaml"
    path.write_text(
        f"model: {{path: {checkpoint}}}\n"
        "data: {train: rows.jsonl, evaluation: rows.jsonl}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 2, use_cpu: true, learning_rate: 1e-3}\n"
    )
    return path


def test_train_then_ask(run, recipe):
    result = run("train", recipe)
    assert result.exit_code == 0, result.output
    assert re.search(r"^language_model +frozen +0 +[\d,]+$", result.stdout, re.MULTILINE)
    assert "eval loss" in result.stdout
    assert "saved to   flags" in result.stdout
    card = (recipe.parent / "flags" / "README.md").read_text()
    assert "instructblip train flags.yaml" in card
    asked = run("ask", "a.png", "what color ?", "-m", "flags", "--max-new-tokens", 1)
    assert asked.exit_code == 0, asked.output


def test_tasks_choose_the_best_checkpoint(run, recipe, monkeypatch):
    write_dataset("gqa", recipe.parent / "data" / "gqa")
    text = recipe.read_text().replace(
        "learning_rate: 1e-3",
        "learning_rate: 1e-3, eval_strategy: steps, eval_steps: 1, save_strategy: steps, save_steps: 1, "
        "metric_for_best_model: eval_gqa, greater_is_better: true, load_best_model_at_end: true",
    )
    recipe.write_text(text + "evaluation: {tasks: [gqa], root: data, limit: 1, batch_size: 4}\n")
    result = run("train", recipe)
    assert result.exit_code == 0, result.output
    state = json.loads((recipe.parent / "flags" / "trainer_state.json").read_text())
    values = [entry["eval_gqa"] for entry in state["log_history"] if "eval_gqa" in entry]
    assert state["best_metric"] == max(values)
    folders = {path.name.rsplit("-", 1)[0] for path in (recipe.parent / "flags" / "evaluation").iterdir()}
    assert folders == {"step-1", "step-2"}
    assert re.search(rf"^gqa +{max(values):.4f}$", result.stdout, re.MULTILINE)
    final = json.loads((recipe.parent / "flags" / "eval_results.json").read_text())
    assert final["eval_gqa"] == max(values)


def test_set_output_and_resume(run, recipe):
    steps = ["--set", "training.save_strategy=steps", "--set", "training.save_steps=1"]
    assert run("train", recipe, "-o", "out", *steps).exit_code == 0
    again = run("train", recipe, "-o", "out", *steps)
    assert again.exit_code == 2
    assert again.stderr.count("error: ") == 1
    assert "--resume" in again.stderr
    resumed = run("train", recipe, "-o", "out", *steps, "--set", "training.max_steps=3", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "going on from" in resumed.stdout
    assert json.loads((recipe.parent / "out" / "trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (["evaluation.tasks=[gqa]"], ["evaluation.root: missing"]),
        (
            ["evaluation.tasks=[gqa]", "evaluation.root=nowhere", "evaluation.limit=3"],
            ["evaluation.root: there is no folder", "evaluation: needs training.eval_strategy"],
        ),
        (["evaluation.tasks=[]", "evaluation.root=."], ["evaluation: tasks is empty"]),
        (["evaluation.tasks=[vqa]", "evaluation.root=.", "training.eval_strategy=epoch"], ["there is no task 'vqa'"]),
        (["training.max_stepz=1"], ["training.max_stepz: unknown key; did you mean 'max_steps'?"]),
        (
            ["training.max_steps=x", "model.path=nowhere"],
            ["max_steps: must be a whole number", "there is no folder"],
        ),
        (["data.train=gone.jsonl"], ["there is no file"]),
        (["freezing.components={qformr: train}"], ["no component 'qformr'; did you mean 'qformer'?"]),
        (["freezing.qformer=train"], ["freezing.qformer: unknown key"]),
        (["nonsense"], ["--set nonsense"]),
    ],
)
def test_bad_recipes_are_refused_with_a_line_each(run, recipe, changes, messages):
    result = run("train", recipe, *(part for change in changes for part in ("--set", change)))
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(messages)
    for message in messages:
        assert any(message in line for line in errors)
    assert not (recipe.parent / "flags").exists()


def test_a_hub_id_without_a_hub(run, recipe, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("train", recipe, "--set", "model.path=nobody/nothing")
    assert result.exit_code == 2
    assert "the Hub does not answer" in result.stderr


def test_bad_rows_are_refused_by_file_and_line(run, recipe):
    with (recipe.parent / "rows.jsonl").open("a") as file:
        file.write('\n{"image": "gone.png", "prompt": "p", "completion": "c"}\n{"image": "a.png"}\n')
    result = run("train", recipe)
    assert result.exit_code == 2
    assert "error: rows.jsonl:5: there is no image 'gone.png'" in result.stderr
    assert "error: rows.jsonl:6: has no prompt" in result.stderr


def test_an_adapter_is_trained_asked_and_merged(run, recipe):
    lora = ["--set", "freezing.components={language_model: lora}", "--set", "freezing.save=adapter"]
    trained = run("train", recipe, *lora, "-o", "adapter")
    assert trained.exit_code == 0, trained.output
    card = (recipe.parent / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert 'load_adapter("adapter")' in card
    assert not (recipe.parent / "adapter" / "model.safetensors").exists()
    question = ("a.png", "what color ?", "--max-new-tokens", 3)
    asked = run("ask", *question, "-m", "adapter")
    assert asked.exit_code == 0, asked.output
    merged = run("merge", "adapter", "-o", "merged")
    assert merged.exit_code == 0, merged.output
    assert "instructblip ask IMAGE" in merged.stdout
    assert run("ask", *question, "-m", "merged").stdout == asked.stdout
    for arguments, message in (
        (("adapter", "-o", "merged"), "the output folder merged is not empty"),
        (("adapter", "-o", "new", "--dtype", "int8"), "--dtype: 'int8' is none of"),
        (("flags.yaml", "-o", "new"), "error: "),
        (("adapter", "-o", "new", "--base", "nowhere"), "belongs to nowhere, which cannot be loaded"),
    ):
        refused = run("merge", *arguments)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
        assert refused.stderr.count("error: ") == 1


def test_print_shows_the_merged_recipe_and_trains_nothing(run, recipe):
    result = run("train", "instructblip_flant5_xl", "--print", "--set", "training.max_steps=7")
    assert result.exit_code == 0, result.output
    shown = yaml.safe_load(result.stdout)
    assert shown["model"]["path"] == "Salesforce/instructblip-flan-t5-xl"
    assert shown["training"]["max_steps"] == 7
    assert shown["training"]["warmup_steps"] == 1000, "of the recipe that it extends"
    assert "extends" not in shown
    assert run("train", recipe, "--print").exit_code == 0
    assert not (recipe.parent / "flags").exists()
    for arguments in (["--print"], [recipe, "--print", "--set", "nonsense"], ["gone.yaml", "--print"]):
        result = run("train", *arguments)
        assert (result.exit_code, result.stderr.count("error: ")) == (2, 1)


def test_without_a_recipe_the_shipped_ones_are_named(run):
    result = run("train")
    assert result.exit_code == 2
    listed = run("train", "--list")
    assert listed.exit_code == 0
    for name in shipped_recipes():
        assert name in result.stderr
        assert name in listed.stdout
