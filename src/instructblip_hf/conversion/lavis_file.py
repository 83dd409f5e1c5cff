"""LAVIS's checkpoint files.

A file of LAVIS's runner is a dictionary with the weights at ``"model"``, without those that were frozen, and beside
them the optimiser, the configuration, the scaler and the epoch (`runner_base.py`). `eva_vit_g.pth` is the state dict
of a vision tower alone, without a prefix and with one block more than LAVIS uses (`eva_vit.py`). Files that are
written here also carry what LAVIS has no place for, at an entry of their own that LAVIS does not read: the
configuration, and weights that LAVIS does not have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .lavis_keys import UNUSED_IN_EVA_VIT
from .stored_tensors import ConversionError, StoredTensor, load_torch_file, tensors_of_mapping


OWN_ENTRY = "instructblip_hf"


@dataclass
class LavisWeights:
    """Weights of one file or of several, by LAVIS's names.

    Args:
        tensors (`dict[str, StoredTensor]`): The weights.
        left_out (`list`): Tensors that are not converted, each with the reason.
        notes (`list[str]`): What a reader should know about the files.
        own (`dict[str, Any]`): Content of [`OWN_ENTRY`], where a file has it.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    left_out: list[tuple[StoredTensor, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)


def read_lavis_files(paths: Iterable[Path], vision_layers: int) -> LavisWeights:
    """Reads files that together make a model; where several hold a tensor, the first one's is taken.

    Args:
        paths (`Iterable[Path]`): Files, those that matter most first.
        vision_layers (`int`): How many blocks of `eva_vit_g.pth` are used.

    Raises:
        ConversionError: If a file cannot be read or is no file of LAVIS's.
    """
    merged = LavisWeights()
    for path in paths:
        part = _read_lavis_file(path, vision_layers)
        merged.notes += part.notes
        merged.left_out += part.left_out
        merged.own = merged.own or part.own
        for name, tensor in part.tensors.items():
            if name in merged.tensors:
                merged.left_out.append((tensor, f"taken from {merged.tensors[name].file}"))
            else:
                merged.tensors[name] = tensor
    return merged


def _read_lavis_file(path: Path, vision_layers: int) -> LavisWeights:
    content = load_torch_file(path)
    if not isinstance(content, dict):
        raise ConversionError([f"{path} holds {type(content).__name__}, not a dictionary: it is no file of LAVIS's"])
    if isinstance(content.get("model"), dict):
        tensors = tensors_of_mapping(content["model"], path, "the entry 'model'")
        weights = LavisWeights(tensors, own=content.get(OWN_ENTRY, {}))
        others = [name for name in content if name not in ("model", OWN_ENTRY)]
        if others:
            weights.notes.append(f"{path.name}: beside the weights it holds {', '.join(others)}, which stay behind")
    elif "patch_embed.proj.weight" in content:
        weights = _vision_tower(tensors_of_mapping(content, path, "the state dict"), path, vision_layers)
    elif any(str(name).startswith(("visual_encoder.", "Qformer.")) for name in content):
        weights = LavisWeights(tensors_of_mapping(content, path, "the state dict"))
    else:
        raise ConversionError(
            [
                f"{path} is no file of LAVIS's: it has no entry 'model' and is no vision tower; it holds {_some(content)}"
            ]
        )
    if any(name.startswith(("visual_encoder.transformer.", "visual_encoder.conv1.")) for name in weights.tensors):
        raise ConversionError(
            [f"{path} was trained with CLIP's ViT-L (vit_model clip_L), which this package's tower is not: {_VIT_L}"]
        )
    return weights


_VIT_L = "files with vit_model eva_clip_g can be converted"


def _vision_tower(tensors: Mapping[str, StoredTensor], path: Path, layers: int) -> LavisWeights:
    """Puts LAVIS's prefix before the names of a tower; blocks behind the last one used are left out."""
    weights = LavisWeights()
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    if len(blocks) < layers:
        raise ConversionError(
            [f"{path} has {len(blocks)} blocks, fewer than the {layers} that are to be used (vision_layers)"]
        )
    for name, tensor in tensors.items():
        if name.startswith("blocks.") and int(name.split(".")[1]) >= layers:
            weights.left_out.append((tensor, f"LAVIS uses the first {layers} of {len(blocks)} blocks (vision_layers)"))
        elif name.startswith(UNUSED_IN_EVA_VIT):
            weights.left_out.append((tensor, "LAVIS's vision tower ends with its last block"))
        else:
            weights.tensors[f"visual_encoder.{name}"] = tensor
    return weights


def write_lavis_file(
    tensors: Mapping[str, torch.Tensor], path: Path, own: Mapping[str, Any], kept: Mapping[str, torch.Tensor]
) -> None:
    """Writes a file of LAVIS's, whole or not at all.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): Weights by LAVIS's names.
        path (`Path`): The file.
        own (`Mapping[str, Any]`): Plain values for [`OWN_ENTRY`].
        kept (`Mapping[str, torch.Tensor]`): Tensors for [`OWN_ENTRY`], by LAVIS's names.
    """
    entry = {**{name: json.dumps(value) for name, value in own.items()}, "kept": dict(kept)}
    torch.save({"model": dict(tensors), OWN_ENTRY: entry}, path)
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def _some(names: Iterable[Any], shown: int = 5) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:shown]) + (f" and {len(listed) - shown} more" if len(listed) > shown else "")


__all__ = ["OWN_ENTRY", "LavisWeights", "read_lavis_files", "write_lavis_file"]
