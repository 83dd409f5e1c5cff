"""One run of the study: a training with `VisionLanguageTrainer` and its evaluation, as a JSON file.

Every run starts from a saved model, so runs are independent of each other but for that, and each leaves its file when
it is whole: a study that was stopped goes on with what is missing.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from claim_design import ARMS, STARTS, Design, Run
from claim_evaluation import Evaluator
from claim_rows import ALL_TASKS, CANDIDATES, HELD_IN, POOL_SEED, TEST_SEED, ScenePool, TaskRows, draw_questions
from transformers import PrinterCallback, TrainingArguments

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor, bundled_checkpoint
from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.models.instructblip import load_without_instruction
from instructblip_hf.training import VisionLanguageTrainer, reinitialize


CHECKPOINT = "instructblip-shapes-tiny-pretrained"
TRAINED = ("qformer", "query_tokens", "language_projection")
WEIGHTS_SEED = 1_000_000
"""Added to a run's seed for new weights, so that they are not those which the frozen parts were pre-trained beside."""


def execute(run: Run, design: Design, output: Path) -> float:
    """Does a run and writes its file; returns its CPU seconds."""
    with _one_quiet_thread():
        return _execute(run, design, output)


@contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """One thread and no warnings of the package; the process has its own back afterwards."""
    logger = logging.getLogger("instructblip_hf")
    level, threads = logger.level, torch.get_num_threads()
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)


def _execute(run: Run, design: Design, output: Path) -> float:
    started, cpu_started = time.perf_counter(), time.process_time()
    processor = InstructBlipProcessor.from_pretrained(bundled_checkpoint(CHECKPOINT))
    pool = ScenePool.open(output / "pool.safetensors", design.scenes, POOL_SEED)
    test_pool = ScenePool.open(output / "test_pool.safetensors", design.test_scenes, TEST_SEED)
    workers = {"blip2": _pretrain, "tuning": _tune, "finetuning": _finetune}
    result = workers[run.kind](run, design, output, processor, pool, test_pool)
    record = {
        **asdict(run),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        **result,
    }
    write_json(output / "results" / f"{run.name}.json", record)
    return record["cpu_seconds"]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_suffix(".incoming")
    incoming.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    incoming.replace(path)


def model_folder(output: Path, seed: int, start: str) -> Path:
    """Where the model of `STARTS` is kept."""
    return output / "models" / f"seed{seed}-{start}"


# --- the three kinds ------------------------------------------------------------------------------------------------


def _pretrain(
    run: Run, design: Design, output: Path, processor: Any, pool: ScenePool, test_pool: ScenePool
) -> dict[str, Any]:
    """A Q-Former of random weights learns to let the frozen language model describe images, without any text."""
    model = load(bundled_checkpoint(CHECKPOINT))
    reinitialize(model, TRAINED, seed=WEIGHTS_SEED + run.seed)
    rows = draw_questions("caption", pool.scenes, HELD_IN["caption"], [run.seed, 1])
    losses, draws = train(
        model,
        processor,
        pool,
        {"caption": TaskRows(rows, "plain", run.seed)},
        "sqrt",
        run.seed,
        design.blip2_steps,
        design.batch_size,
        design.learning_rate,
    )
    model.save_pretrained(model_folder(output, run.seed, "blip2"))
    evaluator = Evaluator(model, processor, test_pool, design.examples, reads_instruction=False)
    accuracy = {
        "instruction": evaluator(ALL_TASKS, "instruction"),
        "templates": evaluator(tuple(HELD_IN), "instruction", "held_out"),
        "plain": evaluator(("caption",), "plain"),
    }
    return {"losses": losses, "draws": draws, "accuracy": accuracy}


def _tune(
    run: Run, design: Design, output: Path, processor: Any, pool: ScenePool, test_pool: ScenePool
) -> dict[str, Any]:
    """The tuning of an arm on the held-in tasks, from the captions-only model of the same seed."""
    arm = ARMS[run.arm]
    model = load(model_folder(output, run.seed, "blip2"), arm.qformer_instruction)
    datasets = {
        task: TaskRows(draw_questions(task, pool.scenes, count, [run.seed, 1]), arm.form, run.seed)
        for task, count in HELD_IN.items()
    }
    losses, draws = train(
        model,
        processor,
        pool,
        datasets,
        arm.balance,
        run.seed,
        design.tuning_steps,
        design.batch_size,
        design.learning_rate,
    )
    if run.arm in STARTS:
        model.save_pretrained(model_folder(output, run.seed, run.arm))
    evaluator = Evaluator(model, processor, test_pool, design.examples)
    accuracy = {
        "instruction": evaluator(ALL_TASKS, "instruction"),
        "templates": evaluator(tuple(HELD_IN), "instruction", "held_out"),
    }
    if arm.form != "instruction":
        accuracy[arm.form] = evaluator(ALL_TASKS, arm.form)
    result = {"losses": losses, "draws": draws, "accuracy": accuracy}
    if run.arm == "instruct":
        result["ranking"] = evaluator.rank(tuple(CANDIDATES))
    return result


def _finetune(
    run: Run, design: Design, output: Path, processor: Any, pool: ScenePool, test_pool: ScenePool
) -> dict[str, Any]:
    """A finetuning on few rows of one task."""
    model = load(model_folder(output, run.seed, run.arm))
    rows = draw_questions(run.task, pool.scenes, design.finetuning_rows, [run.seed, 2])
    losses, draws = train(
        model,
        processor,
        pool,
        {run.task: TaskRows(rows, "instruction", run.seed)},
        "sqrt",
        run.seed,
        design.finetuning_steps,
        design.finetuning_batch_size,
        design.finetuning_learning_rate,
    )
    evaluator = Evaluator(model, processor, test_pool, design.examples)
    return {"losses": losses, "draws": draws, "accuracy": {"instruction": evaluator((run.task,), "instruction")}}


# --- training -------------------------------------------------------------------------------------------------------


def load(folder: Path, qformer_instruction: bool = True) -> Any:
    """A saved model; plain attention has the faster backward pass on a CPU at this size."""
    if qformer_instruction:
        return InstructBlipForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    return load_without_instruction(folder, attn_implementation="eager")


def train(
    model: Any,
    processor: Any,
    pool: ScenePool,
    datasets: Mapping[str, TaskRows],
    balance: str,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[list[float], dict[str, int]]:
    """Trains the Q-Former side; vision tower and language model stay frozen.

    Returns:
        Losses of ten equal parts of the training, and how many rows of each dataset were drawn.
    """
    mixture = Mixture({name: len(rows) for name, rows in datasets.items()}, balance, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = VisionLanguageTrainer(
            model,
            TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=max(1, steps // 10),
                adam_beta2=0.98,
                weight_decay=0.03,
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                logging_steps=max(1, steps // 10),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                seed=seed,
            ),
            processing_class=processor,
            freezing="instructblip-strict",
            data_collator=VisionLanguageCollator(processor, image_inputs=pool),
            train_dataset=MixtureDataset(datasets, mixture, steps * batch_size),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [round(float(entry["loss"]), 4) for entry in trainer.state.log_history if "loss" in entry]
    return losses, dict(mixture.counts(steps * batch_size))
