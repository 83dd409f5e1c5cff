"""Training with a frozen vision tower and language model: stock model and stock Trainer, LAVIS's model, and this package.

    python examples/benchmarks/run.py --output outputs/benchmarks --subjects frozen_training
    python examples/benchmarks/frozen_training.py --questions 4 --attention eager-qformer

The first is the subject among the others; the second measures one setting of its own choice and prints it.

All sides train the same weights on the same rows: the Q-Former, its queries and the projection, with bfloat16 weights and
AdamW, as the preset `instructblip-strict`. The stock side has `requires_grad=False` on what is frozen and the same collator; so
has LAVIS's, `Blip2VicunaInstruct.forward` in stock's Trainer. Each side is a process of one thread; they take optimiser steps
in turn, and a step's time is the CPU time that its process used, decoding of images included. Other work on the machine takes
memory bandwidth and makes all sides slower, several times where there is much of it: let the machine be quiet. Every step's
rows are the same on all sides, and dropout is off. Before anything is timed the losses are compared, in float32 and in
bfloat16; if they differ, nothing is timed.

Memory is the peak of resident memory while a micro-batch runs forward and backward, over that at its start, with weights,
gradients and the optimiser's state in place: of the largest micro-batch in two optimiser steps of their own, in which malloc
of all sides gives freed tensors back at once. CPU and Linux alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Case, Settings, WrongResult, as_json, forget_peak, measure, memory, memory_table, table
from lavis_models import Lavis
from options import Options

from models import SIZES, configuration


BATCH = 8
ACCUMULATION = {"mid": 4, "deep": 2, "tiny": 2, "7b": 4}
SIDES = ("stock", "LAVIS", "ours")
LEVERS = ("features", "labels", "lengths", "activations", "shared")
ATTENTION: dict[str, Any] = {
    "sdpa": "sdpa",
    "eager": "eager",
    "eager-qformer": {"": "sdpa", "qformer_config": "eager"},
}
MEMORY_STEPS = 2


# --- the work ---------------------------------------------------------------------------------------------------------


def write_work(folder: Path, images: int, rows: int, questions: int = 1) -> None:
    """JPEG files of 640x480, and rows whose prompts have 4 to 76 words (mean about 21), answers 1 to 40 (mean 9)."""
    import numpy as np
    from PIL import Image

    generator = random.Random(0)
    for number in range(images):
        coarse = np.random.RandomState(number).randint(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480)).save(folder / f"{number}.jpg")
    words = ["what", "color", "is", "the", "circle", "red", "blue", "square"]

    def text(mean: float, least: int, most: int) -> str:
        count = min(most, least + int(generator.expovariate(1 / (mean - least))))
        return " ".join(generator.choice(words) for _ in range(count))

    written = [
        {
            "images": [str(folder / f"{number // questions % images}.jpg")],
            "prompt": text(21, 4, 76) + " ?",
            "completion": text(9, 1, 40),
        }
        for number in range(rows)
    ]
    (folder / "rows.json").write_text(json.dumps(written), encoding="utf-8")


# --- one side ---------------------------------------------------------------------------------------------------------


def work(options: argparse.Namespace, folder: Path) -> None:
    """A side's process: says what it measured, one line of JSON a step, and waits for a line before the next."""
    import torch
    import transformers

    from instructblip_hf import InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor
    from instructblip_hf.data.collators import VisionLanguageCollator
    from instructblip_hf.data.image_groups import image_order
    from instructblip_hf.data.mixture import Mixture, MixtureDataset
    from instructblip_hf.data.sources.shapes_world import build_tokenizer
    from instructblip_hf.training import VisionLanguageTrainer, apply_freezing
    from instructblip_hf.training.image_features import ImageFeatures

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Trainer prints its logs

    def say(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    ours, accumulation = options.side == "ours", ACCUMULATION[options.size]
    levers = options.levers if ours else []
    tokenizer = build_tokenizer()
    processor = InstructBlipProcessor(
        transformers.BlipImageProcessorPil(size={"height": 224, "width": 224}),
        tokenizer,
        build_tokenizer(for_qformer=True, model_max_length=128),
        num_query_tokens=32,
    )
    torch.manual_seed(0)
    config = configuration(SIZES[options.size], tokenizer.convert_tokens_to_ids("<image>"))
    model: Any = InstructBlipForConditionalGeneration(InstructBlipConfig(**config))
    if not ours:
        weights = model.state_dict()
        model = transformers.InstructBlipForConditionalGeneration(transformers.InstructBlipConfig(**config))
        model.load_state_dict(weights, assign=True)
        del weights
    model.set_attn_implementation(ATTENTION[options.attention if ours else options.stock_attention])
    apply_freezing(model, "instructblip-strict")
    if options.side == "LAVIS":
        from lavis_training import InTrainer

        model = InTrainer(Lavis(options.lavis).instruct(model), model.config.image_token_id)
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    collator = VisionLanguageCollator(processor, share_images="shared" in levers)
    with torch.no_grad():
        batch = collator(rows[:2])
        exact = model.eval()(**batch, **({"logits_at_labels": True} if "labels" in levers else {})).loss
    say(exact=exact.item())
    model.to(torch.bfloat16)
    # Gradients stay where they are between steps, so that a step's growth is what its micro-batches need.
    model.zero_grad = functools.partial(model.zero_grad, set_to_none=False)

    features = None
    if "features" in levers:
        features = ImageFeatures(model, processor.image_processor, folder / f"features-{options.side}")
        collator.image_inputs = features.reader
        begin = time.process_time()
        images = sorted({row["images"][0] for row in rows})
        for first in range(0, len(images), BATCH):
            some = [{**rows[0], "images": [image]} for image in images[first : first + BATCH]]
            features.complete(collator(some))
        say(features=time.process_time() - begin, images=len(images))
    mixture = Mixture(
        {"rows": len(rows)},
        group_by_image=options.questions,
        image_orders={"rows": image_order(rows, options.questions)},
        group_by_length=int("lengths" in levers),
    )
    dataset = MixtureDataset({"rows": rows}, mixture, len(rows))
    arguments = transformers.TrainingArguments(
        str(folder / f"out-{options.side}"),
        max_steps=len(rows) // (BATCH * accumulation),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-5,
        weight_decay=0.05,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    losses: list[float] = []
    growth: list[float] = []

    class Turns(transformers.TrainerCallback):
        def wait(self) -> None:
            """Until the other side has done its step. Time is not measured where memory is, as that costs time."""
            self.is_memory = sys.stdin.readline().strip() == "memory"
            losses.clear()
            growth.clear()
            self.begin = time.process_time()

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            say(ready=True)
            self.wait()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            say(time=time.process_time() - self.begin, memory=growth, loss=sum(losses))
            self.wait()

    turns = Turns()
    common = {"args": arguments, "train_dataset": dataset, "data_collator": collator, "callbacks": [turns]}
    if ours:
        trainer: Any = VisionLanguageTrainer(
            model,
            processing_class=processor,
            freezing="instructblip-strict",
            image_features=features,
            logits_at_labels="labels" in levers,
            recompute_activations="activations" in levers,
            **common,
        )
    else:
        trainer = transformers.Trainer(model, **common)
    training_step = trainer.training_step

    def noting(*args: Any, **kwargs: Any) -> Any:
        before = forget_peak() if turns.is_memory else 0.0
        loss = training_step(*args, **kwargs)
        losses.append(float(loss))
        growth.append(memory("VmHWM") - before)
        return loss

    trainer.training_step = noting
    trainer.train()


# --- all in turn ------------------------------------------------------------------------------------------------------


class Side:
    """The process of a side; called, it does an optimiser step and gives the loss."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, "--side", name, "--folder", str(folder), "--size", options.size]
        command += ["--questions", str(options.questions), "--levers", *options.levers]
        command += ["--stock-attention", options.stock_attention, "--attention", options.attention]
        command += ["--lavis", str(options.lavis)] if options.lavis is not None else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.log = folder / f"{name}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self.name = name

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"the process of {self.name} ended:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        return dict(json.loads(line))

    def prepare(self) -> float:
        """Waits until training can begin, and gives the loss of two rows in float32."""
        exact = float(self.hear()["exact"])
        while "ready" not in (said := self.hear()):
            print(f"features of {said['images']} images, once: {said['features']:.1f} s of CPU time", flush=True)
        return exact

    def step(self, measured: str) -> dict[str, Any]:
        self.process.stdin.write(f"{measured}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.hear()

    def __call__(self) -> float:
        return float(self.step("loss")["loss"])

    def seconds(self) -> float:
        return float(self.step("time")["time"])

    def peak(self) -> float:
        return max(growth for _ in range(MEMORY_STEPS) for growth in self.step("memory")["memory"])


def cases(options: Options, pair: Any = None) -> Iterator[Case]:
    """One question an image, and in the whole several, with the attention that is the default."""
    if options.device != "cpu" or not Path("/proc/self/clear_refs").exists():
        print("frozen_training: measured on a CPU under Linux alone", flush=True)
        return
    lavis = options.lavis.root if options.lavis is not None else None
    for questions in [1, 4] if not options.is_quick else [1]:
        setting = argparse.Namespace(
            size=options.size, questions=questions, stock_attention="sdpa", attention="sdpa", lavis=lavis
        )
        setting.levers = list(LEVERS if questions > 1 else LEVERS[:4])
        yield from case(setting, 3 if not options.is_quick else 2)


def case(options: argparse.Namespace, rounds: int) -> Iterator[Case]:
    """A case whose ways are processes, which end with it."""
    rows_a_step = BATCH * ACCUMULATION[options.size]
    sides: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_work(folder, rows_a_step, rows_a_step * (2 + rounds + MEMORY_STEPS), options.questions)
        try:
            exact = {}
            for name in SIDES:  # one after the other, as float32 weights need room
                if name != "LAVIS" or options.lavis is not None:
                    sides[name] = Side(name, options, folder)
                    exact[name] = sides[name].prepare()
            for name, loss in exact.items():
                if not abs(loss - exact["stock"]) <= 1e-5 * abs(exact["stock"]):
                    raise WrongResult(f"the loss of 2 rows in float32 is {loss} of {name}, {exact['stock']} of stock")
            yield Case(
                "training step",
                {"questions": options.questions, "attention": f"{options.stock_attention}, {options.attention}"},
                "questions",
                dict(sides),
                1e-2,  # in bfloat16
                lambda expected, found: abs(found - expected) / abs(expected),
                clock=lambda side: side.seconds(),  # type: ignore[attr-defined]
                memory=lambda side: side.peak(),  # type: ignore[attr-defined]
                missing={} if options.lavis is not None else {"LAVIS": "no --lavis"},
                rounds=rounds,
            )
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=ACCUMULATION, default="mid", help="mid: 4 layers of ViT-g; deep: 39")
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps for time")
    parser.add_argument("--questions", type=int, default=1, help="questions an image")
    parser.add_argument("--levers", nargs="*", choices=LEVERS, help="of this package; by default all that are of use")
    parser.add_argument("--stock-attention", default="sdpa", choices=ATTENTION, help="of the stock side")
    parser.add_argument("--attention", default="sdpa", choices=ATTENTION, help="of this package's side")
    parser.add_argument("--lavis", type=Path, help="a clone of LAVIS's repository, to time it too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        parser.error("memory is read from /proc, which Linux alone has")
    if options.levers is None:
        options.levers = list(LEVERS if options.questions > 1 else LEVERS[:4])
    if options.side is not None:
        work(options, options.folder)
        return
    for one in case(options, options.steps):
        rows = as_json(measure(one, Settings(seconds=float("inf"))))
        print(f"{table(rows)}\n\nMemory at the peak, beyond weights:\n\n{memory_table(rows)}")


if __name__ == "__main__":
    main()
