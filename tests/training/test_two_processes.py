"""Two processes with gloo train on a mixture as one process with twice the accumulation does."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = """
import json, sys
import torch
from transformers import TrainingArguments
from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import VisionLanguageTrainer
from tiny_shapes import tiny_model, tiny_processor

torch.set_num_threads(1)
datasets = {"a": ShapesWorldDataset(ShapesWorld(0), 9), "b": ShapesWorldDataset(ShapesWorld(1), 5)}
mixture = Mixture({name: len(rows) for name, rows in datasets.items()}, seed=1)
arguments = TrainingArguments(
    sys.argv[1], max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=int(sys.argv[2]),
    learning_rate=1e-2, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    dataloader_pin_memory=False,
)
trainer = VisionLanguageTrainer(
    tiny_model(), arguments, processing_class=tiny_processor(), train_dataset=MixtureDataset(datasets, mixture, 8)
)
trainer.train()
if trainer.is_world_process_zero():
    with open(sys.argv[1] + ".json", "w") as file:
        json.dump([entry for entry in trainer.state.log_history if "loss" in entry], file)
"""


def logs(tmp_path, processes, accumulation):
    script, out = tmp_path / "train.py", tmp_path / f"out{processes}"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{SCRIPT}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
    command = [sys.executable, *(options if processes > 1 else []), str(script), str(out), str(accumulation)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(f"{out}.json").read_text())


def test_losses_agree_in_all_and_by_dataset(tmp_path):
    one, two = logs(tmp_path, 1, 4), logs(tmp_path, 2, 2)
    assert len(one) == len(two) == 4
    for whole, parts in zip(one, two):
        names = [key for key in whole if "loss" in key]
        assert {"loss", "loss/a", "loss/b"} <= {*names}
        for name in names:
            assert parts[name] == pytest.approx(whole[name], rel=1e-5), name
