"""The mixture over streams: data in shards that are read from front to back, too large or too far away to be indexed.

Shards are tar archives in webdataset's form (`TarShards`) or those of a `datasets.IterableDataset` (`DatasetShards`),
which also reads tar and parquet files from the Hub and other remote places. `StreamMixture` draws from several such
sources by a `Mixture`. What it promises:

- A consumer is one DataLoader worker of one rank. The rows of a source are split between consumers once and for all:
  two consumers never have a row in common, and each sees all of its rows before one of them again. With C consumers
  and S shards, gcd(S, C) groups of consumers have as many shards each, and the members of a group take turns in the
  rows of its shards. Shares are even, and no more is read than that needs; a multiple of C shards is best.
- A source that ends begins anew in another order: `datasets.interleave_datasets` replays it in the same one. Orders are
  functions of the mixture's seed and the epoch: shards come in a new order, and rows are shuffled in windows.
- Draw t of consumer c is draw ``t * C + c`` of the mixture, so that all together follow its sequence of datasets.
- ``state_dict`` and ``load_state_dict`` resume at the next row, exactly. A state holds positions, not rows: to resume, a
  shard is read again up to where the window was. `torchdata.stateful_dataloader.StatefulDataLoader` asks for it in
  every worker. Reading the stream again and skipping what was consumed, as Trainer does, gives the same rows as well.

The stream has no end; `max_steps` ends training. It deals itself out by `rank` and `world_size`, so that accelerate
must not divide it a second time.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import IterableDataset, get_worker_info

from .mixture import Mixture
from .permutations import KeyedPermutation, keyed_order
from .schema import Example
from .templates import Instructions


WINDOW = 256
"""Rows of a source that are read ahead and shuffled."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")

_MOST_ROWS_IN_SHARD = 2**32


class Shards(Protocol):
    """Rows in parts that are read from front to back. Reading twice gives the same rows in the same order."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[Any]:
        """Rows `start`, `start` + `step`, ... of a shard."""


class TarShards:
    """Tar archives in webdataset's form: files of one row stand together and share their name up to the first dot.

    Nothing is extracted to disk, and files of rows that are not asked for are not read.

    Args:
        paths (`Sequence[str | Path]`): The archives, in the order in which they are numbered.

    Raises:
        ValueError: If there are none.
        FileNotFoundError: If one does not exist.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths or isinstance(paths, str):
            raise ValueError(f"paths is {paths!r}; it must be a list of archives, with at least one")
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            if not path.is_file():
                raise FileNotFoundError(f"there is no archive {path}")

    @property
    def num_shards(self) -> int:
        return len(self.paths)

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[dict[str, Any]]:
        """Rows as dicts: ``__key__`` is the common name, and each file's bytes stand under its suffix (``".jpg"``).

        Raises:
            ValueError: If the archive is damaged.
        """
        path = self.paths[shard]
        try:
            with tarfile.open(path) as archive:
                number, key = -1, None
                members: list[tarfile.TarInfo] = []
                for member in archive:
                    folder, slash, name = member.name.rpartition("/")
                    stem, dot, _ = name.partition(".")
                    if not member.isfile() or not stem or not dot:
                        continue
                    if folder + slash + stem != key:
                        if members:
                            yield _read_members(archive, key, members)
                        number, key, members = number + 1, folder + slash + stem, []
                    if number >= start and (number - start) % step == 0:
                        members.append(member)
                if members:
                    yield _read_members(archive, key, members)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: damaged archive: {error}") from error


def _read_members(archive: tarfile.TarFile, key: str | None, members: list[tarfile.TarInfo]) -> dict[str, Any]:
    row: dict[str, Any] = {"__key__": key}
    for member in members:
        file = archive.extractfile(member)
        if file is not None:
            row["." + member.name.rpartition("/")[2].partition(".")[2].lower()] = file.read()
    return row


