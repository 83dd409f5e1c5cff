"""A user's own folder of images as a map-style dataset.

Two layouts, both found by themselves:

- A text beside each image, of the same name: ``cat.jpg`` with ``cat.txt`` (a caption, or an answer) or ``cat.json``.
- One ``metadata.jsonl`` or ``metadata.csv`` for the folder, as in `datasets`' image folders: rows with ``file_name``
  and the content.

JSON files and metadata rows hold the slots of an `instructblip_hf.data.schema.Example`, such as ``question`` and
``answers``, with ``answer`` and ``caption`` for a single one; or ``prompt`` and ``completion``, or ``messages``, which
are training rows already. In metadata of captions ``text`` is the caption, as it is in `datasets`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .jsonl import SHOWN_PROBLEMS, RowFileError
from .schema import SLOTS, Example, check_example
from .shards import IMAGE_SUFFIXES, example_from_content
from .sources.files import Located, csv_rows, jsonl_rows
from .sources.paths import resolve_path


METADATA_FILES = ("metadata.jsonl", "metadata.csv")


class FolderDataset:
    """Images of a folder and of the folders in it, with their texts.

    Args:
        root (`str` or `Path`): The folder.
        category (`str`, *optional*, defaults to `"image_captioning"`): Task category of the examples.
        name (`str`, *optional*): Name of the dataset. Defaults to the folder's.

    Raises:
        FileNotFoundError: If there is no such folder.
        RowFileError: For images without text, texts without image and malformed content, with one line for each of
            the first `SHOWN_PROBLEMS`.
        ValueError: If there is no such category, or the folder has no images.
    """

    def __init__(self, root: str | Path, category: str = "image_captioning", name: str | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder {self.root}")
        if category not in SLOTS:
            raise ValueError(f"category is {category!r}; allowed are {', '.join(SLOTS)}")
        self.name, self.category = name or self.root.resolve().name, category
        self._rows: list[Example | dict[str, Any]] = []
        problems: list[str] = []
        for where, fields in folder_rows(self.root):
            if not isinstance(fields, str):
                try:
                    self._rows.append(self._row(fields))
                    continue
                except (ValueError, FileNotFoundError) as error:
                    fields = str(error)
            problems.append(f"{where}: {fields}")
        if problems:
            more = len(problems) - SHOWN_PROBLEMS
            raise RowFileError(problems[:SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else []))
        if not self._rows:
            raise ValueError(f"{self.root} has no images ({', '.join(IMAGE_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example | dict[str, Any]:
        """An `Example`, or a training row where the folder holds those; ``images`` are paths."""
        return self._rows[index]

    def peek(self, index: int, epoch: int = 0) -> Example | dict[str, Any]:
        """The row, whose images are paths anyway; `epoch` makes no difference."""
        return self._rows[index]

    def _row(self, fields: Mapping[str, Any]) -> Example | dict[str, Any]:
        content = {key: value for key, value in fields.items() if key not in ("file_name", "file_names")}
        names = fields.get("file_names") or [fields.get("file_name")]
        for file in names:
            if not isinstance(file, str) or not file:
                raise ValueError("has no file_name")
        row = example_from_content(content, names[0], [], self.name, self.category)
        row["images"] = [resolve_path(self.root, file) for file in names]
        if "category" in row:
            check_example(row)  # type: ignore[arg-type]
            if not row["answers"] and "messages" not in row:
                raise ValueError("has no text, caption, answer or completion")
        return row


def image_files(root: Path) -> list[Path]:
    """The images of a folder and of the folders in it, by their names' endings (`IMAGE_SUFFIXES`), in order.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    files = [file for file in sorted(root.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if not files:
        raise ValueError(f"{root} has no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def folder_rows(root: Path, without_text: bool = False) -> Iterator[Located]:
    """What a folder says of its images, row by row: fields with ``file_name`` or ``file_names``.

    Args:
        root (`Path`): The folder.
        without_text (`bool`, *optional*, defaults to `False`): Whether an image with no text beside it is a row of its
            own rather than a mistake.
    """
    metadata = next((root / file for file in METADATA_FILES if (root / file).is_file()), None)
    yield from _beside(root, without_text) if metadata is None else _listed(metadata)


def _listed(metadata: Path) -> Iterator[Located]:
    yield from csv_rows(metadata) if metadata.suffix == ".csv" else jsonl_rows(metadata)


def _beside(root: Path, without_text: bool = False) -> Iterator[Located]:
    groups: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in sorted(root.rglob("*")):
        if file.is_file() and file.suffix.lower() in (*IMAGE_SUFFIXES, ".txt", ".json"):
            groups[file.with_suffix("")][file.suffix.lower()] = file
    for group in groups.values():
        images = [file for suffix, file in group.items() if suffix in IMAGE_SUFFIXES]
        first = next(iter(group.values()))
        where = first.relative_to(root).as_posix()
        text = group.get(".json") or group.get(".txt")
        if not images:
            yield where, "has no image of the same name beside it"
        elif text is None:
            names = [image.relative_to(root).as_posix() for image in images]
            missing = "has no .txt or .json of the same name beside it"
            yield where, {"file_names": names} if without_text else missing
        else:
            yield (
                text.relative_to(root).as_posix(),
                _read_text(text, [image.relative_to(root).as_posix() for image in images]),
            )


def _read_text(file: Path, names: list[str]) -> dict[str, Any] | str:
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
        content = json.loads(text) if file.suffix.lower() == ".json" else {"answers": [text] if text else []}
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except json.JSONDecodeError as error:
        return f"not readable as JSON: {error.msg} in line {error.lineno}"
    if isinstance(content, list):
        content = {"answers": content}
    return {**content, "file_names": names} if isinstance(content, dict) else "must hold an object or a list"


__all__ = ["METADATA_FILES", "FolderDataset", "folder_rows", "image_files"]
