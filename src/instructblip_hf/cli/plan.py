"""`instructblip plan`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import fail, user_errors
from .loading import reach_hub
from .tables import print_columns


_UNITS = {
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
}


def bytes_of(text: str) -> int:
    """Bytes of a size like ``80GiB``.

    Raises:
        ValueError: For anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip())
    if match is None:
        raise ValueError(f"--memory: {text!r} is no size like 80GiB; units are {', '.join(_UNITS)}")
    return int(float(match[1]) * _UNITS[match[2]])


def run_plan(
    recipe: str,
    changes: Sequence[str],
    memory: str | None,
    prompt_tokens: int | None,
    answer_tokens: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Counts and shows what a recipe needs."""
    if device not in ("cuda", "cpu"):
        fail(f"--device: {device!r} is none of cuda, cpu")
    with user_errors():
        size = bytes_of(memory) if memory is not None else None

        from ..training.recipe import load_recipe

        checked = load_recipe(recipe, changes, data_files=False)
        for source in checked.model.sources:
            if not Path(source).is_dir():
                _reach_configuration(source)
        if size is None:
            size = _memory_of_accelerator()

        from ..training.planning import plan_recipe

        plan = plan_recipe(checked, size, prompt_tokens, answer_tokens, device)
    if as_json:
        print(json.dumps(plan.to_dict(), indent=2))
    else:
        _show(plan)


def _reach_configuration(source: str) -> None:
    try:
        reach_hub(source)
    except OSError as error:
        raise OSError(
            f"the shapes of {source} are not known here: {error}. A folder with its config.json alone is enough, named in "
            "its place with --set (model.path=FOLDER, or model.parts.NAME=FOLDER)"
        ) from error


def _memory_of_accelerator() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def _show(plan: Any) -> None:
    lengths = plan.lengths
    print(f"recipe     {plan.recipe}\nmodel      {plan.model}\noptimizer  {plan.optimizer}")
    print(
        f"batch      {plan.rows} rows with an image each: {lengths.image} tokens of the image, {lengths.prompt} of the prompt, "
        f"{lengths.answer} of the answer\n"
    )
    header = ["", "parameters", "train", "weights", "gradients", "optimizer", "activations"]
    rows = [header]
    for part in [*plan.parts, plan.total]:
        counts = [f"{part.parameters:,}", f"{part.trainable:,}"]
        sizes = [part.weight_bytes, part.gradient_bytes, part.optimizer_bytes, part.activation_bytes]
        rows.append([part.name, *counts, *map(_size, sizes)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    print_columns([[row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in rows])
    print()
    summary = [["inputs", _size(plan.batch_bytes)], ["peak", _size(plan.peak_bytes)]]
    if plan.memory is not None:
        largest = f"{plan.largest_batch:,} rows" if plan.largest_batch else "none: one row does not fit"
        summary += [["memory", _size(plan.memory)], ["largest batch", largest]]
    print_columns(summary)
    if plan.memory is None:
        print("For the largest batch, name a memory: --memory 80GiB")
    print()
    for note in plan.notes:
        print(f"note: {note}")
    print(f"not counted: {'; '.join(plan.not_counted)}")


def _size(count: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:,.2f} {unit}"
    return f"{count} B"
