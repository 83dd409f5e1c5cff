"""The page of a search: what was found, with small pictures inside of the file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from ..utils.images import load_image
from ..utils.whole_files import write_whole


GENERATOR = "instructblip search"
_LONGEST_SIDE = 320


def check_writable(page: Path) -> None:
    """Raises a `FileExistsError` if there is a file that is not such a page, and a `NotADirectoryError` likewise."""
    if page.is_dir():
        raise FileExistsError(f"--html: {page} is a folder; name a file")
    if page.parent.exists() and not page.parent.is_dir():
        raise NotADirectoryError(f"--html: {page.parent} is no folder")
    if page.exists() and f'content="{GENERATOR}"' not in page.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise FileExistsError(f"--html: {page} exists and was not written by this command; choose another name")


def write_page(
    page: Path, index: Any, found: Sequence[tuple[str, Sequence[Any]]], pictures: Mapping[str, Any]
) -> None:
    """Writes the page.

    Args:
        page (`Path`): The file.
        index (`FeatureIndex`): What was searched.
        found (`Sequence[tuple[str, Sequence[Hit]]]`): Queries with their hits.
        pictures (`Mapping[str, PIL.Image.Image]`): The image of each query that is one.
    """
    sections = []
    for query, hits in found:
        picture = f'<img class="query" src="{_inlined(pictures[query])}" alt="">' if query in pictures else ""
        cards = "\n".join(_card(hit, index) for hit in hits)
        sections.append(f'<h2>{html.escape(query)}</h2>\n{picture}<div class="cards">\n{cards}\n</div>')
    template = Template((Path(__file__).parent / "search_page.html").read_text(encoding="utf-8"))
    text = template.substitute(
        sections="\n".join(sections),
        source=html.escape(index.facts.root),
        count=f"{len(index):,}",
        kind=index.facts.kind,
        model=html.escape(index.facts.model),
    )
    # Names of files can hold bytes that are no text.
    write_whole(page, text.encode("utf-8", errors="replace"))


def _card(hit: Any, index: Any) -> str:
    matching = "" if hit.matching is None else f" = {hit.cosine:.3f} + {hit.matching:.3f}"
    more = f", and {len(hit.names) - 1} with the same content" if len(hit.names) > 1 else ""
    picture = ""
    if index.facts.kind == "images":
        picture = f'<img src="{_inlined(index.find_file(hit.names))}" alt="">'
    return (
        f'<div class="card">{picture}<div>{html.escape(hit.names[0] + more)}'
        f'<span class="quiet">{hit.score:.3f}{matching}</span></div></div>'
    )


def _inlined(source: Any) -> str:
    image = load_image(source).copy()
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
