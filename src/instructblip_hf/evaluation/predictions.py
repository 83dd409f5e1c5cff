"""Answers on disk: each process adds whole batches to a file of its own, which become one file when all are there.

A folder holds ``settings.json``, what the answers belong to; while they are made ``parts/00000.jsonl``, ``00001.jsonl``,
...; and in the end ``predictions.jsonl``, a line for each row of the split, in its order. A process that is killed leaves at
most half a line at the end of its part, which is cut off by whoever goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.whole_files import write_whole
from .errors import EvaluationError
from .metrics.rows import check_ids, named


SETTINGS, PREDICTIONS, PARTS = "settings.json", "predictions.jsonl", "parts"


class PredictionFolder:
    """The answers to a task.

    Args:
        path (`str` or `Path`): The folder; made when something is written.
        process (`int`, *optional*, defaults to 0): Number of this process.
    """

    def __init__(self, path: str | Path, process: int = 0) -> None:
        self.path = Path(path)
        self.process = process

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Writes down what the answers belong to, or sees that those which are there belong to the same.

        To be called by one process, before any other looks.

        Raises:
            EvaluationError: If they belong to something else, naming the difference.
        """
        file = self.path / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            different = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
            if different:
                details = "; ".join(f"{name} was {found.get(name)!r}, is {wanted.get(name)!r}" for name in different)
                raise EvaluationError(
                    f"{self.path} has answers that were made otherwise: {details}. Take another output folder, or "
                    "remove this one"
                )
            return
        write_whole(file, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")

    def read(self) -> dict[str, dict[str, Any]]:
        """All answers that are there, by id.

        Raises:
            EvaluationError: If a file is damaged elsewhere than at its end, naming the line.
        """
        found: dict[str, dict[str, Any]] = {}
        for file in [self.path / PREDICTIONS, *sorted((self.path / PARTS).glob("*.jsonl"))]:
            if file.is_file():
                found.update((record["id"], record) for record in _records(file))
        return found

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Appends a batch to this process's part."""
        file = self.path / PARTS / f"{self.process:05d}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with file.open("ab") as stream:
            whole = _end_of_last_line(file, stream.tell())
            if whole < stream.tell():
                stream.truncate(whole)
            stream.write(text.encode("utf-8"))

    def finish(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Puts the parts together into ``predictions.jsonl``, in the order of `ids`, and removes them.

        Raises:
            EvaluationError: If an id has no answer.
        """
        found = self.read()
        missing = [repr(name) for name in ids if name not in found]
        if missing:
            raise EvaluationError(f"{self.path} has no answers to {named(missing)}")
        lines = (json.dumps(found[name], ensure_ascii=False) + "\n" for name in ids)
        # Answers to rows beyond these, of a run without a limit, stay.
        wanted = set(ids)
        rest = (json.dumps(record, ensure_ascii=False) + "\n" for name, record in found.items() if name not in wanted)
        write_whole(self.path / PREDICTIONS, "".join([*lines, *rest]))
        for part in sorted((self.path / PARTS).glob("*.jsonl")):
            part.unlink()
        if (self.path / PARTS).is_dir():
            (self.path / PARTS).rmdir()
        return {name: found[name] for name in ids}


def unanswered(
    ids: Sequence[str], answered: Mapping[str, Any], batch_size: int, process: int = 0, processes: int = 1
) -> Iterator[list[int]]:
    """The batches of a process: indices of rows, whole batches in which an answer is missing.

    Which rows form a batch depends on the batch size alone, so that answers do not depend on the number of processes, nor
    on where a run was cut off.
    """
    batches = (list(range(start, min(start + batch_size, len(ids)))) for start in range(0, len(ids), batch_size))
    open_ones = [batch for batch in batches if any(ids[index] not in answered for index in batch)]
    yield from open_ones[process::processes]


def ids_of(examples: Any, limit: int | None = None) -> list[str]:
    """Ids of a dataset's rows, the first `limit` of them.

    Raises:
        ValueError: If one comes twice.
    """
    peek = getattr(examples, "peek", examples.__getitem__)
    count = len(examples) if limit is None else min(limit, len(examples))
    ids = [str(peek(index)["id"]) for index in range(count)]
    check_ids(ids)
    return ids


def _records(file: Path) -> Iterator[dict[str, Any]]:
    lines = file.read_bytes().split(b"\n")
    # What follows the last line break was cut off in writing.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            record["id"]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{file}:{number} is no answer: {line[:60]!r}; remove the line") from error
        yield record


def _end_of_last_line(file: Path, size: int) -> int:
    """Bytes up to the last line break."""
    with file.open("rb") as stream:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            stream.seek(start)
            place = stream.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
    return 0


__all__ = ["PREDICTIONS", "SETTINGS", "PredictionFolder", "ids_of", "unanswered"]
