"""Shards: parts of a dataset that are read from front to back, and what their rows hold.

`TarShards` are tar archives in webdataset's form, `DatasetShards` those of a `datasets.IterableDataset`. Their rows
become an `Example`, or a training row where they hold one already, by `example_from_tar` and `example_from_columns`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from .schema import Example


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


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
        for archive, key, members in islice(self._rows(shard), start, None, step):
            yield self._read_members(shard, archive, key, members)

    def count(self, shard: int) -> int:
        """How many rows a shard has. The files in it are passed over, not read.

        Raises:
            ValueError: If the archive is damaged.
        """
        return sum(1 for _ in self._rows(shard))

    def _rows(self, shard: int) -> Iterator[tuple[tarfile.TarFile, str, list[tarfile.TarInfo]]]:
        """The archive, the common name and the files of each row."""
        path = self.paths[shard]
        try:
            with tarfile.open(path) as archive:
                key = ""
                members: list[tarfile.TarInfo] = []
                for member in archive:
                    folder, slash, name = member.name.rpartition("/")
                    stem, dot, _ = name.partition(".")
                    if not member.isfile() or not stem or not dot:
                        continue
                    if folder + slash + stem != key:
                        if members:
                            yield archive, key, members
                        key, members = folder + slash + stem, []
                    members.append(member)
                if members:
                    yield archive, key, members
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: damaged archive: {error}") from error

    def _read_members(
        self, shard: int, archive: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]
    ) -> dict[str, Any]:
        try:
            return _read_members(archive, key, members)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{self.paths[shard]}: damaged archive: {error}") from error


def _read_members(archive: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]) -> dict[str, Any]:
    row: dict[str, Any] = {"__key__": key}
    for member in members:
        file = archive.extractfile(member)
        if file is not None:
            row["." + member.name.rpartition("/")[2].partition(".")[2].lower()] = file.read()
    return row


def leave_encoded(dataset: Any) -> tuple[Any, list[str]]:
    """A table or stream of `datasets` whose images stay encoded until they are needed, and its columns with images.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): With features; without, nothing is known to be one.
    """
    features = dataset.features or {}
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    for column in images:
        dataset = dataset.cast_column(column, type(features[column])(decode=False))
    return dataset, images


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
        from torch.utils.data import get_worker_info

        if get_worker_info() is not None:
            from fsspec.asyn import reset_lock

            # Remote files hang in forked processes otherwise.
            reset_lock()
        part = self.dataset.shard(num_shards=self.num_shards, index=shard)
        # By batches, because iterating over rows in a DataLoader's worker would divide the shard between workers.
        batches = (part.skip(start) if start else part).iter(batch_size=1)
        return ({name: column[0] for name, column in batch.items()} for batch in islice(batches, 0, None, step))


def example_from_tar(
    content: Mapping[str, Any], dataset: str, category: str = "image_captioning"
) -> Example | dict[str, Any]:
    """What a row of `TarShards` holds: image files, and a ``.json`` or ``.txt`` file with the text.

    A text file is one caption or answer. For what JSON may hold, see `example_from_content`.

    Args:
        content (`Mapping[str, Any]`): The row.
        dataset (`str`): Name of the dataset.
        category (`str`, *optional*, defaults to `"image_captioning"`): Its task category.

    Returns:
        `Example` or `dict`: With ``images`` as the bytes of the files, in the order of the archive.

    Raises:
        ValueError: If the text is missing or cannot be read.
    """
    key = content["__key__"]
    images = [data for suffix, data in content.items() if suffix.endswith(IMAGE_SUFFIXES)]
    if ".json" in content:
        try:
            text = json.loads(content[".json"])
        except ValueError as error:
            raise ValueError(f"{key}.json: not readable as JSON: {error}") from error
    elif ".txt" in content:
        text = [content[".txt"].decode("utf-8").strip()]
    else:
        raise ValueError(f"{key}: there is neither a .json nor a .txt file")
    return example_from_content(text, key, images, dataset, category)


def example_from_columns(
    row: Mapping[str, Any],
    dataset: str,
    category: str = "image_captioning",
    columns: Mapping[str, str] | None = None,
) -> Example | dict[str, Any]:
    """What a row of a table of `datasets` holds: the column ``image`` or ``images``, and the text in the others.

    Args:
        row (`Mapping[str, Any]`): The row. For what its columns may hold, see `example_from_content`.
        dataset (`str`): Name of the dataset.
        category (`str`, *optional*, defaults to `"image_captioning"`): Its task category.
        columns (`Mapping[str, str]`, *optional*): Names of columns where they are others, such as
            ``{"image": "jpg", "caption": "txt"}``.

    Returns:
        `Example` or `dict`: With ``images`` as `datasets` stores them.

    Raises:
        ValueError: If a column that is named is not there, or the text is missing.
    """
    fields = dict(row)
    for name, column in (columns or {}).items():
        if column not in row:
            raise ValueError(f"has no column {column!r}; it has {', '.join(row)}")
        fields[name] = row[column]
    images = fields["images"] if fields.get("images") is not None else [fields.get("image")]
    key = fields.get("id", fields.get("__key__", "row"))
    content = {name: value for name, value in fields.items() if name not in ("id", "image", "images")}
    return example_from_content(content, str(key), [image for image in images if image is not None], dataset, category)


def example_from_content(
    content: Any, key: str, images: Sequence[Any], dataset: str, category: str
) -> Example | dict[str, Any]:
    """The one rule for what content means, in archives, folders and tables.

    Args:
        content (`Any`): A list of captions or answers; or a dict with the slots of an `Example`, or with ``caption`` or
            ``answer``, one or a list, and in captions ``text``; or a dict with ``prompt`` and ``completion``, or with
            ``messages``, which is already a training row.
        key (`str`): By which the row is known.
        images (`Sequence`): Anything that `load_image` takes.
        dataset (`str`): Name of the dataset.
        category (`str`): Its task category.

    Raises:
        ValueError: If there are no captions or answers, and no training row.
    """
    row: dict[str, Any] = {"id": key, "dataset": dataset, "images": list(images)}
    if isinstance(content, dict) and ("messages" in content or "completion" in content):
        return {**row, **{name: content[name] for name in ("prompt", "completion", "messages") if name in content}}
    row["category"] = category
    texts = content
    if isinstance(content, dict):
        is_caption = category == "image_captioning"
        names = ("answers", "answer", "caption", *(["text"] if is_caption else []))
        source = next((name for name in names if content.get(name) is not None), None)
        if source is None:
            raise ValueError(f"{key}: has no text, caption, answer or completion")
        texts = [content[source]] if isinstance(content[source], str) else content[source]
        # What is not the target may be a slot: the caption that a visual dialogue starts from, the text of a meme.
        slots = {*Example.__annotations__} - {*row, source} - ({"caption", "text"} if is_caption else set())
        row.update({slot: value for slot, value in content.items() if slot in slots and value is not None})
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key}: captions or answers must be a list of texts, not {texts!r}")
    return {**row, "answers": texts}


__all__ = [
    "IMAGE_SUFFIXES",
    "DatasetShards",
    "Shards",
    "TarShards",
    "example_from_columns",
    "example_from_content",
    "example_from_tar",
    "leave_encoded",
]
