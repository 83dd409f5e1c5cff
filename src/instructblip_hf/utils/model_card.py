"""Model cards filled from a model's configuration and from what Trainer recorded."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from .remote_code import processor_class_name


if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState, TrainingArguments


_TEMPLATE = Path(__file__).parent / "model_card_template.md"
_MAX_LOG_ROWS = 20
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_HYPERPARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "num_train_epochs",
    "max_steps",
    "bf16",
    "fp16",
    "seed",
)


def model_card(
    model: PreTrainedModel,
    trainer_state: TrainerState | None = None,
    training_arguments: TrainingArguments | None = None,
    *,
    location: str | None = None,
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,
    base_model: str | Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    language: str | Sequence[str] | None = "en",
    results: Sequence[Mapping[str, Any]] | None = None,
    command: str | None = None,
    what_trains: str | None = None,
    left_out: str | None = None,
    include_code: bool = False,
    adapter: bool = False,
) -> ModelCard:
    """Write the card of a vision-language model.

    Args:
        model (`PreTrainedModel`): The model; parts and parameter counts are read from it, and which are trained
            from ``requires_grad``.
        trainer_state (`TrainerState`, *optional*): ``trainer.state``: steps, epochs and logged metrics.
        training_arguments (`TrainingArguments`, *optional*): ``trainer.args``: hyperparameters.
        location (`str`, *optional*, defaults to `"path/to/this/folder"`): Hub id or folder for the snippets.
        name (`str`, *optional*): Title; by default the last part of ``location``.
        description (`str`, *optional*): Markdown below the summary: data, limits, what the model does not know.
        license (`str`, *optional*): Licence identifier of the weights, as the Hub lists them (``apache-2.0``).
        base_model (`str` or sequence of `str`, *optional*): Hub ids of the models this one was made from; of a
            folder only the name is shown.
        datasets (sequence of `str`, *optional*): Hub ids of the data.
        language (`str` or sequence of `str`, *optional*, defaults to `"en"`): Languages, as ISO codes.
        results (sequence of mappings, *optional*): Rows of the results table, all with the same keys.
        command (`str`, *optional*): The command that made the model.
        what_trains (`str`, *optional*): Table of what was frozen and trained, as `FreezingReport` prints it.
        left_out (`str`, *optional*): Says which rows were left out of the training.
        include_code (`bool`, *optional*, defaults to `False`): Say that the repository holds the code as well.
        adapter (`bool`, *optional*, defaults to `False`): Whether the folder holds an adapter of what is trained.

    Returns:
        `huggingface_hub.ModelCard`: ``card.save(folder / "README.md")`` writes it.

    Raises:
        ValueError: If the rows of ``results`` differ in their keys.
    """
    location = location or "path/to/this/folder"
    name = name or location.rstrip("/").rpartition("/")[2]
    config = model.config
    parts = _parts(model)
    bases = [base_model] if isinstance(base_model, str) else list(base_model or ())
    # A folder of this machine means nothing to a reader; its name may.
    on_hub = [base for base in bases if _HUB_ID.fullmatch(base) and not Path(base).exists()]
    bases = [base if base in on_hub else Path(base).name for base in bases]
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    compares = hasattr(base, "get_matching_logits")
    tasks = ["image-text-retrieval"] if compares else ["image-to-text", "visual-question-answering"]
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text" if not compares else "zero-shot-image-classification",
        tags=["instructblip-hf", config.model_type, *tasks],
        license=license,
        base_model=on_hub or None,
        datasets=list(datasets) if datasets else None,
        language=language if isinstance(language, str) or language is None else list(language),
    )
    kind = "sequence-to-sequence" if config.is_encoder_decoder else "causal"
    behind = (
        " and a Q-Former with heads that compare images and texts"
        if compares
        else f", a connector and a {kind} `{config.text_config.model_type}` language model"
    )
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        summary=f"A `{config.model_type}` model: a `{config.vision_config.model_type}` vision tower{behind}.",
        model_type=config.model_type,
        model_class=type(base).__name__,
        processor_class=processor_class_name(config.model_type),
        compares=compares,
        description=description,
        parts=parts,
        total=sum(part["parameters"] for part in parts),
        total_trained=sum(part["trained"] for part in parts),
        dtype=str(model.dtype).removeprefix("torch."),
        tokens_per_image=getattr(config, "num_query_tokens", None) or config.image_seq_length,
        location=location,
        include_code=include_code,
        adapter=adapter,
        hyperparameters=_hyperparameters(training_arguments),
        training=_training(trainer_state),
        log=_log_table(trainer_state),
        dataset_losses=_dataset_losses(trainer_state),
        what_trains=what_trains,
        left_out=left_out,
        versions=_versions() if trainer_state is not None else None,
        results=_results_table(results),
        command=command,
        base_model=", ".join(bases),
    )


def _parts(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Direct children and direct parameters, each parameter counted once."""
    counted: set[int] = set()
    rows = []
    candidates: list[tuple[str, Any, list[Any]]] = [
        (name, child, list(child.parameters())) for name, child in model.named_children()
    ]
    candidates += [(name, None, [parameter]) for name, parameter in model.named_parameters(recurse=False)]
    for name, child, parameters in candidates:
        own = [parameter for parameter in parameters if id(parameter) not in counted]
        counted.update(map(id, own))
        kind = getattr(getattr(child, "config", None), "model_type", None) or type(child).__name__
        rows.append(
            {
                "name": name,
                "type": "parameter" if child is None else kind,
                "parameters": sum(parameter.numel() for parameter in own),
                "trained": sum(parameter.numel() for parameter in own if parameter.requires_grad),
            }
        )
    return rows