class DatasetShards:
    """A stream of the library `datasets`.

    Args:
        dataset (`datasets.IterableDataset`): Such as ``load_dataset(..., split=..., streaming=True)``. Need not be
            shuffled.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def num_shards(self) -> int:
        return int(self.dataset.num_shards)

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[dict[str, Any]]:
        """Rows as `datasets` gives them."""
        if get_worker_info() is not None:
            from fsspec.asyn import reset_lock

            # Remote files hang in forked processes otherwise.
            reset_lock()
        part = self.dataset.shard(num_shards=self.num_shards, index=shard)
        # By batches, because iterating over rows in a DataLoader's worker would divide the shard between workers.
        batches = (part.skip(start) if start else part).iter(batch_size=1)
        return ({name: column[0] for name, column in batch.items()} for batch in islice(batches, 0, None, step))


@dataclass(frozen=True)
class StreamSource:
    """A dataset of a stream mixture.

    Args:
        shards (`Shards`): Where rows come from.
        to_example (`Callable[[Any], Example | dict]`): Makes of a row an `Example`, or already a training row where
            there are no instructions.
        instructions (`Instructions`, *optional*): How examples are worded.
    """

    shards: Shards
    to_example: Callable[[Any], Any]
    instructions: Instructions | None = None

    def training_row(self, content: Any, row: int, epoch: int) -> dict[str, Any]:
        """The training row; `row` is a number that the row has in every epoch."""
        example = self.to_example(content)
        return dict(example) if self.instructions is None else self.instructions.row(example, row, epoch)


class StreamMixture(IterableDataset):
    """An endless stream of training rows from several sources; see the module for what it promises.

    Args:
        sources (`Mapping[str, StreamSource]`): By the names of the mixture.
        mixture (`Mixture`): Its sizes are those of the sources as published: probabilities follow from them, and
            nothing else.
        rank (`int`, *optional*, defaults to 0): This process.
        world_size (`int`, *optional*, defaults to 1): Number of processes.
        window (`int`, *optional*, defaults to `WINDOW`): Rows of a source that are shuffled together. They are held in
            memory, in every worker and for every source.

    Raises:
        ValueError: If names differ from the mixture's, `rank` is none of `world_size`, `window` is below 1 or a source
            has no shards.
    """

    def __init__(
        self,
        sources: Mapping[str, StreamSource],
        mixture: Mixture,
        rank: int = 0,
        world_size: int = 1,
        window: int = WINDOW,
    ) -> None:
        if set(sources) != set(mixture.names):
            raise ValueError(f"sources are {', '.join(sources)}; the mixture was made for {', '.join(mixture.names)}")
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank}; with a world_size of {world_size} it must be from 0 to {world_size - 1}"
            )
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        for name, source in sources.items():
            if source.shards.num_shards < 1:
                raise ValueError(f"the source {name} has no shards")
        self.sources = dict(sources)
        self.mixture = mixture
        self.rank = rank
        self.world_size = world_size
        self.window = window
        self._start: dict[str, Any] | None = None
        self._progress: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Training rows with their ``dataset``, from the beginning or from a loaded state.

        Raises:
            ValueError: If a row cannot be used, naming source, shard and row; or if a loaded state is of another
                mixture or of another number of consumers.
        """
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        consumers, consumer = self.world_size * workers, self.rank * workers + worker_id
        place = {
            "mixture": self.mixture.fingerprint(),
            "consumer": consumer,
            "consumers": consumers,
            "window": self.window,
        }
        state = self._start or {**place, "draws": 0, "sources": {}}
        for key, value in place.items():
            if state[key] != value:
                raise ValueError(f"the loaded state has {key} {state[key]}, here it is {value}: it fits no other run")
        cursors = {
            name: _Cursor(
                name, source, self.mixture.seed, self.window, consumer, consumers, state["sources"].get(name)
            )
            for name, source in self.sources.items()
        }
        draws = state["draws"]
        while True:
            name = self.mixture.dataset_at(draws * consumers + consumer)
            row = cursors[name].next_row()
            draws += 1
            self._progress = {**place, "draws": draws, "cursors": cursors}
            yield {**row, "dataset": name}

    def state_dict(self) -> dict[str, Any]:
        """Where the last iteration is, as numbers and texts; an empty dict before the first row."""
        if self._progress is None:
            return dict(self._start or {})
        state = {key: value for key, value in self._progress.items() if key != "cursors"}
        return {**state, "sources": {name: cursor.state() for name, cursor in self._progress["cursors"].items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets iterations begin after the row at which `state_dict` gave `state`."""
        self._start = dict(state) or None
        self._progress = None

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay behind, so that worker processes can be started in any way.
        return {**self.__dict__, "_start": self.state_dict() or None, "_progress": None}


class _Cursor:
    """One consumer's place in one source.

    ``shard`` and ``offset`` say where the window begins: how many of the consumer's shards of this epoch and how many
    of its rows of the next one came before. ``taken`` is how many rows of the window were given.
    """

    def __init__(
        self,
        name: str,
        source: StreamSource,
        seed: int,
        window: int,
        consumer: int,
        consumers: int,
        state: Mapping[str, int] | None,
    ) -> None:
        self._name, self._source, self._window_size = name, source, window
        groups = math.gcd(source.shards.num_shards, consumers)
        self._shards = range(consumer % groups, source.shards.num_shards, groups)
        self._member, self._members = consumer // groups, consumers // groups
        self._key = (seed, name, consumer % groups)
        state = state or {"epoch": 0, "shard": 0, "offset": 0, "taken": 0}
        self._epoch, self._shard = state["epoch"], state["shard"]
        self._offset, self._taken = state["offset"], state["taken"]
        self._window: list[tuple[int, int, Any]] | None = None
        self._window_end = (self._shard, self._offset)
        self._reader: Iterator[Any] | None = None

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "shard": self._shard, "offset": self._offset, "taken": self._taken}

    def next_row(self) -> dict[str, Any]:
        while True:
            if self._window is None:
                self._fill()
            if self._window is not None and self._taken < len(self._window):
                shard, number, content = self._window[self._taken]
                self._taken += 1
                try:
                    row = shard * _MOST_ROWS_IN_SHARD + number
                    return self._source.training_row(content, row, self._epoch)
                except (ValueError, KeyError, OSError) as error:
                    raise ValueError(f"{self._name}, shard {shard}, row {number}: {error}") from error
            self._shard, self._offset = self._window_end
            self._taken, self._window = 0, None
            if self._shard >= len(self._shards):
                self._epoch, self._shard, self._offset = self._epoch + 1, 0, 0

    def _fill(self) -> None:
        order = KeyedPermutation(len(self._shards), "shards", *self._key, self._epoch)
        shard, offset = self._shard, self._offset
        rows: list[tuple[int, int, Any]] = []
        while len(rows) < self._window_size and shard < len(self._shards):
            index = self._shards[order(shard)]
            number = self._member + offset * self._members
            if self._reader is None:
                self._reader = self._source.shards.read(index, number, self._members)
            found = list(islice(self._reader, self._window_size - len(rows)))
            rows += [(index, number + place * self._members, content) for place, content in enumerate(found)]
            offset += len(found)
            if len(rows) < self._window_size:
                shard, offset, self._reader = shard + 1, 0, None
        if not rows and (self._shard, self._offset) == (0, 0):
            raise ValueError(
                f"the source {self._name} has no rows for one of its consumers: it has fewer rows than ranks times "
                "workers, or empty shards"
            )
        places = keyed_order(len(rows), "window", *self._key, self._member, self._epoch, self._shard, self._offset)
        self._window = [rows[place] for place in places]
        self._window_end = (shard, offset)


def example_from_tar(
    content: Mapping[str, Any], dataset: str, category: str = "image_captioning"
) -> Example | dict[str, Any]:
    """What a row of `TarShards` holds: image files, and a ``.json`` or ``.txt`` file with the text.

    A text file is one caption or answer. JSON is a list of them; or an object with the slots of an `Example`, or with
    ``caption``, one or a list; or an object with ``prompt`` and ``completion``, or with ``messages``, which is already
    a training row.

    Args:
        content (`Mapping[str, Any]`): The row.
        dataset (`str`): Name of the dataset.
        category (`str`, *optional*, defaults to `"image_captioning"`): Its task category.

    Returns:
        `Example` or `dict`: With ``images`` as the bytes of the files, in the order of the archive.

    Raises:
        ValueError: If the text is missing or cannot be read.
    """
    images = [data for suffix, data in content.items() if suffix.endswith(IMAGE_SUFFIXES)]
    row: dict[str, Any] = {"id": content["__key__"], "dataset": dataset, "images": images}
    if ".json" in content:
        try:
            text = json.loads(content[".json"])
        except ValueError as error:
            raise ValueError(f"{content['__key__']}.json: not readable as JSON: {error}") from error
    elif ".txt" in content:
        text = [content[".txt"].decode("utf-8").strip()]
    else:
        raise ValueError(f"{content['__key__']}: there is neither a .json nor a .txt file")
    if isinstance(text, dict) and ("messages" in text or "completion" in text):
        return {**row, **{key: text[key] for key in ("prompt", "completion", "messages") if key in text}}
    row["category"] = category
    if isinstance(text, dict):
        captions = text.pop("caption", [])
        answers = text.pop("answers", [captions] if isinstance(captions, str) else captions)
        row.update(
            {slot: value for slot, value in text.items() if slot in Example.__annotations__ and slot not in row}
        )
        text = answers
    if not isinstance(text, list) or not all(isinstance(answer, str) for answer in text):
        raise ValueError(f"{content['__key__']}: captions or answers must be a list of texts, not {text!r}")
    return {**row, "answers": text}


__all__ = ["DatasetShards", "Shards", "StreamMixture", "StreamSource", "TarShards", "example_from_tar"]
