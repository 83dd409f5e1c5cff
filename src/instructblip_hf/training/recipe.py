"""Recipes: one YAML file a training run, read and checked as a whole before anything heavy starts.

A recipe has the sections ``model``, ``first_stage``, ``freezing``, ``optimization``, ``data``, ``evaluation`` and
``training``; the last one takes the fields of `transformers.TrainingArguments`. Files that a recipe names are relative to the recipe;
``training.output_dir`` is relative to where the command runs. `load_recipe` reports everything that is wrong at once.
Reading the file, and the recipe that it may extend, is in `recipe_file`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import BUNDLED_CHECKPOINTS, bundled_checkpoint
from .arguments import (
    FREEZING_PRESETS,
    DataArguments,
    EvaluationArguments,
    FirstStageArguments,
    FreezingPolicy,
    ModelArguments,
    OptimizationArguments,
    PartsArguments,
    adapter_problems,
)
from .mixture import resolve_mixture
from .mixture_parts import check_shapes_world
from .recipe_file import SECTIONS, RecipeError, apply_overrides, folder_of, plain, read_recipe
from .validation import build, check_mapping, did_you_mean


if TYPE_CHECKING:
    from transformers import TrainingArguments


DATA_FILE_SUFFIXES = (".jsonl", ".csv", ".json")

_NOT_IN_RECIPES = {
    "remove_unused_columns": "may not be set: rows hold images and text, which only the collator can read",
    "label_names": "may not be set: it is always labels",
    "label_smoothing_factor": "may not be set: the models compute their loss themselves",
    "do_train": "may not be set: a recipe trains",
    "do_eval": "may not be set: data.evaluation decides",
    "do_predict": "may not be set: a recipe trains",
    "resume_from_checkpoint": "may not be set: resume with --resume",
    "local_rank": "may not be set: the launcher decides",
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        path (`Path`): The file.
        model (`ModelArguments`): With `path` made absolute where it is a folder.
        freezing (`FreezingPolicy`): What trains.
        data (`DataArguments`): With file names made absolute.
        training (`dict[str, Any]`): Arguments for `transformers.TrainingArguments`.
        optimization (`OptimizationArguments`): Learning rates that differ from ``training.learning_rate``.
        evaluation (`EvaluationArguments`, *optional*): Tasks of the protocol to run at every evaluation.
        first_stage (`FirstStageArguments`, *optional*): What BLIP-2's first stage computes; its defaults if `None`.
    """

    path: Path
    model: ModelArguments
    freezing: FreezingPolicy
    data: DataArguments
    training: dict[str, Any]
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    evaluation: EvaluationArguments | None = None
    first_stage: FirstStageArguments | None = None

    @property
    def output_dir(self) -> Path:
        """Where the trained model goes: ``training.output_dir``, or a folder named after the recipe."""
        return Path(self.training.get("output_dir") or self.path.stem)

    @property
    def base_model(self) -> str | None:
        """Name of the model that training starts from, if others know it: a Hub id or a bundled checkpoint's."""
        if self.model.path is None:
            return None
        path = Path(self.model.path)
        if not path.is_dir():
            return self.model.path
        return path.name if path.parent == bundled_checkpoint().parent else None

    def training_arguments(self, output_dir: str | Path | None = None) -> TrainingArguments:
        """The ``training`` section as transformers' arguments, writing to `output_dir`.

        Trackers get the folder's name as ``run_name`` if the recipe has none, so that a resumed run and the evaluation
        at its end go where the run began.
        """
        folder = Path(output_dir or self.output_dir)
        return _training_arguments({"run_name": folder.resolve().name, **self.training, "output_dir": str(folder)})


