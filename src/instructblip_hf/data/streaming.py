"""The mixture over streams: data in shards that are read from front to back, too large or too far away to be indexed.

`StreamMixture` draws from several sources by a `Mixture`: shards (`StreamSource`, see `instructblip_hf.data.shards`) and
data that can be indexed beside them (`IndexedSource`). What it promises:

- A consumer is one DataLoader worker of one rank. The rows of a source are split between consumers once and for all:
  two consumers never have a row in common, and each sees all of its rows before one of them again. With C consumers
  and S shards, gcd(S, C) groups of consumers have as many shards each, and the members of a group take turns in the
  rows of its shards. Shares are even, and no more is read than that needs; a multiple of C shards is best.
- A source that ends begins anew in another order: `datasets.interleave_datasets` replays it in the same one. Orders are
  functions of the mixture's seed and the epoch: shards come in a new order, and rows are shuffled in windows; rows that
  can be indexed are shuffled as a whole.
- Draw t of consumer c is draw ``t * C + c`` of the mixture, so that all together follow its sequence of datasets.
- ``state_dict`` and ``load_state_dict`` resume at the next row, exactly. A state holds positions, not rows: to resume, a
  shard is read again up to where the window was. `torchdata.stateful_dataloader.StatefulDataLoader` asks for it in
  every worker. Reading the stream again and skipping what was consumed gives the same rows as well, and
  ``stand_in_for`` makes that fast for loaders that skip, as Trainer's does.

The stream has no end; `max_steps` ends training. It deals itself out by `rank` and `world_size`, so that accelerate
must not divide it a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from .image_order import order_images
from .mixture import Mixture
from .permutations import KeyedPermutation, keyed_order
from .shards import Shards
from .templates import Instructions


WINDOW = 256
"""Rows of a source that are read ahead and shuffled."""

STAND_IN: dict[str, Any] = {}
"""What a stream gives in place of a row that a stopped run has had already, see `StreamMixture.stand_in_for`."""

_MOST_ROWS_IN_SHARD = 2**32


@dataclass(frozen=True)
class StreamSource:
    """A dataset of a stream mixture.

    Args:
        shards (`Shards`): Where rows come from.
        to_example (`Callable[[Any], Example | dict]`): Makes of a row an `Example`, or already a training row where
            there are no instructions.
        instructions (`Instructions`, *optional*): How examples are worded.
        open_images (`Callable[[Example], list]`, *optional*): Gives the images of an example, such as
            `instructblip_hf.data.sources.open_images`. By default ``images`` as they stand in the example.
    """

    shards: Shards
    to_example: Callable[[Any], Any]
    instructions: Instructions | None = None
    open_images: Callable[[Any], list[Any]] | None = None

    def cursor(self, place: Place, state: Mapping[str, int] | None) -> _ShardCursor:
        """A consumer's place in it, from the beginning or from a state."""
        return _ShardCursor(self, place, state)

    def training_row(self, content: Any, row: int, epoch: int) -> dict[str, Any]:
        """The training row; `row` is a number that the row has in every epoch."""
        example = self.to_example(content)
        if self.instructions is None or "category" not in example:
            worded = dict(example)
        else:
            worded = self.instructions.row(example, row, epoch)
        if self.open_images is not None:
            worded["images"] = list(self.open_images(example))
        return worded


@dataclass(frozen=True)
class IndexedSource:
    """A dataset of a stream mixture that can be indexed.

    Args:
        dataset (`Sequence`): Its training rows. One with a method ``at(row, epoch)`` is asked by it, as in a
            `MixtureDataset`.
    """

    dataset: Any

    def cursor(self, place: Place, state: Mapping[str, int] | None) -> _IndexCursor:
        """A consumer's place in it, from the beginning or from a state."""
        return _IndexCursor(self.dataset, place, state)


@dataclass(frozen=True)
class Place:
    """Who reads a source.

    Args:
        name (`str`): Of the source.
        seed (`int`): The mixture's.
        window (`int`): Rows that are shuffled together.
        consumer (`int`): Which consumer.
        consumers (`int`): How many there are.
    """

    name: str
    seed: int
    window: int
    consumer: int
    consumers: int


