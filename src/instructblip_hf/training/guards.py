"""What ends a training early, with a message that names the rows: too many that are unreadable, or a loss that is NaN.

Trainer leaves a loss that is not finite out of its logs and goes on with weights that it has spoilt. Here loss and
gradient are looked at before each step of the optimiser, so that no such step is taken and nothing saved after it. That
costs one wait for the accelerator a step, where Trainer's filter of the logs, which is off here, costs one a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from . import checkpoints
from .bad_rows import BadRows, ReadRows, ReadRowsCollator, StrictRows, _reason, row_name
from .errors import BadRowsError, NonFiniteError
from .saving import SafeSavingTrainer


_SHOWN = 10


class GuardedTrainer(SafeSavingTrainer):
    """A Trainer that names the row which cannot be read, or which makes the loss NaN, and stops.

    Args:
        skip_bad_rows (`int`, *optional*, defaults to 0):
            How many unreadable rows of map-style training data may be left out, others taking their places.
        kwargs: Of `transformers.Trainer`.

    Attributes:
        bad_rows (`BadRows`): Those that were left out.
    """

    def __init__(self, *args: Any, skip_bad_rows: int = 0, **kwargs: Any) -> None:
        self.bad_rows = BadRows(skip_bad_rows)
        self._step_rows: list[list[int]] = []
        self._step_loss: torch.Tensor | None = None
        if skip_bad_rows and not _has_row_numbers(kwargs.get("train_dataset")):
            raise ValueError(
                f"skip_bad_rows is {skip_bad_rows}; unreadable rows are left out of data with row numbers alone, not of "
                "streams"
            )
        super().__init__(*args, **kwargs)
        # Would hide what is looked for here.
        self.args.logging_nan_inf_filter = False
        self.add_callback(self.bad_rows)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's training.

        Raises:
            BadRowsError: If more rows than allowed cannot be read.
            NonFiniteError: If loss or gradient is infinite or not a number.
        """
        outcome = super().train(resume_from_checkpoint, *args, **kwargs)
        self._share_bad_rows()
        return outcome

    def _begin(self, checkpoint: str | None) -> None:
        super()._begin(checkpoint)
        self.bad_rows.go_on_from(checkpoint)

    # --- rows that cannot be read -------------------------------------------------------------------------------------

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        collator, read = self.data_collator, dataset
        if _has_row_numbers(dataset):
            if is_training:
                read = ReadRows(dataset, self.bad_rows.allowed)
                self.data_collator = ReadRowsCollator(collator, dataset)
            else:
                read = StrictRows(dataset)

        def sampler(_: Any) -> Any:
            return sampler_fn(dataset) if sampler_fn is not None else None

        try:
            return super()._get_dataloader(read, description, batch_size, sampler, is_training, dataloader_key)
        finally:
            self.data_collator = collator

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Trainer's batches of a step, after what they bring along about their rows was looked at."""
        self._step_rows, self._step_loss = [], None
        batches = self.bad_rows.taken(epoch_iterator, self._step_rows.append)
        return super().get_batch_samples(batches, num_batches, device)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, with a clear message for a row that cannot be read."""
        try:
            return super().evaluation_loop(*args, **kwargs)
        except BadRowsError as error:
            # The traceback of a worker process is of no use to anybody.
            raise BadRowsError(_reason(error)) from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs, with the number of rows left out so far once there are some."""
        self._share_bad_rows()
        if self.bad_rows.rows:
            logs = {**logs, "bad_rows": len(self.bad_rows.rows)}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._share_bad_rows()
        super()._save_checkpoint(model, trial)

    def _share_bad_rows(self) -> None:
        if self.args.world_size > 1:
            self.bad_rows.share(gather_object)

    # --- losses that are not finite -----------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Trainer's step of a micro-batch, whose loss is kept for a look before the optimiser's step."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scales = getattr(self.accelerator, "scaler", None) is not None
        # With float16 an infinite gradient is all in a day's work: its scaler leaves out the step.
        values = [value for value in (self._step_loss, None if scales else grad_norm) if value is not None]
        if not all(math.isfinite(_number(value)) for value in values):
            raise NonFiniteError(self._not_finite(model, grad_norm))
        return grad_norm

    def _not_finite(self, model: nn.Module, grad_norm: Any) -> str:
        loss = _number(self._step_loss) if self._step_loss is not None else 0.0
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {_number(grad_norm)}"
        dataset = self.train_dataset
        numbers = [number for micro_batch in self._step_rows for number in micro_batch]
        to_blame = [number for number in numbers if not self._is_finite_alone(model, number)]
        rows = "; ".join(row_name(dataset, number) for number in (to_blame or numbers)[:_SHOWN])
        more = f" and {len(to_blame or numbers) - _SHOWN} more" if len(to_blame or numbers) > _SHOWN else ""
        if to_blame:
            where = f"By itself, it is not finite for {rows}{more}"
        else:
            where = f"No row of this process by itself makes it so; its rows are {rows}{more}"
        found = checkpoints.checkpoints(str(self.args.output_dir))
        newest = f"the newest checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        return (
            f"step {self.state.global_step + 1}: {what}. {where if numbers else 'Its rows have no numbers'}. No step was "
            f"taken with it and nothing saved; {newest}. Look at these rows, or lower the learning rate, or compute in "
            "bfloat16 in place of float16"
        )

    @torch.no_grad()
    def _is_finite_alone(self, model: nn.Module, number: int) -> bool:
        """Whether a row by itself has a finite loss; taken for granted where other processes had to compute, too."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return True
        whole = self.accelerator.unwrap_model(model)
        whole.eval()
        rows: Any = self.train_dataset
        inputs = self._prepare_inputs(self.data_collator([rows[number]]))
        with self.compute_loss_context_manager():
            loss: Any = self.compute_loss(whole, inputs)
        return math.isfinite(float(loss))


def _has_row_numbers(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)


def _number(value: Any) -> float:
    # With FSDP2 the norm is spread over processes.
    return float(value.full_tensor() if hasattr(value, "full_tensor") else value)


__all__ = ["GuardedTrainer"]
