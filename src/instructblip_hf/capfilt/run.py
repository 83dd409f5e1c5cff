"""CapFilt over a whole source: captions are made, texts are scored, and what fits is written (BLIP, section 3.3).

Rows are cut into shards, which processes take in turn. A shard goes through the models in batches that begin at its first
row, so that its content depends neither on the number of processes nor on where a run was cut off; and a run that was
killed goes on with the shards that are not in the journal. No more than two batches of images are in memory.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from ..constants import WAIT
from ..utils.images import load_image, read_encoded
from .captioning import Captioner
from .errors import CapFiltError
from .filtering import CaptionFilter, candidates_of
from .folder import FORMS, CapFiltFolder, Shard, cut
from .report import check_bad_rows, check_matplotlib, page, summary
from .sources import Source, WebRow
from .statistics import Statistics, sample


@dataclass(frozen=True)
class CapFiltOptions:
    """How a source is gone through.

    Args:
        form (`str`, *optional*): `"jsonl"` for rows that refer to images, or `"tar"` for archives that hold them. By
            default archives for archives, and rows for what refers to files.
        rows_per_shard (`int`, *optional*, defaults to 1000): Rows that are finished together; what a kill can cost each
            process.
        batch_size (`int`, *optional*, defaults to 8): Images that go through the models at once.
        workers (`int`, *optional*, defaults to 2): Threads that read images, a batch ahead of the models.
        skip_bad_rows (`int`, *optional*, defaults to 0): Rows that may be left out because they cannot be read.
        progress (`bool`, *optional*, defaults to `True`): Whether there is a progress bar.

    Raises:
        ValueError: If one is out of its range.
    """

    form: str | None = None
    rows_per_shard: int = 1000
    batch_size: int = 8
    workers: int = 2
    skip_bad_rows: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.form is not None and self.form not in FORMS:
            raise ValueError(f"form is {self.form!r}; allowed are {', '.join(FORMS)}")
        for name, least in (("rows_per_shard", 1), ("batch_size", 1), ("workers", 1), ("skip_bad_rows", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


def capfilt(
    source: Source,
    output: str | Path,
    caption_filter: CaptionFilter,
    captioner: Captioner | None = None,
    options: CapFiltOptions | None = None,
) -> dict[str, Any]:
    """Makes captions, scores them and the texts from the web, and writes those that fit as a dataset.

    Under ``accelerate launch`` every process calls this and does its share; all of them return the report.

    Args:
        source (`Source`): Images and texts, of `open_source`.
        output (`str` or `Path`): Where to. What an earlier run of the same finished there is not done again.
        caption_filter (`CaptionFilter`): Who scores, and what is kept.
        captioner (`Captioner`, *optional*): Who makes captions; without one the texts from the web are filtered.
        options (`CapFiltOptions`, *optional*): Form, shards, batches.

    Returns:
        `dict`: The content of ``report.json``.

    Raises:
        CapFiltError: If more rows than allowed cannot be read, naming them, or the folder was begun with something else.
        ValueError: If the source cannot be read, or its images cannot be referred to.
        ImportError: Without matplotlib.
    """
    options = options or CapFiltOptions()
    form = options.form or ("tar" if source.image_root is None else "jsonl")
    if form == "jsonl" and source.image_root is None:
        raise ValueError("form is 'jsonl', and rows cannot refer to images inside of archives; take 'tar'")
    check_matplotlib()
    root, target = source.image_root, Path(output).resolve()
    if root is not None and target.is_relative_to(root.resolve()):
        raise ValueError(f"the output {output} lies in the folder of the images, {root}; take one outside of it")
    processes = PartialState(cpu=caption_filter.encoder.model.device.type == "cpu", timeout=WAIT)
    folder = CapFiltFolder(output, form)
    run = _Run(source, folder, caption_filter, captioner, options)
    if not processes.is_main_process:
        processes.wait_for_everyone()  # for the plan
        if folder.report() is None:
            run.make(processes)
        processes.wait_for_everyone()  # for the report
        return folder.report() or {}
    folder.claim(run.settings())
    report = folder.report()
    if report is not None:
        folder.tidy()
        processes.wait_for_everyone()
        processes.wait_for_everyone()
        return report
    with folder.running():
        if folder.plan() is None:
            folder.write_plan([source.count(part) for part in range(len(source.parts()))])
        processes.wait_for_everyone()
        run.make(processes)
        report = run.finish()
    processes.wait_for_everyone()
    return report


@dataclass
class _Run:
    """A source with all that is done to it."""

    source: Source
    folder: CapFiltFolder
    caption_filter: CaptionFilter
    captioner: Captioner | None
    options: CapFiltOptions

    def settings(self) -> dict[str, Any]:
        """What decides about the output."""
        return {
            "source": {"parts": len(self.source.parts()), "fingerprint": self.source.fingerprint()},
            "form": self.folder.form,
            "rows_per_shard": self.options.rows_per_shard,
            "batch_size": self.options.batch_size,
            "filter": self.caption_filter.facts(),
            "captioner": self.captioner.facts() if self.captioner is not None else None,
        }

    def make(self, processes: PartialState) -> None:
        """Makes this process's share of the shards that are missing, and waits for the others."""
        counts = self.folder.plan() or []
        shards, rows = cut(counts, self.options.rows_per_shard), sum(counts)
        if not rows:
            raise CapFiltError(f"{', '.join(self.source.parts()[:5])}: there are no rows")
        entries = {entry["shard"]: len(entry["bad"]) for entry in self.folder.journal()}
        share = [shard for shard in shards if shard.number not in entries]
        share = share[processes.process_index :: processes.num_processes]
        processes.wait_for_everyone()  # nobody writes before all have read
        is_shown = self.options.progress and processes.is_main_process
        allowed = self.options.skip_bad_rows - sum(entries.values())
        own = sum(shard.rows for shard in share)
        # Alone, this process tells of the whole; of several, of its share.
        before = rows - own if processes.num_processes == 1 else 0
        with tqdm(total=before + own, initial=before, unit="image", disable=not is_shown) as bar:
            for shard in share:
                allowed -= self._make_shard(shard, rows, allowed, bar)
        processes.wait_for_everyone()

    def _make_shard(self, shard: Shard, rows: int, allowed: int, bar: Any) -> int:
        """Makes a shard and returns how many of its rows could not be read."""
        statistics = Statistics(self.caption_filter.options.scores)
        samples: list[dict[str, Any]] = []
        bad: list[dict[str, str]] = []
        number = shard.start - 1
        with self.folder.writing(shard) as writer:
            batch: list[_Opened] = []
            for number, where, opened in self._opened(shard):
                if isinstance(opened, str):
                    bad.append({"row": where, "problem": opened})
                    check_bad_rows(bad, max(0, allowed))
                else:
                    batch.append(opened)
                if batch and (len(batch) == self.options.batch_size or number + 1 == shard.start + shard.rows):
                    for one, ranked in zip(batch, self._ranked(batch)):
                        writer.add(one.row, one.number, one.data, ranked)
                        statistics.add(ranked)
                        shown = sample(one.row.where, one.image, ranked, rows)
                        samples += [shown] if shown is not None else []
                    batch = []
                bar.update()
            if number + 1 != shard.start + shard.rows:
                raise CapFiltError(f"{self.source.parts()[shard.part]} has fewer rows than when they were counted")
            writer.entry = {"statistics": statistics.content(), "samples": samples, "bad": bad}
        return len(bad)

    def _opened(self, shard: Shard) -> Iterator[tuple[int, str, _Opened | str]]:
        """Rows of a shard in order, with their images, which threads read while the models work; or what is wrong."""
        rows = enumerate(self.source.read(shard.part, shard.start, shard.rows), start=shard.start)
        waiting: deque[tuple[int, str, Future[_Opened | str]]] = deque()
        with ThreadPoolExecutor(self.options.workers) as threads:
            try:
                for number, (where, row) in rows:
                    waiting.append((number, where, threads.submit(self._open, row, number)))
                    if len(waiting) > self.options.batch_size:
                        number, where, opened = waiting.popleft()
                        yield number, where, opened.result()
                while waiting:
                    number, where, opened = waiting.popleft()
                    yield number, where, opened.result()
            finally:
                threads.shutdown(cancel_futures=True)

    def _open(self, row: WebRow | str, number: int) -> _Opened | str:
        """A row with its image, or what is wrong with it."""
        if isinstance(row, str):
            return row
        if self.captioner is None and not row.texts:
            return "has no caption, and there is no captioner to make one"
        try:
            data = read_encoded(row.image) or b""
            return _Opened(row, number, data, load_image(data))
        except ValueError as error:
            return f"image {row.name}: {error}"

    def _ranked(self, batch: Sequence[_Opened]) -> list[Any]:
        images = [one.image for one in batch]
        made: list[list[str]] = [[] for _ in batch]
        if self.captioner is not None:
            # Of the content, so that a picture has its captions under any name and in any place.
            keys = [hashlib.sha256(one.data).hexdigest() for one in batch]
            made = self.captioner.captions(images, keys)
        texts = [candidates_of(one.row.texts, captions) for one, captions in zip(batch, made)]
        try:
            return self.caption_filter(images, texts)
        except ValueError as error:
            named = batch[0].row.where if len(batch) == 1 else f"{batch[0].row.where} to {batch[-1].row.where}"
            raise CapFiltError(f"{named}: {error}") from error

    def finish(self) -> dict[str, Any]:
        """Puts everything together and returns the report."""
        statistics = Statistics(self.caption_filter.options.scores)
        samples: list[dict[str, Any]] = []
        bad: list[dict[str, str]] = []
        for entry in self.folder.journal():
            statistics.merge(entry["statistics"])
            samples += entry["samples"]
            bad += entry["bad"]
        check_bad_rows(bad, self.options.skip_bad_rows)
        options = self.caption_filter.options
        counts = summary(statistics, len(bad))
        root = self.source.image_root
        report = {
            **counts,
            "image_root": None if root is None else str(root.resolve()),
            **self.settings(),
            "histograms": statistics.histograms,
        }
        self.folder.finish(report, page(report, statistics, samples, options.minimums))
        return report


@dataclass(frozen=True)
class _Opened:
    row: WebRow
    number: int
    data: bytes
    image: Image.Image


__all__ = ["CapFiltOptions", "capfilt"]