def load_recipe(recipe: str | Path, overrides: Sequence[str] = (), data_files: bool = True) -> Recipe:
    """Reads and checks a recipe.

    Args:
        recipe (`str` or `Path`): A YAML file, or the name of one of `shipped_recipes`.
        overrides (`Sequence[str]`, *optional*): Changes to it, like ``training.max_steps=10``; values are YAML.
        data_files (`bool`, *optional*, defaults to `True`):
            Whether the files of a mixture, and a connector, have to be there.

    Returns:
        `Recipe`: With every value checked and every file present.

    Raises:
        RecipeError: With one line for each problem: unknown keys, wrong types, bad values, missing files.
    """
    file = read_recipe(recipe)
    path, written = file.path, file.content
    problems = apply_overrides(written, overrides)
    content = plain(written)
    problems += [f"{key}: unknown section{did_you_mean(str(key), SECTIONS)}" for key in content if key not in SECTIONS]

    model_section, data_section = content.get("model", {}), content.get("data", {})
    freezing_section = content.get("freezing", {})
    if isinstance(freezing_section, str):
        freezing_section = {"preset": freezing_section}
    model: Any = None
    if isinstance(model_section, dict) and not {"path", "parts"} & model_section.keys():
        found = ["model.path: missing; or model.parts, what the model is made of"]
    else:
        model, found = build(ModelArguments, model_section, "model")
    problems += found
    model_path, found = _resolve_model(written.get("model"), path.parent, data_files)
    problems += found
    first_stage = None
    if "first_stage" in content:
        first_stage, found = build(FirstStageArguments, content["first_stage"], "first_stage")
        problems += found
    freezing, found = build(FreezingPolicy, freezing_section, "freezing")
    problems += found
    optimization, found = build(OptimizationArguments, content.get("optimization", {}), "optimization")
    problems += found
    if model is not None and freezing is not None:
        problems += adapter_problems(model, freezing)
    data, found = build(DataArguments, data_section, "data")
    problems += found
    data_paths, found = _resolve_data(written.get("data", {}), path.parent, data_files)
    problems += found
    has_evaluation = isinstance(data_section, dict) and bool(data_section.get("evaluation"))
    training_section = content.get("training", {})
    training, found = _check_training(training_section, has_evaluation)
    problems += found
    evaluation, found = _check_evaluation(written.get("evaluation"), path.parent, data_files)
    problems += found
    if evaluation is not None and str(training.get("eval_strategy", "no")) == "no":
        problems.append("evaluation: needs training.eval_strategy, which says when the tasks are run")
    max_steps = training_section.get("max_steps", 0) if isinstance(training_section, dict) else 0
    if data is not None and _is_mixture(data.train) and isinstance(max_steps, int) and max_steps < 1:
        problems.append("training.max_steps: missing; a mixture has no end of its own")
    if data is not None and data.image_features is not None and freezing is not None:
        problems += _check_tower(freezing)
    if problems:
        raise RecipeError(path.name, problems)
    data = replace(data, **plain(data_paths))
    model = replace(model, **model_path)
    return Recipe(path, model, freezing, data, training, optimization, evaluation, first_stage)


def _check_tower(freezing: FreezingPolicy) -> list[str]:
    """What a policy surely trains of the vision tower, features of which are to be kept. The model says the rest."""
    words = dict(FREEZING_PRESETS[freezing.preset]) if freezing.preset is not None else {}
    for name in freezing.components:
        words = {inner: word for inner, word in words.items() if not inner.startswith(f"{name}.")}
    words.update(freezing.components)
    tower = "vision_tower" if "vision_tower" in words else "vision_model"
    inside = {name: word for name, word in words.items() if name.startswith(f"{tower}.")}
    if inside:
        inside.pop("vision_model.post_layernorm", None)
    else:
        inside[tower] = words.get(tower, words.get("", "frozen"))
    return [
        f"data.image_features: needs a frozen vision tower, and freezing has {name}: {word}"
        for name, word in inside.items()
        if word != "frozen"
    ]


def _check_evaluation(section: Any, base: Path, files: bool) -> tuple[EvaluationArguments | None, list[str]]:
    """The tasks with an absolute root, and what is wrong with them. Their names are checked by who runs them."""
    if section is None:
        return None, []
    evaluation, problems = build(EvaluationArguments, plain(section), "evaluation")
    if evaluation is None:
        return None, problems
    root = folder_of(section["root"], base) / Path(evaluation.root).expanduser()
    if files and not root.is_dir():
        problems = [f"evaluation.root: there is no folder {root}"]
    return replace(evaluation, root=str(root.resolve())), problems


def _check_training(section: Any, has_evaluation: bool) -> tuple[dict[str, Any], list[str]]:
    # torch comes in here, after everything that can be said without it was checked for.
    from transformers import TrainingArguments

    values, problems = check_mapping(TrainingArguments, section, "training", forbidden=_NOT_IN_RECIPES)
    if not problems:
        if str(values.get("eval_strategy", "no")) != "no" and not has_evaluation:
            problems.append("training.eval_strategy: needs data.evaluation")
        for name, minimum in _MINIMA.items():
            if name in values and values[name] < minimum:
                problems.append(f"training.{name}: is {values[name]}; it must be at least {minimum}")
        try:
            _training_arguments({"output_dir": "unused", **values})
        except (ValueError, ImportError) as error:
            problems.append(f"training: {_one_line(error)}")
    return values, problems


_MINIMA = {
    "learning_rate": 0,
    "weight_decay": 0,
    "num_train_epochs": 0,
    "warmup_steps": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}


def _training_arguments(values: dict[str, Any]) -> TrainingArguments:
    import torch
    from transformers import TrainingArguments

    accelerated = torch.accelerator.is_available() and not values.get("use_cpu", False)
    defaults = {
        "remove_unused_columns": False,
        "label_names": ["labels"],
        # So that a recipe with bf16 runs on either; transformers wants to be told that a CPU is meant.
        "use_cpu": not accelerated,
        # Pinning is for copies to an accelerator, and warns at every start where there is none.
        "dataloader_pin_memory": accelerated,
    }
    return TrainingArguments(**{**defaults, **values})


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()


