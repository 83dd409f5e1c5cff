"""BLIP-2's two stages and InstructBLIP's instruction tuning, one after the other, on the shapes world.

    python examples/blip_2/stages.py --output runs/stages

Vision tower and language model are those of the bundled pre-trained checkpoint and stay frozen throughout; the Q-Former
starts from random weights and goes through all three stages:

1. representation learning: it compares, matches and describes scenes (ITC, ITM, ITG), without a language model;
2. generative learning: it speaks to the frozen language model, by captions;
3. instruction tuning: it reads the instruction, and answers questions of all task types.

Each stage is a folder that the next one starts from (a run that was stopped goes on with what is missing), and is measured
on scenes it has not seen. ``results.json`` has the figures, ``stages.png`` the curves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from instructblip_hf import (
    Blip2ForConditionalGeneration,
    Blip2ForPreTraining,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Blip2VisionModel,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    bundled_checkpoint,
    start_instruction_tuning,
    start_second_stage,
)
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import TASKS, ShapesWorld, score
from instructblip_hf.evaluation.metrics.retrieval import retrieval_recall
from instructblip_hf.retrieval import RetrievalEncoder, retrieval_scores
from instructblip_hf.training import VisionLanguageTrainer


CHECKPOINT = "instructblip-shapes-tiny-pretrained"
ATTENTION = "eager"  # on a CPU its backward pass is the faster one at this size
INITIAL_QUERIES, INITIAL_HEADS = 0.5, 0.08
"""Standard deviations of new queries and heads; BERT's 0.02 is made for wider layers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for models, figures and curves")
    parser.add_argument("--steps", type=int, nargs=3, default=[600, 400, 900], metavar="N", help="of the three stages")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=500, help="unseen scenes to measure on, and questions a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    output = Path(args.output)
    results_file = output / "results.json"
    results: dict[str, Any] = json.loads(results_file.read_text()) if results_file.exists() else {}
    for number, (name, begin, measure, tasks) in enumerate(STAGES):
        folder = output / name
        if name in results:
            continue
        torch.manual_seed(args.seed + number)
        model, processor = begin(output)
        started, cpu_started = time.perf_counter(), time.process_time()
        curves = train(model, processor, tasks, folder, args.steps[number], args, number)
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        results[name] = {
            "steps": args.steps[number],
            **{key: round(value) for key, value in seconds.items()},
            **measure(model.eval(), processor, args.scenes),
            "curves": curves,
        }
        # A whole file in the place of the old one, so that a stage that is in it is done.
        incoming = results_file.with_suffix(".incoming")
        incoming.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        incoming.replace(results_file)
        shown = {key: value for key, value in results[name].items() if key != "curves"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
    plot(results, output / "stages.png")


# --- what each stage begins with ------------------------------------------------------------------------------------


def begin_first_stage(_: Path) -> tuple[Blip2ForPreTraining, Blip2Processor]:
    """Vision tower of the bundled checkpoint, everything else new; with a BERT in place of `None` its text side is not."""
    base = InstructBlipForConditionalGeneration.from_pretrained(bundled_checkpoint(CHECKPOINT))
    parts = InstructBlipProcessor.from_pretrained(bundled_checkpoint(CHECKPOINT))
    tokenizer = parts.qformer_tokenizer
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    processor = Blip2Processor(parts.image_processor, tokenizer, num_query_tokens=base.config.num_query_tokens)
    tower = Blip2VisionModel(Blip2VisionConfig(**options_of(base.config.vision_config)))
    tower.load_state_dict(base.vision_model.state_dict())
    model = Blip2ForPreTraining.from_vision_bert_pretrained(
        tower,
        None,
        num_query_tokens=base.config.num_query_tokens,
        image_text_hidden_size=64,
        processor=processor,
        qformer_config=Blip2QFormerConfig(**options_of(base.config.qformer_config)),
    )
    nn.init.normal_(model.query_tokens, std=INITIAL_QUERIES)
    for head in (model.vision_projection, model.text_projection, model.itm_head):
        nn.init.normal_(head.weight, std=INITIAL_HEADS)
    return model, processor


def begin_second_stage(output: Path) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    base = InstructBlipForConditionalGeneration.from_pretrained(bundled_checkpoint(CHECKPOINT))
    tokenizer = InstructBlipProcessor.from_pretrained(bundled_checkpoint(CHECKPOINT)).tokenizer
    first = Blip2Processor.from_pretrained(output / "first_stage")
    processor = Blip2Processor(first.image_processor, tokenizer, num_query_tokens=first.num_query_tokens)
    model, report = start_second_stage(output / "first_stage", base.language_model, processor)
    print(report, flush=True)
    nn.init.normal_(model.language_projection.weight, std=INITIAL_HEADS)
    return model, processor


def begin_instruction_tuning(output: Path) -> tuple[InstructBlipForConditionalGeneration, InstructBlipProcessor]:
    first = Blip2Processor.from_pretrained(output / "first_stage")
    second = Blip2Processor.from_pretrained(output / "second_stage")
    processor = InstructBlipProcessor(
        second.image_processor, second.tokenizer, first.tokenizer, num_query_tokens=second.num_query_tokens
    )
    model, report = start_instruction_tuning(output / "second_stage", output / "first_stage", processor)
    print(report, flush=True)
    return model, processor


def options_of(config: Any) -> dict[str, Any]:
    """A part's configuration without its family's name."""
    left_out = ("model_type", "architectures", "dtype", "transformers_version", "_name_or_path")
    return {name: value for name, value in config.to_dict().items() if name not in left_out}


# --- training -------------------------------------------------------------------------------------------------------


class Captions(ShapesWorldDataset):
    """Scenes with their captions and no instruction, as both stages of BLIP-2 read them."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        return {"images": row["images"], "prompt": "", "completion": row["completion"]}


def train(
    model: Any, processor: Any, tasks: tuple[str, ...], folder: Path, steps: int, args: Any, number: int
) -> dict[str, list[list[float]]]:
    """Trains and saves a stage; returns its losses, by name, as pairs of step and value."""
    model.set_attn_implementation(ATTENTION)
    kind = ShapesWorldDataset if number == 2 else Captions
    trainer = VisionLanguageTrainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, steps // 4),
            adam_beta2=0.98,
            weight_decay=0.05,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=True,
            dataloader_num_workers=1,
            dataloader_pin_memory=False,
            eval_strategy="steps",
            eval_steps=max(steps // 6, 1),
            logging_steps=max(steps // 30, 1),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=args.seed + number,
        ),
        processor,
        freezing=("blip2-stage1", "blip2-stage2", "instructblip")[number],
        train_dataset=kind(ShapesWorld(args.seed + 100 + number, tasks=tasks), steps * args.batch_size),
        eval_dataset=kind(ShapesWorld(args.seed + 200 + number, "test", tasks=tasks), 512),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    curves = defaultdict(list)
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if name.removeprefix("eval_").startswith("loss"):
                curves[name].append([entry["step"], value])
    return dict(curves)


# --- measuring ------------------------------------------------------------------------------------------------------


def measure_first_stage(model: Blip2ForPreTraining, processor: Blip2Processor, scenes: int) -> dict[str, Any]:
    """Recall among unseen scenes of different captions, by LAVIS's scores, and how often the matching head is right."""
    rows = distinct_captions(scenes)
    images, texts = [row["images"][0] for row in rows], [row["completion"] for row in rows]
    encoder = RetrievalEncoder(model, processor)
    to_texts, to_images = retrieval_scores(encoder, images, texts, progress=False)
    recall = retrieval_recall(
        np.concatenate([to_texts, to_images]),
        ["image_to_text"] * scenes + ["text_to_image"] * scenes,
        [[place] for place in range(scenes)] * 2,
    )
    matched = []
    with torch.no_grad():
        for shift in (0, 1):
            batch = processor.encode_captions(
                [{"images": row["images"], "completion": texts[place - shift]} for place, row in enumerate(rows)]
            )
            logits = model.get_matching_logits(
                batch["input_ids"], batch["attention_mask"], pixel_values=batch["pixel_values"]
            )
            matched.append((logits.argmax(1) == 1 - shift).float().mean().item())
    return {
        "image_to_text": {f"R@{k}": round(recall[f"txt_r{k}"], 3) for k in (1, 5, 10)},
        "text_to_image": {f"R@{k}": round(recall[f"img_r{k}"], 3) for k in (1, 5, 10)},
        "chance_R@1": round(1 / scenes, 4),
        "matching": {"right captions": round(matched[0], 3), "wrong captions": round(matched[1], 3)},
        "temperature": round(model.temp.item(), 4),
    }


def distinct_captions(count: int) -> list[dict[str, Any]]:
    """Unseen scenes, no two of which have the same caption."""
    world = ShapesWorld(900, "test", tasks=("caption",))
    rows: dict[str, dict[str, Any]] = {}
    index = 0
    while len(rows) < count:
        row = world.example(index)
        rows.setdefault(row["completion"], row)
        index += 1
    return list(rows.values())


def measure_second_stage(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, scenes: int
) -> dict[str, Any]:
    """How many captions of unseen scenes name every object and invent none, and some of them."""
    rows = [ShapesWorld(901, "test", tasks=("caption",)).example(index) for index in range(scenes)]
    said = answer(model, processor, [{**row, "prompt": ""} for row in rows])
    right = [score(row, text) for row, text in zip(rows, said)]
    return {
        "captions": round(sum(right) / scenes, 3),
        "examples": [[row["completion"], text] for row, text in zip(rows[:6], said)],
    }


def measure_instruction_tuning(
    model: InstructBlipForConditionalGeneration, processor: InstructBlipProcessor, scenes: int
) -> dict[str, Any]:
    """Accuracy on unseen scenes, by task type."""
    accuracy = {}
    for task in sorted(QUESTIONS):
        world = ShapesWorld(902, "test", tasks=(task,))
        rows = [world.example(index) for index in range(scenes)]
        said = answer(model, processor, rows)
        accuracy[task] = round(sum(score(row, text) for row, text in zip(rows, said)) / scenes, 3)
    return {"accuracy": accuracy, "mean": round(sum(accuracy.values()) / len(accuracy), 3)}


@torch.no_grad()
def answer(model: Any, processor: Any, rows: list[dict[str, Any]], batch_size: int = 100) -> list[str]:
    """Greedy completions."""
    texts: list[str] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        inputs = processor(
            images=[row["images"] for row in part],
            text=[row["prompt"] for row in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        ids = model.generate(**inputs, return_full_text=False, do_sample=False, max_new_tokens=40)
        texts += processor.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def plot(results: dict[str, Any], path: Path) -> None:
    """Losses on new scenes while training, stage by stage."""
    from matplotlib.figure import Figure

    # Without pyplot, which keeps figures and picks a window system.
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = ("1. representation: ITC, ITM, ITG", "2. generation with a frozen LLM", "3. instruction tuning")
    for axis, title, (name, *_) in zip(axes, titles, STAGES):
        curves = results[name]["curves"]
        parts = [part for part in curves if part.startswith("loss_")] or ["loss"]
        for color, part in enumerate(sorted(parts)):
            label = part.removeprefix("loss_").upper() if part != "loss" else "loss"
            axis.plot(*zip(*curves[part]), color=f"C{color}", label=f"{label}, training")
            axis.plot(*zip(*curves[f"eval_{part}"]), "o", color=f"C{color}", ms=4, label=f"{label}, unseen scenes")
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("step")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    axes[0].set_ylabel("loss, nats")
    figure.savefig(path, dpi=110)


# Dialogues and generated questions are left to the longer trainings of examples/shapes_world.
QUESTIONS = tuple(task for task in TASKS if task not in ("dialogue", "question"))
STAGES = (
    ("first_stage", begin_first_stage, measure_first_stage, ("caption",)),
    ("second_stage", begin_second_stage, measure_second_stage, ("caption",)),
    ("instruction_tuning", begin_instruction_tuning, measure_instruction_tuning, QUESTIONS),
)


if __name__ == "__main__":
    main()
