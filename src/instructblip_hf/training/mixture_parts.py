"""The datasets of a mixture in a recipe: what is written about each, its check, and the rows that come of it.

Importing this loads neither torch nor transformers, and checking reads no annotation file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.catalog import DATASETS
from ..data.schema import SLOTS
from ..data.sources.files import find_files
from .arguments import ShapesWorldArguments
from .recipe_file import folder_of
from .validation import build, did_you_mean


if TYPE_CHECKING:
    from ..data.procedural import ShapesWorldDataset
    from ..data.templates import Instructions


@dataclass(frozen=True)
class PartArguments:
    """A dataset of a mixture: one of the catalog, rows of a file, a folder of images, or a procedural world.

    Args:
        root (`str`, *optional*): Folder with the official files of a dataset of the catalog. By default the one of
            its name in the mixture's root.
        split (`str`, *optional*, defaults to `"train"`): Of a dataset of the catalog, or several as ``train+val``.
        max_bad_rows (`int`, *optional*, defaults to 0): Malformed rows of it that may be left out, with a warning.
        file (`str`, *optional*): A ``.jsonl`` or ``.csv`` file of one's own, see `RowFileDataset`.
        folder (`str`, *optional*): A folder of images of one's own, see `FolderDataset`.
        category (`str`, *optional*, defaults to `"image_captioning"`): Task category of that folder.
        shapes_world (`dict`, *optional*): Questions about procedural scenes, see `ShapesWorldArguments`.
        image_root (`str`, *optional*): Folder that image paths are relative to, and may not leave. By default the
            root, or the file's folder.
        factor (`float`, *optional*, defaults to 1.0): By what the probability is multiplied.

    Raises:
        ValueError: For a factor that is not positive, an unknown category, or fewer than 0 bad rows.
    """

    root: str | None = field(default=None, metadata={"help": "Folder with the official files."})
    split: str = field(default="train", metadata={"help": "Split of the catalog, or several as train+val."})
    max_bad_rows: int = field(default=0, metadata={"help": "Malformed rows that may be left out."})
    file: str | None = field(default=None, metadata={"help": "A file of rows of your own."})
    folder: str | None = field(default=None, metadata={"help": "A folder of images of your own."})
    category: str = field(default="image_captioning", metadata={"help": "Task category of the folder."})
    shapes_world: dict[str, Any] | None = field(default=None, metadata={"help": "Questions about procedural scenes."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    factor: float = field(default=1.0, metadata={"help": "By what the probability is multiplied."})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"factor is {self.factor}; it must be positive (leave the dataset out for none of it)")
        if self.category not in SLOTS:
            raise ValueError(f"category is {self.category!r}; allowed are {', '.join(SLOTS)}")
        if self.max_bad_rows < 0:
            raise ValueError(f"max_bad_rows is {self.max_bad_rows}; it must be at least 0")


OWN = ("file", "folder", "shapes_world")
"""Where data of one's own may come from; each dataset that is not of the catalog has one of these."""


def resolve_part(
    name: str, part: PartArguments, root: str | None, base: Path, where: str, files: bool
) -> tuple[PartArguments, list[str]]:
    """Checks a dataset of a mixture and makes its paths absolute.

    Args:
        name (`str`): Its name.
        part (`PartArguments`): As the recipe has it.
        root (`str`, *optional*): The mixture's root, an absolute path.
        base (`Path`): Folder of the recipe.
        where (`str`): Its place in the recipe, put before each problem.
        files (`bool`): Whether files and folders have to be there.

    Returns:
        The part with absolute paths, and one line a problem.
    """
    own = [key for key in OWN if getattr(part, key) is not None]
    problems: list[str] = []
    shared = Path(root) if root is not None and name in DATASETS else None
    paths = {
        key: ((shared or folder_of(value, base)) / Path(value).expanduser()).resolve()
        for key in ("root", "file", "folder", "image_root")
        if (value := getattr(part, key)) is not None
    }
    if name in DATASETS:
        if own:
            return part, [f"{where}.{own[0]}: {name} is a dataset of the catalog; give data of your own another name"]
        problems += _check_splits(name, part.split, where)
        if "root" not in paths and shared is not None:
            paths["root"] = (shared / name).resolve()
        if "root" in paths:
            if files:
                problems += _check_files(name, part.split, paths["root"], where)
        elif files:
            problems.append(f"{where}.root: missing; give the folder with its files, or mixture.root for all datasets")
    elif len(own) != 1:
        hint = did_you_mean(name, DATASETS)
        problems.append(
            f"{where}: is no dataset of the catalog{hint or ' (instructblip data list)'}; data of your own needs "
            f"one of {', '.join(OWN)}"
        )
    elif part.shapes_world is not None:
        problems += check_shapes_world(part.shapes_world, f"{where}.shapes_world")
    elif files:
        problems += _check_own(own[0], paths[own[0]], where)
    if files and "image_root" in paths and not paths["image_root"].is_dir():
        problems.append(f"{where}.image_root: there is no folder {paths['image_root']}")
    absolute: dict[str, Any] = {key: str(path) for key, path in paths.items()}
    return replace(part, **absolute), problems


