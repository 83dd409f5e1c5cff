"""Trains a tiny first stage on the shapes world, in this process or as one of several, and writes down its losses.

    first_stage_run.py OUT VISION BERT ROWS

ROWS is the batch of each process. ITM is left out, whose negatives every process draws for itself.
"""

import json
import sys
from pathlib import Path

from instructblip_hf.training import load_recipe, prepare_run


def main() -> None:
    output, vision, bert, rows = Path(sys.argv[1]), *sys.argv[2:]
    overrides = [
        f"model.parts.vision={vision}", f"model.parts.bert={bert}", "model.parts.num_query_tokens=4",
        "model.frozen_dtype=null", "first_stage.objectives=[itc,itg]",
        "data.train={shapes_world: {examples: 64, tasks: [caption]}}", "data.augmentation=null", "training.fp16=false",
        "training.max_steps=3", f"training.per_device_train_batch_size={rows}", "training.learning_rate=1e-3",
        "training.warmup_steps=0", "training.use_cpu=true", "training.disable_tqdm=true",
        "training.dataloader_num_workers=0", "training.save_strategy=no", "training.logging_steps=1",
    ]  # fmt: skip
    run = prepare_run(load_recipe("blip2_stage1", overrides, data_files=False), output)
    run.trainer.train()
    if run.trainer.is_world_process_zero():
        logged = [entry for entry in run.trainer.state.log_history if "loss_itc" in entry]
        (output / "losses.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    main()
