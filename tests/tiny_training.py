"""A short training of the tiny shapes model, for the tests of what happens in one."""

from __future__ import annotations

from transformers import TrainingArguments

from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import VisionLanguageTrainer
from tiny_shapes import tiny_processor


def arguments(folder, **changes):
    options = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return TrainingArguments(output_dir=str(folder), **{**options, **changes})


def trainer_for(model, args, examples=16, **changes):
    world = ShapesWorld(0)
    options = {
        "processing_class": tiny_processor(),
        "train_dataset": ShapesWorldDataset(world, examples),
        "eval_dataset": ShapesWorldDataset(ShapesWorld(0, split="test"), 6),
    }
    return VisionLanguageTrainer(model, args, **{**options, **changes})


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
