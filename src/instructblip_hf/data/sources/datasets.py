"""The datasets of the catalog as map-style datasets of `Example`: from the official files, or from a repository of
`datasets`."""

from __future__ import annotations

import logging
import pickle
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...utils.images import load_image
from ..catalog import split_spec
from ..jsonl import SHOWN_PROBLEMS, RowFileError
from ..schema import Example
from ..shards import leave_encoded
from ..video import read_frames
from .files import find_files, find_optional
from .paths import check_paths, has_paths, resolve_images
from .table import SOURCES, examples_of


logger = logging.getLogger(__name__)

DEFAULT_FRAMES = 4
"""Frames of a video, as in the paper (section 3.1)."""


def iter_split(name: str, root: str | Path, split: str) -> Iterator[tuple[str, Example | str]]:
    """Reads a split's official files.

    Args:
        name (`str`): Name in the catalog.
        root (`str` or `Path`): The folder with the files, or with a folder ``annotations`` that has them.
        split (`str`): Name of a split in the catalog.

    Yields:
        `tuple`: Where a row stands, such as ``train.jsonl:3``, and an `Example` with image paths as in the file, or
        what is wrong with the row.

    Raises:
        KeyError: If the catalog has no such dataset or split.
        FileNotFoundError: If files of the split are missing.
        ValueError: If a file is not the published one or damaged as a whole.
    """
    spec, source = split_spec(name, split), SOURCES[name]
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    files = find_files(root, spec.files)
    for where, row in source.rows(files, split, find_optional(root, spec.optional)):
        if isinstance(row, str):
            yield where, row
            continue
        try:
            examples = examples_of(name, row)
        except ValueError as error:
            yield where, str(error)
            continue
        for example in examples:
            unanswered = spec.labelled and not any(map(str.strip, example["answers"])) and "messages" not in example
            yield where, "has no answer" if unanswered else example


class PackedExamples:
    """Examples in one block of memory: a tenth of what Python's objects need, and not copied by worker processes."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._data = bytearray()
        self._ends = array("Q")
        for example in examples:
            self.append(example)

    def append(self, example: Example) -> None:
        """Adds an example at the end."""
        self._data += pickle.dumps(example, protocol=pickle.HIGHEST_PROTOCOL)
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} examples")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return pickle.loads(memoryview(self._data)[start : self._ends[index]])


class ReadExamples:
    """Examples that were read from files, as a map-style dataset. The readers set ``image_root`` and call [`_keep`]."""

    image_root: Path
    bad_rows: int

    def _keep(self, rows: Iterable[tuple[str, Example | str]], label: str, max_bad_rows: int, emptied: str) -> None:
        """Keeps examples whose paths stay in the image folder.

        Args:
            rows (`Iterable`): Where a row stands, and its example or what is wrong with it.
            label (`str`): What warnings and errors call the rows.
            max_bad_rows (`int`): How many malformed rows may be left out, with a warning that counts them.
            emptied (`str`): What has no rows, where there is none.

        Raises:
            RowFileError: For more malformed rows than that.
            ValueError: If there is no row.
        """
        self._label = label
        self._examples = PackedExamples()
        self.bad_rows = 0
        problems: list[str] = []
        for where, example in rows:
            if not isinstance(example, str):
                try:
                    check_paths(example, self.image_root)
                    self._examples.append(example)
                    continue
                except ValueError as error:
                    example = str(error)
            self.bad_rows += 1
            if self.bad_rows <= SHOWN_PROBLEMS:
                problems.append(f"{where}: {example}")
        if self.bad_rows > max_bad_rows:
            more = self.bad_rows - SHOWN_PROBLEMS
            raise RowFileError(problems + ([f"... and {more} more"] if more > 0 else []))
        if problems:
            logger.warning("%s: %d malformed rows left out, the first %s", label, self.bad_rows, problems[0])
        if not len(self._examples):
            raise ValueError(f"{emptied} has no rows")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """The example, with paths of files that are there.

        Raises:
            ValueError: If an image is missing, naming the row.
        """
        example = self._examples[index]
        try:
            return resolve_images(example, self.image_root)
        except FileNotFoundError as error:
            raise ValueError(f"{self._label} {example['id']}: {error}") from error

    def peek(self, index: int, epoch: int = 0) -> Example:
        """The example, with image paths as in the file, which are not looked for; `epoch` makes no difference."""
        return self._examples[index]


class CatalogDataset(ReadExamples):
    """A split of a dataset of the catalog, read from its official files.

    Args:
        name (`str`): Name in the catalog.
        root (`str` or `Path`): The folder with the annotation files.
        split (`str`, *optional*, defaults to `"train"`): Name of a split in the catalog, or several as `"train+val"`.
        image_root (`str` or `Path`, *optional*): The folder that image paths are relative to and may not leave.
            Defaults to ``root``.
        max_bad_rows (`int`, *optional*, defaults to 0): How many malformed rows may be left out, with a warning that
            counts them: published files have their own mistakes.

    Attributes:
        bad_rows (`int`): How many were left out.

    Raises:
        KeyError: If the catalog has no such dataset or split.
        FileNotFoundError: If files or folders are missing.
        RowFileError: For more malformed rows than that, with one line for each of the first `SHOWN_PROBLEMS`.
        ValueError: If a file is not the published one, or the split is empty.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        split: str = "train",
        image_root: str | Path | None = None,
        max_bad_rows: int = 0,
    ) -> None:
        self.name, self.split = name, split
        self.image_root = Path(root if image_root is None else image_root)
        if not self.image_root.is_dir():
            raise FileNotFoundError(f"image_root: there is no folder {self.image_root}")
        rows = (row for part in split.split("+") for row in iter_split(name, root, part))
        self._keep(rows, f"{name} {split}", max_bad_rows, f"{name} {split} in {root}")


