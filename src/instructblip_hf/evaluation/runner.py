"""Runs tasks of the protocol: answers in batches over any number of processes, resumable, then scores and reports.

Processes share work by batches and results by files in the output folder, which all of them see. Nothing is gathered, so
rows are neither lost nor repeated, and a run that was killed goes on with the rows that are left.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import set_seed

from ..constants import WAIT
from ..data.catalog import split_spec
from ..data.schema import Example
from ..data.sources.datasets import CatalogDataset
from ..utils.fingerprints import describe_model, fingerprint_of, fingerprint_of_processor
from ..utils.whole_files import write_whole
from .answering import TaskModel, distinct_answers
from .errors import EvaluationError
from .predictions import PredictionFolder, ids_of, unanswered
from .published import closest_published, published_number
from .report import RESULTS, write_report
from .scoring import check_metric, score
from .servers import SUBMISSION, submission
from .tasks import Decoding, EvalTask, eval_task


RESULT = "result.json"
"""File of one task's result, in its folder."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How tasks are run.

    Args:
        batch_size (`int`, *optional*, defaults to 8): Rows that the model answers at once.
        limit (`int`, *optional*): Only the first rows of each split. For trying things out: such a result is marked, and
            not compared with published ones.
        prompt (`str`, *optional*): In place of the protocol's prompts, with slots of an example in braces.
        decoding (`Mapping[str, Any]`, *optional*): Fields of `Decoding` that are to be other than the protocol's.
        roots (`Mapping[str, str]`, *optional*): Folders of single datasets; by default each has one of its name.
        image_roots (`Mapping[str, str]`, *optional*): Folders that image paths of single datasets are relative to.
        max_bad_rows (`int`, *optional*, defaults to 0): How many malformed rows of a dataset's files may be left out.
            They are counted in the result.
        compare_with (`str`, *optional*): A model of the paper's tables; by default the one that is closest.
        finetuned (`bool`, *optional*, defaults to `False`): Compare with table 3 in place of table 1.
        seed (`int`, *optional*, defaults to 42): Set before each task.
        progress (`bool`, *optional*, defaults to `True`): Whether there is a progress bar.
        continuous_batching (`bool`, *optional*, defaults to `False`): Whether transformers' continuous batching generates
            the answers: a row that has ended makes room for the next one.
        batching_window (`int`, *optional*, defaults to 16): With it: so many batches are handed over together, and answered
            before the next ones are read.
    """

    batch_size: int = 8
    limit: int | None = None
    prompt: str | None = None
    decoding: Mapping[str, Any] | None = None
    roots: Mapping[str, str] | None = None
    image_roots: Mapping[str, str] | None = None
    max_bad_rows: int = 0
    compare_with: str | None = None
    finetuned: bool = False
    seed: int = 42
    progress: bool = True
    continuous_batching: bool = False
    batching_window: int = 16

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit", "batching_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        allowed = [part.name for part in fields(Decoding)]
        for name in self.decoding or {}:
            if name not in allowed:
                raise ValueError(f"decoding has {name!r}; allowed are {', '.join(allowed)}")

    def changed(self, task: EvalTask) -> EvalTask:
        """The task as these options have it."""
        return task if self.prompt is None else replace(task, prompt=self.prompt, without={})

    @property
    def rows_together(self) -> int:
        """Rows that are handed to the model, and written, together."""
        return self.batch_size * (self.batching_window if self.continuous_batching else 1)

    def decoding_of(self, task: EvalTask) -> Decoding:
        """The decoding settings of a task."""
        changes = dict(self.decoding or {})
        if isinstance(changes.get("length_penalty"), int | float):
            changes["length_penalty"] = (changes["length_penalty"],) * 2
        return replace(task.decoding, **changes)


def evaluate(
    model: Any,
    processor: Any,
    tasks: Sequence[str] | Mapping[str, EvalTask],
    data_root: str | Path,
    output_dir: str | Path,
    model_name: str | None = None,
    options: EvaluationOptions | None = None,
) -> dict[str, Any]:
    """Evaluates a model on tasks, and writes answers, results, a table and a plot.

    Under ``accelerate launch`` every process calls this and answers its share; all of them return the results.

    Args:
        model (`VisionLanguageModel`): A model of this package, on its device.
        processor (`ProcessorMixin`): Its processor.
        tasks (`Sequence[str]` or `Mapping[str, EvalTask]`): Names of the protocol's tasks, or tasks of one's own by name.
        data_root (`str` or `Path`): The folder with a folder of official files for each dataset, by its name.
        output_dir (`str` or `Path`): Where to. What is there already, of the same model and tasks, is not computed again.
        model_name (`str`, *optional*): What the report calls the model; the one it was loaded by, by default.
        options (`EvaluationOptions`, *optional*): Batch size, limits, decoding.

    Returns:
        `dict`: The content of ``results.json``: the model and, by task, value, metric, counts, settings and versions.

    Raises:
        EvaluationError: If a row cannot be answered, naming it, or the folder has answers of another model or task.
        FileNotFoundError: If files of a dataset are missing.
        ValueError: If a dataset, a task or an option is not as it should be.
    """
    options = options or EvaluationOptions()
    chosen = dict(tasks) if isinstance(tasks, Mapping) else {name: eval_task(name) for name in tasks}
    if not chosen:
        raise ValueError("tasks is empty; there must be at least one")
    chosen = {name: options.changed(task) for name, task in chosen.items()}
    output = Path(output_dir)
    processes = _processes(model)
    name = model_name or str(model.config._name_or_path) or type(model).__name__
    about = {**describe_model(model, name), "processor": fingerprint_of_processor(processor)}
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    reference = options.compare_with or closest_published(name, is_encoder_decoder, options.finetuned)
    # All that can be wrong with them before hours are spent on the first.
    published_number(reference, "", options.finetuned)
    jobs = [_Job.open(model, processor, name, task, data_root, options) for name, task in chosen.items()]
    if processes.is_main_process:
        PredictionFolder(output).claim({"model": about})
    for job in jobs:
        _run(job, output, about, reference, options, processes)
    processes.wait_for_everyone()
    results: dict[str, Any] = json.loads((output / RESULTS).read_text(encoding="utf-8"))
    return results


def _processes(model: Any) -> PartialState:
    return PartialState(cpu=model.device.type == "cpu", timeout=WAIT)


def open_split(task: EvalTask, data_root: str | Path, options: EvaluationOptions, split: str | None = None) -> Any:
    """The dataset of a task, or another split of it.

    Raises:
        FileNotFoundError: If its folder or files are missing.
        ValueError: If they are not as they should be.
    """
    root = Path((options.roots or {}).get(task.dataset, Path(data_root) / task.dataset))
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root} with the files of {task.dataset}")
    image_root = (options.image_roots or {}).get(task.dataset)
    return CatalogDataset(task.dataset, root, split or task.split, image_root, options.max_bad_rows)


@dataclass(frozen=True)
class _Job:
    """A task with all that it needs.

    Args:
        name (`str`): Of the task.
        task (`EvalTask`): As the options have it.
        dataset (`CatalogDataset`): All rows of its split.
        answerer (`TaskModel`): Who answers.
        decoding (`Decoding`): How.
        ids (`list[str]`): Of the rows that are asked.
    """

    name: str
    task: EvalTask
    dataset: Any
    answerer: TaskModel
    decoding: Decoding
    ids: list[str]

    @classmethod
    def open(
        cls, model: Any, processor: Any, name: str, task: EvalTask, data_root: str | Path, options: EvaluationOptions
    ) -> _Job:
        decoding = options.decoding_of(task)
        dataset = open_split(task, data_root, options)
        if split_spec(task.dataset, task.split).labelled:
            check_metric(task)
        train_answers: list[str] = []
        if task.candidates == "train_answers":
            train_answers = distinct_answers(open_split(task, data_root, options, "train"))
        # Always as many, so that answers do not depend on what was asked before, as where a run goes on.
        images_at_once = 1 if model.device.type == "cpu" else options.batch_size
        rows_at_once = options.batch_size if options.continuous_batching else None
        answerer = TaskModel(model, processor, task, decoding, train_answers, images_at_once, rows_at_once)
        return cls(name, task, dataset, answerer, decoding, ids_of(dataset, options.limit))

    def settings(self) -> dict[str, Any]:
        """What decides about answers; what only says where it was found, or how it is scored, does not."""
        task = self.task
        settings: dict[str, Any] = {
            key: getattr(task, key) for key in ("dataset", "split", "prompt", "inference", "candidates")
        }
        settings["without"] = dict(task.without)
        if task.inference == "generate":
            settings["decoding"] = asdict(self.decoding)
        if task.labels is not None:
            settings["labels"] = {label: list(texts) for label, texts in task.labels.items()}
        if self.answerer.train_answers:
            answers = self.answerer.train_answers
            settings["train_answers"] = {"count": len(answers), "digest": fingerprint_of(answers)}
        return settings

    def digest(self) -> str:
        """Of all that is asked of the split, and of the names of its images."""
        asked = hashlib.sha256()
        for index in range(len(self.dataset)):
            row = {key: value for key, value in self.dataset.peek(index).items() if key not in _NOT_ASKED}
            asked.update(json.dumps(row, sort_keys=True, default=str).encode())
        return asked.hexdigest()[:16]


_NOT_ASKED = ("answers", "correct_option", "metadata", "explanation")


def _run(
    job: _Job,
    output: Path,
    about: Mapping[str, Any],
    reference: str,
    options: EvaluationOptions,
    processes: PartialState,
) -> None:
    """Answers a task, and has the first process score it."""
    begin = time.monotonic()
    folder = PredictionFolder(output / job.name, processes.process_index)
    if processes.is_main_process:
        folder.claim({**job.settings(), "rows": job.digest()})
    processes.wait_for_everyone()
    answered = folder.read()
    batches = unanswered(job.ids, answered, options.rows_together, processes.process_index, processes.num_processes)
    processes.wait_for_everyone()  # nobody writes before all have read
    with _seeded(options.seed):
        _answer(job, list(batches), folder, options.progress and processes.is_main_process)
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return
    answers = folder.finish(job.ids)
    examples = [job.dataset.peek(index) for index in range(len(job.ids))]
    result = _result(job, examples, answers, reference, options)
    result["answers_before"] = sum(one in answered for one in job.ids)
    result["seconds"] = round(time.monotonic() - begin, 1)
    configured = job.answerer.model.generation_config
    result["run"] = {
        "batch_size": options.batch_size,
        "continuous_batching": options.continuous_batching,
        "cache_implementation": None if options.continuous_batching else configured.cache_implementation,
        "processes": processes.num_processes,
        "device": str(job.answerer.model.device),
        "seed": options.seed,
        "versions": {one: version(one) for one in ("instructblip-hf", "transformers", "torch", "tokenizers")},
        "python": platform.python_version(),
    }
    if job.task.server is not None:
        content = submission(job.task, examples, answers)
        write_whole(folder.path / SUBMISSION, json.dumps(content, ensure_ascii=False))
        result["submission"] = str(Path(job.name) / SUBMISSION)
    write_whole(folder.path / RESULT, json.dumps({"model": about, **result}, indent=2, ensure_ascii=False) + "\n")
    write_report(output)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed, and as they were afterwards: a training may be going on."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _answer(job: _Job, batches: Sequence[Sequence[int]], folder: PredictionFolder, progress: bool) -> None:
    with tqdm(total=sum(map(len, batches)), desc=job.name, unit="row", disable=not progress) as bar:
        for batch in batches:
            try:
                records = job.answerer.answer([job.dataset[index] for index in batch])
            except Exception as error:
                reason = _reason(job, batch, error)
                raise EvaluationError(
                    f"{job.name}: {reason}. The answers before it are in {folder.path}; the same command goes on from there"
                ) from error
            folder.add(records)
            bar.update(len(batch))


def _reason(job: _Job, batch: Sequence[int], error: Exception) -> str:
    """What went wrong with which row; of an error that is not about a row, with which batch."""
    ids = [str(job.dataset.peek(index)["id"]) for index in batch]
    said = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError | OSError) else str(error)
    if isinstance(error, ValueError | KeyError | TypeError) and len(batch) > 1:
        for index, name in zip(batch, ids):
            try:
                job.answerer.answer([job.dataset[index]])
            except (ValueError, KeyError, TypeError):
                ids = [name]
                break
    if any(name in said for name in ids):
        return said
    return f"{job.task.dataset} {', '.join(ids)}: {said}"


def _result(
    job: _Job, examples: Sequence[Example], answers: Mapping[str, Any], reference: str, options: EvaluationOptions
) -> dict[str, Any]:
    task, rows = job.task, len(job.dataset)
    changes = {"prompt": options.prompt is not None, "decoding": job.decoding != task.decoding}
    result: dict[str, Any] = {
        "task": job.name,
        **job.settings(),
        "metric": task.metric,
        "rows": len(examples),
        "rows_of_split": rows,
        "bad_rows": job.dataset.bad_rows,
        "source": task.source,
        "unverified": list(task.unverified),
        "changed": [what for what, is_changed in changes.items() if is_changed],
    }
    if not split_spec(task.dataset, task.split).labelled:
        return result
    scored = score(task, examples, answers)
    result |= {"value": scored.value, "value_of": scored.name, "result": scored.result}
    published = published_number(reference, job.name, options.finetuned)
    if published is not None and len(examples) == rows and options.prompt is None:
        result["published"] = {"model": reference, "value": published, "difference": 100 * scored.value - published}
    return result


__all__ = ["RESULT", "EvaluationOptions", "evaluate", "open_split"]
