"""Killed at any moment and started again by the same command, training ends as if nothing had happened."""

import json
import signal

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from instructblip_hf.training.checkpoints import problem_with
from killable_training import run_killed, run_processes
from tiny_shapes import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    # With dropout, so that the state of the random number generators counts.
    tiny_model(dropout=0.1).save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    content = {
        "model": {"path": "model"},
        "data": {
            "train": {"mixture": {"seed": 3, "datasets": {"flags": {"file": "rows.jsonl"}}}},
            "evaluation": "rows.jsonl",
        },
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "per_device_eval_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "load_best_model_at_end": True,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        },
    }
    rows = []
    for color in ("red", "blue", "green", "yellow", "black"):
        Image.new("RGB", (60, 60), color).save(folder / f"{color}.png")
        rows.append({"image": f"{color}.png", "prompt": "what color ?", "completion": color})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


MOMENTS = [
    ({"event": "step", "count": 2}, "before any checkpoint"),
    ({"writer": "_save", "file_bytes": 50_000}, "in the middle of the first checkpoint's weights"),
    ({"writer": "_save_optimizer_and_scheduler", "file_bytes": 5_000}, "in the middle of its optimizer"),
    ({"event": "os.rename", "path": "_saving-checkpoint-1"}, "when all is written and has no name yet"),
    ({"event": "step", "count": 4}, "between the steps"),
    ({"event": "open", "path": "checkpoint_files.json", "count": 2}, "before the list of files"),
    ({"event": "os.rename", "path": "_deleting-checkpoint-1"}, "before an old one goes"),
    ({"event": "os.remove", "path": "model.safetensors", "count": 1}, "while an old one goes"),
    ({"event": "os.rename", "path": "_saving-checkpoint-6"}, "at the last one"),
    ({"writer": "_save", "file_bytes": 50_000}, "in the middle of the final weights"),
    ({"event": "os.rename", "path": "_saving-model", "count": 3}, "while the final files get their place"),
    ({"event": "os.rename", "path": "_saving-model/model.safetensors"}, "before the final weights get theirs"),
    ({"event": "open", "path": "README.md"}, "before the model card"),
]


def check_folder(out):
    """What stands under the names that are looked for is whole."""
    for checkpoint in out.glob("checkpoint-*"):
        assert problem_with(checkpoint) is None
        names = {file.name for file in checkpoint.iterdir()}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
        load_file(checkpoint / "model.safetensors")
        torch.load(checkpoint / "optimizer.pt", weights_only=True)
    if (out / "model.safetensors").exists():
        load_file(out / "model.safetensors")
        assert (out / "config.json").exists()


def test_killed_again_and_again_it_ends_with_the_weights_of_an_uninterrupted_run(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_killed(recipe, whole) == 0
    for kill, moment in MOMENTS:
        code = run_killed(recipe, parts, **kill)
        assert code == -(signal.SIGXFSZ if "writer" in kill else signal.SIGKILL), moment
        if parts.exists():
            check_folder(parts)
    assert run_killed(recipe, parts) == 0
    check_folder(parts)
    assert not list(parts.glob("_*"))
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}

    expected, weights = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert expected.keys() == weights.keys()
    histories = [json.loads((out / "trainer_state.json").read_text())["log_history"] for out in (whole, parts)]
    for key in ("loss", "eval_loss"):
        logged, again = ([(entry["step"], entry[key]) for entry in history if key in entry] for history in histories)
        if key == "loss":
            assert [step for step, _ in logged] == [1, 2, 3, 4, 5, 6]
        assert again[: len(logged)] == logged


def test_two_processes_killed_while_they_write_a_checkpoint(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = ["training.gradient_accumulation_steps=1", "training.max_steps=3"]
    assert run_processes(recipe, whole, changes=changes) == [0, 0]
    kill = {"event": "open", "path": "checkpoint_files.json", "count": 2}
    first, second = run_processes(recipe, parts, kill=kill, changes=changes)
    assert first == -signal.SIGKILL
    assert second != 0, "no process goes on alone"
    assert sorted(path.name for path in parts.glob("*checkpoint-*")) == ["_saving-checkpoint-2", "checkpoint-1"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (parts / "checkpoint-1").iterdir()}
    assert problem_with(parts / "checkpoint-1") is None
    assert run_processes(recipe, parts, changes=changes) == [0, 0]
    assert not list(parts.glob("_*"))
    expected, weights = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
