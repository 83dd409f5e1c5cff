"""Training on a `StreamMixture`: its loader, and checkpoints that say where every consumer of it was.

The stream deals itself out, so that accelerate must not divide it again: it is told that there is one process. Each
batch brings along the position behind its last row, as what a worker has read ahead is not trained on yet; a
checkpoint has the positions of the last batches that were. When training goes on, the stream gives `STAND_IN` rows for
those that came before, so that Trainer, which skips the batches before the checkpoint, reads none of them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, get_worker_info
from transformers import TrainingArguments

from ..data.streaming import STAND_IN, StreamMixture


POSITION = "stream_position"
"""Under which a batch has the position behind its last row, as JSON."""


@dataclass
class PositionCollator:
    """A collator whose batches say where the stream was after them.

    Args:
        collator (`Callable`): Makes the batch.
        stream (`StreamMixture`): Where its rows come from; in a worker process that process's copy.
    """

    collator: Callable[[list[Any]], Any]
    stream: StreamMixture

    def __call__(self, rows: list[Mapping[str, Any]]) -> Any:
        """The batch with `POSITION`; nothing else where it is skipped."""
        if any(row is STAND_IN for row in rows):
            return {}
        worker = get_worker_info()
        stream: Any = self.stream if worker is None else worker.dataset
        batch = self.collator(list(rows))
        batch[POSITION] = json.dumps(stream.state_dict())
        return batch


def stream_loader(
    stream: StreamMixture, args: TrainingArguments, collator: Callable[[list[Any]], Any], device: Any
) -> DataLoader:
    """The batches of this process, on their device.

    Args:
        stream (`StreamMixture`): What to train on; told which process this is.
        args (`TrainingArguments`): Size of batches, workers.
        collator (`Callable`): Makes the batches.
        device (`torch.device`): Where they go.
    """
    stream.rank, stream.world_size = args.process_index, args.world_size
    loader: DataLoader = DataLoader(
        stream,
        batch_size=args.train_batch_size,
        collate_fn=PositionCollator(collator, stream),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    return prepare_data_loader(
        loader, device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )


class StreamPositions:
    """Where the consumers of a process are, as far as training went.

    Args:
        args (`TrainingArguments`): Which process this is, its workers and its batches.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self._file = f"stream_positions_{args.process_index}.json"
        self._run = {
            "processes": args.world_size,
            "dataloader_num_workers": args.dataloader_num_workers,
            "per_device_train_batch_size": args.train_batch_size,
        }
        self._by_consumer: dict[int, Mapping[str, Any]] = {}

    def note(self, position: str) -> None:
        """Takes down what came with a batch that is trained on."""
        state = json.loads(position)
        self._by_consumer[state["consumer"]] = state

    def save(self, checkpoint: str | Path) -> None:
        """Writes the positions into a checkpoint."""
        content = {**self._run, "positions": list(self._by_consumer.values())}
        (Path(checkpoint) / self._file).write_text(json.dumps(content), encoding="utf-8")

    def load(self, checkpoint: str | Path | None) -> dict[int, Mapping[str, Any]]:
        """The positions of a checkpoint by consumer; none where it has none, for training that reads everything again.

        Args:
            checkpoint (`str` or `Path`, *optional*): Its folder; `None` for a run from the beginning.

        Raises:
            ValueError: If the rows were dealt out to other processes, workers or batches.
        """
        self._by_consumer = {}
        file = None if checkpoint is None else Path(checkpoint) / self._file
        if file is None or not file.is_file():
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
        for name, now in self._run.items():
            if content[name] != now:
                raise ValueError(
                    f"{checkpoint} was trained on a stream with {name} {content[name]}, now it is {now}: rows would come "
                    "twice or never. Keep it, or start a new run from its weights with model.path"
                )
        self._by_consumer = {state["consumer"]: state for state in content["positions"]}
        return dict(self._by_consumer)


__all__ = ["POSITION", "PositionCollator", "StreamPositions", "stream_loader"]
