"""What all metrics share: checks of rows and ids, means, and means by group.

A row that is missing, doubled or unknown changes a published number without a trace, so each is an error that names
the ids. Means are summed exactly (`math.fsum`): they do not depend on the order in which rows arrive.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Sized
from typing import Any


Groups = Mapping[str, Sequence[Hashable]]
"""Groupings by name: for each the group of every row, `None` for a row in no group."""


def check_columns(**columns: Sized) -> int:
    """How many rows the columns have.

    Raises:
        ValueError: If there is none, or the columns differ in length.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"rows differ in number: {', '.join(f'{size} {name}' for name, size in lengths.items())}")
    count = next(iter(lengths.values()))
    if count == 0:
        raise ValueError(f"there are no rows to score: {', '.join(lengths)} are empty")
    return count


def check_ids(ids: Sequence[Hashable], expected_ids: Collection[Hashable] | None = None) -> None:
    """Raises unless every id is there once and, given ``expected_ids``, these are exactly the ids.

    Args:
        ids (`Sequence`): Ids of the rows.
        expected_ids (`Collection`, *optional*): Ids of the whole split, in any order.

    Raises:
        ValueError: Naming the ids that are doubled, missing or unknown.
    """
    problems = []
    doubled = [repr(name) for name, count in Counter(ids).items() if count > 1]
    if doubled:
        problems.append(f"given more than once: {named(doubled)}")
    if expected_ids is not None:
        expected = set(expected_ids)
        given = set(ids)
        # In their own order, so that the message is the same in every run.
        missing = [repr(name) for name in dict.fromkeys(expected_ids) if name not in given]
        unknown = [repr(name) for name in dict.fromkeys(ids) if name not in expected]
        if missing:
            problems.append(f"without a prediction: {named(missing)}")
        if unknown:
            problems.append(f"not in the split: {named(unknown)}")
    if problems:
        raise ValueError(f"ids {'; '.join(problems)}")


def named(names: Sequence[str], limit: int = 5) -> str:
    """The first few of many names, and how many there are more."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def row_name(index: int, ids: Sequence[Hashable] | None) -> str:
    """How an error calls a row: by its id, or by its index where rows have none."""
    return f"row {index}" if ids is None else f"id {ids[index]!r}"


def mean(values: Iterable[float]) -> float:
    """The mean, exact up to one rounding whatever the order of the values."""
    values = list(values)
    return math.fsum(values) / len(values)


def accuracy_of(scores: Sequence[float], groups: Groups | None = None) -> dict[str, Any]:
    """The result of an accuracy: the mean score, the number of rows and, given groupings, the same by group.

    Args:
        scores (`Sequence[float]`): Score of each row, from 0 to 1.
        groups (`Mapping[str, Sequence]`, *optional*): For each grouping the group of every row. Rows of group `None`
            stand in none. Groups come out in the order of their names.

    Returns:
        `dict`: ``accuracy``, ``count`` and, given groupings, ``by``: grouping to group to ``accuracy`` and ``count``.

    Raises:
        ValueError: If a grouping has another number of rows.
    """
    result: dict[str, Any] = {"accuracy": mean(scores), "count": len(scores)}
    if groups is None:
        return result
    result["by"] = {}
    for grouping, members in groups.items():
        if len(members) != len(scores):
            raise ValueError(f"groups[{grouping!r}] has {len(members)} rows for {len(scores)} predictions")
        rows: dict[Hashable, list[float]] = {}
        for member, score in zip(members, scores):
            if member is not None:
                rows.setdefault(member, []).append(score)
        result["by"][grouping] = {
            member: {"accuracy": mean(rows[member]), "count": len(rows[member])} for member in sorted(rows, key=str)
        }
    return result


def groups_by_row(
    ids: Sequence[Hashable], groups: Mapping[str, Mapping[Any, Hashable]] | None
) -> dict[str, list[Hashable]] | None:
    """Groupings by id as groupings by row.

    Raises:
        ValueError: Naming the rows that a grouping does not have.
    """
    if groups is None:
        return None
    by_row: dict[str, list[Hashable]] = {}
    for grouping, members in groups.items():
        missing = [repr(name) for name in ids if name not in members]
        if missing:
            raise ValueError(f"groups[{grouping!r}] has no group for the ids {named(missing)}")
        by_row[grouping] = [members[name] for name in ids]
    return by_row


__all__ = ["Groups", "accuracy_of", "check_columns", "check_ids", "groups_by_row", "mean", "named", "row_name"]
