"""The index: features of images or texts on disk, by what they were computed from.

Layout of the folder:

- ``index.json``: what all features share (`Facts`): the kind of what is indexed, the model, shapes and precision.
- ``items.jsonl``: a line for each image or text: its name, size, time of change and digest of its content, and shard and
  row of its features. The last line of a name counts; ``{"removed": NAME}`` takes it out.
- ``shards/00000.safetensors``, ...: features of about a thousand items, their 8-bit codes and bounds (`codes`).

A shard is renamed into its place when it is whole, and its lines are added to ``items.jsonl`` after that. So a process
that is killed leaves at most half a line, a shard that no line names, and nothing else: whoever goes on removes both.
Equal contents share a row, so an image that was renamed or copied is not computed again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..utils.whole_files import write_whole
from .codes import encode_rows
from .table import ITEMS_FILE, Facts, Item, item_line, read_facts, read_items, write_facts


SHARDS_FOLDER, LOCK_FILE = "shards", ".lock"
SHARD_ITEMS = 1024
"""Items of a full shard."""


@dataclass(frozen=True)
class Shard:
    """Features of some items, mapped from the disk.

    Args:
        name (`str`): Of its file.
        features (`torch.Tensor`): Shape (items, rows, size).
        codes (`torch.Tensor`): Shape (items, rows, size), int8.
        scales (`torch.Tensor`): Shape (items, rows).
        lengths (`torch.Tensor`): Shape (items,).
        rests (`torch.Tensor`): Shape (items,).
    """

    name: str
    features: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    lengths: torch.Tensor
    rests: torch.Tensor


class FeatureIndex:
    """An index on disk.

    Args:
        folder (`str` or `Path`): The folder.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If it is of another format or damaged, naming the place.

    Attributes:
        facts (`Facts`): What all features share.
        items (`dict[str, Item]`): By name.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.facts = read_facts(self.folder)
        self.items, self._whole_bytes, self._stale_lines = read_items(self.folder / ITEMS_FILE)

    @classmethod
    def create(cls, folder: str | Path, facts: Facts) -> FeatureIndex:
        """Makes an empty index.

        Raises:
            ValueError: If the folder holds anything already.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(entry.name != LOCK_FILE for entry in folder.iterdir())):
            raise ValueError(f"{folder} is there already and is no index: name another or an empty folder")
        write_facts(folder, facts)
        return cls(folder)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def change_root(self, root: str) -> None:
        """Writes down that the indexed folder is elsewhere."""
        self.facts = Facts(**{**asdict(self.facts), "root": root})
        write_facts(self.folder, self.facts)

    def add(self, items: Sequence[tuple[str, int, int, str]], features: torch.Tensor) -> None:
        """Adds items as a new shard; of a name that is there, the new one counts.

        Args:
            items (`Sequence[tuple[str, int, int, str]]`): Name, size, time of change and digest of each.
            features (`torch.Tensor`): Shape (items, rows, size).

        Raises:
            ValueError: If the shape is another, or features are not finite.
            OSError: If the disk is full. The index is as before.
        """
        shape = (len(items), self.facts.rows, self.facts.size)
        if tuple(features.shape) != shape:
            raise ValueError(f"features of shape {tuple(features.shape)}; {shape} belong into {self.folder}")
        stored = features.detach().to("cpu", getattr(torch, self.facts.stored_in)).contiguous()
        broken = (~stored.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"the features of {items[broken[0]][0]} are not finite: nothing can be found by them")
        name = self._next_shard()
        write_whole(self._file(name), save({"features": stored, **encode_rows(stored)}))
        self._append([Item(*item, name, row) for row, item in enumerate(items)])

    def link(self, name: str, size: int, modified_ns: int, item: Item) -> None:
        """Gives a name the features of an item of equal content."""
        self._append([Item(name, size, modified_ns, item.digest, item.shard, item.row)])

    def remove(self, names: Sequence[str]) -> None:
        """Takes items out."""
        self._append_lines([{"removed": name} for name in names])
        for name in names:
            del self.items[name]

    def find_file(self, names: Sequence[str]) -> Path:
        """A file of some images of equal content.

        Raises:
            FileNotFoundError: If all of them are gone.
        """
        paths = [Path(self.facts.root, name) for name in names]
        for path in paths:
            if path.is_file():
                return path
        raise FileNotFoundError(f"{paths[0]} is gone since it was indexed: run instructblip index again")

    def shards(self) -> Iterator[Shard]:
        """The shards that items are in, mapped.

        Raises:
            ValueError: If one is missing or damaged, naming it.
        """
        for name in sorted({item.shard for item in self.items.values()}):
            yield self.open_shard(name)

    def open_shard(self, name: str) -> Shard:
        """A shard, mapped.

        Raises:
            ValueError: If it is missing or damaged.
        """
        file = self._file(name)
        try:
            with safe_open(file, framework="pt") as content:
                shard = Shard(name, **{field.name: content.get_tensor(field.name) for field in fields(Shard)[1:]})
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} is missing or damaged ({error}): run instructblip index again") from error
        return shard

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other processes from writing, and removes what a killed one left behind.

        Raises:
            ValueError: If another process writes.
        """
        lock = FileLock(self.folder / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is writing {self.folder}: wait for it") from error
        try:
            self.items, self._whole_bytes, self._stale_lines = read_items(self.folder / ITEMS_FILE)
            file = self.folder / ITEMS_FILE
            if file.exists() and file.stat().st_size > self._whole_bytes:
                os.truncate(file, self._whole_bytes)
            self._drop_damaged()
            self._remove_unnamed_shards()
            yield
        finally:
            lock.release()

    def tidy(self) -> None:
        """Puts small shards and what is left of large ones together, and removes lines that no longer count."""
        rows: dict[str, dict[int, list[Item]]] = {}
        for item in self.items.values():
            rows.setdefault(item.shard, {}).setdefault(item.row, []).append(item)
        small = {name: of_shard for name, of_shard in rows.items() if 2 * len(of_shard) < SHARD_ITEMS}
        if len(small) > 1:
            self._merge(small)
        if self._stale_lines:
            lines = "".join(item_line(asdict(item)) for item in self.items.values())
            write_whole(self.folder / ITEMS_FILE, lines)
            self._stale_lines = 0
        self._remove_unnamed_shards()

    def _merge(self, small: Mapping[str, Mapping[int, list[Item]]]) -> None:
        places = [(name, row) for name, of_shard in sorted(small.items()) for row in sorted(of_shard)]
        for start in range(0, len(places), SHARD_ITEMS):
            chunk = places[start : start + SHARD_ITEMS]
            opened = {name: self.open_shard(name).features for name, _ in chunk}
            stored = torch.stack([opened[name][row] for name, row in chunk])
            target = self._next_shard()
            write_whole(self._file(target), save({"features": stored, **encode_rows(stored)}))
            self._append(
                [
                    Item(item.name, item.size, item.modified_ns, item.digest, target, new_row)
                    for new_row, (name, row) in enumerate(chunk)
                    for item in small[name][row]
                ]
            )

    def _drop_damaged(self) -> None:
        for name in sorted({item.shard for item in self.items.values()}):
            try:
                self.open_shard(name)
            except ValueError:
                # They are encoded anew, as if they had never been there.
                self.remove([item.name for item in self.items.values() if item.shard == name])

    def _remove_unnamed_shards(self) -> None:
        named = {item.shard for item in self.items.values()}
        for file in (self.folder / SHARDS_FOLDER).glob("*"):
            if file.stem not in named or file.suffix != ".safetensors":
                file.unlink()

    def _next_shard(self) -> str:
        numbers = [int(file.stem) for file in (self.folder / SHARDS_FOLDER).glob("*.safetensors")]
        return f"{max(numbers, default=-1) + 1:05d}"

    def _file(self, shard: str) -> Path:
        return self.folder / SHARDS_FOLDER / f"{shard}.safetensors"

    def _append(self, items: Sequence[Item]) -> None:
        self._append_lines([asdict(item) for item in items])
        for item in items:
            self._stale_lines += item.name in self.items
            self.items[item.name] = item

    def _append_lines(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with (self.folder / ITEMS_FILE).open("ab") as stream:
            stream.write("".join(map(item_line, lines)).encode())
            stream.flush()
            os.fsync(stream.fileno())
        self._stale_lines += sum("removed" in line for line in lines)


__all__ = ["SHARD_ITEMS", "FeatureIndex", "Shard"]
