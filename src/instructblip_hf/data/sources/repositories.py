"""Repositories of `datasets` on the Hub: datasets of the catalog that others converted, and data of one's own.

Rows of a dataset of the catalog have the fields of its official format (`hub_examples`); those of one's own have what
`example_from_columns` takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..catalog import DATASETS
from ..jsonl import SHOWN_PROBLEMS, RowFileError
from ..schema import Example, check_example
from ..shards import DatasetShards, Shards, example_from_columns, leave_encoded
from ..streaming import StreamSource
from ..templates import Instructions
from .datasets import hub_examples, local_images, open_images


def load_repository(
    repository: str,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Any:
    """Loads a split of a repository on the Hub.

    Args:
        repository (`str`): Its name, ``owner/name``.
        split (`str`, *optional*, defaults to `"train"`): As the repository calls it.
        config (`str`, *optional*): Which of its configurations, where there are several.
        revision (`str`, *optional*): Branch, tag or commit.
        streaming (`bool`, *optional*, defaults to `False`): Whether rows are read over the network as they are needed,
            in place of a download of the whole.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` where it is streamed.

    Raises:
        ImportError: Without the library `datasets`.
        ValueError, OSError: As `datasets.load_dataset` raises them.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("Hub repositories need the library datasets; pip install instructblip-hf[train]") from error
    return load_dataset(repository, name=config, split=split, revision=revision, streaming=streaming)


class ColumnsDataset:
    """A table of one's own as examples, or as training rows where it holds those.

    Args:
        name (`str`): Name of the dataset.
        dataset (`datasets.Dataset`): Its rows, see `example_from_columns`. Images are left encoded until they are
            needed.
        category (`str`, *optional*, defaults to `"image_captioning"`): Task category of the examples.
        columns (`Mapping[str, str]`, *optional*): See `example_from_columns`.
        image_root (`str` or `Path`, *optional*): The folder that file names are relative to and may not leave, where
            rows give those in place of images.

    Raises:
        RowFileError: For malformed rows, with one line for each of the first `SHOWN_PROBLEMS`.
        ValueError: If there are no rows.
    """

    def __init__(
        self,
        name: str,
        dataset: Any,
        category: str = "image_captioning",
        columns: Mapping[str, str] | None = None,
        image_root: str | Path | None = None,
    ) -> None:
        self.name, self.category, self.columns, self.image_root = name, category, dict(columns or {}), image_root
        self._dataset, images = leave_encoded(dataset)
        problems = []
        # What is wrong with a row does not depend on its pixels.
        for number, row in enumerate(self._dataset.remove_columns(images)):
            try:
                self._example({**row, **dict.fromkeys(images)}, number)
            except ValueError as error:
                problems.append(f"row {number}: {error}")
        if problems:
            more = len(problems) - SHOWN_PROBLEMS
            raise RowFileError(problems[:SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else []))
        if not len(self):
            raise ValueError("the repository has no rows")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example | dict[str, Any]:
        """An `Example` or a training row, with images as `datasets` stores them, which `load_image` takes."""
        return self._example(self._dataset[index], index % len(self))

    def _example(self, row: Mapping[str, Any], number: int) -> Example | dict[str, Any]:
        return _own_example({"id": number, **row}, self.name, self.category, self.columns, self.image_root)


def _own_example(
    row: Mapping[str, Any], name: str, category: str, columns: Mapping[str, str], image_root: str | Path | None
) -> Example | dict[str, Any]:
    example: Any = example_from_columns(row, name, category, columns)
    if "category" in example:
        check_example(example)
        if not any(map(str.strip, example["answers"])):
            raise ValueError("has no text, caption, answer or completion")
    elif "completion" in example and not isinstance(example.get("prompt"), str):
        raise ValueError("has a completion, but no prompt")
    return local_images(example, image_root)


class _CatalogShards:
    """Shards whose rows are those of a dataset of the catalog, of which one may give several examples."""

    def __init__(
        self, name: str, shards: Shards, split: str, columns: Mapping[str, str], image_root: str | Path | None
    ) -> None:
        self.name, self.shards, self.split, self.columns = name, shards, split, columns
        self.image_root = image_root

    @property
    def num_shards(self) -> int:
        return self.shards.num_shards

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[Example]:
        rows = self.shards.read(shard)
        # Members of a group take turns in examples, as a row may have more of them than another.
        return islice(hub_examples(self.name, rows, self.split, self.columns, self.image_root), start, None, step)


def streamed_repository(
    name: str,
    dataset: Any,
    instructions: Instructions,
    split: str = "train",
    category: str = "image_captioning",
    columns: Mapping[str, str] | None = None,
    image_root: str | Path | None = None,
) -> StreamSource:
    """A stream of `datasets` as a source of a `StreamMixture`.

    Args:
        name (`str`): Name of the dataset; rows of one of the catalog have the fields of its official format.
        dataset (`datasets.IterableDataset`): Its rows.
        instructions (`Instructions`): How examples are worded.
        split (`str`, *optional*, defaults to `"train"`): See `hub_examples`.
        category (`str`, *optional*, defaults to `"image_captioning"`): Task category of data of one's own.
        columns (`Mapping[str, str]`, *optional*): See `hub_examples` and `example_from_columns`.
        image_root (`str` or `Path`, *optional*): See `hub_examples`.
    """
    shards: Any = DatasetShards(leave_encoded(dataset)[0])
    if name in DATASETS:
        shards = _CatalogShards(name, shards, split, dict(columns or {}), image_root)
        return StreamSource(shards, _as_it_is, instructions, open_images)
    to_example = partial(
        _own_example, name=name, category=category, columns=dict(columns or {}), image_root=image_root
    )
    return StreamSource(shards, to_example, instructions, open_images)


def _as_it_is(example: Example) -> Example:
    return example


def known_rows(dataset: Any, split: str = "train") -> int | None:
    """How many rows a stream of `datasets` says that it has, or `None`."""
    info = (dataset.info.splits or {}).get(split)
    return int(info.num_examples) if info is not None and info.num_examples else None


__all__ = ["ColumnsDataset", "known_rows", "load_repository", "streamed_repository"]
