"""What an index says of itself and of its items: ``index.json`` and ``items.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.whole_files import write_whole
from .codes import LARGEST_SIZE


FORMAT = 1
FACTS_FILE, ITEMS_FILE = "index.json", "items.jsonl"
KINDS = ("images", "texts")
STORED_IN = ("float16", "float32")


@dataclass(frozen=True)
class Facts:
    """What all features of an index share.

    Args:
        kind (`str`): ``"images"`` or ``"texts"``.
        model (`str`): Where the model was loaded from.
        fingerprint (`str`): Of its configuration and weights, in the precision that they were used in.
        processor (`str`): Fingerprint of its processor.
        computed_in (`str`): The precision of the weights.
        stored_in (`str`): ``"float16"`` or ``"float32"``.
        rows (`int`): Feature rows of an item: the queries for images, 1 for texts.
        size (`int`): Numbers a row.
        root (`str`): The folder that names of images are relative to, or the file that texts came from.
    """

    kind: str
    model: str
    fingerprint: str
    processor: str
    computed_in: str
    stored_in: str
    rows: int
    size: int
    root: str

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("stored_in", STORED_IN)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if not 0 < self.size <= LARGEST_SIZE or self.rows < 1:
            raise ValueError(f"{self.rows} rows of {self.size} numbers; allowed are sizes from 1 to {LARGEST_SIZE}")


@dataclass(frozen=True)
class Item:
    """An image or a text of an index.

    Args:
        name (`str`): The image's path, relative to the indexed folder and with slashes; the text itself.
        size (`int`): Of the image file in bytes; of a text 0.
        modified_ns (`int`): When the image file was changed; of a text 0.
        digest (`str`): Of its content.
        shard (`str`): Where its features are.
        row (`int`): Where in the shard.
    """

    name: str
    size: int
    modified_ns: int
    digest: str
    shard: str
    row: int


def item_line(content: Mapping[str, Any]) -> str:
    """A line of the table."""
    return json.dumps(content) + "\n"


def write_facts(folder: Path, facts: Facts) -> None:
    """Writes what all features share."""
    write_whole(folder / FACTS_FILE, json.dumps({"format": FORMAT, **asdict(facts)}, indent=2) + "\n")


def read_facts(folder: str | Path) -> Facts:
    """What all features of an index share, without its items.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If it is of another format or damaged.
    """
    file = Path(folder) / FACTS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no index in {folder}: make one with instructblip index")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.pop("format")
        if version != FORMAT:
            raise ValueError(f"its format is {version}, and this version reads {FORMAT}")
        return Facts(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def read_items(file: Path) -> tuple[dict[str, Item], int, int]:
    """Items by name, the bytes up to the last whole line, and how many lines no longer count."""
    if not file.exists():
        return {}, 0, 0
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    items: dict[str, Item] = {}
    lines = data[:whole].split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            if "removed" in content:
                items.pop(content["removed"], None)
            else:
                item = Item(**content)
                items[item.name] = item
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}:{number} is damaged: remove {file.parent}, and index again") from error
    return items, whole, len(lines) - len(items)


__all__ = [
    "FACTS_FILE",
    "ITEMS_FILE",
    "KINDS",
    "STORED_IN",
    "Facts",
    "Item",
    "item_line",
    "read_facts",
    "read_items",
    "write_facts",
]
