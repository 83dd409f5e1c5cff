"""Training with a frozen vision tower and language model: stock transformers and stock Trainer against this package.

    python examples/benchmarks/frozen_training.py --size mid
    python examples/benchmarks/frozen_training.py --size deep
    python examples/benchmarks/frozen_training.py --size mid --questions 4

Both sides train the same weights on the same rows: the Q-Former, its queries and the projection, with bfloat16 weights and
AdamW, as the preset `instructblip-strict`. The stock side has `requires_grad=False` on what is frozen and the same
collator. Each side is a process of one thread with its own Trainer; they take optimiser steps in turn, and a step's time
is the CPU time that its process used, decoding of images included. Other work on the machine takes memory bandwidth and
makes both sides slower, several times where there is much of it: let the machine be quiet. Every step's rows are the same on
both sides, and dropout is off. Before anything is timed the losses of both are compared, in float32 and in bfloat16; if
they differ, nothing is timed.

Memory growth is the peak of resident memory while a micro-batch runs forward and backward, over that at its start, with
weights, gradients and the optimiser's state in place: of the median micro-batch, and of the largest in a step. It is measured
in steps of its own, in which malloc of both sides gives freed tensors back at once. Numbers are medians over steps. Linux
alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from harness import forget_peak, memory


BATCH = 8
SIDES = ("stock", "ours")
LEVERS = ("features", "labels", "lengths", "activations", "shared")
ATTENTION: dict[str, Any] = {
    "sdpa": "sdpa",
    "eager": "eager",
    "eager-qformer": {"": "sdpa", "qformer_config": "eager"},
}


class Size(NamedTuple):
    """Layers of ViT-g; width and layers of a LLaMA; micro-batches of an optimiser step; width of the rest if not true."""

    vision_layers: int
    text_width: int
    text_layers: int
    accumulation: int
    width: int | None = None

    @property
    def rows(self) -> int:  # of an optimiser step, and images that there are
        return BATCH * self.accumulation


SIZES = {"mid": Size(4, 768, 12, 4), "deep": Size(39, 512, 4, 2), "tiny": Size(1, 64, 1, 2, 64)}


# --- the work ---------------------------------------------------------------------------------------------------------


def configuration(size: Size, image_token_id: int) -> dict[str, Any]:
    """True widths of vision tower and Q-Former (186M) but for `tiny`; a LLaMA of 134M (mid) or 46M (deep)."""
    vision: dict[str, Any] = {"num_hidden_layers": size.vision_layers, "initializer_range": 0.02}
    qformer: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if size.width:
        shape = {"hidden_size": size.width, "num_attention_heads": 4, "intermediate_size": 2 * size.width}
        vision |= shape
        qformer |= {**shape, "num_hidden_layers": 2, "encoder_hidden_size": size.width}
    return {
        "vision_config": vision,
        "qformer_config": qformer,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 1000 if size.width else 32000,
            "hidden_size": size.text_width,
            "intermediate_size": size.text_width * 8 // 3,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_width // 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "num_query_tokens": 32,
        "image_token_index": image_token_id,
    }


def write_work(folder: Path, size: Size, questions: int, steps: int) -> None:
    """JPEG files of 640x480, and rows whose prompts have 4 to 76 words (mean about 21), answers 1 to 40 (mean 9)."""
    import numpy as np
    from PIL import Image

    generator = random.Random(0)
    for number in range(size.rows):
        coarse = np.random.RandomState(number).randint(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480)).save(folder / f"{number}.jpg")
    words = ["what", "color", "is", "the", "circle", "red", "blue", "square"]

    def text(mean: float, least: int, most: int) -> str:
        count = min(most, least + int(generator.expovariate(1 / (mean - least))))
        return " ".join(generator.choice(words) for _ in range(count))

    rows = [
        {
            "images": [str(folder / f"{number // questions % size.rows}.jpg")],
            "prompt": text(21, 4, 76) + " ?",
            "completion": text(9, 1, 40),
        }
        for number in range(size.rows * questions * steps)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


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

    ours, size = options.side == "ours", SIZES[options.size]
    levers = options.levers if ours else []
    tokenizer = build_tokenizer()
    processor = InstructBlipProcessor(
        transformers.BlipImageProcessorPil(size={"height": 224, "width": 224}),
        tokenizer,
        build_tokenizer(for_qformer=True, model_max_length=128),
        num_query_tokens=32,
    )
    torch.manual_seed(0)
    config = configuration(size, tokenizer.convert_tokens_to_ids("<image>"))
    model: Any = InstructBlipForConditionalGeneration(InstructBlipConfig(**config))
    if not ours:
        weights = model.state_dict()
        model = transformers.InstructBlipForConditionalGeneration(transformers.InstructBlipConfig(**config))
        model.load_state_dict(weights, assign=True)
        del weights
    model.set_attn_implementation(ATTENTION[options.attention if ours else options.stock_attention])
    apply_freezing(model, "instructblip-strict")
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
        say(features=time.process_time() - begin)
    mixture = Mixture(
        {"rows": len(rows)},
        group_by_image=options.questions,
        image_orders={"rows": image_order(rows, options.questions)},
        group_by_length=int("lengths" in levers),
    )
    steps = 1 + 2 * options.steps
    dataset = MixtureDataset({"rows": rows}, mixture, steps * size.rows)
    arguments = transformers.TrainingArguments(
        str(folder / f"out-{options.side}"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=size.accumulation,
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


# --- both in turn -----------------------------------------------------------------------------------------------------


class Side:
    """The process of a side."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, "--side", name, "--folder", str(folder), "--size", options.size]
        command += ["--steps", str(options.steps), "--questions", str(options.questions)]
        command += ["--stock-attention", options.stock_attention, "--attention", options.attention]
        command += ["--levers", *options.levers]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self.name, self.log, self.features = name, folder / f"{name}.log", 0.0
        self.measured: dict[str, list[Any]] = {"time": [], "memory": []}

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"the process of {self.name} ended:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        return dict(json.loads(line))

    def prepare(self) -> float:
        """Waits until training can begin, and gives the loss in float32."""
        exact = self.hear()["exact"]
        while "ready" not in (said := self.hear()):
            self.features = said["features"]
        return float(exact)

    def medians(self) -> tuple[float, float, float]:
        """Seconds of a step; growth of memory of a micro-batch, and of the largest of a step."""
        seconds, growth = self.measured["time"], self.measured["memory"]
        every = [one for step in growth for one in step]
        return statistics.median(seconds), statistics.median(every), statistics.median(map(max, growth))

    def step(self, measured: str) -> dict[str, Any]:
        self.process.stdin.write(f"{measured}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.hear()


def compare(what: str, losses: dict[str, float], tolerance: float) -> None:
    difference = abs(losses["ours"] - losses["stock"]) / abs(losses["stock"])
    values = f"stock {losses['stock']:.7f}, ours {losses['ours']:.7f}, relative difference {difference:.1e}"
    print(f"{what}: {values}", flush=True)
    if not difference <= tolerance:
        raise SystemExit(f"the losses differ by more than {tolerance:g}: nothing is timed")


def measure(options: argparse.Namespace, folder: Path) -> None:
    write_work(folder, SIZES[options.size], options.questions, 1 + 2 * options.steps)
    sides: dict[str, Side] = {}
    try:
        exact = {}
        for name in SIDES:  # one after the other, as float32 weights need room
            sides[name] = Side(name, options, folder)
            exact[name] = sides[name].prepare()
        compare("loss of 2 rows, float32", exact, 1e-5)
        first = {name: side.step("loss")["loss"] for name, side in sides.items()}
        compare("loss of the first step, bfloat16", first, 1e-2)
        for measured in ("time", "memory"):
            for _ in range(options.steps):
                for side in sides.values():
                    side.measured[measured].append(side.step(measured)[measured])
    finally:
        for side in sides.values():
            side.process.kill()
    print(f"torch {version('torch')}, transformers {version('transformers')}")
    print(f"features of {SIZES[options.size].rows} images, once: {sides['ours'].features:.1f} s of CPU time\n")
    print("| | CPU seconds a step | steps | growth, MiB: median micro-batch | ratio | largest of a step | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    labels = {"stock": options.stock_attention, "ours": ", ".join([options.attention, *options.levers])}
    of_stock = sides["stock"].medians()
    for name, side in sides.items():
        seconds, median, largest = side.medians()
        cells = [f"{name} ({labels[name]})", f"{seconds:.2f}", f"{of_stock[0] / seconds:.2f}"]
        cells += [f"{median:.0f}", f"{median / of_stock[1]:.2f}", f"{largest:.0f}", f"{largest / of_stock[2]:.2f}"]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mid", help="mid: 4 layers of ViT-g; deep: 39; tiny: a test")
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps for time, and as many for memory")
    parser.add_argument("--questions", type=int, default=1, help="questions an image")
    parser.add_argument("--levers", nargs="*", choices=LEVERS, help="of this package; by default all that are of use")
    parser.add_argument("--stock-attention", default="sdpa", choices=ATTENTION, help="of the stock side")
    parser.add_argument("--attention", default="sdpa", choices=ATTENTION, help="of this package's side")
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
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
