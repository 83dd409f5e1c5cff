"""`instructblip data`: the catalog of datasets, checks of one's own copies, and what a recipe's mixture amounts to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .errors import fail, user_errors
from .tables import print_columns


data_app = typer.Typer(
    name="data",
    help="The datasets InstructBLIP was trained and evaluated on, and your copies of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@data_app.command("list")
def list_datasets(
    as_json: Annotated[bool, typer.Option("--json", help="The whole catalog as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The table of docs/datasets.md.")] = False,
) -> None:
    """Show the 26 datasets: category, role, splits with their rows, metric, licence. ~ is unverified, ? not known."""
    from dataclasses import asdict

    from ..data.catalog import DATASETS, catalog_table, markdown_table

    if as_json:
        print(json.dumps({name: asdict(spec) for name, spec in DATASETS.items()}, indent=2))
    elif as_markdown:
        print(markdown_table())
    else:
        print_columns(catalog_table())


@data_app.command()
def verify(
    name: Annotated[str, typer.Argument(help="A dataset of `instructblip data list`.")],
    path: Annotated[Path, typer.Argument(help="The folder with its official files.")],
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", help="A split that has to be there; can be repeated. By default what is there."),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="The folder that image paths are relative to, if it is another.")
    ] = None,
    images: Annotated[
        str, typer.Option(help="Of how many rows a split images are opened: a number, all, or none.")
    ] = "200",
    partial: Annotated[bool, typer.Option("--partial", help="A part of the dataset is meant.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Check a copy of a dataset: files, rows, their number, images. Exit code 1 if something is wrong."""
    from ..data.verify import report_json, report_lines, verify_dataset

    named = {"all": None, "none": 0}
    if images not in named and not images.isdigit():
        fail(f"--images is {images!r}; it can be a number, all, or none")
    with user_errors():
        try:
            report = verify_dataset(
                name, path, splits or None, image_root, named[images] if images in named else int(images), partial
            )
        except KeyError as error:
            fail(str(error.args[0]))
    if as_json:
        print(json.dumps(report_json(report), indent=2))
    else:
        print("\n".join(report_lines(report)))
    if not report.is_whole:
        raise typer.Exit(1)


@data_app.command()
def stats(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, as with train.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="After how many draws; by default after the steps of one process.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into a picture, such as m.png.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Sizes of the catalog, without a look at any file.")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The table in Markdown.")] = False,
) -> None:
    """Show how often a recipe's mixture draws from each dataset, and how many epochs of it that makes."""
    from ..data.mixture_report import markdown_table, mixture_table, plot_mixture
    from ..training.mixture import MixtureArguments, mixture_of, open_mixture, published_sizes
    from ..training.recipe import load_recipe

    with user_errors():
        checked = load_recipe(recipe, changes or [], data_files=not published)
        if not isinstance(checked.data.train, dict) or "mixture" not in checked.data.train:
            fail(f"{checked.path.name} trains on no mixture: data.train has none")
        arguments = MixtureArguments(**checked.data.train["mixture"])
        if draws is None:
            settings = checked.training
            rows = settings.get("per_device_train_batch_size", 8) * settings.get("gradient_accumulation_steps", 1)
            draws = rows * settings["max_steps"]
        if published:
            mixture = mixture_of(arguments, published_sizes(arguments))
        else:
            mixture = open_mixture(arguments, draws).mixture
        if plot is not None:
            plot_mixture(mixture, draws, plot)
    table = mixture_table(mixture, draws)
    print(markdown_table(table) if as_markdown else "\n".join(_aligned(table)))
    if plot is not None:
        print(f"\npicture in {plot}")


@data_app.command("scienceqa")
def write_scienceqa(
    root: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="With ScienceQA's problems.json and pid_splits.json.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")],
    split: Annotated[str, typer.Option(help="train, val or test; or those with an image, as train_image.")] = "train",
    form: Annotated[
        str, typer.Option(help="What is asked and what is answered: Question, Context, Multiple options, Lecture, ...")
    ] = "QCM-LEA",
) -> None:
    """Write ScienceQA as LLaVA's training JSON: conversations with the lecture, the solution and the answer."""
    from ..data.sources.datasets import CatalogDataset
    from ..data.templates.scienceqa_forms import scienceqa_conversation
    from ..utils.whole_files import write_whole

    with user_errors():
        problems = CatalogDataset("scienceqa", root, split)
        rows = [scienceqa_conversation(problems.peek(place), form) for place in range(len(problems))]
        if output.exists():
            raise FileExistsError(f"{output} exists; choose another name")
        write_whole(output, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    images = sum("image" in row for row in rows)
    print(
        f"{len(rows)} conversations in {output}, {images} with an image, relative to the folder of the split's images"
    )


def _aligned(table: list[list[str]]) -> list[str]:
    """Lines of a table whose first column is text and whose others are numbers."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in table
    ]


__all__ = ["data_app"]
