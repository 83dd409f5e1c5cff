"""Trainer's checkpoints and final model, written so that a kill or a full disk at any moment loses nothing.

What is safe about the folders is in `checkpoints.py`; here is when they are written, by which process, and what is said
when they cannot be. All processes write into the folder that becomes a checkpoint, each its own files. After every part
they tell each other whether it was written, so that either all go on or all stop.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_callback import ExportableState

from . import checkpoints
from .errors import SavingError
from .pushing import PushingTrainer


logger = logging.getLogger(__name__)

_WRITING_ERRORS = (OSError, SafetensorError, RuntimeError)
STAGED_MODEL = checkpoints.SAVING + "model"
"""Folder, inside of the output folder, that the final model is written into before its files are moved out."""


class SafeSavingTrainer(PushingTrainer):
    """A Trainer whose checkpoints are whole or absent, and which goes on from the newest whole one."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's training.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint, which has to be whole; `True` takes the newest whole one in the output folder.

        Raises:
            ValueError: If the checkpoint, or each there is, is damaged.
            SavingError: If the disk has no room for the model; or later, if a checkpoint cannot be written.
        """
        checkpoint = self._starting_checkpoint(resume_from_checkpoint)
        self._begin(checkpoint if isinstance(checkpoint, str) else None)
        if self.args.should_save:
            self._check_space(Path(str(self.args.output_dir)))
        return super().train(checkpoint, *args, **kwargs)

    def _begin(self, checkpoint: str | None) -> None:
        """What is to be done before a training begins, or goes on from a whole checkpoint."""

    def _starting_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """The whole checkpoint that `train` goes on from; `True` where there is none, for which Trainer has an error.

        Raises:
            ValueError: If the checkpoint, or each there is, is damaged.
        """
        if not resume_from_checkpoint:
            return None
        if isinstance(resume_from_checkpoint, str):
            problem = checkpoints.problem_with(resume_from_checkpoint)
            if problem is not None:
                raise ValueError(f"{resume_from_checkpoint} is no checkpoint to go on from: {problem}")
            return resume_from_checkpoint
        folder = Path(str(self.args.output_dir))
        with self.args.main_process_first(local=False):
            if self.is_local_process_zero():
                checkpoints.recover(folder)
        newest = checkpoints.newest_whole(folder)
        return str(newest) if newest is not None else True

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed from the checkpoint of the last step, Trainer would take one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        final = run_folder / f"checkpoint-{self.state.global_step}"
        folder = checkpoints.partial(final)
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        self._note_best(run_folder, final)
        first = self.is_world_process_zero()
        on_this_disk = self.is_local_process_zero()

        def publish() -> None:
            try:
                checkpoints.write_manifest(folder)
                checkpoints.sync(folder)
                checkpoints.publish(final)
            except FileNotFoundError:
                # A disk of several machines, on which the first process did this a moment ago.
                if first or not final.is_dir():
                    raise

        parts: list[Callable[[], None]] = [
            lambda: shutil.rmtree(folder, ignore_errors=True) if on_this_disk else None,
            lambda: self.save_model(str(folder), _internal_call=True),
        ]
        if not self.args.save_only_model:
            parts += [
                lambda: self._save_optimizer_and_scheduler(str(folder)),
                lambda: self._save_scaler(str(folder)),
                lambda: self._save_rng_state(str(folder)),
            ]
        parts += [
            lambda: self._save_trainer_state(folder) if self.args.should_save else None,
            lambda: checkpoints.sync(folder) if on_this_disk and folder.is_dir() else None,
            lambda: publish() if first else None,
            # Machines with disks of their own, which hold the files of their processes.
            lambda: publish() if on_this_disk and not first and folder.is_dir() else None,
        ]
        for part in parts:
            self._all_or_none(part, folder, final)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            checkpoints.rotate(final, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _note_best(self, run_folder: Path, final: Path) -> None:
        """Has the state say where the best checkpoint so far is, which may be the one about to be written."""
        if self.state.best_global_step:
            best = run_folder / f"checkpoint-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _save_trainer_state(self, folder: Path) -> None:
        states: dict[str, list[Any]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        state: Any = self.state
        state.stateful_callbacks = {name: found[0] if len(found) == 1 else found for name, found in states.items()}
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _all_or_none(self, part: Callable[[], None], folder: Path, final: Path) -> None:
        """Does a part of saving, and has all processes stop if one of them could not."""
        error: Exception | None = None
        try:
            part()
        except _WRITING_ERRORS as caught:
            error = caught
        if not self._on_any_process(error is not None):
            return
        if self.is_local_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
        if error is None:
            raise SavingError(f"another process could not write {final}; it says why")
        if _is_about_writing(error):
            raise self._saving_error(final, error, self._checkpoint_bytes()) from error
        raise error

    def _on_any_process(self, flag: bool) -> bool:
        if self.args.world_size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, reduction="sum").item())

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            # As Trainer does, but a kill on the way leaves no half checkpoint.
            for checkpoint in checkpoints.checkpoints(Path(best).parent):
                if not checkpoint.samefile(best):
                    checkpoints.remove(checkpoint)
        return super()._finalize_training(*args, **kwargs)

    # --- the model by itself ------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        if folder.name.startswith(checkpoints.SAVING):
            # Part of a checkpoint, which gets its name as a whole.
            super()._save(str(folder), state_dict)
            return
        staged = folder / STAGED_MODEL
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)
        try:
            super()._save(str(staged), state_dict)
            if self.args.should_save:
                checkpoints.sync(staged)
                checkpoints.publish_files(staged, folder)
        except _WRITING_ERRORS as error:
            shutil.rmtree(staged, ignore_errors=True)
            if _is_about_writing(error):
                raise self._saving_error(folder, error, self._model_bytes()) from error
            raise

    # --- room on the disk ---------------------------------------------------------------------------------------------

    def _model_bytes(self) -> int:
        """Size of the model's weights as they are saved."""
        model: Any = self.model
        return sum(_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))

    def _checkpoint_bytes(self) -> int:
        """About the size of a checkpoint: weights, and Adam's two moments of those that train."""
        if self.args.save_only_model:
            return self._model_bytes()
        optimizer = str(getattr(self.args.optim, "value", self.args.optim))
        model: Any = self.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if "8bit" in optimizer:
            moments = sum(2 * parameter.numel() for parameter in trained)
        else:
            moments = sum(2 * _bytes(parameter) for parameter in trained) if "adam" in optimizer else 0
        return self._model_bytes() + moments

    def _check_space(self, folder: Path) -> None:
        """Says before the training what would otherwise be said hours later.

        Raises:
            SavingError: If not even the model fits.
        """
        model, checkpoint, free = self._model_bytes(), self._checkpoint_bytes(), _free(folder)
        if free < model:
            raise SavingError(
                f"the trained model takes about {_size(model)}, and {folder} has {_size(free)} free: make room, or write "
                "elsewhere"
            )
        saves = str(getattr(self.args.save_strategy, "value", self.args.save_strategy))
        if saves == "no":
            return
        limit = self.args.save_total_limit
        # A new checkpoint is whole before an old one goes.
        kept = limit + 1 if limit else 1
        if not limit and saves == "steps" and self.args.max_steps > 0:
            kept = max(1, int(self.args.max_steps / self.args.save_steps)) if self.args.save_steps >= 1 else 1
        needed = kept * checkpoint + model
        if free < needed:
            logger.warning(
                "%s has %s free, and %d checkpoint(s) of about %s and the trained model take %s: training stops with an "
                "error when the disk is full. Make room, or set save_total_limit, or save_only_model",
                folder,
                _size(free),
                kept,
                _size(checkpoint),
                _size(needed),
            )

    def _saving_error(self, target: Path, error: Exception, needed: int) -> SavingError:
        cause = "the disk is full or the file too large" if isinstance(error, RuntimeError) else str(error)
        return SavingError(
            f"could not write {target}: {cause}. It takes about {_size(needed)}, and {_size(_free(target))} are free "
            "there. What was written of it is removed, and the checkpoints before it are whole: make room, and run the "
            "same command with --resume (in Python, resume_from_checkpoint=True)"
        )


def _is_about_writing(error: Exception) -> bool:
    # torch reports a failed write as a RuntimeError of the C++ file that wrote.
    torch_writer = isinstance(error, RuntimeError) and any(
        name in str(error) for name in ("inline_container", "PytorchStreamWriter", "iostream")
    )
    return torch_writer or isinstance(error, (OSError, SafetensorError))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _free(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


__all__ = ["SafeSavingTrainer"]