def _check_splits(name: str, splits: str, where: str) -> list[str]:
    problems = []
    known = DATASETS[name].splits
    for split in splits.split("+"):
        if split not in known:
            problems.append(f"{where}.split: {name} has no split {split!r}; it has {', '.join(known)}")
        elif not known[split].labelled:
            problems.append(f"{where}.split: the answers of {name} {split} are not published")
    return problems


def _check_files(name: str, splits: str, root: Path, where: str) -> list[str]:
    if not root.is_dir():
        return [f"{where}.root: there is no folder {root}"]
    problems = []
    for split in splits.split("+"):
        published = DATASETS[name].splits.get(split)
        if published is not None:
            try:
                find_files(root, published.files)
            except FileNotFoundError as error:
                problems.append(f"{where}.root: {error} ({split})")
    return problems


def _check_own(kind: str, path: Path, where: str) -> list[str]:
    if kind == "folder":
        return [] if path.is_dir() else [f"{where}.folder: there is no folder {path}"]
    if not path.is_file():
        return [f"{where}.file: there is no file {path}"]
    return [] if path.suffix in (".jsonl", ".csv") else [f"{where}.file: {path.name} is neither of .jsonl, .csv"]


def check_shapes_world(section: Any, where: str) -> list[str]:
    """What is wrong with a section ``shapes_world``, one line a problem."""
    arguments, problems = build(ShapesWorldArguments, section, where)
    if arguments is not None:
        try:
            arguments.world()
        except (ValueError, ImportError) as error:
            problems.append(f"{where}: {error}")
    return problems


def open_shapes_world(arguments: ShapesWorldArguments) -> ShapesWorldDataset:
    """The rows of a section ``shapes_world`` that was checked."""
    from ..data.procedural import ShapesWorldDataset

    return ShapesWorldDataset(arguments.world(), arguments.examples)


def open_part(name: str, part: PartArguments, instructions: Instructions) -> Any:
    """The rows of a dataset of a mixture, whose paths `resolve_part` made absolute.

    Raises:
        FileNotFoundError, ValueError: As the datasets raise them, naming the dataset.
    """
    from ..data.jsonl import RowFileDataset, RowFileError
    from ..data.sources.datasets import CatalogDataset, open_images
    from ..data.templates import InstructionDataset

    try:
        if part.shapes_world is not None:
            return open_shapes_world(ShapesWorldArguments(**part.shapes_world))
        if part.file is not None:
            return RowFileDataset(part.file, part.image_root)
        if part.folder is not None:
            from ..data.folder import FolderDataset

            rows: Any = FolderDataset(part.folder, part.category, name)
            if "category" not in rows[0]:
                return rows
        else:
            rows = CatalogDataset(name, part.root or "", part.split, part.image_root, part.max_bad_rows)
    except RowFileError as error:
        raise RowFileError([f"{name}: {problem}" for problem in error.problems]) from error
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}: {error}") from error
    return InstructionDataset(rows, instructions, open_images)


__all__ = ["OWN", "PartArguments", "check_shapes_world", "open_part", "open_shapes_world", "resolve_part"]
