"""Tasks of the protocol in a training: their values beside the evaluation loss, to choose the best checkpoint by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..utils.fingerprints import describe_model
from .runner import EvaluationOptions, evaluate, open_split
from .tasks import EvalTask, eval_task


class EvaluationCallback(TrainerCallback):
    """Runs tasks at every evaluation of a `transformers.Trainer`, and adds ``eval_TASK`` to its metrics and logs.

    ``metric_for_best_model="eval_gqa"`` then keeps the checkpoint with the best answers to GQA. Answers and results are in
    ``OUTPUT_DIR/evaluation/step-N-FINGERPRINT``, by a fingerprint of the weights: the same ones are not evaluated twice. To be
    added before an `EarlyStoppingCallback` that reads these metrics.

    Args:
        trainer (`Trainer`): Whose model is evaluated, with a processor as its ``processing_class``.
        tasks (`Sequence[str]` or `Mapping[str, EvalTask]`): Names of tasks, or tasks by name.
        data_root (`str` or `Path`): The folder with a folder of official files for each dataset.
        options (`EvaluationOptions`, *optional*): Batch size, decoding, and how many rows of each split.

    Raises:
        ValueError: If the trainer has no processor, or shards its weights over processes, so that none can generate; or for
            continuous batching.
        FileNotFoundError: If files of a dataset are missing.

    Example:

    ```python
    trainer.add_callback(EvaluationCallback(trainer, ["okvqa"], "/data", EvaluationOptions(limit=500)))
    ```
    """

    def __init__(
        self,
        trainer: Any,
        tasks: Sequence[str] | Mapping[str, EvalTask],
        data_root: str | Path,
        options: EvaluationOptions | None = None,
    ) -> None:
        if trainer.processing_class is None:
            raise ValueError("the trainer has no processing_class; the tasks need the model's processor")
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "weights that are spread over processes cannot generate; evaluate saved checkpoints instead"
            )
        if options is not None and options.continuous_batching:
            raise ValueError(
                "continuous_batching runs in a thread of its own, which a training's autocast does not reach; leave it out"
            )
        self.trainer, self.data_root = trainer, data_root
        self.tasks = dict(tasks) if isinstance(tasks, Mapping) else {name: eval_task(name) for name in tasks}
        self.options = replace(options or EvaluationOptions(), progress=not trainer.args.disable_tqdm)
        for task in self.tasks.values():
            for split in (None, "train") if task.candidates == "train_answers" else (None,):
                open_split(task, data_root, self.options, split)  # told now, not hours into the training
        self._values: dict[str, dict[str, float]] = {}

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Runs the tasks, unless they ran with the same weights: there may be several evaluation sets at one step."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        fingerprint = describe_model(model, "")["fingerprint"]
        if fingerprint not in self._values:
            name = f"step-{state.global_step}-{fingerprint[:8]}"
            self._values[fingerprint] = self._evaluate(model, Path(str(args.output_dir)) / "evaluation" / name)
            self.trainer.log(dict(self._values[fingerprint]))
        kwargs["metrics"].update(self._values[fingerprint])

    def _evaluate(self, model: Any, folder: Path) -> dict[str, float]:
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with self.trainer.autocast_smart_context_manager():
                results = evaluate(
                    model, self.trainer.processing_class, self.tasks, self.data_root, folder, options=self.options
                )
        finally:
            for module in training:
                module.training = True
        return {f"eval_{name}": one["value"] for name, one in results["tasks"].items() if "value" in one}


__all__ = ["EvaluationCallback"]
