"""Models and checkpoints to the Hub during a training, and what becomes of them when the network is gone.

Trainer copies the weights of a checkpoint into the output folder and pushes that. Here a checkpoint's own files are
pushed, from a folder of links to them, so that nothing unfinished stands where the trained model will be. The trained
model is pushed when its card is written; if that fails it is whole on the disk, and the error says how to push it later.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import httpx  # its HTTP client, httpx or httpx2 by version
from transformers import Trainer, TrainingArguments
from transformers.utils.hub import PushInProgress

from . import checkpoints
from .errors import PushError


logger = logging.getLogger(__name__)

_NETWORK_ERRORS = (OSError, httpx.HTTPError)
NOT_PUSHED = ["_*", "checkpoint-*"]
"""What stays behind of an output folder."""
_OF_TRAINING = ["optimizer*", "scheduler*", "rng_state*", "scaler*", checkpoints.MANIFEST, "global_step*", "latest"]


def check_push(args: TrainingArguments) -> None:
    """Finds out before a training whether its model can be pushed, and makes the repository.

    Args:
        args (`TrainingArguments`): Nothing is done without ``push_to_hub``, and but for the first process.

    Raises:
        ValueError: If there is no token, or the Hub refuses or cannot be reached.
    """
    if not args.push_to_hub or args.process_index != 0:
        return
    if args.hub_token is None and get_token() is None:
        raise ValueError(
            "training.push_to_hub: there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN"
        )
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    try:
        HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True)
    except _NETWORK_ERRORS as error:
        raise ValueError(f"training.push_to_hub: {name} cannot be written on the Hub: {error}") from error


class PushingTrainer(Trainer):
    """A Trainer that pushes whole checkpoints, and the trained model with its card."""

    hub_model_id: Any

    def push_output(self, commit_message: str = "Trained model") -> None:
        """Pushes what is in the output folder, without checkpoints.

        Args:
            commit_message (`str`, *optional*, defaults to `"Trained model"`): Message of the commit.

        Raises:
            PushError: If that fails; the folder is as it was.
        """
        if not self.is_world_process_zero():
            return
        folder, revision = str(self.args.output_dir), self.args.hub_revision
        try:
            if self.hub_model_id is None:
                self.init_hf_repo()
            HfApi(token=self.args.hub_token).upload_folder(
                repo_id=str(self.hub_model_id),
                folder_path=folder,
                commit_message=commit_message,
                ignore_patterns=NOT_PUSHED,
                revision=revision,
            )
        except _NETWORK_ERRORS as error:
            branch = f" --revision {revision}" if revision is not None else ""
            excluded = " ".join(f"--exclude '{pattern}'" for pattern in NOT_PUSHED)
            raise PushError(
                f"the trained model is whole in {folder}, but could not be pushed to {self.hub_model_id}: {error}. Push "
                f"it later with: hf upload {self.hub_model_id} {folder} . {excluded}{branch}"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = str(getattr(self.args.hub_strategy, "value", self.args.hub_strategy))
        if not self.is_world_process_zero() or strategy == "end":
            return
        progress = getattr(self, "push_in_progress", None)
        if progress is not None:
            if not progress.is_done() and not self.args.hub_always_push:
                return
            self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        links = checkpoint.with_name(checkpoints.PUSHING + checkpoint.name)
        _link_files(checkpoint, links)
        message = f"Training in progress, step {self.state.global_step}"
        api = HfApi(token=self.args.hub_token)
        target: dict[str, Any] = {
            "repo_id": str(self.hub_model_id),
            "folder_path": str(links),
            "revision": self.args.hub_revision,
            "run_as_future": True,
        }
        jobs: list[Any] = [
            api.upload_folder(commit_message=message, ignore_patterns=[*_OF_TRAINING, "trainer_state.json"], **target)
        ]
        if strategy in ("checkpoint", "all_checkpoints"):
            place = "last-checkpoint" if strategy == "checkpoint" else checkpoint.name
            jobs.append(api.upload_folder(path_in_repo=place, commit_message=f"{message}, checkpoint", **target))
        self.push_in_progress: Any = PushInProgress(jobs)  # type: ignore[arg-type]
        self._pushed_links = links

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        progress = getattr(self, "push_in_progress", None)
        for job in progress.jobs if progress is not None else ():
            if job.exception() is not None:
                logger.warning("a checkpoint was not pushed, training goes on: %s", job.exception())
        if progress is not None:
            self.push_in_progress = None
            shutil.rmtree(self._pushed_links, ignore_errors=True)


def _link_files(source: Path, target: Path) -> None:
    """A second name for each file, which stays when rotation deletes the first; a copy where a disk has no links."""
    shutil.rmtree(target, ignore_errors=True)

    def link(file: str, place: str) -> None:
        try:
            os.link(file, place)
        except OSError:
            shutil.copy2(file, place)

    shutil.copytree(source, target, copy_function=link)


__all__ = ["NOT_PUSHED", "PushingTrainer", "check_push"]
