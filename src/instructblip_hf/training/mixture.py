"""Mixtures of datasets in recipes: what is written under ``mixture``, its check, and the dataset that comes of it.

Importing this loads neither torch nor transformers, and checking reads no annotation file: the names of datasets and
splits are looked up in the catalog, and files only have to be there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.catalog import DATASETS
from ..data.image_groups import image_order
from ..data.image_order import IMAGE_ORDERS
from ..data.mixture import BALANCES, Mixture, MixtureDataset, check_groups
from .mixture_parts import OpenStream, PartArguments, open_part, published_rows, resolve_part
from .recipe_file import folder_of
from .validation import build


if TYPE_CHECKING:
    from ..data.streaming import StreamMixture
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
        group_by_image (`int`, *optional*, defaults to 1): Draws in a row that are of the same image where it has so many
            rows; each image of a batch is encoded once.
        group_by_length (`int`, *optional*, defaults to 0): Optimiser steps whose rows are dealt out to micro-batches by
            length; 0 for as they come.
        group_by_modality (`bool`, *optional*, defaults to `False`): Whether these micro-batches also hold rows with
            images or rows of text alone, as far as it goes.
        image_order (`str`, *optional*, defaults to `"published"`): Where images stand in the first turn, one of
            `instructblip_hf.data.image_order.IMAGE_ORDERS`.
        form (`str`, *optional*, defaults to `"instruction"`): One of `instructblip_hf.data.templates.FORMS`.
        without (`list[str]`, *optional*): Slots that prompts leave out, such as ``lecture``.
        clean_captions (`bool`, *optional*, defaults to `False`):
            Whether captions are lower-cased and lose some punctuation, as LAVIS puts them.
        wording (`str`, *optional*): One template for all rows, such as ``"Question: {question} Answer:"``.
        qformer_wording (`str`, *optional*): What the Q-Former reads, by default the prompt; a template as well.
        draws (`int`, *optional*): Rows of the whole, for evaluation data alone; training draws what its steps need.

    Raises:
        ValueError: For no datasets, an unknown balance, order, form or slot, or a number below 1.
    """

    datasets: dict[str, Any] = field(metadata={"help": "Datasets by name."})
    root: str | None = field(default=None, metadata={"help": "Folder with a folder for each dataset."})
    balance: str = field(default="sqrt", metadata={"help": f"One of {', '.join(BALANCES)}."})
    seed: int = field(default=0, metadata={"help": "Seed of draws, wordings and answers."})
    draws_per_choice: int = field(default=1, metadata={"help": "Draws in a row from the same dataset."})
    group_by_image: int = field(default=1, metadata={"help": "Draws in a row of the same image."})
    group_by_length: int = field(default=0, metadata={"help": "Steps whose rows are dealt out by length."})
    group_by_modality: bool = field(default=False, metadata={"help": "Whether images and text alone are kept apart."})
    image_order: str = field(default="published", metadata={"help": f"One of {', '.join(IMAGE_ORDERS)}."})
    form: str = field(
        default="instruction", metadata={"help": "instruction, plain, identifier, prefix or llava_scienceqa."}
    )
    without: list[str] = field(default_factory=list, metadata={"help": "Slots that prompts leave out."})
    clean_captions: bool = field(default=False, metadata={"help": "Whether captions are put as LAVIS puts them."})
    wording: str | None = field(default=None, metadata={"help": "One template for all rows."})
    qformer_wording: str | None = field(default=None, metadata={"help": "What the Q-Former reads; a template."})
    draws: int | None = field(default=None, metadata={"help": "Rows in all, for evaluation data alone."})

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets is empty; a mixture needs at least one")
        if self.balance not in BALANCES:
            raise ValueError(f"balance is {self.balance!r}; allowed are {', '.join(BALANCES)}")
        check_groups(self.draws_per_choice, self.group_by_image, self.group_by_length, self.group_by_modality)
        if self.image_order not in IMAGE_ORDERS:
            raise ValueError(f"image_order is {self.image_order!r}; allowed are {', '.join(IMAGE_ORDERS)}")
        if self.draws is not None and self.draws < 1:
            raise ValueError(f"draws is {self.draws}; it must be at least 1")
        self.instructions()

    def instructions(self) -> Instructions:
        """How the rows are worded."""
        from ..data.templates import Instructions

        return Instructions(
            form=self.form,
            seed=self.seed,
            without=tuple(self.without),
            wording=self.wording,
            qformer_wording=self.qformer_wording,
            clean_captions=self.clean_captions,
        )

    def parts(self) -> dict[str, PartArguments]:
        """The datasets, once `resolve_mixture` found nothing wrong with them."""
        return {name: PartArguments(**(part or {})) for name, part in self.datasets.items()}


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
        root = folder_of(arguments.root, base) / Path(arguments.root).expanduser()
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
            resolved, found = resolve_part(str(name), built, arguments.root, base, place, files)
            problems += found
            if resolved.is_stream and arguments.draws is not None:
                problems.append(f"{place}: is a stream, which has no end to evaluate at; train on it alone")
            datasets[str(name)] = {key: value for key, value in vars(resolved).items() if value is not None}
    return {**vars(arguments), "datasets": datasets} if is_usable else {}, problems


