"""Checks a user's copy of a dataset against the catalog: files, rows, numbers of rows, images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .catalog import DatasetSpec, Split, dataset_spec, split_spec
from .schema import Example
from .sources.datasets import iter_split, open_images
from .sources.files import find_files, find_optional
from .sources.paths import check_paths, resolve_images


SHOWN = 10
"""Problems of a kind that are shown; the others are counted."""

_FAR_BELOW = 0.9
"""Of a size that is rounded or was not verified, fewer rows than this share of it are a problem."""


@dataclass
class SplitReport:
    """What was found of a split.

    Args:
        split (`str`): Its name.
        present (`bool`): Whether its files are there.
        rows (`int`): Usable rows.
        opened (`int`): Rows whose images were opened.
        problems (`list[str]`): What is wrong, with file and line or index.
        advice (`list[str]`): What to do about it.
        notes (`list[str]`): What is worth knowing and not wrong.
    """

    split: str
    present: bool = True
    rows: int = 0
    opened: int = 0
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class VerifyReport:
    """What was found of a dataset.

    Args:
        name (`str`): Its name in the catalog.
        root (`str`): The folder that was looked at.
        splits (`list[SplitReport]`): By split, in the catalog's order.
    """

    name: str
    root: str
    splits: list[SplitReport]

    @property
    def problems(self) -> list[str]:
        """All problems, each opening with its split."""
        return [f"{report.split}: {problem}" for report in self.splits for problem in report.problems]

    @property
    def advice(self) -> list[str]:
        """What to do, each advice once."""
        return list(dict.fromkeys(advice for report in self.splits for advice in report.advice))

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_dataset(
    name: str,
    root: str | Path,
    splits: Sequence[str] | None = None,
    image_root: str | Path | None = None,
    open_rows: int | None = 200,
    partial: bool = False,
) -> VerifyReport:
    """Check a copy of a dataset.

    Args:
        name (`str`): Name in the catalog.
        root (`str` or `Path`): The folder with the official files.
        splits (`Sequence[str]`, *optional*): What has to be there. By default what is there is checked, and at least
            one split has to be.
        image_root (`str` or `Path`, *optional*): The folder that image paths are relative to. Defaults to ``root``.
        open_rows (`int`, *optional*, defaults to 200): Of how many rows a split, drawn evenly, images are opened.
            `None` opens all. With 0 images are not looked at; otherwise each has to be there.
        partial (`bool`, *optional*, defaults to `False`): Whether fewer rows and images than published are meant.

    Raises:
        KeyError: If the catalog has no such dataset or split.
        FileNotFoundError: If a folder is missing.
        ValueError: If ``open_rows`` is negative.
    """
    spec = dataset_spec(name)
    root = Path(root)
    images = root if image_root is None else Path(image_root)
    for folder in (root, images):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    if open_rows is not None and open_rows < 0:
        raise ValueError(f"open_rows is {open_rows}; it must be at least 0")
    checks = [
        _check_split(name, root, images, split, open_rows, partial, required=splits is not None)
        for split in (splits or spec.splits)
    ]
    if not any(check.present for check in checks):
        absent = checks[0]
        absent.problems.append(absent.notes.pop() if absent.notes else f"{root} has none of its files")
        absent.advice.append(_get(spec, root))
    return VerifyReport(name, str(root), checks)


def _check_split(
    name: str, root: Path, image_root: Path, split: str, open_rows: int | None, partial: bool, required: bool
) -> SplitReport:
    spec, published, report = dataset_spec(name), split_spec(name, split), SplitReport(split)
    try:
        files = find_files(root, published.files)
    except FileNotFoundError as error:
        report.present = False
        if required or find_optional(root, [file for group in published.files for file in group]):
            report.problems.append(str(error))
            report.advice.append(_get(spec, root))
        else:
            report.notes.append(str(error))
        return report
    bad_rows, missing, unreadable = _Problems(), _Problems(), _Problems()
    sample: list[tuple[str, Example]] = []
    draw = random.Random(0)
    checked: dict[str, str | None] = {}
    try:
        for where, example in iter_split(name, root, split):
            if not isinstance(example, str):
                try:
                    check_paths(example, image_root)
                except ValueError as error:
                    example = str(error)
            if isinstance(example, str):
                bad_rows.add(f"{where}: {example}")
                continue
            report.rows += 1
            if open_rows == 0:
                continue
            key = repr((example["images"], example.get("video")))
            if key not in checked:
                # Rows of one image stand together in most files.
                checked = {key: _missing(example, image_root)}
                if checked[key] is not None:
                    missing.add(f"{where}: {checked[key]}")
            if checked[key] is None:
                if open_rows is None:
                    _open(where, example, image_root, report, unreadable)
                elif len(sample) < open_rows:
                    sample.append((where, example))
                elif (place := draw.randrange(report.rows)) < open_rows:
                    sample[place] = (where, example)
    except (ValueError, OSError) as error:
        bad_rows.add(str(error))
    for where, example in sample:
        _open(where, example, image_root, report, unreadable)
    again = f"download {' and '.join(file.name for file in files)} again from {spec.homepage}"
    bad_rows.report(report, "malformed rows", f"{again}; if it is published so, read it with max_bad_rows")
    folders = ", ".join(spec.images)
    there = f"unpack the images into {image_root} (folders: {folders}), or name the folder that has them as image root"
    if partial:
        missing.note(report, "rows without their images")
    else:
        missing.report(report, "missing images", there)
    unreadable.report(report, "unreadable images", "download or unpack the unreadable images again")
    _check_count(report, published, partial, again)
    return report


def _missing(example: Example, image_root: Path) -> str | None:
    try:
        resolve_images(example, image_root)
    except FileNotFoundError as error:
        return str(error)
    return None


def _open(where: str, example: Example, image_root: Path, report: SplitReport, unreadable: _Problems) -> None:
    try:
        open_images(resolve_images(example, image_root), num_frames=1)
        report.opened += 1
    except ValueError as error:
        unreadable.add(f"{where}: {error}")
    except ImportError as error:
        note = f"videos were not opened: {error}"
        if note not in report.notes:
            report.notes.append(note)


def _check_count(report: SplitReport, published: Split, partial: bool, again: str) -> None:
    expected = published.about if published.rows is None else published.rows
    if expected is None or report.rows == expected:
        return
    exact = published.rows is not None and published.verified
    text = f"has {report.rows:,} rows; published are {'' if exact else 'about '}{expected:,}"
    if partial and report.rows < expected:
        report.notes.append(f"{text}, a part as was said")
    elif exact or report.rows < _FAR_BELOW * expected:
        report.problems.append(text)
        report.advice.append(f"{again}; if a part of it is meant, say so with --partial")
    elif published.rows is not None:
        report.notes.append(f"{text} (a number that was not verified)")


def _get(spec: DatasetSpec, root: Path) -> str:
    return f"get {spec.title} from {spec.homepage} and put its files into {root} or {root / 'annotations'}"


class _Problems:
    """The first problems of a kind, and how many there are."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(text)

    def report(self, report: SplitReport, kind: str, advice: str) -> None:
        if self.count:
            report.problems += self.shown
            if self.count > SHOWN:
                report.problems.append(f"... {self.count:,} {kind} in all")
            report.advice.append(advice)

    def note(self, report: SplitReport, kind: str) -> None:
        if self.count:
            report.notes.append(f"{self.count:,} {kind}, the first: {self.shown[0]}")


def report_lines(report: VerifyReport) -> list[str]:
    """The report as lines of text."""
    lines = [f"{report.name} in {report.root}"]
    width = max(len(split.split) for split in report.splits)
    for split in report.splits:
        if split.present:
            opened = f", images of {split.opened:,} rows opened" if split.opened else ""
            state = "whole" if not split.problems else "not whole"
            lines.append(f"  {split.split:{width}}  {split.rows:,} rows{opened}: {state}")
        else:
            lines.append(f"  {split.split:{width}}  not there")
        lines += [f"  {'':{width}}  note: {note}" for note in split.notes if split.present]
    lines += [f"error: {problem}" for problem in report.problems]
    lines += [f"do: {advice}" for advice in report.advice]
    if report.is_whole:
        lines.append("nothing is wrong")
    return lines


def report_json(report: VerifyReport) -> dict[str, Any]:
    """The report as JSON values."""
    return {**asdict(report), "is_whole": report.is_whole, "advice": report.advice}


__all__ = ["SplitReport", "VerifyReport", "report_json", "report_lines", "verify_dataset"]
