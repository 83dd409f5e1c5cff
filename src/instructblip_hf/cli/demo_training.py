"""`instructblip demo --train`: a new Q-Former learns to follow instructions in about three minutes.

Vision tower and language model of the bundled pre-trained checkpoint stay frozen, as in the paper (section 2.4);
Q-Former, queries and projection start from random weights of a fresh seed. The frozen tower's features of all
training scenes are computed once, and questions about the scenes are drawn anew for every batch.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..constants import IGNORE_INDEX
from ..data.sources.shapes_world import TASKS, HandwrittenDigits, Scene, make_row, render, sample_scene
from ..data.sources.shapes_world.scenes import IMAGE_SIZE
from ..training import VisionLanguageTrainer, reinitialize
from .demo import answer_rows, draw_rows, fresh_seed, handwriting_available, load_bundled
from .demo_report import accuracies, check_writable, knows_notes, text_table, write_report
from .errors import user_errors
from .loading import LoadedModel


RETRAINED = ("qformer", "query_tokens", "language_projection")
WEIGHTS_SEED = 1_000_000
"""Added to the demo's seed for the new weights: the seed that the frozen parts were pre-trained with would bring back
the very weights that they were trained beside, and with them part of the answer."""

SCENES = 8000
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WARMUP_SECONDS = 10.0
QUESTIONS_PER_TASK = 24


def run_training_demo(out: Path, seed: int | None, minutes: float) -> None:
    """Shows accuracies by task before and after, and writes the page about the answers after training."""
    with user_errors():
        check_writable(out)
    seed = fresh_seed() if seed is None else seed
    print("loading the bundled pre-trained model ...", flush=True)
    loaded = load_bundled("instructblip-shapes-tiny-pretrained")
    reinitialize(loaded.model, RETRAINED, seed=WEIGHTS_SEED + seed)
    print(f"new Q-Former, queries and projection: random weights of seed {seed}")
    rows = draw_rows(seed, QUESTIONS_PER_TASK)
    before = answer_rows(loaded, rows, "before", "answering before training")
    trainer, bank = build_trainer(loaded, seed, 60 * minutes)
    print(f"\n{trainer.freezing_report}\n", flush=True)
    trainer.train()
    loaded.model.eval()
    after = answer_rows(loaded, rows, "after", "answering after training")

    shares = accuracies([*before, *after])
    steps = trainer.state.global_step
    summary = (
        f"{steps} steps of {BATCH_SIZE} questions about {len(bank.scenes):,} scenes, {minutes:g} minutes of training."
    )
    notes = [
        f"Q-Former, queries and projection started from random weights of seed {seed}; vision tower and language "
        "model stayed frozen.",
        summary,
        "Before: the same model with its random Q-Former. The cards show the answers after training.",
        *knows_notes(loaded.model.num_parameters()),
    ]
    with user_errors():
        page, sheet = write_report(out, "A tiny Q-Former learns to follow instructions", notes, after, shares)
    print(f"\n{text_table(shares)}\n\n{summary}\n")
    for note in knows_notes(loaded.model.num_parameters()):
        print(note)
    print(f"\npage     {page}\npicture  {sheet}\nseed     {seed}")


class SceneBank:
    """Training scenes and the frozen vision tower's features of one picture each.

    Args:
        loaded (`LoadedModel`): Whose tower.
        count (`int`): Number of scenes.
        seed (`int`): Seed of the scenes.

    Attributes:
        scenes (`list[Scene]`): The scenes.
        features (`torch.Tensor`): Shape (scenes, patches + 1, vision hidden).
    """

    def __init__(self, loaded: LoadedModel, count: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        styles = [None, HandwrittenDigits("train")] if handwriting_available() else [None]
        self.scenes: list[Scene] = []
        parts = []
        with torch.no_grad(), tqdm(total=count, desc="image features", unit="scene", leave=False) as bar:
            for start in range(0, count, 250):
                scenes = [sample_scene(rng) for _ in range(min(250, count - start))]
                images = [
                    Image.fromarray(render(scene, rng, styles[index % len(styles)])[0])
                    for index, scene in enumerate(scenes)
                ]
                pixels = loaded.processor(images=images, return_tensors="pt").pixel_values
                parts.append(loaded.model.vision_model(pixels).last_hidden_state)
                self.scenes += scenes
                bar.update(len(scenes))
        self.features = torch.cat(parts)


class EndlessQuestions(IterableDataset):
    """Worded questions about the scenes of a bank, without end; ``scene_index`` says which scene."""

    def __init__(self, scenes: Sequence[Scene], seed: int) -> None:
        self.scenes = scenes
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng([self.seed, 3])
        while True:
            task = TASKS[rng.integers(len(TASKS))]
            index = int(rng.integers(len(self.scenes)))
            row = make_row(task, self.scenes[index], rng)
            if row is not None:
                yield {**row, "scene_index": index}


class FeatureCollator:
    """Encodes rows as the processor does, with the bank's features in place of pixels."""

    def __init__(self, processor: Any, features: torch.Tensor) -> None:
        self.processor = processor
        self.features = features
        self.blank = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.processor.encode_examples([{**row, "images": [self.blank]} for row in rows])
        del batch["pixel_values"]
        batch["image_embeds"] = self.features[[row["scene_index"] for row in rows]]
        return dict(batch)


