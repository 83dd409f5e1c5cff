"""Mixtures of datasets in recipes: what is written under ``mixture``, its check, and the dataset that comes of it.

Importing this loads neither torch nor transformers, and checking reads no annotation file: the names of datasets and
splits are looked up in the catalog, and files only have to be there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.catalog import DATASETS
from ..data.mixture import BALANCES, Mixture, MixtureDataset
from ..data.schema import SLOTS
from ..data.sources.files import find_files
from .validation import build, did_you_mean


if TYPE_CHECKING:
    from ..data.templates import Instructions


@dataclass(frozen=True)
class MixtureArguments:
    """What stands under ``mixture`` in a recipe.

    Args:
        datasets (`dict[str, dict]`): By name, see `PartArguments`; names of the catalog or of one's own choice.
        root (`str`, *optional*): Folder with a folder for each dataset of the catalog, named like it. Their `root`
            and `image_root` are then relative to it. An evaluation mixture has that of the training mixture by default.
        balance (`str`, *optional*, defaults to `"sqrt"`): How probabilities follow from sizes, one of `BALANCES`.
        seed (`int`, *optional*, defaults to 0): Seed of the draws, the wordings and the choice of answers.
        draws_per_choice (`int`, *optional*, defaults to 1): Draws in a row from the same dataset.
        form (`str`, *optional*, defaults to `"instruction"`): One of `instructblip_hf.data.templates.FORMS`.
        without (`list[str]`, *optional*): Slots that prompts leave out, such as ``lecture``.
        draws (`int`, *optional*): Rows of the whole, for evaluation data alone; training draws what its steps need.

    Raises:
        ValueError: For no datasets, an unknown balance, form or slot, or a number below 1.
    """

    datasets: dict[str, Any] = field(metadata={"help": "Datasets by name."})
    root: str | None = field(default=None, metadata={"help": "Folder with a folder for each dataset."})
    balance: str = field(default="sqrt", metadata={"help": f"One of {', '.join(BALANCES)}."})
    seed: int = field(default=0, metadata={"help": "Seed of draws, wordings and answers."})
    draws_per_choice: int = field(default=1, metadata={"help": "Draws in a row from the same dataset."})
    form: str = field(default="instruction", metadata={"help": "instruction, plain or identifier."})
    without: list[str] = field(default_factory=list, metadata={"help": "Slots that prompts leave out."})
    draws: int | None = field(default=None, metadata={"help": "Rows in all, for evaluation data alone."})

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets is empty; a mixture needs at least one")
        if self.balance not in BALANCES:
            raise ValueError(f"balance is {self.balance!r}; allowed are {', '.join(BALANCES)}")
        for name in ("draws_per_choice", "draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.instructions()

    def instructions(self) -> Instructions:
        """How the rows are worded."""
        from ..data.templates import Instructions

        return Instructions(form=self.form, seed=self.seed, without=tuple(self.without))

    def parts(self) -> dict[str, PartArguments]:
        """The datasets, once `resolve_mixture` found nothing wrong with them."""
        return {name: PartArguments(**(part or {})) for name, part in self.datasets.items()}


@dataclass(frozen=True)
class PartArguments:
    """A dataset of a mixture: one of the catalog, rows of a file, or a folder of images.

    Args:
        root (`str`, *optional*): Folder with the official files of a dataset of the catalog. By default the one of
            its name in the mixture's root.
        split (`str`, *optional*, defaults to `"train"`): Of a dataset of the catalog, or several as ``train+val``.
        max_bad_rows (`int`, *optional*, defaults to 0): Malformed rows of it that may be left out, with a warning.
        file (`str`, *optional*): A ``.jsonl`` or ``.csv`` file of one's own, see `RowFileDataset`.
        folder (`str`, *optional*): A folder of images of one's own, see `FolderDataset`.
        category (`str`, *optional*, defaults to `"image_captioning"`): Task category of that folder.
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
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    factor: float = field(default=1.0, metadata={"help": "By what the probability is multiplied."})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"factor is {self.factor}; it must be positive (leave the dataset out for none of it)")
        if self.category not in SLOTS:
            raise ValueError(f"category is {self.category!r}; allowed are {', '.join(SLOTS)}")
        if self.max_bad_rows < 0:
            raise ValueError(f"max_bad_rows is {self.max_bad_rows}; it must be at least 0")


# --- checking ---------------------------------------------------------------------------------------------------------


