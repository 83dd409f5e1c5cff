"""`instructblip index`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .errors import fail, user_errors
from .loading import load


RETRIEVAL_EXAMPLE = "Salesforce/blip2-itm-vit-g"
SHOWN_FILES = 20


def run_index(
    source: Path,
    output: Path | None,
    model: str | None,
    stored_in: str | None,
    skip_bad_images: bool,
    batch_size: int | None,
    workers: int,
    device: str | None,
    dtype: str | None,
) -> None:
    """Makes or updates an index of a folder of images, or of a file of texts."""
    folder = output or source.with_name(f"{source.name or source.resolve().name}.index")
    with user_errors():
        if not source.exists():
            raise FileNotFoundError(f"there is no folder of images and no file of texts {source}")
        encoder = load_encoder(folder, model, device, dtype)

        from ..retrieval.building import index_images, index_texts
        from ..retrieval.text_files import read_texts

        options: dict[str, Any] = {"stored_in": stored_in}
        if batch_size is not None:
            options["batch_size"] = batch_size
        if source.is_dir():
            options |= {"skip_bad_images": skip_bad_images, "workers": workers}
            report = index_images(encoder, source, folder, **options)
        else:
            report = index_texts(encoder, read_texts(source), folder, source, **options)
    kind = "images" if source.is_dir() else "texts"
    total = report.unchanged + report.linked + report.encoded
    print(f"index       {folder}")
    print(f"{kind:<12}{total:,}")
    print(f"computed    {report.encoded:,}")
    print(f"unchanged   {report.unchanged:,}")
    if report.linked:
        print(f"same        {report.linked:,} have the content of others, or were only touched or renamed")
    if report.removed:
        print(f"removed     {report.removed:,}")
    if report.bad:
        print(f"left out    {len(report.bad):,} that cannot be read", file=sys.stderr)
        for name, problem in list(report.bad.items())[:SHOWN_FILES]:
            print(f"  {name}: {problem}", file=sys.stderr)
        if len(report.bad) > SHOWN_FILES:
            print(f"  ... and {len(report.bad) - SHOWN_FILES:,} more", file=sys.stderr)
    query = '"a text"' if source.is_dir() else "--image IMAGE"
    print(f"use it:     instructblip search {folder} {query}")


def load_encoder(folder: Path, model: str | None, device: str | None, dtype: str | None) -> Any:
    """The model of an index, where there is one, in the precision that it was made in; or that which is named.

    Raises:
        OSError: If there is no such model.
        ValueError: If it cannot compare images and texts.
    """
    from ..retrieval.table import FACTS_FILE, read_facts

    if (folder / FACTS_FILE).exists():
        facts = read_facts(folder)
        model, dtype = model or facts.model, dtype or facts.computed_in
    if model is None:
        fail(f"a new index needs --model: a folder or Hub id of a BLIP-2 for retrieval, like {RETRIEVAL_EXAMPLE}")
    loaded = load(model, device, dtype)

    from ..retrieval.encoding import RetrievalEncoder

    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    return RetrievalEncoder(loaded.model, loaded.processor, name)