# --- opening ----------------------------------------------------------------------------------------------------------


def open_mixture(arguments: MixtureArguments, length: int) -> MixtureDataset | StreamMixture:
    """Reads the datasets of a mixture, whose paths `resolve_mixture` made absolute.

    Args:
        arguments (`MixtureArguments`): What to read.
        length (`int`): Draws in all; a stream has no length.

    Returns:
        `MixtureDataset`, or `StreamMixture` where one of them is streamed.

    Raises:
        FileNotFoundError, ValueError: As the datasets raise them, naming the dataset.
    """
    opened = {name: open_part(name, part, arguments.instructions()) for name, part in arguments.parts().items()}
    sizes = {name: rows.rows if isinstance(rows, OpenStream) else len(rows) for name, rows in opened.items()}
    streams = [name for name, rows in opened.items() if isinstance(rows, OpenStream)]
    if not streams:
        mixture = mixture_of(arguments, sizes, _image_orders(opened, arguments.group_by_image))
        return MixtureDataset(opened, mixture, length)
    if arguments.group_by_image > 1 or arguments.group_by_length:
        raise ValueError(
            f"group_by_image and group_by_length need rows that can be looked up, which those of {streams[0]} cannot: it "
            "is a stream"
        )
    mixture = mixture_of(arguments, sizes)
    from ..data.streaming import IndexedSource, StreamMixture

    sources = {
        name: rows.source if isinstance(rows, OpenStream) else IndexedSource(rows) for name, rows in opened.items()
    }
    return StreamMixture(sources, mixture)


def _image_orders(datasets: Mapping[str, Any], group: int) -> dict[str, Any]:
    orders = {}
    for name, rows in datasets.items() if group > 1 else ():
        try:
            orders[name] = image_order(rows, group)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from error
    return orders


def mixture_of(
    arguments: MixtureArguments, sizes: Mapping[str, int], image_orders: Mapping[str, Any] | None = None
) -> Mixture:
    """The draws from datasets of given sizes."""
    factors = {name: part.factor for name, part in arguments.parts().items() if part.factor != 1.0}
    return Mixture(
        sizes,
        arguments.balance,
        factors,
        arguments.seed,
        arguments.draws_per_choice,
        arguments.group_by_image,
        image_orders,
        arguments.group_by_length,
        arguments.group_by_modality,
        arguments.image_order,
    )


def published_sizes(arguments: MixtureArguments) -> dict[str, int]:
    """Sizes as the catalog has them, for mixtures of datasets that are not at hand.

    Raises:
        ValueError: For a dataset that is not of the catalog, or a split whose size is not known.
    """
    sizes = {}
    for name, part in arguments.parts().items():
        if part.shapes_world is not None:
            sizes[name] = part.shapes_world["examples"]
            continue
        if part.rows is not None:
            sizes[name] = part.rows
            continue
        if name not in DATASETS:
            raise ValueError(f"{name} is not of the catalog, so its published size is not known")
        rows = published_rows(name, part.split)
        if rows is None:
            raise ValueError(f"the catalog does not know the size of {name} {part.split}")
        sizes[name] = rows
    return sizes


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
            "rows, factors, balance, seed, draws_per_choice or groups have changed. Restore them, or start a new run from its "
            "weights with model.path"
        )
    if before["draws_per_step"] != draws_per_step:
        raise ValueError(
            f"{checkpoint} was trained with {before['draws_per_step']} rows a step, now there are {draws_per_step}: rows "
            "would come twice or never. Keep processes * per_device_train_batch_size * gradient_accumulation_steps"
        )


def trained_steps(checkpoint: str | Path) -> int:
    """Optimiser steps before a checkpoint was written; 0 where it does not say."""
    file = Path(checkpoint) / "trainer_state.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["global_step"]) if file.is_file() else 0


__all__ = [
    "STATE_NAME",
    "MixtureArguments",
    "PartArguments",
    "check_same_mixture",
    "mixture_of",
    "open_mixture",
    "published_sizes",
    "resolve_mixture",
    "trained_steps",
]