def _resolve_model(section: Any, base: Path, files: bool) -> tuple[dict[str, Any], list[str]]:
    """The model's path or parts, and its connector, as they are to be loaded, and what is wrong with them. Wrong types are
    another's to report."""
    resolved, problems = _resolve_source(section, base)
    projector = section.get("projector") if isinstance(section, dict) else None
    if isinstance(projector, str):
        folder = folder_of(projector, base) / Path(projector).expanduser()
        resolved["projector"] = str(folder.resolve())
        if files and not (folder / "projector_config.json").is_file():
            problems.append(
                f"model.projector: {folder} holds no connector (no projector_config.json); name yours with "
                "--set model.projector=FOLDER"
            )
    return resolved, problems


def _resolve_source(section: Any, base: Path) -> tuple[dict[str, Any], list[str]]:
    if isinstance(section, dict) and isinstance(section.get("parts"), dict):
        return _resolve_parts(section["parts"], base)
    name = section.get("path") if isinstance(section, dict) else None
    if not isinstance(name, str) or not name:
        return {}, []
    folder = folder_of(name, base) / Path(name).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            return {}, [f"model.path: {folder} holds an adapter; make a model of it with instructblip merge"]
        if not (folder / "config.json").is_file():
            return {}, [f"model.path: {folder} has no config.json, so it holds no model"]
        return {"path": str(folder.resolve())}, []
    if name in BUNDLED_CHECKPOINTS:
        return {"path": str(bundled_checkpoint(name))}, []
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return {}, []
    bundled = ", ".join(BUNDLED_CHECKPOINTS)
    return {}, [f"model.path: there is no folder {folder}, nor a bundled checkpoint {name!r} ({bundled})"]


def _resolve_parts(section: dict[str, Any], base: Path) -> tuple[dict[str, Any], list[str]]:
    parts, problems = build(PartsArguments, plain(section), "model.parts")
    if parts is None:
        return {}, problems
    resolved = plain(section)
    for name in parts.names:
        value = section[name]
        folder = folder_of(value, base) / Path(value).expanduser()
        if folder.is_dir():
            resolved[name] = str(folder.resolve())
        elif value in BUNDLED_CHECKPOINTS:
            resolved[name] = str(bundled_checkpoint(value))
        # Old Hub ids, like BERT's, have no owner.
        elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", value):
            problems.append(f"model.parts.{name}: there is no folder {folder}, and {value!r} is no Hub id")
    return {"parts": resolved}, problems


def _is_mixture(source: Any) -> bool:
    return isinstance(source, dict) and list(source) == ["mixture"]


def _shared_root(train: Any) -> dict[str, Any]:
    """The root of the training mixture, which the evaluation mixture has too unless it says otherwise."""
    mixture = train["mixture"] if _is_mixture(train) else None
    return {"root": mixture["root"]} if isinstance(mixture, dict) and "root" in mixture else {}


def _resolve_data(section: Any, base: Path, mixture_files: bool) -> tuple[dict[str, Any], list[str]]:
    """The data with absolute paths, and what is wrong with it."""
    if not isinstance(section, dict):
        return {}, []
    problems: list[str] = []
    paths: dict[str, Any] = {}
    if isinstance(section.get("image_root"), str):
        root = folder_of(section["image_root"], base) / Path(section["image_root"]).expanduser()
        paths["image_root"] = str(root.resolve())
        if not root.is_dir():
            problems.append(f"data.image_root: there is no folder {root}")
    for name in ("train", "evaluation"):
        source = section.get(name)
        if isinstance(source, str):
            file = folder_of(source, base) / Path(source).expanduser()
            paths[name] = str(file.resolve())
            if not file.is_file():
                problems.append(f"data.{name}: there is no file {file}")
            elif file.suffix not in DATA_FILE_SUFFIXES:
                problems.append(f"data.{name}: {file.name} is neither of {', '.join(DATA_FILE_SUFFIXES)}")
        elif isinstance(source, dict) and _is_mixture(source):
            where = f"data.{name}.mixture"
            mixture = source["mixture"]
            if name == "evaluation" and isinstance(mixture, dict):
                mixture = {**_shared_root(section.get("train")), **mixture}
            resolved, found = resolve_mixture(mixture, base, where, mixture_files)
            problems += found
            if resolved and (resolved["draws"] is None) == (name == "evaluation"):
                problems.append(
                    f"{where}.draws: " + ("missing; say how many rows" if name == "evaluation" else _TRAINING_DRAWS)
                )
            paths[name] = {"mixture": resolved}
        elif isinstance(source, dict):
            problems += _check_source(source, f"data.{name}")
    return paths, problems


_TRAINING_DRAWS = "may not be set: training draws what training.max_steps needs"


def _check_source(source: dict[str, Any], where: str) -> list[str]:
    if list(source) != ["shapes_world"]:
        merged = " (what a base says is replaced by !replace {...})" if len(source) > 1 else ""
        return [
            f"{where}: must be a file or a mapping with the one key mixture or shapes_world, not {list(source)}{merged}"
        ]
    return check_shapes_world(source["shapes_world"], f"{where}.shapes_world")


__all__ = ["Recipe", "load_recipe"]