class StreamMixture(IterableDataset):
    """An endless stream of training rows from several sources; see the module for what it promises.

    Args:
        sources (`Mapping[str, StreamSource | IndexedSource]`): By the names of the mixture.
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
        sources: Mapping[str, StreamSource | IndexedSource],
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
            if isinstance(source, StreamSource) and source.shards.num_shards < 1:
                raise ValueError(f"the source {name} has no shards")
        self.sources = dict(sources)
        self.mixture = mixture
        self.rank = rank
        self.world_size = world_size
        self.window = window
        self._start: dict[str, Any] | None = None
        self._positions: dict[int, dict[str, Any]] = {}
        self._progress: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Training rows with their ``dataset`` and ``draw``, from the beginning or from a loaded state.

        Yields:
            `dict`: A row; `STAND_IN` for those before the position that `stand_in_for` named.

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
            "shards": [
                source.shards.num_shards if isinstance(source, StreamSource) else None
                for source in self.sources.values()
            ],
        }
        position = self._positions.get(consumer)
        state = position or self._start or {**place, "draws": 0, "sources": {}}
        for key, value in place.items():
            if state[key] != value:
                raise ValueError(f"the loaded state has {key} {state[key]}, here it is {value}: it fits no other run")
        cursors = {
            name: source.cursor(
                Place(name, self.mixture.seed, self.window, consumer, consumers), state["sources"].get(name)
            )
            for name, source in self.sources.items()
        }
        draws = state["draws"]
        if position is not None:
            self._progress = {**place, "draws": draws, "cursors": cursors}
            yield from (STAND_IN for _ in range(draws))
        while True:
            number = draws * consumers + consumer
            name = self.mixture.dataset_at(number)
            row = cursors[name].next_row()
            draws += 1
            self._progress = {**place, "draws": draws, "cursors": cursors}
            row = order_images(row, self.mixture.image_order, self.mixture.seed, number)
            yield {**row, "dataset": name, "draw": number}

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

    def stand_in_for(self, positions: Mapping[int, Mapping[str, Any]]) -> None:
        """Lets iterations begin with a `STAND_IN` for every row that was given before, which costs nothing, and go on
        with the row after it. So a loader that skips what a stopped run has had reads none of it again.

        Args:
            positions (`Mapping[int, Mapping]`): What `state_dict` gave, by number of the consumer; those that are not
                named begin at the beginning. None for iterations as usual.
        """
        self._positions = {consumer: dict(state) for consumer, state in positions.items()}
        self._progress = None

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay behind, so that worker processes can be started in any way.
        return {**self.__dict__, "_start": self.state_dict() or None, "_progress": None}


class _IndexCursor:
    """One consumer's place in rows that can be indexed: every C-th row is its own, in a new order each epoch."""

    def __init__(self, dataset: Any, place: Place, state: Mapping[str, int] | None) -> None:
        self._dataset, self._place = dataset, place
        self._rows = range(place.consumer, len(dataset), place.consumers)
        if not self._rows:
            raise ValueError(_NOT_ENOUGH.format(name=place.name))
        state = state or {"epoch": 0, "taken": 0}
        self._epoch, self._taken = state["epoch"], state["taken"]
        self._order = self._shuffled()

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "taken": self._taken}

    def next_row(self) -> dict[str, Any]:
        if self._taken >= len(self._rows):
            self._epoch, self._taken = self._epoch + 1, 0
            self._order = self._shuffled()
        row = self._rows[self._order(self._taken)]
        self._taken += 1
        try:
            content = self._dataset.at(row, self._epoch) if hasattr(self._dataset, "at") else self._dataset[row]
        except (ValueError, OSError) as error:
            raise ValueError(f"{self._place.name}, row {row}: {error}") from error
        return dict(content)

    def _shuffled(self) -> KeyedPermutation:
        place = self._place
        return KeyedPermutation(len(self._rows), "rows", place.seed, place.name, place.consumer, self._epoch)


_NOT_ENOUGH = "the source {name} has no rows for one of its consumers: it has fewer rows than ranks times workers, or empty shards"


class _ShardCursor:
    """One consumer's place in a source of shards.

    ``shard`` and ``offset`` say where the window begins: how many of the consumer's shards of this epoch and how many
    of its rows of the next one came before. ``taken`` is how many rows of the window were given.
    """

    def __init__(self, source: StreamSource, place: Place, state: Mapping[str, int] | None) -> None:
        self._name, self._source, self._window_size = place.name, source, place.window
        consumer, consumers = place.consumer, place.consumers
        groups = math.gcd(source.shards.num_shards, consumers)
        self._shards = range(consumer % groups, source.shards.num_shards, groups)
        self._member, self._members = consumer // groups, consumers // groups
        self._key = (place.seed, place.name, consumer % groups)
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
            raise ValueError(_NOT_ENOUGH.format(name=self._name))
        places = keyed_order(len(rows), "window", *self._key, self._member, self._epoch, self._shard, self._offset)
        self._window = [rows[place] for place in places]
        self._window_end = (shard, offset)


__all__ = ["STAND_IN", "WINDOW", "IndexedSource", "Place", "StreamMixture", "StreamSource"]