def _hyperparameters(arguments: TrainingArguments | None) -> dict[str, Any]:
    if arguments is None:
        return {}
    values = {name: getattr(arguments, name, None) for name in _HYPERPARAMETERS}
    # An unused max_steps is -1; enum members show as their value.
    return {
        name: getattr(value, "value", value) for name, value in values.items() if value is not None and value != -1
    }


def _training(state: TrainerState | None) -> str | None:
    if state is None:
        return None
    parts = [f"{state.global_step:,} steps"]
    if state.epoch is not None:
        parts.append(f"{state.epoch:.2f} epochs")
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    if losses:
        parts.append(f"training loss {losses[0]:.4f} at first, {losses[-1]:.4f} at the end")
    if state.best_metric is not None:
        parts.append(f"best metric {state.best_metric:.4f}")
    return "Trained for " + ", ".join(parts) + "."


def _log_table(state: TrainerState | None) -> str | None:
    if state is None:
        return None
    entries = [entry for entry in state.log_history if any(key.startswith("eval_") for key in entry)]
    if not entries:
        return None
    if len(entries) > _MAX_LOG_ROWS:
        last = len(entries) - 1
        entries = [entries[round(row * last / (_MAX_LOG_ROWS - 1))] for row in range(_MAX_LOG_ROWS)]
    speed = ("runtime", "per_second", "model_preparation_time")
    found = dict.fromkeys(key for entry in entries for key in entry)
    # Losses by dataset have a table of their own.
    keys = [key for key in found if not key.endswith(speed) and "/" not in key]
    keys = ["step", *(key for key in keys if key != "step")]
    return _table([{key: entry.get(key, "") for key in keys} for entry in entries])


def _dataset_losses(state: TrainerState | None) -> str | None:
    """Losses by dataset, as `VisionLanguageTrainer` logs them for mixtures: first and last of training, last of evaluation."""
    if state is None:
        return None
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for entry in state.log_history:
        for key, value in entry.items():
            if key.startswith(("loss/", "eval_loss/")):
                first.setdefault(key, value)
                last[key] = value
    names = dict.fromkeys(key.partition("/")[2] for key in last)
    rows = [
        {
            "dataset": name,
            "training loss at first": first.get(f"loss/{name}", ""),
            "at the end": last.get(f"loss/{name}", ""),
            "evaluation loss": last.get(f"eval_loss/{name}", ""),
        }
        for name in names
    ]
    return _table(rows) if rows else None


def _versions() -> str:
    """The packages that made the model, with those of them that are installed."""
    names = ("instructblip-hf", "transformers", "torch", "accelerate", "peft", "tokenizers", "safetensors")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _results_table(results: Sequence[Mapping[str, Any]] | None) -> str | None:
    if not results:
        return None
    for row in results:
        if list(row) != list(results[0]):
            raise ValueError(
                f"results rows need the same keys: {list(results[0])} in the first, {list(row)} in another"
            )
    return _table(results)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| " + " | ".join(map(str, rows[0])) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(map(_cell, row.values())) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


__all__ = ["model_card"]
