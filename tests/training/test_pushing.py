"""A recipe with `push_to_hub` against a loopback Hub: checkpoints, the model with its card, and what goes wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import TrainingArguments

from hub_server import USER, HubServer
from instructblip_hf import InstructBlipForConditionalGeneration
from instructblip_hf.training import VisionLanguageTrainer
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor


SCRIPT = """
import json, os, sys, time
from pathlib import Path
from transformers import TrainerCallback
from instructblip_hf.training import load_recipe, prepare_run
from instructblip_hf.training.errors import PushError

folder = Path(sys.argv[1])
os.chdir(folder)
recipe = load_recipe("recipe.yaml")
said = {}

token = os.environ.pop("HF_TOKEN")
try:
    prepare_run(recipe, "no-token")
except ValueError as error:
    said["no token"] = str(error)
os.environ["HF_TOKEN"] = "hf_another"
try:
    prepare_run(recipe, "no-rights")
except ValueError as error:
    said["refused"] = str(error)
os.environ["HF_TOKEN"] = token

prepare_run(recipe, "pushed").run()

class Gone(TrainerCallback):
    def on_train_end(self, *_, **__):
        Path("trained").touch()
        while not Path("gone").exists():
            time.sleep(0.05)

try:
    prepare_run(load_recipe("recipe.yaml", ["training.save_strategy=no"]), "kept", callbacks=[Gone()]).run()
except PushError as error:
    said["network gone"] = str(error)
print(json.dumps(said))
"""


def test_push_to_hub(tmp_path):
    save_tiny_checkpoint(tmp_path / "model")
    Image.new("RGB", (60, 60), "red").save(tmp_path / "a.png")
    row = {"image": "a.png", "prompt": "what color ?", "completion": "red"}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    pushing = {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_always_push": True, "disable_tqdm": True}
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "logging_steps": 1, "seed": 11}
    content = {
        "model": {"path": "model"},
        "data": {"train": {"mixture": {"datasets": {"mine": {"file": "rows.jsonl"}}}}, "evaluation": "rows.jsonl"},
        "training": {**options, **pushing, **saving},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with HubServer() as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {**hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (tmp_path / "trained").exists() and child.poll() is None:
            time.sleep(0.05)
    (tmp_path / "gone").touch()
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err[-4000:]
    said = json.loads(out.splitlines()[-1])
    assert said["no token"].startswith(
        "training.push_to_hub: there is no token for the Hub; log in with `hf auth login`"
    )
    assert said["refused"].startswith("training.push_to_hub: no-rights cannot be written on the Hub")
    assert not (tmp_path / "no-token").exists()

    files = hub.files(f"{USER}/pushed")
    local = tmp_path / "pushed"
    for name in ("model.safetensors", "config.json", "README.md", "tokenizer.json", "trainer_state.json"):
        assert files[name] == (local / name).read_bytes(), name
    assert not [name for name in files if name.startswith(("_", "checkpoint-", "optimizer"))]
    assert files["last-checkpoint/optimizer.pt"] == (local / "checkpoint-2" / "optimizer.pt").read_bytes()
    assert not list(local.glob("_*"))
    card = files["README.md"].decode()
    for part in (
        "a mixture of 1 datasets",
        "| mine |",
        "| seed | 11 |",
        "| learning_rate | ",
        "| dataset | training loss at first | at the end | evaluation loss |",
        "eval_loss",
        "torch 2.",
        "instructblip-hf ",
        "language_model",
        "frozen",
        "instructblip train recipe.yaml",
    ):
        assert part in card, part

    kept = tmp_path / "kept"
    assert said["network gone"].startswith(
        "the trained model is whole in kept, but could not be pushed to tester/kept: "
    )
    assert (
        "Push it later with: hf upload tester/kept kept . --exclude '_*' --exclude 'checkpoint-*'"
        in said["network gone"]
    )
    assert {"model.safetensors", "README.md", "eval_results.json"} <= {path.name for path in Path(kept).iterdir()}


def test_what_trainer_pushes_has_lora_merged(tmp_path):
    pytest.importorskip("peft")
    trainer = VisionLanguageTrainer(
        tiny_model(),
        TrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
        processing_class=tiny_processor(),
        freezing={"language_model": "lora"},
    )
    # As Trainer's push_to_hub does.
    trainer.save_model(_internal_call=True)
    loaded = InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == tiny_model().state_dict().keys()
