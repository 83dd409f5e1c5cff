"""Lists of texts in files, to be indexed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path


def read_texts(file: str | Path) -> list[str]:
    """Texts of a file: a line each; of a ``.jsonl`` file ``text`` or ``caption`` of each line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not as it should be, naming it.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error
    if path.suffix == ".jsonl":
        return list(_jsonl_texts(path, lines))
    return [line.strip() for line in lines if line.strip()]


def _jsonl_texts(path: Path, lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not readable as JSON: {error.msg}") from error
        found = (row.get("text") or row.get("caption")) if isinstance(row, dict) else row
        if not isinstance(found, str) or not found.strip():
            raise ValueError(f'{path}:{number} has no text: a line is text in quotes, or has "text" or "caption"')
        yield found.strip()


__all__ = ["read_texts"]
