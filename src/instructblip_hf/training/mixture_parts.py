"""The datasets of a mixture in a recipe: what is written about each, its check, and the rows that come of it.

Importing this loads neither torch nor transformers, and checking reads no annotation file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.answers import CHOICES
from ..data.catalog import DATASETS
from ..data.schema import SLOTS
from ..data.sources.files import find_files
from .arguments import ShapesWorldArguments
from .recipe_file import folder_of
from .validation import build, did_you_mean


if TYPE_CHECKING:
    from ..data.procedural import ShapesWorldDataset
    from ..data.streaming import StreamSource
    from ..data.templates import Instructions


@dataclass(frozen=True)
class PartArguments:
    """A dataset of a mixture: one of the catalog, rows of a file, a folder of images, a procedural world, tar archives,
    or a repository on the Hub.

    Args:
        root (`str`, *optional*): Folder with the official files of a dataset of the catalog. By default the one of
            its name in the mixture's root.
        split (`str`, *optional*, defaults to `"train"`): Of a dataset of the catalog, or several as ``train+val``; of a
            repository as it is called there.
        max_bad_rows (`int`, *optional*, defaults to 0): Malformed rows of it that may be left out, with a warning.
        file (`str`, *optional*): A ``.jsonl`` or ``.csv`` file of one's own, see `RowFileDataset`, or a ``.json`` file in
            LLaVA's format, see `LlavaFileDataset`.
        folder (`str`, *optional*): A folder of images of one's own, see `FolderDataset`.
        category (`str`, *optional*, defaults to `"image_captioning"`): Task category of data of one's own.
        shapes_world (`dict`, *optional*): Questions about procedural scenes, see `ShapesWorldArguments`.
        shards (`str` or `list[str]`, *optional*): Tar archives in webdataset's form, as paths or patterns with ``*``.
            They are streamed, see `TarShards`.
        hub (`str`, *optional*): A repository of `datasets`, ``owner/name``; see `load_repository`.
        config, revision (`str`, *optional*): Of that repository.
        columns (`dict[str, str]`, *optional*): What its columns are called where their names are others.
        streaming (`bool`, *optional*, defaults to `False`): Whether that repository is streamed in place of downloaded.
        rows (`int`, *optional*): How many rows a stream has, from which its probability follows. Known for datasets
            of the catalog and for some repositories.
        image_root (`str`, *optional*): Folder that image paths are relative to, and may not leave. By default the
            root, or the file's folder.
        answer_choice (`str`, *optional*, defaults to `"draw"`): Which of a row's answers or captions is learnt, see
            `instructblip_hf.data.answers.choose_answer`; `"first_two"` for captions that CapFilt ranked.
        factor (`float`, *optional*, defaults to 1.0): By what the probability is multiplied.

    Raises:
        ValueError: For a factor that is not positive, an unknown category or choice, fewer than 0 bad rows or 1 row, or
            settings of a repository without one.
    """

    root: str | None = field(default=None, metadata={"help": "Folder with the official files."})
    split: str = field(default="train", metadata={"help": "Split of the catalog, or several as train+val."})
    max_bad_rows: int = field(default=0, metadata={"help": "Malformed rows that may be left out."})
    file: str | None = field(default=None, metadata={"help": "A file of rows of your own."})
    folder: str | None = field(default=None, metadata={"help": "A folder of images of your own."})
    category: str = field(default="image_captioning", metadata={"help": "Task category of the folder."})
    shapes_world: dict[str, Any] | None = field(default=None, metadata={"help": "Questions about procedural scenes."})
    shards: str | list[str] | None = field(default=None, metadata={"help": "Tar archives, as patterns."})
    hub: str | None = field(default=None, metadata={"help": "A repository of datasets on the Hub."})
    config: str | None = field(default=None, metadata={"help": "Configuration of the repository."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the repository."})
    columns: dict[str, str] | None = field(default=None, metadata={"help": "Names of the repository's columns."})
    streaming: bool = field(default=False, metadata={"help": "Whether the repository is streamed."})
    rows: int | None = field(default=None, metadata={"help": "How many rows a stream has."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    answer_choice: str = field(default="draw", metadata={"help": "Which of a row's answers is learnt."})
    factor: float = field(default=1.0, metadata={"help": "By what the probability is multiplied."})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"factor is {self.factor}; it must be positive (leave the dataset out for none of it)")
        if self.category not in SLOTS:
            raise ValueError(f"category is {self.category!r}; allowed are {', '.join(SLOTS)}")
        if self.answer_choice not in CHOICES:
            raise ValueError(f"answer_choice is {self.answer_choice!r}; allowed are {', '.join(CHOICES)}")
        if self.answer_choice != "draw" and (self.file is not None or self.shapes_world is not None):
            raise ValueError(
                "answer_choice is of rows with several answers; those of a file and of the shapes world have one"
            )
        if self.max_bad_rows < 0:
            raise ValueError(f"max_bad_rows is {self.max_bad_rows}; it must be at least 0")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")
        if self.rows is not None and not self.is_stream:
            raise ValueError("rows says how many rows a stream has; of other data they are counted")
        for name in ("config", "revision", "columns", "streaming"):
            if getattr(self, name) and self.hub is None:
                raise ValueError(f"{name} is of a repository, and there is no hub")
        if self.hub is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", self.hub):
            raise ValueError(f"hub is {self.hub!r}; it must be a repository's name, such as owner/name")

    @property
    def is_stream(self) -> bool:
        """Whether its rows are read from front to back."""
        return self.shards is not None or self.streaming


OWN = ("file", "folder", "shapes_world", "shards", "hub")
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
    wrong = _wrong_source(name, own, where)
    if wrong is not None:
        return part, [wrong]
    shared = Path(root) if root is not None and name in DATASETS else None
    paths = {
        key: ((shared or folder_of(value, base)) / Path(value).expanduser()).resolve()
        for key in ("root", "file", "folder", "image_root")
        if (value := getattr(part, key)) is not None
    }
    problems: list[str] = []
    if not own:
        problems += _check_splits(name, part.split, where)
        if "root" not in paths and shared is not None:
            paths["root"] = (shared / name).resolve()
        if "root" in paths:
            if files:
                problems += _check_files(name, part.split, paths["root"], where)
        elif files:
            problems.append(f"{where}.root: missing; give the folder with its files, or mixture.root for all datasets")
    elif part.shards is not None:
        patterns = [part.shards] if isinstance(part.shards, str) else part.shards
        part = replace(
            part,
            shards=[str((shared or folder_of(text, base)) / Path(text).expanduser()) for text in patterns],
        )
        problems += _check_shards(name, part, where, files)
    elif part.shapes_world is not None:
        problems += check_shapes_world(part.shapes_world, f"{where}.shapes_world")
    elif files and own[0] in paths:
        problems += _check_own(own[0], paths[own[0]], where)
    if files and "image_root" in paths and not paths["image_root"].is_dir():
        problems.append(f"{where}.image_root: there is no folder {paths['image_root']}")
    absolute: dict[str, Any] = {key: str(path) for key, path in paths.items()}
    return replace(part, **absolute), problems


def _wrong_source(name: str, own: list[str], where: str) -> str | None:
    """What is wrong with where the rows of a dataset are said to come from."""
    if name in DATASETS:
        foreign = [key for key in own if key not in ("shards", "hub")]
        if foreign:
            return f"{where}.{foreign[0]}: {name} is a dataset of the catalog; give data of your own another name"
        return f"{where}: has both shards and hub; give one of the two" if len(own) > 1 else None
    if len(own) == 1:
        return None
    hint = did_you_mean(name, DATASETS)
    return (
        f"{where}: is no dataset of the catalog{hint or ' (instructblip data list)'}; data of your own needs one of "
        f"{', '.join(OWN)}"
    )


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


def _check_shards(name: str, part: PartArguments, where: str, files: bool) -> list[str]:
    problems = []
    if part.rows is None and published_rows(name, part.split) is None:
        problems.append(
            f"{where}.rows: missing; say how many rows the archives have, which decides how often they are drawn"
        )
    if files:
        for pattern in part.shards or []:
            if not any(Path(path).is_file() for path in glob(pattern)):
                problems.append(f"{where}.shards: there is no archive {pattern}")
    return problems


def published_rows(name: str, split: str) -> int | None:
    """Rows of a split, or of several as ``train+val``, of a dataset of the catalog, where it knows them."""
    rows = 0
    for part in split.split("+"):
        published = DATASETS[name].splits.get(part) if name in DATASETS else None
        if published is None:
            return None
        known = published.rows if published.rows is not None else published.about
        if known is None:
            return None
        rows += known
    return rows


def _check_own(kind: str, path: Path, where: str) -> list[str]:
    if kind == "folder":
        return [] if path.is_dir() else [f"{where}.folder: there is no folder {path}"]
    if not path.is_file():
        return [f"{where}.file: there is no file {path}"]
    known = (".jsonl", ".csv", ".json")
    return [] if path.suffix in known else [f"{where}.file: {path.name} is neither of {', '.join(known)}"]


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


@dataclass(frozen=True)
class OpenStream:
    """A dataset of a mixture that is streamed.

    Attributes:
        source (`StreamSource`): Its rows.
        rows (`int`): How many they are.
    """

    source: StreamSource
    rows: int


def open_part(name: str, part: PartArguments, instructions: Instructions) -> Any:
    """The rows of a dataset of a mixture, whose paths `resolve_part` made absolute.

    Returns:
        A map-style dataset of training rows, or an `OpenStream`.

    Raises:
        FileNotFoundError, ValueError: As the datasets raise them, naming the dataset.
    """
    from ..data.jsonl import RowFileError

    instructions = replace(instructions, answer_choice=part.answer_choice)
    try:
        return _open_stream(name, part, instructions) if part.is_stream else _open_rows(name, part, instructions)
    except RowFileError as error:
        raise RowFileError([f"{name}: {problem}" for problem in error.problems]) from error
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}: {error}") from error


def _open_rows(name: str, part: PartArguments, instructions: Instructions) -> Any:
    from ..data.jsonl import RowFileDataset
    from ..data.sources.datasets import CatalogDataset, HubDataset, open_images
    from ..data.templates import InstructionDataset

    rows: Any
    if part.shapes_world is not None:
        return open_shapes_world(ShapesWorldArguments(**part.shapes_world))
    if part.file is not None and not part.file.endswith(".json"):
        return RowFileDataset(part.file, part.image_root)
    if part.file is not None:
        from ..data.sources.llava_files import LlavaFileDataset

        rows = LlavaFileDataset(part.file, part.image_root, name, part.max_bad_rows)
    elif part.folder is not None:
        from ..data.folder import FolderDataset

        rows = FolderDataset(part.folder, part.category, name)
    elif part.hub is not None:
        from ..data.sources.repositories import ColumnsDataset, load_repository

        table = load_repository(part.hub, part.split, part.config, part.revision)
        if name in DATASETS:
            rows = HubDataset(name, table, part.split, part.columns, part.image_root)
        else:
            rows = ColumnsDataset(name, table, part.category, part.columns, part.image_root)
    else:
        rows = CatalogDataset(name, part.root or "", part.split, part.image_root, part.max_bad_rows)
    return InstructionDataset(rows, instructions, open_images) if "category" in rows[0] else rows


def _open_stream(name: str, part: PartArguments, instructions: Instructions) -> OpenStream:
    from ..data.shards import TarShards, example_from_tar
    from ..data.sources.datasets import open_images
    from ..data.streaming import StreamSource

    rows = part.rows or published_rows(name, part.split)
    if part.hub is not None:
        from ..data.sources.repositories import known_rows, load_repository, streamed_repository

        stream = load_repository(part.hub, part.split, part.config, part.revision, streaming=True)
        rows = part.rows or known_rows(stream, part.split) or rows
        if rows is None:
            raise ValueError(f"{part.hub} does not say how many rows {part.split} has; give them as rows")
        source = streamed_repository(
            name, stream, instructions, part.split, part.category, part.columns, part.image_root
        )
        return OpenStream(source, rows)
    archives = sorted(path for pattern in part.shards or [] for path in glob(pattern) if Path(path).is_file())
    category = DATASETS[name].category if name in DATASETS else part.category
    to_example = partial(example_from_tar, dataset=name, category=category)
    return OpenStream(StreamSource(TarShards(archives), to_example, instructions, open_images), rows or 0)


__all__ = [
    "OWN",
    "OpenStream",
    "PartArguments",
    "check_shapes_world",
    "open_part",
    "open_shapes_world",
    "published_rows",
    "resolve_part",
]
