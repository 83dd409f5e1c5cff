"""A user's own images and a file of rows about them, as a map-style dataset.

A JSONL file has one object a line, a CSV file one row a line under a header. A row is one of

- ``{"image": "a.png", "prompt": "...", "completion": "..."}``
- ``{"images": ["a.png", "b.png"], "prompt": "...", "completion": "..."}``, also with an empty list
- ``{"images": ["a.png"], "messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}``

Image paths are relative to the file's own folder, or to another root, and may not leave it. Other keys are kept
out of the examples. Everything that is wrong with the rows is reported at once, by file and line.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.images import load_image


SHOWN_PROBLEMS = 10
"""How many of the problems in a file are shown; the rest is counted."""


class RowFileError(ValueError):
    """Rows that cannot be used.

    Attributes:
        problems (`list[str]`): One line for each, opening with file and line number.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class RowFileDataset:
    """Rows of a JSONL or CSV file, with images opened when a row is asked for.

    Args:
        path (`str` or `Path`): The ``.jsonl`` or ``.csv`` file, UTF-8.
        image_root (`str` or `Path`, *optional*): Folder that image paths are relative to and stay in, links
            followed. Defaults to the file's folder.
        open_image (`Callable`, *optional*, defaults to `load_image`): Makes of a path what stands in a row.

    Raises:
        FileNotFoundError: If there is no such file or root.
        RowFileError: For malformed rows, missing image files and paths that leave the root, with one line for each
            of the first `SHOWN_PROBLEMS`.
        ValueError: If the file has no rows.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        open_image: Callable[[Path], Any] = load_image,
    ) -> None:
        self.path = Path(path)
        self.open_image = open_image
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        self.image_root = Path(image_root) if image_root is not None else self.path.parent
        if not self.image_root.is_dir():
            raise FileNotFoundError(f"image_root: there is no folder {self.image_root}")
        self._rows: list[dict[str, Any]] = []
        self._lines: list[int] = []
        problems: list[str] = []
        root = self.image_root.resolve()
        for line, row in _read(self.path):
            if not isinstance(row, str):
                row = _check_row(row, root)
            if isinstance(row, str):
                problems.append(f"{self.path.name}:{line}: {row}")
            else:
                self._rows.append(row)
                self._lines.append(line)
        if problems:
            more = len(problems) - SHOWN_PROBLEMS
            shown = problems[:SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])
            raise RowFileError(shown)
        if not self._rows:
            raise ValueError(f"{self.path} has no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        """File and line of a row."""
        return f"{self.path.name}:{self._lines[index]}"

    def peek(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """The row with ``images`` as paths; `epoch` makes no difference."""
        return self._rows[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row, with ``images`` as a list of RGB PIL images, or what `open_image` makes.

        Raises:
            ValueError: If an image cannot be read, naming file and line of the row.
        """
        row = self._rows[index]
        try:
            images = [self.open_image(path) for path in row["images"]]
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.place(index)}: {error}") from error
        return {**row, "images": images}


def _read(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Line numbers from 1 and rows; a string in place of a row says what is wrong with the line."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            try:
                for row in reader:
                    if None in row:
                        yield reader.line_num, "has more fields than the header"
                    else:
                        yield reader.line_num, {key: value for key, value in row.items() if value is not None}
            except (csv.Error, UnicodeDecodeError) as error:
                yield reader.line_num, f"not readable as CSV: {error}"
        return
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                if text.strip():
                    yield line, json.loads(text)
            except UnicodeDecodeError:
                yield line, "not UTF-8 text"
            except json.JSONDecodeError as error:
                yield line, f"not readable as JSON: {error.msg} at column {error.colno}"


_KNOWN_KEYS = ("image", "images", "prompt", "completion", "messages")


def _check_row(row: Any, root: Path) -> dict[str, Any] | str:
    """The row as a dataset keeps it, or what is wrong with it."""
    if not isinstance(row, Mapping):
        return f"must be an object with the keys image, prompt and completion, not {type(row).__name__}"
    paths = _image_paths(row, root)
    if isinstance(paths, str):
        return paths
    if "messages" in row:
        if "prompt" in row or "completion" in row:
            return "has messages beside prompt or completion; give one of the two forms"
        wrong = _messages_problem(row["messages"])
        return wrong or {"images": paths, "messages": row["messages"]}
    for key in ("prompt", "completion"):
        if key not in row:
            close = difflib.get_close_matches(key, [str(k) for k in row if k not in _KNOWN_KEYS], n=1)
            return f"has no {key}" + (f"; is {close[0]!r} meant to be it?" if close else "")
        if not isinstance(row[key], str):
            return f"{key} must be text, not {row[key]!r}"
    if not row["completion"].strip():
        return "the completion is empty"
    return {"images": paths, "prompt": row["prompt"], "completion": row["completion"]}


def _image_paths(row: Mapping[str, Any], root: Path) -> list[Path] | str:
    if "image" in row and "images" in row:
        return "has both image and images; give one of the two"
    if "image" not in row and "images" not in row:
        return "has neither image nor images (an empty list says that there is none)"
    names = row["images"] if "images" in row else [row["image"]]
    if not isinstance(names, Sequence) or isinstance(names, str):
        return f"images must be a list of paths, not {names!r}"
    paths = []
    for name in names:
        if not isinstance(name, str) or not name:
            return f"an image must be a path, not {name!r}"
        if "://" in name:
            return f"image {name!r} is an address; download it and give its path"
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            return f"image {name!r} leaves the image folder {root}"
        if not path.is_file():
            return f"there is no image {name!r} in {root}"
        paths.append(path)
    return paths


def _messages_problem(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages must be a list of turns"
    for turn in messages:
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            return f"a message needs role and content, this one is {turn!r}"
        if turn["role"] not in ("system", "user", "assistant"):
            return f"a message has the role {turn['role']!r}; allowed are: system, user, assistant"
    if messages[-1]["role"] != "assistant":
        return "the last message is not the assistant's, so there is nothing to learn from"
    return None


__all__ = ["RowFileDataset", "RowFileError"]
