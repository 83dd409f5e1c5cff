"""Trains tiny models in this process or as one of several, and writes down losses and weights.

    sharded_runs.py OUT CASES PROCESSES CHECKPOINT

CHECKPOINT is what recipes start from. Tests start this by itself, with torchrun, or with accelerate's environment.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import accelerate.state
import torch
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import FreezingPolicy, VisionLanguageTrainer, load_recipe
from instructblip_hf.training.run import prepare_run
from instructblip_hf.training.sharding import whole_weights
from tiny_shapes import tiny_model, tiny_processor


ROWS_A_STEP = 8


def let_accelerate_shard_on_cpu():
    """accelerate takes FSDP and DeepSpeed for accelerators alone; what it does with them works on a CPU as well."""
    state, partial_state = accelerate.state.AcceleratorState, accelerate.state.PartialState
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        partial_state._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)
        return
    original = state.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            partial_state._shared_state["distributed_type"] = DistributedType.FSDP

    state.__init__ = init


def text_rows(number):
    """Rows without images, with answers of different lengths."""
    colors = ["red", "green and blue", "yellow"]
    return [{"images": [], "prompt": f"what is {i} ?", "completion": colors[i % 3]} for i in range(number)]


def mixture(length):
    """A mixture with a dataset that has no image, drawn in blocks so that whole micro-batches have none."""
    datasets = {
        "a": ShapesWorldDataset(ShapesWorld(0), 9),
        "b": ShapesWorldDataset(ShapesWorld(1), 5),
        "text": text_rows(9),
    }
    mixed = Mixture({name: len(rows) for name, rows in datasets.items()}, seed=3, draws_per_choice=2)
    return MixtureDataset(datasets, mixed, length)


def one_process_without_images(length):
    """Rows of which process 1 of 2, in batches of 2, has those without images alone."""
    images, text = ShapesWorldDataset(ShapesWorld(0), length), text_rows(length)
    return [text[i] if i // 2 % 2 else images[i] for i in range(length)]


USE_CPU = os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true"
"""What accelerate understands as a wish to do without DeepSpeed."""


def train(out, kind="causal", rows=mixture, freezing="instructblip", resume=None, processes=1, **changes):
    """Runs 4 steps (2 after a resume), and returns the trainer."""
    options = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": ROWS_A_STEP // 2 // processes,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": USE_CPU,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }
    args = TrainingArguments(str(out), **{**options, **changes})
    with whole_weights(args):
        model = tiny_model(kind)
    trainer = VisionLanguageTrainer(
        model,
        args,
        processing_class=tiny_processor(),
        train_dataset=rows(4 * ROWS_A_STEP),
        eval_dataset=one_process_without_images(6),
        freezing=freezing,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def train_recipe(out, checkpoint, processes, bf16):
    """The same from a recipe: weights are read from a checkpoint, those that do not train cast with `bf16`."""
    (out / "rows.jsonl").write_text("\n".join(map(json.dumps, text_rows(9))))
    datasets = {"a": {"shapes_world": {"examples": 16}}, "text": {"file": "rows.jsonl"}}
    recipe = {
        "model": {"path": str(checkpoint)} | ({"frozen_dtype": "bfloat16"} if bf16 else {}),
        "freezing": "instructblip",
        "data": {"train": {"mixture": {"draws_per_choice": 2, "seed": 0, "datasets": datasets}}},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": ROWS_A_STEP // 2 // processes,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": USE_CPU,
            "bf16": bf16,
            "disable_tqdm": True,
        },
    }
    (out / "recipe.yaml").write_text(json.dumps(recipe))
    run = prepare_run(load_recipe(out / "recipe.yaml"), out / "model")
    run.run()
    return run.trainer


LORA = FreezingPolicy(
    components={"language_model": "lora"}, lora_rank=2, lora_dropout=0.0, lora_target_modules=["q_proj", "v_proj"]
)
CASES = {
    "causal": {},
    "seq2seq": {"kind": "seq2seq"},
    "tied": {"kind": "opt", "rows": one_process_without_images},
    "lora": {"freezing": LORA},
    "checkpointed": {"freezing": LORA},
}
SAVED = ("causal", "seq2seq", "tied", "lora", "checkpointed")


def share_held(model):
    """How many of the weights are in this process's memory."""
    parameters = list(model.parameters())
    own = [getattr(p, "ds_tensor", p.to_local() if isinstance(p, DTensor) else p) for p in parameters]
    return sum(p.numel() for p in own) / sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def run(name, out, processes):
    """Losses of a case; ``causal`` also has checkpoints and is evaluated, some are saved."""
    if name == "resume":
        trainer = train(out / "causal", processes=processes, resume=str(out / "causal" / "checkpoint-2"))
        return {"logs": trainer.state.log_history}
    torch.manual_seed(0)
    (out / name).mkdir(parents=True, exist_ok=True)
    if name.startswith("recipe"):
        trainer = train_recipe(out / name, Path(sys.argv[4]), processes, bf16=name == "recipe_bf16")
        return {"logs": trainer.state.log_history}
    changes = {"save_strategy": "steps", "save_steps": 2} if name == "causal" else {}
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if name == "checkpointed":
        # In the place of fsdp_activation_checkpointing in the configuration of all of these runs.
        os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = str(is_fsdp).lower()
        changes["gradient_checkpointing"] = not is_fsdp
    trainer = train(out / name, processes=processes, **CASES[name], **changes)
    os.environ.pop("FSDP_ACTIVATION_CHECKPOINTING", None)
    found = {"logs": trainer.state.log_history, "held": share_held(trainer.model)}
    if name in ("causal", "seq2seq"):
        found["eval_loss"] = trainer.evaluate()["eval_loss"]
    if name in SAVED:
        trainer.save_model()
    return found


def main():
    torch.set_num_threads(1)
    let_accelerate_shard_on_cpu()
    out, names = Path(sys.argv[1]), sys.argv[2].split(",")
    processes = int(sys.argv[3])
    results = {name: run(name, out, processes) for name in names}
    state = accelerate.state.AcceleratorState()
    results["distributed_type"] = str(state.distributed_type)
    if accelerate.state.PartialState().is_main_process:
        (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
