"""Writing a target whole or not at all: it is made beside its place, under another name, and moved there when it is done."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .plan import PlannedTensor
from .stored_tensors import ConversionError


DEFAULT_SHARD_BYTES = 5_000_000_000


def check_target(target: Path) -> None:
    """Raises a [`ConversionError`] if there is something already, but for an empty folder."""
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConversionError([f"{target} is there already; name a target that is not, or an empty folder"])


@contextlib.contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """A place beside ``target`` to write to; it becomes the target at the end, and goes if anything was wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield partial
        if target.is_dir():
            target.rmdir()
        os.replace(partial, target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def write_weights(tensors: Sequence[PlannedTensor], folder: Path, shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Writes safetensors, in one file or in several with an index; one file's tensors at a time are in memory.

    Args:
        tensors (`Sequence[PlannedTensor]`): What to write.
        folder (`Path`): Where to.
        shard_bytes (`int`, *optional*, defaults to 5,000,000,000): Largest size of a file.
    """
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    stem, suffix = SAFE_WEIGHTS_NAME.split(".")
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SAFE_WEIGHTS_NAME if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        save_file(_loaded(shard), folder / name, metadata={"format": "pt"})
        weight_map.update({tensor.name: name for tensor in shard})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(tensor.bytes for tensor in tensors)}, "weight_map": weight_map}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _loaded(shard: Sequence[PlannedTensor]) -> dict[str, torch.Tensor]:
    # Two names may be views of one storage, which safetensors does not write.
    return {tensor.name: tensor.load().clone(memory_format=torch.contiguous_format) for tensor in shard}


__all__ = ["DEFAULT_SHARD_BYTES", "check_target", "whole_or_nothing", "write_weights"]
