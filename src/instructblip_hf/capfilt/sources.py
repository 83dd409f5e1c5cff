"""Where images and web texts come from, row by row and never all at once.

Tar archives in webdataset's form; a file of rows with ``image`` and ``caption``, as Web CapFilt's; a folder of images
with ``metadata.jsonl`` or ``metadata.csv``, or with a text beside each image. Texts may be missing where captions are to
be made. What a text may be called is the one rule of `instructblip_hf.data.shards`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ..data.folder import METADATA_FILES, folder_rows
from ..data.shards import IMAGE_SUFFIXES, TarShards
from ..data.sources.fields import answer_texts
from ..data.sources.files import Located, csv_rows, jsonl_rows, streamed_json_rows
from ..data.sources.paths import resolve_path
from ..utils.fingerprints import fingerprint_of


TEXT_FIELDS = ("answers", "answer", "caption", "captions", "text")
"""Under the first of these that is there a row has its texts."""

ANNOTATION_FILES = ("annotation.jsonl", "annotation.json")
_IMAGE_FIELDS = ("file_names", "images", "file_name", "image")
_TRAINING_FIELDS = ("prompt", "completion", "messages")


@dataclass(frozen=True)
class WebRow:
    """An image and the texts that came with it.

    Attributes:
        where (`str`): Where it stands, such as ``metadata.jsonl:3``.
        image (`Path` or `bytes`): The file, or its content.
        name (`str`): The image's path below the image folder; of a row of an archive, the suffix of its file.
        texts (`tuple[str, ...]`): Texts from the web, none of them blank.
        key (`str`, *optional*): Of a row of an archive, the common name of its files.
        fields (`Mapping`): What else is known of it, which the result keeps.
    """

    where: str
    image: Path | bytes
    name: str
    texts: tuple[str, ...]
    key: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Rows in one or several parts."""

    image_root: Path | None
    """The folder that names of images are relative to; `None` for archives, which hold them."""

    def parts(self) -> list[str]:
        """Names of the parts."""

    def fingerprint(self) -> str:
        """By which it is known again: names, sizes and times of change."""

    def count(self, part: int) -> int:
        """Rows of a part, also those that are not usable."""

    def read(self, part: int, start: int, rows: int) -> Iterator[tuple[str, WebRow | str]]:
        """Rows of a part with where they stand; a text in place of a row says what is wrong with it."""


class TarSource:
    """Tar archives in webdataset's form.

    Args:
        paths (`Sequence[Path]`): The archives.
    """

    image_root: Path | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = TarShards(paths)

    def parts(self) -> list[str]:
        return [path.name for path in self._shards.paths]

    def fingerprint(self) -> str:
        return fingerprint_of([_state(path) for path in self._shards.paths])

    def count(self, part: int) -> int:
        return self._shards.count(part)

    def read(self, part: int, start: int, rows: int) -> Iterator[tuple[str, WebRow | str]]:
        archive = self._shards.paths[part].name
        for content in islice(self._shards.read(part, start), rows):
            where = _shown(f"{archive}, {content['__key__']}")
            try:
                yield where, _row_of_archive(where, content)
            except ValueError as error:
                yield where, str(error)


def _row_of_archive(where: str, content: Mapping[str, Any]) -> WebRow:
    images = [suffix for suffix in content if suffix.endswith(IMAGE_SUFFIXES)]
    if len(images) != 1:
        raise ValueError(f"has {len(images)} images; there must be one")
    _check_characters(content["__key__"])
    texts: list[str] = []
    fields: dict[str, Any] = {}
    if ".json" in content:
        try:
            written = json.loads(content[".json"])
        except ValueError as error:
            raise ValueError(f"its .json is not readable as JSON: {error}") from error
        texts, fields = _texts_and_fields(written)
    if not texts and ".txt" in content:
        try:
            texts = [content[".txt"].decode("utf-8")]
        except UnicodeDecodeError as error:
            raise ValueError("its .txt is not UTF-8 text") from error
    (suffix,) = images
    return WebRow(where, content[suffix], suffix, _filled(texts), content["__key__"], fields)


