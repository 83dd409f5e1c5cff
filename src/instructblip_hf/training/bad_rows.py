"""Rows that cannot be read while a training runs: named, counted, and replaced where that was allowed.

A row is unreadable when its dataset raises `ValueError` or `OSError` for it: an image that is gone, damaged or cut off.
What stands in its place depends on nothing but the draw: the next row of the same dataset in the order of its draws, or
the next row of data that is no mixture. So a run that was stopped and resumed reads the same rows as one that was not.

Reading happens ahead of training, perhaps in worker processes. So nothing is decided there: a batch brings along what
was wrong with its rows, and it counts when the batch is trained on. Each row counts once, however often it is drawn.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.mixture import MixtureDataset
from .errors import BadRowsError


logger = logging.getLogger(__name__)

ROW_NUMBERS = "row_numbers"
"""Under which a batch has the numbers of its rows in the training data, a list."""

BAD_ROWS = "bad_rows"
"""Under which a batch has what was wrong with rows that were to stand in it: a list of pairs of name and reason."""

_SHOWN = 10


def row_name(dataset: Any, number: int) -> str:
    """What a row is called in messages: dataset and row of a mixture, or file and line, or its number."""
    if isinstance(dataset, MixtureDataset):
        draw = dataset.mixture.draw(number)
        part = dataset.datasets[draw.dataset]
        place = f" ({part.place(draw.row)})" if hasattr(part, "place") else ""
        return f"{draw.dataset}, row {draw.row}{place}"
    return str(dataset.place(number)) if hasattr(dataset, "place") else f"row {number}"


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadRow:
    """What came of reading a row.

    Attributes:
        number (`int`): Of the row in the training data; of the one that stands in for it where it is unreadable.
        row (`Mapping` or `None`): The row; `None` where too many were unreadable.
        bad (`tuple[tuple[str, str], ...]`): Names of unreadable rows, and why they are.
    """

    number: int
    row: Mapping[str, Any] | None
    bad: tuple[tuple[str, str], ...] = ()


class ReadRows:
    """Rows of a map-style dataset as `ReadRow`.

    Args:
        dataset (`Any`): The rows.
        allowed (`int`): How many may be unreadable. More are not tried, as training ends at the next one.
    """

    def __init__(self, dataset: Any, allowed: int) -> None:
        self.dataset = dataset
        self.allowed = allowed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> ReadRow:
        bad: dict[str, str] = {}
        tried = 0
        for candidate in self._candidates(number):
            try:
                return ReadRow(candidate, self.dataset[candidate], tuple(bad.items()))
            except (ValueError, OSError) as error:
                tried += 1
                bad.setdefault(row_name(self.dataset, candidate), _reason(error))
            # A dataset of few rows, all of them unreadable, comes back to the same ones.
            if len(bad) > self.allowed or tried > 2 * self.allowed + 1:
                break
        return ReadRow(number, None, tuple(bad.items()))

    def _candidates(self, number: int) -> Iterator[int]:
        if not isinstance(self.dataset, MixtureDataset):
            for step in range(len(self.dataset)):
                yield (number + step) % len(self.dataset)
            return
        name = self.dataset.mixture.dataset_at(number)
        while True:
            yield number
            number += 1
            while self.dataset.mixture.dataset_at(number) != name:
                number += 1


class StrictRows:
    """Rows of a map-style dataset for evaluation, where each has to be readable.

    Args:
        dataset (`Any`): The rows.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except (ValueError, OSError) as error:
            raise BadRowsError(_sentence("evaluation: ", row_name(self.dataset, number), _reason(error))) from error


@dataclass
class ReadRowsCollator:
    """A collator of `ReadRow`, whose batches also have `ROW_NUMBERS` and, where there were some, `BAD_ROWS`.

    Args:
        collator (`Callable`): Makes the batch of rows.
        dataset (`Any`): Where the rows are from, for their names.
    """

    collator: Callable[[list[Any]], Any]
    dataset: Any

    def __call__(self, read: Sequence[ReadRow]) -> Any:
        """The batch.

        Raises:
            BadRowsError: If the batch cannot be made of the rows, naming the first that is to blame.
        """
        bad = [found for row in read for found in row.bad]
        if any(row.row is None for row in read):
            # Training ends here, so nothing is made of the others.
            return {BAD_ROWS: bad}
        try:
            batch = self.collator([row.row for row in read])
        except ValueError as error:
            raise BadRowsError(self._blame(read, error)) from error
        batch[ROW_NUMBERS] = [row.number for row in read]
        if bad:
            batch[BAD_ROWS] = bad
        return batch

    def _blame(self, read: Sequence[ReadRow], error: ValueError) -> str:
        for row in read:
            try:
                self.collator([row.row])
            except ValueError as alone:
                return _sentence("", row_name(self.dataset, row.number), _reason(alone))
        names = ", ".join(row_name(self.dataset, row.number) for row in read)
        return _sentence("", f"rows {names} together", _reason(error))


