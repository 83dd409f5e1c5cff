"""Features of images in a folder: one safetensors file an image, found by what it was computed from.

Layout: ``FOLDER/SPACE/ab/cd/KEY.safetensors``. SPACE is a fingerprint of the facts that all features in it share
(tower, weights, precision, image processor), which stand readable in ``FOLDER/SPACE/store.json``; KEY is a hash of
SPACE and of the image's content. So several towers share one folder, and none ever reads what another computed.

A file is written under another name, flushed to the disk and renamed, so that many processes can write at once and
nothing half-written is ever found. Its content carries a checksum: what was damaged later counts as absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ...utils.whole_files import write_whole


logger = logging.getLogger(__name__)

FORMAT = 1
"""Goes into every fingerprint: what a later layout wrote is not read as this one."""

FACTS_FILE = "store.json"
_INCOMING = "incoming"
_SPACE = re.compile(r"[0-9a-f]{16}")
_TENSOR = "features"
_ABANDONED_SECONDS = 3600


class FeatureStore:
    """Features of one tower in one precision, by the content of the image.

    Args:
        root (`str` or `Path`): The folder; it is made when the first features are written.
        facts (`Mapping[str, Any]`): What all features share, as JSON. Other facts are another store.

    Raises:
        ValueError: If the folder holds anything but stores.

    Attributes:
        folder (`Path`): Where this store is, inside of `root`.
        shape (`tuple[int, ...]`, *optional*): Of the features of an image, once it is known.
    """

    def __init__(self, root: str | Path, facts: Mapping[str, Any]) -> None:
        self.root = Path(root)
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=str)
        self.facts: dict[str, Any] = json.loads(text)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = self.root / self.fingerprint
        self.shape: tuple[int, ...] | None = None
        self._sizes: dict[tuple[int, ...], int] = {}
        _check_root(self.root)
        self._read_facts()

    @property
    def dtype(self) -> torch.dtype:
        """What features are stored in."""
        dtype: torch.dtype = getattr(torch, self.facts["dtype"])
        return dtype

    def key(self, digest: str) -> str:
        """Of the features of an image whose content has that digest."""
        return hashlib.sha256(f"{self.fingerprint} {digest}".encode()).hexdigest()

    def path(self, key: str) -> Path:
        """The file of a key, whether or not it is there."""
        return self.folder / key[:2] / key[2:4] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        """Whether there is a file of the right size. What is in it is checked when it is read."""
        try:
            size = self.path(key).stat().st_size
        except FileNotFoundError:
            return False
        return self.shape is None or size == self.entry_bytes(self.shape)

    def get(self, key: str) -> torch.Tensor | None:
        """Features of an image; `None` if there are none. Damaged ones are removed, which is logged."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        features, problem = _decode(key, data)
        if features is not None and features.dtype != self.dtype:
            problem = f"it holds {features.dtype}"
        if problem is None:
            return features
        logger.warning("image features %s are damaged (%s): removed, to be computed anew", path, problem)
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, features: torch.Tensor) -> None:
        """Writes the features of an image, in the place of any that are there.

        Args:
            key (`str`): Of `key`.
            features (`torch.Tensor`): Shape (image tokens, hidden), converted to `dtype`.

        Raises:
            ValueError: If they have another shape than those that are there.
            OSError: If they cannot be written, as on a full disk. Nothing is left behind.
        """
        features = features.detach().to("cpu", self.dtype).contiguous()
        if self.shape is None:
            self._write_facts(tuple(features.shape))
        if tuple(features.shape) != self.shape:
            raise ValueError(f"features of shape {tuple(features.shape)} in {self.folder}, which has {self.shape}")
        self._write(self.path(key), _encode(key, features))

    def entry_bytes(self, shape: tuple[int, ...]) -> int:
        """Size of the file of an image whose features have that shape: exact, without the file system's blocks."""
        if shape not in self._sizes:
            self._sizes[shape] = len(_encode("0" * 64, torch.zeros(shape, dtype=self.dtype)))
        return self._sizes[shape]

    def clean_up(self) -> None:
        """Removes what processes that were killed an hour ago or earlier had not finished."""
        for file in self.folder.glob(f"{_INCOMING}/*"):
            try:
                if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                    file.unlink()
            except FileNotFoundError:
                continue  # Another process was faster.

    def _read_facts(self) -> None:
        path = self.folder / FACTS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.shape = tuple(content["shape"])
            same = {name: content[name] for name in self.facts} == self.facts
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged and will be written anew", path)
            self.shape = None
            return
        if not same:
            raise ValueError(f"{path} was changed: it does not say what its folder's name was made of; restore it")

    def _write_facts(self, shape: tuple[int, ...]) -> None:
        self._write(
            self.folder / FACTS_FILE, json.dumps({**self.facts, "shape": list(shape)}, indent=2).encode() + b"\n"
        )
        self.shape = shape

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_whole(path, data, self.folder / _INCOMING)
        except OSError as error:
            hint = "; free some space there, or name another folder" if error.errno == errno.ENOSPC else ""
            raise OSError(
                error.errno, f"cannot write image features into {self.root}: {os.strerror(error.errno or 0)}{hint}"
            ) from error


def _check_root(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise ValueError(f"image features need a folder, and {root} is a file")
    foreign = sorted(entry.name for entry in root.iterdir() if not _is_own(entry))
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ValueError(f"{root} is not a folder of image features: it holds {shown}; name another or an empty one")


def _is_own(entry: Path) -> bool:
    # Hidden files are the file system's.
    return entry.name.startswith(".") or entry.name == "lost+found" or _SPACE.fullmatch(entry.name) is not None


def _checksum(key: str, features: torch.Tensor) -> str:
    checksum = hashlib.blake2b(f"{key} {features.dtype} {tuple(features.shape)}".encode(), digest_size=16)
    checksum.update(features.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def _encode(key: str, features: torch.Tensor) -> bytes:
    return save({_TENSOR: features}, {"key": key, "checksum": _checksum(key, features)})


def _decode(key: str, data: bytes) -> tuple[torch.Tensor | None, str | None]:
    """Features out of a file's content, and what is wrong with it."""
    try:
        features = load(data)[_TENSOR]
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        stated = (metadata["key"], metadata["checksum"])
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        return None, f"{type(error).__name__}: {error}"
    if stated != (key, _checksum(key, features)):
        return None, "its checksum does not fit"
    return features, None


__all__ = ["FACTS_FILE", "FeatureStore"]
