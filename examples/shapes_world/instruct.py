"""Instruction-tunes the tiny InstructBLIP: vision tower and language model frozen, a new Q-Former learns.

Third step, after ``pretrain.py``:

    python examples/shapes_world/instruct.py --pretrained runs/shapes/pretrained --output runs/shapes/instruct --seed 1

As in the paper (section 2.4), only Q-Former, query tokens and projection are trained. They start from random weights
drawn with ``--seed``, so that everything they know about instructions is learned here. Training is
`VisionLanguageTrainer` with cached vision features; ``instructblip train shapes_instruct`` does the same from
pictures, slower.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    ATTENTION,
    QFORMER_SIDE,
    QuestionSampler,
    RowEncoder,
    answer_loss,
    cached_bank,
    forced_accuracy,
    row_length,
    weights_from,
)
from pretrain_vision import PIXEL_MEAN, PIXEL_STD
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainingArguments

from instructblip_hf.models.instructblip import InstructBlipForConditionalGeneration
from instructblip_hf.training.initialization import reinitialize
from instructblip_hf.training.trainer import VisionLanguageTrainer


PARTS = 2
"""Micro-batches an optimiser step: long rows apart from short ones, for the same gradient with less padding."""


class EndlessQuestions(IterableDataset):
    """Rows of a `QuestionSampler`, each optimiser step's rows sorted by length."""

    def __init__(self, sampler: QuestionSampler, rows_per_step: int) -> None:
        self.sampler = sampler
        self.rows_per_step = rows_per_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from sorted(self.sampler.draw(self.rows_per_step), key=row_length)


class Monitor(TrainerCallback):
    """Prints the accuracy on rows about scenes that are not trained on."""

    def __init__(self, encoder: RowEncoder, rows: list[dict[str, Any]], every: int) -> None:
        self.encoder = encoder
        self.rows = rows
        self.every = every
        self.started = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            report = {
                "step": state.global_step,
                "seconds": round(time.time() - self.started),
                "cpu_seconds": round(time.process_time()),
            }
            print(json.dumps({**report, **forced_accuracy(model, self.encoder, self.rows)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True, help="folder that pretrain.py wrote")
    parser.add_argument("--output", required=True, help="folder for the model")
    parser.add_argument("--qformer-from", help="folder whose Q-Former to go on from, instead of a new one")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--unknown-share", type=float, default=0.02)
    parser.add_argument("--weight", action="append", default=[], help="task=relative frequency, may be repeated")
    parser.add_argument("--scenes", type=int, default=24000)
    parser.add_argument("--bank-seed", type=int, default=0, help="seed of the training scenes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-every", type=int, default=200)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = InstructBlipForConditionalGeneration.from_pretrained(args.pretrained, attn_implementation=ATTENTION)
    if args.qformer_from:
        trained = InstructBlipForConditionalGeneration.from_pretrained(args.qformer_from).state_dict()
        kept = {name: trained[name] for name in trained if name.startswith(QFORMER_SIDE)}
        model.load_state_dict({**model.state_dict(), **kept})
    else:
        reinitialize(model, QFORMER_SIDE, seed=args.seed)
    folder = Path(args.pretrained).parent
    vision = model.vision_model
    bank = cached_bank(vision, args.scenes, args.bank_seed, PIXEL_MEAN, PIXEL_STD, folder / "bank.pt")
    unseen = cached_bank(vision, 1000, args.bank_seed + 1000, PIXEL_MEAN, PIXEL_STD, folder / "bank_check.pt")
    sampler = QuestionSampler(bank, args.seed + 100, weights_from(args.weight))
    check_rows = QuestionSampler(unseen, 77, dict.fromkeys(sampler.tasks, 1.0)).draw(1300)
    trainer = VisionLanguageTrainer(
        model,
        TrainingArguments(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size // PARTS,
            gradient_accumulation_steps=PARTS,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            adam_beta2=0.98,
            weight_decay=0.03,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=True,
            seed=args.seed,
            logging_steps=args.report_every,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        freezing="instructblip-strict",
        data_collator=RowEncoder(bank, args.unknown_share, args.seed),
        train_dataset=EndlessQuestions(sampler, args.batch_size),
        compute_loss_func=partial(answer_loss, parts=PARTS),
        callbacks=[Monitor(RowEncoder(unseen), check_rows, args.report_every)],
    )
    print(trainer.freezing_report)
    trainer.train()
    model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
