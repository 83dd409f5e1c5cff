"""`instructblip evaluate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import stopping_errors, user_errors
from .launching import become_launched, device_of_process, without_options
from .loading import load_generating
from .tables import print_columns


def show_tasks() -> None:
    """The tasks as a table: dataset and split, how answers are taken, metric, prompt."""
    from ..evaluation.tasks import LLAVA_TASKS, TASKS

    rows = [("task", "split", "answers", "metric", "prompt")]
    for name, task in {**TASKS, **LLAVA_TASKS}.items():
        metric = task.metric if task.server is None else f"server of {task.server}"
        rows.append((name, task.split, task.inference, metric, task.prompt.replace("\n", "\\n")))
    print_columns(rows)


def launch_evaluate(processes: int, arguments: Sequence[str]) -> None:
    """Starts the same command on several processes with accelerate, and becomes it."""
    become_launched("ddp", processes, without_options(arguments, "--processes"))


def run_evaluate(
    tasks: str,
    data_root: Path,
    output: Path,
    model: str | None,
    device: str | None,
    dtype: str | None,
    cache_implementation: str | None,
    options: Mapping[str, Any],
    pairs: Mapping[str, Sequence[str]],
) -> None:
    """Evaluates, and shows the table."""
    from ..evaluation.tasks import EvalTask, eval_task

    with user_errors():
        chosen: dict[str, EvalTask] = {name: eval_task(name) for name in task_names(tasks)}
        given: dict[str, Any] = {
            name: dict(_pair(name, text) for text in texts) or None for name, texts in pairs.items()
        }
        decoding = {key: _number(key, value) for key, value in (given.pop("decoding") or {}).items()} or None

        from ..evaluation.report import TABLE, markdown_table, results_table, science_table
        from ..evaluation.runner import EvaluationOptions, evaluate

        settings = EvaluationOptions(decoding=decoding, **given, **options)
        loaded = load_generating(model, device_of_process(device), dtype, cache_implementation)
        with stopping_errors():
            results = evaluate(
                loaded.model, loaded.processor, chosen, data_root, output, model_name=loaded.name, options=settings
            )
    if int(os.environ.get("RANK", "0")) == 0:
        print(markdown_table(results_table(results)))
        for name, result in results["tasks"].items():
            if result["metric"].startswith("scienceqa") and "result" in result:
                print(f"\n{_SCIENCE.get(name, name)}\n\n{markdown_table(science_table(result['result']))}")
        print(f"\nanswers, results.json, {TABLE} and the plot are in {output}")


def task_names(text: str) -> list[str]:
    """Names of tasks out of ``"gqa,vsr"``; ``held-out``, ``held-in`` and ``all`` stand for those of the paper's tables."""
    from ..data.catalog import DATASETS
    from ..evaluation.tasks import TASKS

    published = [name for name, task in TASKS.items() if task.server is None or name == task.dataset]
    groups = {role: [name for name in published if DATASETS[TASKS[name].dataset].role == role] for role in _ROLES}
    groups["all"] = published
    names: dict[str, None] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        names.update(dict.fromkeys(groups.get(name, [name])))
    if not names:
        raise ValueError("--tasks is empty; --list shows the tasks")
    return list(names)


_ROLES = ("held-out", "held-in")
_SCIENCE = {"scienceqa": "ScienceQA"}


def _pair(option: str, text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key or not value:
        raise ValueError(f"--{option.removesuffix('s').replace('_', '-')}: {text!r} is not of the form KEY=VALUE")
    return key, value


def _number(key: str, text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--decoding: {key} is {text!r}; it must be a number") from error