def resolve_mixture(section: Any, base: Path, where: str, files: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Checks what stands under ``mixture`` and makes its paths absolute.

    Args:
        section (`Any`): As the recipe has it.
        base (`Path`): Folder of the recipe, which paths are relative to. In a mixture with a root, those of datasets
            of the catalog are relative to that.
        where (`str`): Its place in the recipe, put before each problem.
        files (`bool`, *optional*, defaults to `True`): Whether files and folders have to be there.

    Returns:
        The section with absolute paths, and one line a problem.
    """
    arguments, problems = build(MixtureArguments, section, where)
    is_usable = arguments is not None
    if not is_usable:
        # Parts can be checked all the same, so that everything is told at once.
        datasets = section.get("datasets") if isinstance(section, Mapping) else None
        if not isinstance(datasets, Mapping) or not datasets:
            return {}, problems
        root = section.get("root") if isinstance(section.get("root"), str) else None
        arguments = MixtureArguments(dict(datasets), root=root)
    if arguments.root is not None:
        root = base / Path(arguments.root).expanduser()
        if files and not root.is_dir():
            return {}, [
                *problems,
                f"{where}.root: there is no folder {root}; name yours with --set {where}.root=FOLDER",
            ]
        arguments = replace(arguments, root=str(root.resolve()))
    datasets = {}
    for name, part in arguments.datasets.items():
        place = f"{where}.datasets.{name}"
        built, found = build(PartArguments, {} if part is None else part, place)
        problems += found
        if built is not None:
            resolved, found = _resolve_part(str(name), built, arguments.root, base, place, files)
            problems += found
            datasets[str(name)] = {key: value for key, value in vars(resolved).items() if value is not None}
    return {**vars(arguments), "datasets": datasets} if is_usable else {}, problems


def _resolve_part(
    name: str, part: PartArguments, root: str | None, base: Path, where: str, files: bool
) -> tuple[PartArguments, list[str]]:
    if root is not None and name in DATASETS:
        base = Path(root)
    own = [key for key in ("file", "folder") if getattr(part, key) is not None]
    problems: list[str] = []
    paths = {
        key: (base / Path(value).expanduser()).resolve()
        for key in ("root", "file", "folder", "image_root")
        if (value := getattr(part, key)) is not None
    }
    if name in DATASETS:
        if own:
            return part, [f"{where}.{own[0]}: {name} is a dataset of the catalog; give data of your own another name"]
        problems += _check_splits(name, part.split, where)
        if "root" not in paths and root is not None:
            paths["root"] = (base / name).resolve()
        if "root" in paths:
            if files:
                problems += _check_files(name, part.split, paths["root"], where)
        elif files:
            problems.append(f"{where}.root: missing; give the folder with its files, or mixture.root for all datasets")
    elif len(own) != 1:
        hint = did_you_mean(name, DATASETS)
        problems.append(
            f"{where}: is no dataset of the catalog{hint or ' (instructblip data list)'}; data of your own needs "
            "either file or folder"
        )
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


# --- opening ----------------------------------------------------------------------------------------------------------


def open_mixture(arguments: MixtureArguments, length: int) -> MixtureDataset:
    """Reads the datasets of a mixture, whose paths `resolve_mixture` made absolute.

    Args:
        arguments (`MixtureArguments`): What to read.
        length (`int`): Draws in all.

    Raises:
        FileNotFoundError, ValueError: As the datasets raise them, naming the dataset.
    """
    parts = arguments.parts()
    datasets = {name: _open_part(name, part, arguments.instructions()) for name, part in parts.items()}
    return MixtureDataset(
        datasets, mixture_of(arguments, {name: len(rows) for name, rows in datasets.items()}), length
    )


def mixture_of(arguments: MixtureArguments, sizes: Mapping[str, int]) -> Mixture:
    """The draws from datasets of given sizes."""
    factors = {name: part.factor for name, part in arguments.parts().items() if part.factor != 1.0}
    return Mixture(sizes, arguments.balance, factors, arguments.seed, arguments.draws_per_choice)


def published_sizes(arguments: MixtureArguments) -> dict[str, int]:
    """Sizes as the catalog has them, for mixtures of datasets that are not at hand.

    Raises:
        ValueError: For a dataset that is not of the catalog, or a split whose size is not known.
    """
    sizes = {}
    for name, part in arguments.parts().items():
        if name not in DATASETS:
            raise ValueError(f"{name} is not of the catalog, so its published size is not known")
        sizes[name] = 0
        for split in part.split.split("+"):
            published = DATASETS[name].splits[split]
            rows = published.rows if published.rows is not None else published.about
            if rows is None:
                raise ValueError(f"the catalog does not know the size of {name} {split}")
            sizes[name] += rows
    return sizes


def _open_part(name: str, part: PartArguments, instructions: Instructions) -> Any:
    from ..data.jsonl import RowFileDataset, RowFileError
    from ..data.sources.datasets import CatalogDataset, open_images
    from ..data.templates import InstructionDataset

    try:
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


# --- resuming ---------------------------------------------------------------------------------------------------------


STATE_NAME = "MixtureState"
"""Under which a mixture stands in ``trainer_state.json``: the name of the callback that has Trainer write it."""


def check_same_mixture(checkpoint: str | Path, fingerprint: str, draws_per_step: int) -> None:
    """Refuses to go on from a checkpoint of another mixture, or with steps that hold another number of rows.

    Args:
        checkpoint (`str` or `Path`): Folder of the checkpoint.
        fingerprint (`str`): Of the mixture that training is to go on with.
        draws_per_step (`int`): Rows of an optimiser step over all processes.

    Raises:
        ValueError: If either differs from what the checkpoint says. One that says nothing is accepted.
    """
    file = Path(checkpoint) / "trainer_state.json"
    if not file.is_file():
        return
    state = json.loads(file.read_text(encoding="utf-8")).get("stateful_callbacks") or {}
    if STATE_NAME not in state:
        return
    before = state[STATE_NAME]["args"]
    if before["fingerprint"] != fingerprint:
        raise ValueError(
            f"{checkpoint} was trained on another mixture ({before['fingerprint']}, now {fingerprint}): datasets, their "
            "rows, factors, balance, seed or draws_per_choice have changed. Restore them, or start a new run from its "
            "weights with model.path"
        )
    if before["draws_per_step"] != draws_per_step:
        raise ValueError(
            f"{checkpoint} was trained with {before['draws_per_step']} rows a step, now there are {draws_per_step}: rows "
            "would come twice or never. Keep processes * per_device_train_batch_size * gradient_accumulation_steps"
        )


__all__ = [
    "STATE_NAME",
    "MixtureArguments",
    "PartArguments",
    "check_same_mixture",
    "mixture_of",
    "open_mixture",
    "published_sizes",
    "resolve_mixture",
]
