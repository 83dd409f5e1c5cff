"""Makes an index of a folder of images or of a list of texts, and brings it up to date.

What is there already is not computed again: a file counts as unchanged while its size and time of change are, and
otherwise its content decides, so that files that were touched, renamed or copied are only written down anew.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.folder import image_files
from ..utils.image_content import ContentReader
from ..utils.images import read_encoded
from .encoding import RetrievalEncoder
from .index import SHARD_ITEMS, FeatureIndex
from .table import FACTS_FILE, Facts


SECONDS_UNSAVED = 120.0
"""Longest time that features wait for a shard to be full: what a kill can cost."""


@dataclass
class IndexReport:
    """What was done.

    Attributes:
        unchanged (`int`): Items that were there.
        linked (`int`): Items whose content was there under another name, or that were only touched.
        encoded (`int`): Items that were computed.
        removed (`int`): Items that are gone.
        bad (`dict[str, str]`): Images that cannot be read, and why.
    """

    unchanged: int = 0
    linked: int = 0
    encoded: int = 0
    removed: int = 0
    bad: dict[str, str] = field(default_factory=dict)


def index_images(
    encoder: RetrievalEncoder,
    images: str | Path,
    folder: str | Path,
    *,
    batch_size: int = 16,
    stored_in: str | None = None,
    skip_bad_images: bool = False,
    workers: int = 0,
    progress: bool = True,
) -> IndexReport:
    """Indexes the images of a folder and of the folders in it; of an index that is there, what has changed.

    Args:
        encoder (`RetrievalEncoder`): The model.
        images (`str` or `Path`): The folder.
        folder (`str` or `Path`): Of the index.
        batch_size (`int`, *optional*, defaults to 16): Images that go through the model at once.
        stored_in (`str`, *optional*): ``"float16"`` or ``"float32"``; by default what the index has, float16 for a new one.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Go on where an image cannot be read.
        workers (`int`, *optional*, defaults to 0): Processes that read images beside this one.
        progress (`bool`, *optional*, defaults to `True`): Whether there is a progress bar.

    Returns:
        `IndexReport`: Counts, and the images that cannot be read.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If an image cannot be read, naming it (what was computed before is kept), there are no images, or
            the index is of another model, precision or folder.
    """
    root = Path(images)
    files = {path.relative_to(root).as_posix(): path for path in image_files(root)}
    index = _open(encoder, "images", folder, stored_in, str(root.resolve()))
    report = IndexReport()
    with index.writing():
        # Also of files that are gone: one that was renamed is gone and new.
        known = {item.digest: item for item in index.items.values()}
        _remove(index, files, report)
        changed = {name: path for name, path in files.items() if not _is_unchanged(index, name, path)}
        report.unchanged = len(files) - len(changed)
        reader = _Images(encoder, list(changed.items()), frozenset(known))
        loader: Any = DataLoader(reader, batch_size, num_workers=workers, collate_fn=list)
        copies: list[_Image] = []
        seen: set[str] = set()
        bar = tqdm(total=len(files), initial=report.unchanged, unit="image", disable=not progress)
        with bar, _Writer(index) as writer:
            for batch in loader:
                fresh: list[_Image] = []
                for image in batch:
                    if image.problem is not None:
                        report.bad[image.name] = image.problem
                        if not skip_bad_images:
                            raise ValueError(_refusal(root / image.name, image.problem))
                    elif image.pixels is None:
                        index.link(image.name, image.size, image.modified_ns, known[image.digest])
                        report.linked += 1
                    elif image.digest in seen:
                        copies.append(image)
                    else:
                        fresh.append(image)
                        seen.add(image.digest)
                if fresh:
                    features, _ = encoder.encode_images(
                        torch.stack([image.pixels for image in fresh if image.pixels is not None])
                    )
                    writer.add([image[:4] for image in fresh], features)
                    report.encoded += len(fresh)
                bar.update(len(batch))
        by_digest = {item.digest: item for item in index.items.values()}
        for image in copies:
            index.link(image.name, image.size, image.modified_ns, by_digest[image.digest])
        report.linked += len(copies)
        index.remove([name for name in report.bad if name in index.items])
        index.tidy()
    return report


def index_texts(
    encoder: RetrievalEncoder,
    texts: Sequence[str],
    folder: str | Path,
    source: str | Path,
    *,
    batch_size: int = 64,
    stored_in: str | None = None,
    progress: bool = True,
) -> IndexReport:
    """Indexes texts, each once; of an index that is there, what has changed.

    Args:
        encoder (`RetrievalEncoder`): The model.
        texts (`Sequence[str]`): The texts.
        folder (`str` or `Path`): Of the index.
        source (`str` or `Path`): Where the texts are from.
        batch_size (`int`, *optional*, defaults to 64): Texts that go through the model at once.
        stored_in (`str`, *optional*): As for `index_images`.
        progress (`bool`, *optional*, defaults to `True`): Whether there is a progress bar.

    Returns:
        `IndexReport`: Counts.

    Raises:
        ValueError: If there are no texts, or the index is of another model, precision or file.
    """
    wanted = dict.fromkeys(texts)
    if not wanted:
        raise ValueError(f"{source} has no texts")
    index = _open(encoder, "texts", folder, stored_in, str(Path(source).resolve()))
    report = IndexReport()
    with index.writing():
        _remove(index, wanted, report)
        missing = [text for text in wanted if text not in index.items]
        report.unchanged, report.encoded = len(wanted) - len(missing), len(missing)
        bar = tqdm(total=len(wanted), initial=report.unchanged, unit="text", disable=not progress)
        with bar, _Writer(index) as writer:
            for start in range(0, len(missing), batch_size):
                chunk = missing[start : start + batch_size]
                features = encoder.encode_texts(chunk).unsqueeze(1)  # [texts, 1, size]
                digests = [hashlib.sha256(text.encode()).hexdigest() for text in chunk]
                writer.add([(text, 0, 0, digest) for text, digest in zip(chunk, digests)], features)
                bar.update(len(chunk))
        index.tidy()
    return report


class _Image(NamedTuple):
    name: str
    size: int
    modified_ns: int
    digest: str
    pixels: torch.Tensor | None = None
    problem: str | None = None


class _Images(Dataset):
    """Image files: their state and digest, and their pixels where no features of that content are known."""

    def __init__(self, encoder: RetrievalEncoder, files: Sequence[tuple[str, Path]], known: frozenset[str]) -> None:
        # A worker gets no copy of the model.
        self._image_processor = encoder.processor.image_processor
        self._files, self._known, self._reader = files, known, ContentReader()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> _Image:
        name, path = self._files[number]
        try:
            # Before it is read: of a file that changes meanwhile, the next run sees that it has changed.
            status = path.stat()
            content = self._reader(read_encoded(path))
            image = _Image(name, status.st_size, status.st_mtime_ns, content.digest)
            if content.digest in self._known:
                return image
            pixels = self._image_processor([content.load()], return_tensors="pt")["pixel_values"][0]
            return image._replace(pixels=pixels)
        except (ValueError, OSError) as error:
            return _Image(name, 0, 0, "", problem=str(error))


class _Writer:
    """Gathers features until a shard is full, or until they have waited for long."""

    def __init__(self, index: FeatureIndex) -> None:
        self._index = index
        self._items: list[tuple[str, int, int, str]] = []
        self._features: list[torch.Tensor] = []
        self._since = time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What was computed is kept when something else went wrong, an interrupt for instance; a full disk stays full.
        if kind is None or not issubclass(kind, OSError):
            self._write(len(self._items))

    def add(self, items: Sequence[tuple[str, int, int, str]], features: torch.Tensor) -> None:
        self._items += items
        self._features.append(features)
        while len(self._items) >= SHARD_ITEMS:
            self._write(SHARD_ITEMS)
        if time.monotonic() - self._since > SECONDS_UNSAVED:
            self._write(len(self._items))

    def _write(self, count: int) -> None:
        if count:
            features = torch.cat(self._features)
            self._index.add(self._items[:count], features[:count])
            self._items, self._features = self._items[count:], [features[count:]]
        self._since = time.monotonic()


def _refusal(path: Path, problem: str) -> str:
    return (
        f"{path} cannot be indexed: {problem}. What was computed before is kept; remove the file, or leave out such files "
        "with --skip-bad-images"
    )


def _is_unchanged(index: FeatureIndex, name: str, path: Path) -> bool:
    item = index.items.get(name)
    if item is None:
        return False
    status = path.stat()
    return (item.size, item.modified_ns) == (status.st_size, status.st_mtime_ns)


def _remove(index: FeatureIndex, wanted: Any, report: IndexReport) -> None:
    gone = [name for name in index.items if name not in wanted]
    index.remove(gone)
    report.removed = len(gone)


def _open(encoder: RetrievalEncoder, kind: str, folder: str | Path, stored_in: str | None, root: str) -> FeatureIndex:
    """The index that is there, seen to be of the same model, or a new one."""
    facts: dict[str, Any] = encoder.facts()
    if not (Path(folder) / FACTS_FILE).exists():
        config = encoder.model.config
        rows = config.num_query_tokens if kind == "images" else 1
        size = config.image_text_hidden_size
        made = Facts(kind=kind, stored_in=stored_in or "float16", rows=rows, size=size, root=root, **facts)
        return FeatureIndex.create(folder, made)
    index = FeatureIndex(folder)
    if index.facts.kind != kind:
        raise ValueError(f"{folder} is an index of {index.facts.kind}: name another folder for {kind}")
    check_same_model(index, encoder)
    if stored_in not in (None, index.facts.stored_in):
        raise ValueError(f"{folder} has features in {index.facts.stored_in}, and {stored_in} was asked for: keep one")
    if index.facts.root != root:
        if Path(index.facts.root).exists():
            raise ValueError(f"{folder} is the index of {index.facts.root}: name another folder for {root}")
        index.change_root(root)  # It was moved.
    return index


def check_same_model(index: FeatureIndex, encoder: RetrievalEncoder) -> None:
    """Sees that features of an index and of a model can be compared.

    Raises:
        ValueError: If the index was made with other weights, another precision of them, or another processor.
    """
    facts, made_with = encoder.facts(), asdict(index.facts)
    differing = [name for name in ("computed_in", "fingerprint", "processor") if facts[name] != made_with[name]]
    if not differing:
        return
    what = {
        "computed_in": f"in {made_with['computed_in']}, not in {facts['computed_in']}",
        "fingerprint": f"with other weights or another configuration ({made_with['model']}), not with {facts['model']}",
        "processor": f"with another processor than that of {facts['model']}",
    }[differing[0]]
    raise ValueError(
        f"{index.folder} was made {what}: features of two models cannot be compared. Use --model {made_with['model']} "
        f"--dtype {made_with['computed_in']}, or index into another folder"
    )


__all__ = ["IndexReport", "check_same_model", "index_images", "index_texts"]