class RowSource:
    """Rows that name image files: of an annotation file, or of a folder.

    Args:
        rows (`Callable[[], Iterator[Located]]`): Reads them from the beginning.
        name (`str`): Of the file or folder.
        image_root (`Path`): The folder that paths are relative to and may not leave.
        fingerprint (`Callable[[], str]`): By which it is known again.
    """

    def __init__(
        self, rows: Callable[[], Iterator[Located]], name: str, image_root: Path, fingerprint: Callable[[], str]
    ) -> None:
        self._open, self._name, self._fingerprint = rows, name, fingerprint
        self.image_root: Path | None = image_root
        self._reader: Iterator[Located] | None = None
        self._position = 0

    def parts(self) -> list[str]:
        return [self._name]

    def fingerprint(self) -> str:
        return self._fingerprint()

    def count(self, part: int) -> int:
        return sum(1 for _ in self._open())

    def read(self, part: int, start: int, rows: int) -> Iterator[tuple[str, WebRow | str]]:
        if self._reader is None or start < self._position:
            self._reader, self._position = self._open(), 0
        # Stretches are asked for in order, so that the file is gone through once.
        for where, fields in self._reader:
            self._position += 1
            if self._position <= start:
                continue
            where = _shown(where)
            yield where, fields if isinstance(fields, str) else self._row_or_problem(where, fields)
            if self._position == start + rows:
                return

    def _row_or_problem(self, where: str, fields: Mapping[str, Any]) -> WebRow | str:
        try:
            return self._row(where, fields)
        except (ValueError, FileNotFoundError) as error:
            return _shown(str(error))

    def _row(self, where: str, fields: Mapping[str, Any]) -> WebRow:
        named = next((fields[key] for key in _IMAGE_FIELDS if fields.get(key)), None)
        if named is None and "url" in fields:
            raise ValueError("has a url and no image: download the image and write its path under image")
        names = named if isinstance(named, list) else [named]
        if len(names) != 1 or not isinstance(names[0], str):
            raise ValueError(f"must have the path of one image under image or file_name, not {named!r:.80}")
        _check_characters(names[0])
        root = self.image_root or Path()
        path = resolve_path(root, names[0])
        texts, rest = _texts_and_fields(fields)
        return WebRow(where, path, names[0], _filled(texts), fields=rest)


def _texts_and_fields(written: Any) -> tuple[list[str], dict[str, Any]]:
    """Texts of what was written about an image, and what else it says."""
    if isinstance(written, list):
        return answer_texts({"caption": written}, "caption"), {}
    if not isinstance(written, Mapping):
        raise ValueError(f"holds {type(written).__name__}; it must be an object or a list of captions")
    wrong = [name for name in _TRAINING_FIELDS if name in written]
    if wrong:
        raise ValueError(f"has {wrong[0]}, so it is a training row; CapFilt takes images with captions")
    rest = {name: value for name, value in written.items() if name not in (*TEXT_FIELDS, *_IMAGE_FIELDS, "candidates")}
    _check_characters(json.dumps(written, ensure_ascii=False, default=str))
    return answer_texts(written, *TEXT_FIELDS), rest


def _shown(text: str) -> str:
    """The text as a file can have it: JSON and names of files may hold what is none."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _check_characters(text: str) -> None:
    if _shown(text) != text:
        raise ValueError(f"holds characters that are half of one (lone surrogates): {_shown(text)!r:.80}")


def _filled(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in texts if text.strip())


def open_source(paths: Sequence[str | Path], image_root: str | Path | None = None) -> Source:
    """Opens what is named: archives, a file of rows, or a folder.

    Args:
        paths (`Sequence[str | Path]`): Tar archives; or one ``.jsonl``, ``.json`` or ``.csv`` file of rows; or one
            folder, with archives, with such a file (`METADATA_FILES`, `ANNOTATION_FILES`), or with a text beside each
            image or none.
        image_root (`str` or `Path`, *optional*): The folder that image paths of a file are relative to. Defaults to the
            file's.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is none of these, or there are several that are not all archives.
    """
    named = [Path(path) for path in paths]
    for path in named:
        if not path.exists():
            raise FileNotFoundError(f"there is no file and no folder {path}")
    if not named:
        raise ValueError("there is nothing to read: name archives, a file of rows or a folder")
    if all(path.is_file() and _is_archive(path) for path in named):
        _refuse_image_root(image_root)
        return TarSource(named)
    if len(named) > 1:
        raise ValueError("several sources must all be tar archives; name one folder or one file of rows")
    (path,) = named
    root = Path(image_root) if image_root is not None else None
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"image_root: there is no folder {root}")
    if path.is_file():
        return _file_source(path, root)
    archives = sorted(file for file in path.iterdir() if file.is_file() and _is_archive(file))
    if archives:
        _refuse_image_root(image_root)
        return TarSource(archives)
    metadata = next((path / name for name in METADATA_FILES if (path / name).is_file()), None)
    annotation = next((path / name for name in ANNOTATION_FILES if (path / name).is_file()), None)
    listed = metadata or annotation
    if listed is not None:
        return _file_source(listed, root)
    _refuse_image_root(image_root)
    return RowSource(lambda: folder_rows(path, without_text=True), path.name, path, lambda: _state_of_folder(path))


def _file_source(path: Path, root: Path | None) -> RowSource:
    readers = {".jsonl": jsonl_rows, ".csv": csv_rows, ".json": streamed_json_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no tar archive and none of {', '.join(readers)}")
    return RowSource(lambda: reader(path), path.name, root or path.parent, lambda: fingerprint_of(_state(path)))


def _refuse_image_root(image_root: str | Path | None) -> None:
    if image_root is not None:
        raise ValueError(f"image_root is {image_root}, and images are not named in a file; leave it out")


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _state_of_folder(root: Path) -> str:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return fingerprint_of([(path.relative_to(root).as_posix(), *_state(path)[1:]) for path in files])


__all__ = ["ANNOTATION_FILES", "TEXT_FIELDS", "RowSource", "Source", "TarSource", "WebRow", "open_source"]