def balanced_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross-entropy in which an answer of n tokens weighs as much as the root of n, so that captions, many times
    longer than the word that answers a question, do not take up most of the little time.

    Args:
        outputs: Model output with ``logits`` of shape (batch, tokens, vocabulary).
        labels (`torch.Tensor`): Shape (batch, tokens), -100 where nothing is to be predicted.
        num_items_in_batch (*optional*): Of Trainer; not needed for a mean over rows.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE_INDEX  # [batch, tokens - 1]
    logits = outputs.logits[:, :-1][chosen].float()
    losses = torch.nn.functional.cross_entropy(logits, targets[chosen], reduction="none")
    weights = chosen.sum(1, keepdim=True).rsqrt().expand_as(chosen)[chosen]
    return (losses * weights).sum() / len(labels)


class Clock(TrainerCallback):
    """Stops training when its time is up, and shows the seconds and the loss in a progress bar."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started: float | None = None
        self.bar: Any = None

    def elapsed(self) -> float:
        """Seconds since the first step, and 0 before."""
        return 0.0 if self.started is None else time.perf_counter() - self.started

    def learning_rate_factor(self, step: int) -> float:
        """Warm-up and cosine over the time there is, however many steps that will be."""
        elapsed = self.elapsed()
        warmup = min(WARMUP_SECONDS, 0.1 * self.seconds)
        return min(1.0, (elapsed + 0.1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, elapsed / self.seconds)))

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.started = time.perf_counter()
        layout = "training: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
        self.bar = tqdm(total=self.seconds, bar_format=layout)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(min(self.elapsed(), self.seconds) - self.bar.n)
        if self.elapsed() >= self.seconds:
            control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss")
        if loss is not None:
            self.bar.set_postfix_str(f"step {state.global_step}, loss {float(loss):.3f}")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.close()


def build_trainer(loaded: LoadedModel, seed: int, seconds: float) -> tuple[VisionLanguageTrainer, SceneBank]:
    """The trainer of the demo, with its scenes."""
    # At this size eager attention has the faster backward pass on a CPU.
    loaded.model.set_attn_implementation("eager")
    bank = SceneBank(loaded, SCENES, seed)
    clock = Clock(seconds)
    trainer = VisionLanguageTrainer(
        loaded.model,
        TrainingArguments(
            output_dir=tempfile.gettempdir(),
            max_steps=1_000_000,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            adam_beta2=0.98,
            weight_decay=0.03,
            bf16=True,
            use_cpu=True,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=1 if sys.platform == "linux" else 0,
            dataloader_pin_memory=False,
            seed=seed,
        ),
        freezing="instructblip-strict",
        data_collator=FeatureCollator(loaded.processor, bank.features),
        train_dataset=EndlessQuestions(bank.scenes, seed),
        callbacks=[clock],
        compute_loss_func=balanced_loss,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, clock.learning_rate_factor)
    return trainer, bank
