"""`instructblip capfilt`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import stopping_errors, user_errors
from .launching import become_launched, device_of_process, without_options
from .loading import load
from .tables import print_columns


def launch_capfilt(processes: int, arguments: Sequence[str]) -> None:
    """Starts the same command on several processes with accelerate, and becomes it."""
    become_launched("ddp", processes, without_options(arguments, "--processes"))


def run_capfilt(
    source: Sequence[Path],
    output: Path,
    filter_model: str,
    captioner: str | None,
    image_root: Path | None,
    captions: Mapping[str, Any],
    kept: Mapping[str, Any],
    work: Mapping[str, Any],
    device: str | None,
    dtype: str | None,
) -> None:
    """Makes captions, keeps the texts that fit, and shows what came of it."""
    with user_errors():
        from ..capfilt.captioning import Captioner, CaptionOptions
        from ..capfilt.filtering import CaptionFilter, FilterOptions
        from ..capfilt.run import CapFiltOptions, capfilt
        from ..capfilt.sources import open_source
        from ..retrieval.encoding import RetrievalEncoder

        # All that can be wrong with them before models are loaded.
        caption_options, filter_options = CaptionOptions(**captions), FilterOptions(**kept)
        options = CapFiltOptions(**work)
        opened = open_source(source, image_root)
        place = device_of_process(device)
        loaded = load(filter_model, place, dtype)
        encoder = RetrievalEncoder(loaded.model, loaded.processor, loaded.name)
        maker = None
        if captioner is not None:
            loaded = load(captioner, place, dtype)
            maker = Captioner(loaded.model, loaded.processor, caption_options, loaded.name)
        with stopping_errors():
            report = capfilt(opened, output, CaptionFilter(encoder, filter_options), maker, options)
    if int(os.environ.get("RANK", "0")) == 0:
        _show(report, output)


def _show(report: Mapping[str, Any], output: Path) -> None:
    from ..capfilt.report import recipe_line

    rows = [("", "texts", "kept", "share")]
    for name, one in report["sources"].items():
        if one["texts"]:
            rows.append((name, f"{one['texts']:,}", f"{one['kept']:,}", f"{one['share_kept']:.1%}"))
    print_columns(rows)
    print(f"images      {report['rows_kept']:,} of {report['rows']:,} with something kept")
    if report["bad_rows"]:
        print(
            f"left out    {report['bad_rows']:,} rows that could not be read; {output / 'bad_rows.jsonl'} names them"
        )
    print(f"look at it: {output / 'report.html'}")
    print(f"in a recipe's mixture:\n  {recipe_line(report, output)}")
