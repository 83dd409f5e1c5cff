"""Reading published annotation files row by row, each row with where it stands.

Readers yield pairs of a place, such as ``train.jsonl:3`` or ``val.json[12]``, and a row; a text in place of a row says
what is wrong with it, so that a check of a whole file does not end at the first damaged row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias


Located: TypeAlias = "tuple[str, Mapping[str, Any] | str]"
"""Where a row stands, and the row or what is wrong with it."""

_BUFFER = 1 << 20
_LARGEST_ROW = 1 << 26


def find_files(root: Path, alternatives: Sequence[Sequence[str]]) -> list[Path]:
    """The first set of files that is whole, in the folder or in its ``annotations`` folder.

    Raises:
        FileNotFoundError: Naming what is missing of the set that is nearest to being whole.
    """
    missing_of = []
    for names in alternatives:
        found = [_find(root, name) for name in names]
        if all(path is not None for path in found):
            return [path for path in found if path is not None]
        missing_of.append([name for name, path in zip(names, found) if path is None])
    present = [len(names) - len(missing) for names, missing in zip(alternatives, missing_of)]
    if any(present):
        missing = missing_of[present.index(max(present))]
        raise FileNotFoundError(f"{root} has no {' and no '.join(missing)}")
    choices = " or ".join(" with ".join(names) for names in alternatives)
    raise FileNotFoundError(f"{root} has no {choices}")


def find_optional(root: Path, names: Iterable[str]) -> list[Path]:
    """Those of the files that are there."""
    return [path for path in (_find(root, name) for name in names) if path is not None]


def _find(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / "annotations" / name) if path.is_file()), None)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: If it is not UTF-8 text or not JSON, naming file, line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}:{error.lineno}: not readable as JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text") from error


def json_rows(path: Path, *keys: str) -> Iterator[Located]:
    """Rows of a JSON list, of the list under ``keys`` of an object, or of an object from ids to rows.

    Of the last, rows get their key as ``id``.

    Raises:
        ValueError: If the file holds something else.
    """
    content = read_json(path)
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            raise ValueError(f"{path.name}: has no {'.'.join(keys)}, so it is not the published file")
        content = content[key]
    name = f"{path.name}{''.join(f'.{key}' for key in keys)}"
    if isinstance(content, Mapping):
        for row_id, row in content.items():
            yield f'{name}["{row_id}"]', {**row, "id": row_id} if isinstance(row, Mapping) else _not_a_row(row)
    elif isinstance(content, list):
        for position, row in enumerate(content):
            yield f"{name}[{position}]", row if isinstance(row, Mapping) else _not_a_row(row)
    else:
        raise ValueError(f"{path.name}: holds {type(content).__name__}, not a list of rows")


def streamed_json_rows(path: Path) -> Iterator[Located]:
    """Rows of a JSON list, one after the other, for files that are too large to be held as a whole.

    Raises:
        ValueError: If the file does not hold a list, or is damaged, naming the row.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        buffer = file.read(_BUFFER)
        while not buffer.strip() and (more := file.read(_BUFFER)):
            buffer = more
        start = _skip(buffer, 0)
        if buffer[start : start + 1] != "[":
            raise ValueError(f"{path.name}: does not hold a list of rows")
        start, position = start + 1, 0
        while True:
            start = _skip(buffer, start)
            if buffer[start : start + 1] == "]":
                return
            try:
                row, end = decoder.raw_decode(buffer, start)
            except json.JSONDecodeError as error:
                more = file.read(_BUFFER) if len(buffer) - start < _LARGEST_ROW else ""
                if not more:
                    where = f"{path.name}[{position}]"
                    raise ValueError(f"{where}: not readable as JSON, or the file ends here: {error.msg}") from error
                buffer, start = buffer[start:] + more, 0
                continue
            yield f"{path.name}[{position}]", row if isinstance(row, Mapping) else _not_a_row(row)
            start, position = end, position + 1


def _skip(buffer: str, start: int) -> int:
    """The next position that is neither blank nor a comma."""
    while start < len(buffer) and buffer[start] in " \t\r\n,":
        start += 1
    return start


def jsonl_rows(path: Path) -> Iterator[Located]:
    """Rows of a file with one JSON object a line; lines are counted from 1, empty ones are passed over."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            where = f"{path.name}:{line}"
            try:
                content = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                if content.strip():
                    row = json.loads(content)
                    yield where, row if isinstance(row, Mapping) else _not_a_row(row)
            except UnicodeDecodeError:
                yield where, "not UTF-8 text"
            except json.JSONDecodeError as error:
                yield where, f"not readable as JSON: {error.msg} at column {error.colno}"


def csv_rows(path: Path) -> Iterator[Located]:
    """Rows of a CSV file with a header, as texts."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path.name}:{reader.line_num}"
                if None in row:
                    yield where, "has more fields than the header"
                else:
                    yield where, {key: value for key, value in row.items() if value is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            yield f"{path.name}:{reader.line_num}", f"not readable as CSV: {error}"


def joined_rows(
    rows: Iterable[Located], others: Mapping[Any, Mapping[str, Any]], key: str, missing: str
) -> Iterator[Located]:
    """Rows completed by those of another file that have the same ``key``.

    Args:
        rows (`Iterable[Located]`): The rows.
        others (`Mapping`): From keys to rows; fields of ``rows`` win.
        key (`str`): The field that both have.
        missing (`str`): What is wrong with a row that the other file lacks.
    """
    for where, row in rows:
        if isinstance(row, str):
            yield where, row
        elif row.get(key) not in others:
            yield where, f"{missing} {key} {row.get(key)!r}"
        else:
            yield where, {**others[row[key]], **row}


def completed_rows(
    rows: Iterable[Located], complete: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Iterator[Located]:
    """Rows with what ``complete`` makes of them; damaged ones pass through."""
    for where, row in rows:
        yield where, row if isinstance(row, str) else complete(row)


def _not_a_row(row: Any) -> str:
    return f"must be an object, not {type(row).__name__}"


__all__ = [
    "Located",
    "completed_rows",
    "csv_rows",
    "find_files",
    "find_optional",
    "joined_rows",
    "json_rows",
    "jsonl_rows",
    "read_json",
    "streamed_json_rows",
]
