"""What trackers are told of a recipe's run: every loss of the log, by dataset too, in one run from start to resumed end."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest
import yaml

from tiny_shapes import save_tiny_checkpoint


TRACKERS = ["tensorboard", "trackio", "wandb"]
SCRIPT = """
import json, sys
from instructblip_hf.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
import wandb
with open("wandb.json", "w") as file:
    json.dump({"name": wandb.run.name, "summary": dict(wandb.run.summary), "config": dict(wandb.run.config)}, file, default=str)
wandb.finish()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder in which a run was stopped after 2 steps and resumed for 2 more."""
    for name in TRACKERS:
        pytest.importorskip(name, reason="the extra trackers is not installed")
    folder = tmp_path_factory.mktemp("run")
    save_tiny_checkpoint(folder / "model")
    part = {"shapes_world": {"seed": 0, "examples": 9}}
    content = {
        "model": {"path": "model"},
        "data": {
            "train": {"mixture": {"datasets": {"a": part, "b": part}}},
            "evaluation": {"shapes_world": {"seed": 1, "examples": 4}},
        },
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "use_cpu": True,
            "report_to": TRACKERS,
            "project": "shapes",
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    command = [sys.executable, "script.py", "train", "recipe.yaml", "--output", "first try", "--resume"]
    for changes in (["--set", "training.max_steps=2"], []):
        done = subprocess.run(
            [*command, *changes], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def losses(run):
    """``{name: [(step, value)]}`` of all losses that were logged, those of datasets among them."""
    found = {}
    for entry in json.loads((run / "first try" / "trainer_state.json").read_text())["log_history"]:
        for name, value in entry.items():
            if name.startswith(("loss", "eval_loss")):
                place = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
                found.setdefault(place, []).append((entry["step"], pytest.approx(value)))
    assert {"train/loss", "train/loss/a", "train/loss/b", "eval/loss"} <= {*found}
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4]
    return found


def test_tensorboard(run, losses):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for file in sorted(run.glob("first try/runs/**/events*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    for name, values in losses.items():
        if name.startswith("train/"):
            assert found[name] == values, name
    assert found["eval/loss"][-1] == losses["eval/loss"][-1]


def test_trackio(run, losses):
    with sqlite3.connect(run / "trackio" / "shapes.db") as database:
        rows = database.execute("select run_id, run_name, metrics from metrics order by id").fetchall()
        ((config,),) = database.execute("select config from configs").fetchall()
    assert len({identity for identity, _, _ in rows}) == 1
    assert {name for _, name, _ in rows} == {"first try"}
    found = {}
    for _, _, metrics in rows:
        content = json.loads(metrics)
        for name, value in content.items():
            found.setdefault(name, []).append((content["train/global_step"], value))
    for name, values in losses.items():
        if name.startswith("train/"):
            assert found[name] == values, name
    assert found["eval/loss"][-1] == losses["eval/loss"][-1]
    assert json.loads(config)["learning_rate"] == 1e-3


def test_wandb(run, losses):
    content = json.loads((run / "wandb.json").read_text())
    assert content["name"] == "first try"
    for name, values in losses.items():
        assert content["summary"][name] == values[-1][1], name
    assert content["config"]["learning_rate"] == 1e-3