# --- counting ---------------------------------------------------------------------------------------------------------


class BadRows(TrainerCallback, ExportableState):
    """The unreadable rows of a training so far, which checkpoints keep.

    Args:
        allowed (`int`): How many may be left out.

    Attributes:
        rows (`dict[str, str]`): Reasons, by the names of the rows.
    """

    def __init__(self, allowed: int) -> None:
        if allowed < 0:
            raise ValueError(f"skip_bad_rows is {allowed}; it must be at least 0")
        self.allowed = allowed
        self.rows: dict[str, str] = {}

    def state(self) -> dict[str, Any]:
        """What stands in ``trainer_state.json``, as Trainer wants it."""
        return {"args": {"allowed": self.allowed}, "attributes": {"rows": dict(self.rows)}}

    def go_on_from(self, checkpoint: str | Path | None) -> None:
        """Takes over what a checkpoint says, or begins anew."""
        self.rows = {}
        if checkpoint is not None:
            content = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
            state = (content.get("stateful_callbacks") or {}).get(type(self).__name__)
            self.rows = dict(state["attributes"]["rows"]) if state else {}

    def add(self, found: Sequence[Sequence[str]]) -> None:
        """Counts rows in.

        Raises:
            BadRowsError: If there are more than allowed.
        """
        for name, reason in found:
            if name in self.rows:
                continue
            if len(self.rows) >= self.allowed:
                before = f" ({self.allowed} left out before it)" if self.allowed else ""
                raise BadRowsError(
                    f"{_sentence('', name, reason)}{before}. Repair it and run the same command with --resume, or allow "
                    f"more than {self.allowed} unreadable rows to be left out (--skip-bad-rows N, data.skip_bad_rows)"
                )
            self.rows[name] = reason
            logger.warning(
                "left out: %s (%d of at most %d)", _sentence("", name, reason), len(self.rows), self.allowed
            )

    def share(self, gather: Callable[[list[Any]], list[Any]]) -> None:
        """Counts in what other processes found.

        Args:
            gather (`Callable`): Of a list in each process, all together.

        Raises:
            BadRowsError: If there are more than allowed in all.
        """
        if self.allowed:
            self.add(sorted(gather(list(self.rows.items()))))

    def summary(self) -> str | None:
        """How many rows were left out, and which; `None` without any."""
        if not self.rows:
            return None
        names = list(self.rows)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        unit = "unreadable row was" if len(names) == 1 else "unreadable rows were"
        return f"{len(names)} {unit} left out: {'; '.join(names[:_SHOWN])}{more}"

    def taken(self, batches: Iterator[Any], take: Callable[[list[int]], None]) -> Iterator[Any]:
        """Batches about to be trained on, without what they bring along about their rows.

        Args:
            batches (`Iterator`): Of a data loader.
            take (`Callable`): Is given the numbers of the rows of each batch.

        Raises:
            BadRowsError: If there are more unreadable rows than allowed, or a batch cannot be made.
        """
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ValueError, OSError) as error:
                raise BadRowsError(_reason(error)) from error
            found, numbers = batch.pop(BAD_ROWS, []), batch.pop(ROW_NUMBERS, [])
            self.add(found)
            if found and not numbers:
                raise BadRowsError(
                    f"{'; '.join(name for name, _ in found)}: none of these rows can be read, and no other row of the "
                    "dataset was found to stand in for them"
                )
            take(numbers)
            yield batch


def _reason(error: Exception) -> str:
    """What an error says, on one line; of one that torch brought from a worker process its own last line."""
    text = str(error)
    if "DataLoader worker process" in text:
        lines = [line for line in text.strip().splitlines() if line.strip()]
        text = re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1])
    return re.sub(r"\s+", " ", text).strip() or type(error).__name__


def _sentence(opening: str, name: str, reason: str) -> str:
    """Name and reason, where the reason does not begin with the name by itself."""
    return f"{opening}{reason}" if reason.startswith(name) else f"{opening}{name}: {reason}"


__all__ = ["BAD_ROWS", "ROW_NUMBERS", "BadRows", "ReadRow", "ReadRows", "ReadRowsCollator", "StrictRows", "row_name"]
