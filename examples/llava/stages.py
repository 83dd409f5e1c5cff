"""LLaVA's two stages on the shapes world, with dialogues of the generator, beside InstructBLIP on the same dialogues.

    python examples/llava/shapes_dialogues.py outputs/shapes-llava --images 10000
    python examples/llava/stages.py outputs/shapes-llava --output outputs/llava-stages

Vision tower and language model are those of the bundled pre-trained checkpoint. LLaVA's first stage trains a new connector on
captions, its second connector and language model on the dialogues (arXiv 2304.08485, section 4.2); once with the paper's
linear layer and once with the two layers of LLaVA 1.5. InstructBLIP trains a new Q-Former on the same dialogues, its language
model frozen, with a row for each question, since its Q-Former looks at the image for that question; captions without one would
teach it to read none. All answer the same questions about scenes that none has seen.

Each training is a folder; a run that was stopped goes on with what is missing. ``results.json`` has the figures, ``stages.png``
a picture of them.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from instructblip_hf import (
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    bundled_checkpoint,
)
from instructblip_hf.data.sources.llava_instruct import llava_messages
from instructblip_hf.data.sources.shapes_world import TASKS, ShapesWorld, score
from instructblip_hf.training import VisionLanguageTrainer
from instructblip_hf.training.initialization import reinitialize


CHECKPOINT = "instructblip-shapes-tiny-pretrained"
ATTENTION = "eager"  # on a CPU its backward pass is the faster one at this size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of shapes_dialogues.py")
    parser.add_argument("--output", type=Path, required=True, help="folder for models, figures and the picture")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[400, 1200], metavar="N", help="on captions, on dialogues"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="captions or dialogues a step; questions twice that"
    )
    parser.add_argument("--question-steps", type=int, default=2800, metavar="N", help="of InstructBLIP")
    parser.add_argument("--scenes", type=int, default=500, help="unseen scenes a task to ask about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    results_file = args.output / "results.json"
    results: dict[str, Any] = json.loads(results_file.read_text()) if results_file.exists() else {}
    for name, (begin, freezing, rows_of, learning_rate, steps) in trainings(args).items():
        if name in results:
            continue
        torch.manual_seed(args.seed)
        model, processor = begin()
        rows = rows_of(args.data)
        started, cpu_started = time.perf_counter(), time.process_time()
        trainer = train(model, processor, freezing, rows, args.output / name, steps, learning_rate, args)
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        if hasattr(model, "save_projector"):
            model.save_projector(args.output / name / "projector")
        results[name] = {
            "steps": steps,
            **{key: round(value) for key, value in seconds.items()},
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": round(trainer.state.log_history[-2]["loss"], 4),
            **({} if name.endswith("stage1") else measure(model.eval(), processor, args.scenes)),
        }
        # A whole file in the place of the old one, so that a training that is in it is done.
        incoming = results_file.with_suffix(".incoming")
        incoming.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        incoming.replace(results_file)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    table(results)
    plot(results, args.output / "stages.png")


def trainings(args: argparse.Namespace) -> dict[str, tuple[Any, str, Any, float, int]]:
    """What is trained, in order: how it begins, what trains, on which rows, at which learning rate, how long."""
    on_captions, on_dialogues = args.steps
    plan: dict[str, tuple[Any, str, Any, float, int]] = {}
    for kind in ("linear", "mlp"):
        first = args.output / f"llava_{kind}_stage1" / "projector"

        def second(kind: str = kind, first: Path = first) -> Any:
            model, processor = begin_llava(kind)
            model.load_projector(first)
            return model, processor

        def begin(kind: str = kind) -> Any:
            return begin_llava(kind)

        plan[f"llava_{kind}_stage1"] = (begin, "llava-stage1", captions, 2e-3, on_captions)
        plan[f"llava_{kind}_stage2"] = (second, "llava-stage2", dialogues, 1e-3, on_dialogues)

    plan["instructblip"] = (
        lambda: begin_instructblip(args.seed),
        "instructblip",
        questions,
        1e-3,
        args.question_steps,
    )
    return plan


def begin_llava(projector_type: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Vision tower and language model of the bundled checkpoint, and a new connector between them."""
    base, parts = bundled()
    tower = base.vision_model
    processor = LlavaProcessor(
        parts.image_processor,
        parts.tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    # CLIP's last layer is made for comparing, so LLaVA reads the one before; this tower was made for reading.
    model = LlavaForConditionalGeneration.from_vision_text_pretrained(
        tower, base.language_model, projector_type, processor=processor, vision_feature_layer=-1
    )
    return model, processor


def begin_instructblip(seed: int) -> tuple[InstructBlipForConditionalGeneration, InstructBlipProcessor]:
    """The bundled checkpoint with a new Q-Former."""
    model, processor = bundled()
    # Another seed than that of the pre-training, which would bring back the weights that the other parts were trained beside.
    reinitialize(model, ("qformer", "query_tokens", "language_projection"), seed=1_000_000 + seed)
    return model, processor


def bundled() -> tuple[InstructBlipForConditionalGeneration, InstructBlipProcessor]:
    folder = bundled_checkpoint(CHECKPOINT)
    return InstructBlipForConditionalGeneration.from_pretrained(folder), InstructBlipProcessor.from_pretrained(folder)


# --- data -------------------------------------------------------------------------------------------------------------


def captions(folder: Path) -> list[dict[str, Any]]:
    """Captions without a question, as LLaVA's later first stage reads them."""
    content = json.loads((folder / "coco" / "captions.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    return [
        {
            "images": [str(folder / "coco" / "images" / files[row["image_id"]])],
            "prompt": "",
            "completion": row["caption"],
        }
        for row in content["annotations"]
    ]


def dialogues(folder: Path) -> list[dict[str, Any]]:
    """The generator's conversations, the image before or after the first question, as they drew it."""
    return [
        {
            "images": [str(folder / "coco" / "images" / row["image"])],
            "messages": llava_messages(row["conversations"], 1),
        }
        for row in json.loads((folder / "data" / "llava_instruct.json").read_text())
    ]


def questions(folder: Path) -> list[dict[str, Any]]:
    """The questions of the conversations in rows of their own, the image in front, where InstructBLIP has it."""
    rows = []
    for dialogue in dialogues(folder):
        turns = [
            {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
            for message in dialogue["messages"]
        ]
        begin = 0
        for place in range(0, len(turns), 2):
            # "How big is it?" needs the exchange that named the object.
            if not re.search(r"\b(it|its)\b", turns[place]["content"][0]["text"]):
                begin = place
            prompt, completion = turns[begin : place + 1], turns[place + 1 : place + 2]
            rows.append({"images": dialogue["images"], "prompt": mark(prompt), "completion": completion})
    return rows


def mark(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with the image at their beginning."""
    first = {**turns[0], "content": [{"type": "image"}, *turns[0]["content"]]}
    return [first, *turns[1:]]


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    model: Any,
    processor: Any,
    freezing: str,
    rows: Sequence[dict[str, Any]],
    folder: Path,
    steps: int,
    learning_rate: float,
    args: argparse.Namespace,
) -> VisionLanguageTrainer:
    """Trains and saves a model."""
    model.set_attn_implementation(ATTENTION)
    trainer = VisionLanguageTrainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(0.03 * steps)),
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=True,
            dataloader_num_workers=1,
            dataloader_pin_memory=False,
            logging_steps=max(steps // 30, 1),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=args.seed,
        ),
        processor,
        freezing=freezing,
        train_dataset=list(rows),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return trainer


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(model: Any, processor: Any, scenes: int) -> dict[str, Any]:
    """Accuracy on unseen scenes, by task type."""
    accuracy = {}
    for task in QUESTIONS:
        world = ShapesWorld(902, "test", tasks=(task,))
        rows = [world.example(index) for index in range(scenes)]
        said = answer(model, processor, rows)
        accuracy[task] = round(sum(score(row, text) for row, text in zip(rows, said)) / scenes, 3)
    return {"accuracy": accuracy, "mean": round(sum(accuracy.values()) / len(accuracy), 3)}


@torch.no_grad()
def answer(model: Any, processor: Any, rows: Sequence[dict[str, Any]], batch_size: int = 100) -> list[str]:
    """Greedy completions."""
    texts: list[str] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        inputs = processor(
            images=[row["images"] for row in part],
            text=[processor.user_turn(row["prompt"]) for row in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        ids = model.generate(**inputs, return_full_text=False, do_sample=False, max_new_tokens=40)
        texts += processor.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def table(results: dict[str, Any]) -> None:
    """Prints the figures as a Markdown table."""
    models = [name for name in results if "mean" in results[name]]
    print("| task |" + "".join(f" {name} |" for name in models))
    print("|---|" + "---:|" * len(models))
    for task in QUESTIONS:
        print(f"| {task} |" + "".join(f" {results[name]['accuracy'][task]:.3f} |" for name in models))
    for what in ("mean", "trained_parameters", "cpu_seconds"):
        print(f"| {what} |" + "".join(f" {results[name][what]:,} |" for name in models))


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy by task, a bar for each model."""
    from matplotlib.figure import Figure

    models = [name for name in results if "mean" in results[name]]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(models)
    for place, name in enumerate(models):
        heights = [results[name]["accuracy"][task] for task in QUESTIONS]
        centers = [number + (place - (len(models) - 1) / 2) * width for number in range(len(QUESTIONS))]
        axis.bar(centers, heights, width, label=f"{name.removesuffix('_stage2')} ({results[name]['mean']:.3f})")
    axis.set_xticks(range(len(QUESTIONS)), QUESTIONS, rotation=20)
    axis.set_ylabel("right answers on unseen scenes")
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(models))
    figure.savefig(path, dpi=110)


# Dialogues and generated questions are left to the longer trainings of examples/shapes_world.
QUESTIONS = tuple(sorted(task for task in TASKS if task not in ("dialogue", "question")))

if __name__ == "__main__":
    main()
