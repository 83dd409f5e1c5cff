"""Features of all images that a recipe will draw, computed before training: how much that is, and then doing it.

Under a launcher every process looks at its share of the rows and computes its share of the images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import TrainingArguments

from ...data.mixture import MixtureDataset
from ..freezing import apply_freezing
from ..recipe import Recipe
from ..run import model_of, open_dataset
from .batches import FeatureReader, ImageFeatures
from .recipes import open_image_features, open_images_with


# Files take up whole blocks on the disk.
_BLOCK_BYTES = 4096


class _Place(NamedTuple):
    """Where an image stands: in which dataset, row and place of the row."""

    dataset: int
    row: int
    image: int


@dataclass(frozen=True)
class FeaturePlan:
    """What there is to compute, over all processes.

    Attributes:
        rows (`int`): Different rows that will be drawn.
        bad_rows (`int`): Rows that could not be read, up to ``data.skip_bad_rows``.
        images (`int`): Different images in them.
        missing (`dict[str, _Place]`): Keys of those without features, with a place of each.
        shape (`tuple[int, ...]`): Of the features of an image.
        entry_bytes (`int`): Size of the file of an image.
        free_bytes (`int`): Free space on the disk.
    """

    rows: int
    bad_rows: int
    images: int
    missing: dict[str, _Place]
    shape: tuple[int, ...]
    entry_bytes: int
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Size of all files that will be written."""
        return len(self.missing) * self.entry_bytes

    @property
    def fits(self) -> bool:
        """Whether the disk has room for them."""
        return len(self.missing) * -(-self.entry_bytes // _BLOCK_BYTES) * _BLOCK_BYTES <= self.free_bytes


class FeatureRun:
    """Features of a recipe's images, ready to be counted and computed.

    Args:
        recipe (`Recipe`): Of `load_recipe`.
        folder (`str` or `Path`, *optional*): For the features; the recipe's ``data.image_features`` by default.
        processes (`int`, *optional*): That will train, which says how many rows a mixture draws. By default as many as
            compute features.

    Raises:
        ValueError: If there is no folder, it holds something else, the tower is not frozen, or rows come in a stream.

    Attributes:
        features (`ImageFeatures`): Tower and store.
        args (`TrainingArguments`): The recipe's.
    """

    def __init__(self, recipe: Recipe, folder: str | Path | None = None, processes: int | None = None) -> None:
        if folder is not None:
            recipe = replace(recipe, data=replace(recipe.data, image_features=str(folder)))
        if recipe.data.image_features is None:
            raise ValueError("the recipe names no folder for features: set data.image_features, or give --output")
        args = recipe.training_arguments()
        self.args: TrainingArguments = args
        rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * (processes or args.world_size)
        self._datasets = [open_dataset(recipe.data.train, recipe.data, args.max_steps * rows_a_step)]
        if recipe.data.evaluation is not None:
            self._datasets.append(open_dataset(recipe.data.evaluation, recipe.data))
        for dataset in self._datasets:
            if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise ValueError(
                    "data.train is a stream, whose rows are not known before: features are computed in training"
                )
        model, processor = model_of(recipe, args)
        self.features: ImageFeatures = open_image_features(recipe, model, processor, args)
        self._allowed = recipe.data.skip_bad_rows
        self.features.tower.check_frozen(apply_freezing(model, recipe.freezing).frozen_dropout)
        self.features.tower.module.to(args.device)

    def plan(self, check: bool = False) -> FeaturePlan:
        """Looks at all rows; files of images are read, but not decoded.

        Args:
            check (`bool`, *optional*, defaults to `False`): Also read all features that are there; damaged ones are
                removed.

        Raises:
            ValueError: If more rows cannot be read than ``data.skip_bad_rows`` allows, naming the first.
        """
        reader = self.features.reader
        for dataset in self._datasets:
            open_images_with(dataset, reader.content)
        rows = [(index, row) for index, dataset in enumerate(self._datasets) for row in _rows_drawn(dataset)]
        scan = _Scan(self._datasets, rows[self.args.process_index :: self.args.world_size], reader, check)
        own: dict[str, tuple[bool, _Place]] = {}
        problems: list[str] = []
        for found in self._progress(DataLoader(scan, batch_size=None, num_workers=self._workers), "rows"):
            if isinstance(found, str):
                problems = self._with_problem(problems, found)
                continue
            for key, is_there, place in found:
                own.setdefault(key, (is_there, _Place(*place)))
        problems = gather_object(problems)
        self._check_problems(problems)
        images: dict[str, tuple[bool, _Place]] = dict(gather_object(list(own.items())))
        missing = {key: place for key, (is_there, place) in images.items() if not is_there}
        shape = self.features.store.shape or self._shape()
        return FeaturePlan(
            rows=len(rows),
            bad_rows=len(problems),
            images=len(images),
            missing=dict(sorted(missing.items(), key=lambda item: item[1])),
            shape=shape,
            entry_bytes=self.features.store.entry_bytes(shape),
            free_bytes=shutil.disk_usage(_existing(self.features.store.root)).free,
        )

    def compute(self, plan: FeaturePlan, batch_size: int = 32) -> int:
        """Computes what is missing, this process its share, and keeps it.

        Args:
            plan (`FeaturePlan`): Of `plan`.
            batch_size (`int`, *optional*, defaults to 32): Images that go through the tower at once.

        Returns:
            `int`: Images that all processes have computed.

        Raises:
            ValueError: If more images cannot be decoded than ``data.skip_bad_rows`` allows, naming the first.
            OSError: If features cannot be written, as on a full disk. Those that were written are whole.
        """
        if self.args.process_index == 0:
            self.features.store.clean_up()
        own = list(plan.missing.items())[self.args.process_index :: self.args.world_size]
        pixels = _Pixels(self._datasets, own, self.features.reader)
        loader: Any = DataLoader(pixels, batch_size, num_workers=self._workers, collate_fn=pixels.batch)
        with tqdm(total=len(own), unit="image", disable=self._is_silent) as progress:
            problems: list[str] = []
            for keys, values, bad in loader:
                for problem in bad:
                    problems = self._with_problem(problems, problem)
                if values is not None:
                    self.features.compute(keys, values)
                progress.update(len(keys) + len(bad))
        return sum(gather_object([len(own) - len(problems)]))

    def _with_problem(self, problems: list[str], problem: str) -> list[str]:
        problems = [*problems, problem]
        self._check_problems(problems)
        return problems

    def _check_problems(self, problems: Sequence[str]) -> None:
        if len(problems) <= self._allowed:
            return
        more = f" ({len(problems)} such rows; data.skip_bad_rows allows {self._allowed})" if self._allowed else ""
        raise ValueError(problems[0] + more)

    @property
    def _workers(self) -> int:
        return self.args.dataloader_num_workers

    @property
    def _is_silent(self) -> bool:
        return bool(self.args.disable_tqdm) or self.args.process_index != 0

    def _progress(self, items: Any, unit: str) -> Any:
        return tqdm(items, unit=f" {unit}", desc="looking at images", disable=self._is_silent)

    def _shape(self) -> tuple[int, ...]:
        """Of the features of an image, by computing those of a blank one."""
        blank = Image.new("RGB", (64, 64))
        pixels = self.features.reader.image_processor([blank], return_tensors="pt")["pixel_values"]
        return tuple(self.features.tower(pixels).shape[1:])


def _rows_drawn(dataset: Any) -> Sequence[int]:
    """Rows of a dataset, each once; of a mixture the draws by which its rows come for the first time."""
    if not isinstance(dataset, MixtureDataset):
        return range(len(dataset))
    seen = {name: np.zeros(size, dtype=bool) for name, size in dataset.mixture.sizes.items()}
    numbers = []
    for number in range(len(dataset)):
        name, row, _ = dataset.mixture.draw(number)
        if not seen[name][row]:
            seen[name][row] = True
            numbers.append(number)
    return numbers


def _images_of(row: Any) -> list[Any]:
    images = row.get("images")
    return list(images) if images is not None else [row["image"]] if row.get("image") is not None else []


class _Scan(Dataset):
    """Keys of the images of rows, whether there are features, and where the images stand."""

    def __init__(
        self, datasets: Sequence[Any], rows: Sequence[tuple[int, int]], reader: FeatureReader, check: bool
    ) -> None:
        self.datasets, self.rows, self.reader, self.check = datasets, rows, reader, check

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[tuple[str, bool, _Place]] | str:
        """What a row holds, or what is wrong with it."""
        store = self.reader.store
        dataset, row = self.rows[index]
        try:
            contents = [self.reader.content(source) for source in _images_of(self.datasets[dataset][row])]
        except (ValueError, OSError) as error:
            return str(error)
        found = []
        for place, content in enumerate(contents):
            key = store.key(content.digest)
            is_there = key in store and (not self.check or store.get(key) is not None)
            found.append((key, is_there, _Place(dataset, row, place)))
        return found


class _Pixels(Dataset):
    """Keys and images at places."""

    def __init__(self, datasets: Sequence[Any], places: Sequence[tuple[str, _Place]], reader: FeatureReader) -> None:
        self.datasets, self.places, self.reader = datasets, places, reader

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[str, Any] | str:
        """Key and image, or what is wrong with it."""
        _, (dataset, row, image) = self.places[index]
        try:
            content = self.reader.content(_images_of(self.datasets[dataset][row])[image])
            # The image may have changed since it was looked at: what counts is what is decoded now.
            return self.reader.store.key(content.digest), content.load()
        except (ValueError, OSError) as error:
            return str(error)

    def batch(self, items: Sequence[tuple[str, Any] | str]) -> tuple[list[str], torch.Tensor | None, list[str]]:
        """Keys and pixels of what could be read, and what is wrong with the others."""
        read = [item for item in items if not isinstance(item, str)]
        values = None
        if read:
            values = self.reader.image_processor([image for _, image in read], return_tensors="pt")["pixel_values"]
        return [key for key, _ in read], values, [item for item in items if isinstance(item, str)]


def _existing(folder: Path) -> Path:
    folder = Path(os.path.abspath(folder))
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


__all__ = ["FeaturePlan", "FeatureRun"]
