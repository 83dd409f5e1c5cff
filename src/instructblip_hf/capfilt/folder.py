"""The output folder: shards that are there whole or not at all, and the journal that says which.

Rows are cut into shards beforehand, so that a shard's content does not depend on who makes it, or when. Its entry in the
journal is written last: a shard without an entry is made anew, into the same file with the same content.

====================  ================================================================================================
``settings.json``     what the folder was made of and how; another run has to say the same
``annotation.jsonl``  rows in the form of Web CapFilt, images by reference; or
``shards/*.tar``      archives in webdataset's form, with the images
``dropped.jsonl``     rows of which nothing is kept
``bad_rows.jsonl``    rows that could not be read, and why
``report.json``       counts and histograms; it is written last, and says that the run is done
``report.html``       the same to look at, with samples
``parts/``            the journal and shards of rows while the run goes on
====================  ================================================================================================
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from ..utils.whole_files import write_whole
from .errors import CapFiltError
from .filtering import Candidate
from .sources import WebRow


FORMS = ("jsonl", "tar")
SETTINGS, REPORT, PAGE = "settings.json", "report.json", "report.html"
ANNOTATION, DROPPED, BAD_ROWS, SHARDS = "annotation.jsonl", "dropped.jsonl", "bad_rows.jsonl", "shards"
PARTS = "parts"


@dataclass(frozen=True)
class Shard:
    """A stretch of the rows, which one process makes as a whole.

    Attributes:
        number (`int`): Of the shard.
        part (`int`): Of the source.
        start (`int`): Its first row in that part.
        rows (`int`): How many rows.
    """

    number: int
    part: int
    start: int
    rows: int


def cut(counts: Sequence[int], rows_per_shard: int) -> list[Shard]:
    """Cuts parts of so many rows into shards. None of them is of two parts, as names of rows repeat between archives."""
    shards: list[Shard] = []
    for part, count in enumerate(counts):
        for start in range(0, count, rows_per_shard):
            shards.append(Shard(len(shards), part, start, min(rows_per_shard, count - start)))
    return shards


class CapFiltFolder:
    """An output folder.

    Args:
        path (`str` or `Path`): The folder.
        form (`str`): One of `FORMS`.
    """

    def __init__(self, path: str | Path, form: str) -> None:
        self.path, self.form = Path(path), form
        self._parts = self.path / PARTS
        self._incoming = self._parts / "incoming"

    # --- the run --------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps other runs away, and removes what a killed one left half-written. For the first process.

        Raises:
            CapFiltError: If another run is at work.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._parts / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise CapFiltError(f"another run is writing {self.path}: wait for it") from error
        try:
            shutil.rmtree(self._incoming, ignore_errors=True)
            yield
        finally:
            lock.release()

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Writes down what the folder is made of, or sees that what is there was made of the same.

        Raises:
            CapFiltError: If it was made of something else, naming the difference, or is no such folder.
        """
        file = self.path / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if file.is_file():
            different = _differences(json.loads(file.read_text(encoding="utf-8")), wanted)
            if different:
                raise CapFiltError(
                    f"{self.path} was begun otherwise: {'; '.join(different)}. Take another output folder, or remove it"
                )
            return
        if self.path.exists() and (
            not self.path.is_dir() or any(entry.name != PARTS for entry in self.path.iterdir())
        ):
            raise CapFiltError(f"{self.path} is not empty, and is no folder of CapFilt; take another one")
        write_whole(file, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", self._incoming)

    def report(self) -> dict[str, Any] | None:
        """The report of a run that is done; `None` while it is not."""
        file = self.path / REPORT
        if not file.is_file():
            return None
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content

    def plan(self) -> list[int] | None:
        """Rows of each part of the source, once they were counted."""
        file = self._parts / "plan.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_plan(self, counts: Sequence[int]) -> None:
        """Writes down how many rows each part has."""
        write_whole(self._parts / "plan.json", json.dumps(list(counts)), self._incoming)

    def journal(self) -> Iterator[dict[str, Any]]:
        """Entries of the shards that are done, in order."""
        for file in sorted((self._parts / "journal").glob("*.json")):
            yield json.loads(file.read_text(encoding="utf-8"))

    def finish(self, report: Mapping[str, Any], page: str) -> None:
        """Puts the parts together, writes the report, and removes the parts."""
        if self.form == "jsonl":
            self._join("rows", self.path / ANNOTATION)
        self._join("dropped", self.path / DROPPED)
        bad = [json.dumps(row, ensure_ascii=False) + "\n" for entry in self.journal() for row in entry["bad"]]
        if bad:
            write_whole(self.path / BAD_ROWS, "".join(bad), self._incoming)
        write_whole(self.path / PAGE, page, self._incoming)
        write_whole(self.path / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n", self._incoming)
        self.tidy()

    def tidy(self) -> None:
        """Removes the parts of a run that is done."""
        shutil.rmtree(self._parts, ignore_errors=True)

    def _join(self, kind: str, file: Path) -> None:
        with self._arriving(file) as stream:
            for part in sorted((self._parts / kind).glob("*.jsonl")):
                with part.open("rb") as content:
                    shutil.copyfileobj(content, stream)

    @contextmanager
    def _arriving(self, file: Path) -> Iterator[IO[bytes]]:
        """A file that has its name when it is whole; nothing is there if writing fails."""
        partial = self._incoming / f"{secrets.token_hex(8)}-{file.name}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    # --- shards ---------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, shard: Shard) -> Iterator[ShardWriter]:
        """Writes a shard: its rows are there once this ends without an error, and its entry in the journal last."""
        name = f"{shard.number:06d}"
        if self.form == "tar":
            with self._arriving(self.path / SHARDS / f"{name}.tar") as stream:
                with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    writer = ShardWriter(archive)
                    yield writer
            if not writer.rows:
                (self.path / SHARDS / f"{name}.tar").unlink()
        else:
            writer = ShardWriter()
            yield writer
            write_whole(self._parts / "rows" / f"{name}.jsonl", "".join(writer.lines), self._incoming)
        write_whole(self._parts / "dropped" / f"{name}.jsonl", "".join(writer.dropped), self._incoming)
        entry = json.dumps({"shard": shard.number, **writer.entry}, ensure_ascii=False)
        write_whole(self._parts / "journal" / f"{name}.json", entry, self._incoming)


class ShardWriter:
    """Takes the rows of a shard.

    Args:
        archive (`tarfile.TarFile`, *optional*): Where images go; without one rows refer to them.
    """

    def __init__(self, archive: tarfile.TarFile | None = None) -> None:
        self._archive = archive
        self.rows = 0
        self.lines: list[str] = []
        self.dropped: list[str] = []
        self.entry: dict[str, Any] = {}

    def add(self, row: WebRow, number: int, data: bytes, ranked: Sequence[Candidate]) -> None:
        """Adds a row: to the data if something is kept of it, and otherwise to those that are dropped.

        Args:
            row (`WebRow`): The row.
            number (`int`): Its place in its part of the source.
            data (`bytes`): Its image file.
            ranked (`Sequence[Candidate]`): Its texts, best first.
        """
        candidates = [one.record() for one in ranked]
        kept = [one.text for one in ranked if one.kept]
        if not kept:
            named = {"image": row.name} if row.key is None else {"key": row.key}
            self.dropped.append(_line({"row": row.where, **row.fields, **named, "candidates": candidates}))
            return
        self.rows += 1
        content = {**row.fields, "caption": kept, "candidates": candidates}
        if self._archive is None:
            self.lines.append(_line({"image": row.name, **content}))
            return
        key = f"{number:09d}" if row.key is None else row.key
        suffix = Path(row.name).suffix.lower() if row.key is None else row.name
        self._add_file(f"{key}{suffix}", data)
        self._add_file(f"{key}.json", _line(content).encode())

    def _add_file(self, name: str, data: bytes) -> None:
        # No time and no owner: the same rows make the same bytes.
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        if self._archive is not None:
            self._archive.addfile(member, io.BytesIO(data))


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = {**found, **wanted}
        return [
            difference
            for name in names
            for difference in _differences(found.get(name), wanted.get(name), f"{where}.{name}" if where else name)
        ]
    return [] if found == wanted else [f"{where} was {found!r}, is {wanted!r}"]


__all__ = [
    "ANNOTATION",
    "BAD_ROWS",
    "DROPPED",
    "FORMS",
    "PAGE",
    "REPORT",
    "SHARDS",
    "CapFiltFolder",
    "Shard",
    "ShardWriter",
    "cut",
]
