"""`instructblip demo`: fresh scenes go in, answers come out beside the truth."""

from __future__ import annotations

import importlib.util
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .answering import padding_options
from .demo_report import Outcome, accuracies, check_writable, knows_notes, text_table, write_report
from .errors import user_errors
from .loading import LoadedModel


QUESTIONS_PER_CELL = 50
"""Questions for each task type and kind of wording."""

MAX_NEW_TOKENS = 40
BATCH_SIZE = 48
WORDINGS = {"seen": "wordings of training", "held_out": "wordings held out"}


def run_demo(out: Path, seed: int | None) -> None:
    """Asks the bundled model about scenes it has never seen, prints accuracies, writes a page and a picture."""
    started = time.perf_counter()
    with user_errors():
        check_writable(out)
    print("loading the bundled model ...", flush=True)
    loaded = load_bundled("instructblip-shapes-tiny")
    seed = fresh_seed() if seed is None else seed
    outcomes = []
    for templates, group in WORDINGS.items():
        rows = draw_rows(seed, QUESTIONS_PER_CELL, templates)
        outcomes += answer_rows(loaded, rows, group, f"answering, {group}")
    shares = accuracies(outcomes)
    notes = [
        f"Fresh scenes, drawn with seed {seed}: none of them was trained on. Vision tower, Q-Former and language model "
        "are an InstructBLIP in small.",
        *knows_notes(loaded.model.num_parameters()),
    ]
    with user_errors():
        page, sheet = write_report(out, "A tiny InstructBLIP answers", notes, outcomes, shares)
    print(f"\n{text_table(shares)}\n")
    print_examples(outcomes)
    print()
    for note in knows_notes(loaded.model.num_parameters()):
        print(note)
    print(f"\npage     {page}\npicture  {sheet}\nseed     {seed}  ({time.perf_counter() - started:.0f} s)")


def fresh_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(1_000_000)


def load_bundled(name: str) -> LoadedModel:
    """A bundled checkpoint on the CPU, where it is at home."""
    import torch

    from .loading import load

    # Several threads wait for each other longer than they work on matrices this small, above all on a busy machine.
    torch.set_num_threads(1)
    with user_errors():
        return load(name, device="cpu")


def handwriting_available() -> bool:
    """Whether scikit-learn, whose handwritten digits are real data, is installed."""
    return importlib.util.find_spec("sklearn") is not None


def draw_rows(seed: int, per_task: int, templates: str = "seen") -> list[dict[str, Any]]:
    """Rows about unseen scenes, the same number of every task type; half of the digits handwritten where possible."""
    from ..data.sources.shapes_world import TASKS, ShapesWorld

    styles = [False, True] if handwriting_available() else [False]
    worlds = [ShapesWorld(seed, split="test", handwritten=style, templates=templates) for style in styles]
    return [
        worlds[index % len(worlds)].example(number * per_task + index, task=task)
        for number, task in enumerate(TASKS)
        for index in range(per_task)
    ]


def answer_rows(loaded: LoadedModel, rows: Sequence[dict[str, Any]], group: str, label: str) -> list[Outcome]:
    """Generates an answer to each row, under a progress bar; of dialogues the last one, after the true turns."""
    from tqdm import tqdm

    from ..data.sources.shapes_world import score

    # A batch is done when its longest answer is, so captions go with captions.
    order = sorted(range(len(rows)), key=lambda number: (rows[number]["task"], len(instruction_of(rows[number]))))
    answers = [""] * len(rows)
    with tqdm(total=len(rows), desc=label, unit="question", leave=False) as bar:
        for start in range(0, len(order), BATCH_SIZE):
            numbers = order[start : start + BATCH_SIZE]
            for number, text in zip(numbers, _generate(loaded, [rows[number] for number in numbers])):
                answers[number] = text
            bar.update(len(numbers))
    return [
        Outcome(
            task=row["task"],
            group=group,
            image=row["images"][0],
            instruction=instruction_of(row),
            answer=text,
            truth=row["messages"][-1]["content"] if "messages" in row else row["completion"],
            right=score(row, text),
        )
        for row, text in zip(rows, answers)
    ]


def instruction_of(row: dict[str, Any]) -> str:
    """What is asked; the earlier turns of a dialogue with their true answers on lines of their own."""
    if "messages" not in row:
        return str(row["prompt"])
    contents = [turn["content"] for turn in row["messages"][:-1]]
    lines = [f"{question} {answer}." for question, answer in zip(contents[::2], contents[1::2])]
    return "\n".join([*lines, contents[-1]])


def _generate(loaded: LoadedModel, rows: Sequence[dict[str, Any]]) -> list[str]:
    inputs = loaded.processor.apply_chat_template(
        [conversation(row) for row in rows],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs=padding_options(loaded),
    )
    ids = loaded.model.generate(**inputs, return_full_text=False, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    return [text.strip() for text in loaded.processor.batch_decode(ids, skip_special_tokens=True)]


def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row as chat messages up to the question that is to be answered, its image in the first turn."""
    turns = row["messages"][:-1] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    messages = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    messages[0]["content"].insert(0, {"type": "image", "image": row["images"][0]})
    return messages


def print_examples(outcomes: Sequence[Outcome]) -> None:
    """One question of each task type, as a look into the page."""
    seen = set()
    for outcome in outcomes:
        if outcome.task in seen:
            continue
        seen.add(outcome.task)
        mark = "right" if outcome.right else f"WRONG, truth: {outcome.truth}"
        question = " / ".join(outcome.instruction.split("\n"))
        print(f"  {question}\n      {outcome.answer or '(nothing)'}   [{mark}]")
