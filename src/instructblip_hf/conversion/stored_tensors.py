"""Tensors in files: their names, shapes and types without reading them, and their values when they are asked for."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class ConversionError(ValueError):
    """A conversion that cannot be done.

    Args:
        problems (`Iterable[str]`): What stands in its way, each complete in itself.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(" ".join(self.problems))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Args:
        name (`str`): Its name there.
        file (`str`): The file or folder, as in reports.
        shape (`tuple[int, ...]`): Its shape.
        dtype (`torch.dtype`): Its type.
        load (`Callable`): Returns the tensor, on the CPU.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, name: str, file: str, tensor: torch.Tensor) -> StoredTensor:
        """A tensor that a reader has opened already."""
        return cls(name, file, tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def rounded(self, dtype: torch.dtype | None) -> StoredTensor:
        """The same tensor in another floating type, if it is a floating one; `None` for as it is."""
        if dtype is None or not self.dtype.is_floating_point:
            return self
        return replace(self, dtype=dtype, load=lambda: self.load().to(dtype))


def load_torch_file(path: Path) -> Any:
    """Content of a file of `torch.save`, tensors and plain values alone; tensors are mapped, not read, where they can be.

    Raises:
        ConversionError: If it is no such file, or holds other objects.
    """
    # Files of torch before 1.6 are no archives, and cannot be mapped.
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            [f"{path} cannot be read as tensors and plain values (torch.load with weights_only): {reason}"]
        ) from error


def tensors_of_mapping(tensors: Any, file: Path, where: str) -> dict[str, StoredTensor]:
    """Stored tensors of a state dict.

    Raises:
        ConversionError: If it holds something else.
    """
    others = [] if isinstance(tensors, dict) else [type(tensors).__name__]
    if isinstance(tensors, dict):
        others = [
            f"{name} ({type(value).__name__})"
            for name, value in tensors.items()
            if not isinstance(value, torch.Tensor) or not isinstance(name, str)
        ]
    if others:
        raise ConversionError([f"{where} of {file} holds what is no named tensor: {', '.join(others[:5])}"])
    return {name: StoredTensor.of(name, file.name, tensor) for name, tensor in tensors.items()}


def read_weight_folder(folder: Path) -> dict[str, StoredTensor]:
    """Tensors of a folder in transformers' layout: safetensors or `pytorch_model.bin`, in one file or several.

    Raises:
        ConversionError: If the folder has no weights, or lacks a file of its index.
    """
    for index_name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index_name).is_file():
            files = sorted(set(json.loads((folder / index_name).read_text())["weight_map"].values()))
            break
    else:
        files = [name for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME) if (folder / name).is_file()][:1]
    if not files:
        names = f"{SAFE_WEIGHTS_NAME}, {WEIGHTS_NAME} or an index of several"
        raise ConversionError([f"{folder} has no weights: none of {names} is there"])
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ConversionError([f"{folder} lacks {', '.join(missing)}, which its index names"])
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        path = folder / name
        if name.endswith(".safetensors"):
            tensors.update(read_safetensors(path, folder.name))
        else:
            tensors.update(tensors_of_mapping(load_torch_file(path), path, "the state dict"))
    return tensors


def read_safetensors(path: Path, label: str) -> dict[str, StoredTensor]:
    """Tensors of a safetensors file."""
    opened: Any = safe_open(os.fspath(path), framework="pt")
    tensors = {}
    for name in opened.keys():  # noqa: SIM118 -- no mapping
        part = opened.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise ConversionError([f"{name} of {path} is of type {part.get_dtype()}, which is not converted"])

        def load(name: str = name) -> torch.Tensor:
            return opened.get_tensor(name)

        tensors[name] = StoredTensor(name, label, tuple(part.get_shape()), _DTYPES[part.get_dtype()], load)
    return tensors


__all__ = [
    "ConversionError",
    "StoredTensor",
    "load_torch_file",
    "read_safetensors",
    "read_weight_folder",
    "tensors_of_mapping",
]