def hub_examples(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    image_root: str | Path | None = None,
) -> Iterator[Example]:
    """Examples of rows that come from a repository of `datasets`, also streamed.

    Args:
        name (`str`): Name in the catalog.
        rows (`Iterable[Mapping]`): Rows with the fields of the official format, and with images under ``image``.
        split (`str`, *optional*): Name of the split, for rows that give file names in place of images.
        columns (`Mapping[str, str]`, *optional*): From the official field to the repository's column where they
            differ, such as ``{"question_id": "questionId"}``.
        image_root (`str` or `Path`, *optional*): The folder that file names are relative to and may not leave.

    Raises:
        KeyError: If the catalog has no such dataset.
        ValueError: For a malformed row, or one that names files without an ``image_root``, naming its number.
    """
    for number, row in enumerate(rows):
        for example in _hub_row(name, row, number, split, columns or {}):
            yield _hub_images(example, image_root, f"{name}, row {number}")


def _hub_row(
    name: str, row: Mapping[str, Any], number: int, split: str | None, columns: Mapping[str, str]
) -> list[Example]:
    fields = {**row, **{field: row[column] for field, column in columns.items() if column in row}}
    # A row without an id of its own is known by its number.
    fields = {"id": number, **({"split": split} if split else {}), **fields}
    try:
        return examples_of(name, fields)
    except ValueError as error:
        raise ValueError(f"{name}, row {number}: {error}") from error


def local_images(example: Example, image_root: str | Path | None) -> Example:
    """An example of a repository with files in place of file names.

    Args:
        example (`Example`): Or a training row with ``images``.
        image_root (`str` or `Path`, *optional*): The folder that file names are relative to and may not leave.

    Raises:
        ValueError: If it names files without an ``image_root``, or one that is not there.
    """
    if not has_paths(example):
        return example
    if image_root is None:
        raise ValueError("names files in place of images; give the folder that has them as image_root")
    try:
        return resolve_images(example, Path(image_root))
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _hub_images(example: Example, image_root: str | Path | None, where: str) -> Example:
    try:
        return local_images(example, image_root)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class HubDataset:
    """A loaded dataset of `datasets` as examples of the catalog.

    Args:
        name (`str`): Name in the catalog.
        dataset (`datasets.Dataset`): Its rows, see `hub_examples`. Images are left encoded until they are needed.
        split (`str`, *optional*): See `hub_examples`.
        columns (`Mapping[str, str]`, *optional*): See `hub_examples`.
        image_root (`str` or `Path`, *optional*): See `hub_examples`.

    Raises:
        KeyError: If the catalog has no such dataset.
        ValueError: For a malformed row, naming its number.
    """

    def __init__(
        self,
        name: str,
        dataset: Any,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
        image_root: str | Path | None = None,
    ) -> None:
        self.name, self.split, self.columns, self.image_root = name, split, dict(columns or {}), image_root
        self._dataset, images = leave_encoded(dataset)
        self._first = array("Q", [0])
        # Which examples a row gives does not depend on its pixels.
        for number, row in enumerate(self._dataset.remove_columns(images)):
            fields = {**row, **dict.fromkeys(images, b"not read")}
            self._first.append(self._first[-1] + len(_hub_row(name, fields, number, split, self.columns)))

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> Example:
        """The example, with its image as `datasets` stores it, which `load_image` takes.

        Raises:
            ValueError: If the row names a file that is not there, or names files without an ``image_root``.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} examples")
        index %= len(self)
        row = bisect_right(self._first, index) - 1
        examples = _hub_row(self.name, self._dataset[row], row, self.split, self.columns)
        return _hub_images(examples[index - self._first[row]], self.image_root, f"{self.name}, row {row}")


def open_images(
    example: Example, num_frames: int = DEFAULT_FRAMES, open_image: Callable[[Any], Any] = load_image
) -> list[Any]:
    """The images of an example, opened: RGB PIL images, of a video its frames in order.

    Args:
        example (`Example`): With ``images`` or a ``video``.
        num_frames (`int`, *optional*): Of a video.
        open_image (`Callable`, *optional*, defaults to `load_image`): Opens what is no video.

    Raises:
        ValueError: If one cannot be read, naming the example.
        ImportError: For a video file without the ``video`` extra.
    """
    try:
        if "video" in example:
            clip = example["video"]
            return read_frames(clip["path"], num_frames, clip["start"], clip["end"])
        return [open_image(image) for image in example["images"]]
    except (ValueError, OSError) as error:
        raise ValueError(f"{example['dataset']} {example['id']}: {error}") from error


__all__ = [
    "DEFAULT_FRAMES",
    "CatalogDataset",
    "HubDataset",
    "PackedExamples",
    "ReadExamples",
    "hub_examples",
    "iter_split",
    "local_images",
    "open_images",
]
