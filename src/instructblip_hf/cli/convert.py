"""`instructblip convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import BUNDLED_CHECKPOINTS, bundled_checkpoint
from .errors import fail, user_errors
from .loading import check_dtype


LAVIS_SUFFIXES = (".pth", ".pt")


def run_convert(
    sources: Sequence[Path],
    output: Path,
    report: Path | None,
    heads: tuple[int, int],
    to_folder: dict[str, Any],
    to_lavis: dict[str, Any],
    llava: dict[str, Any],
) -> None:
    """Converts to what the output's name says, a LAVIS file or a folder, and says what became of every tensor.

    Args:
        sources (`Sequence[Path]`): Files of LAVIS's, or one folder, also of LLaVA's own code.
        output (`Path`): What to write; a name with one of [`LAVIS_SUFFIXES`] is a LAVIS file.
        report (`Path`, *optional*): File for the report of each tensor.
        heads (`tuple[int, int]`): Attention heads of vision tower and Q-Former, for a folder.
        to_folder (`dict`): Further options for a folder; `None` is the default of each.
        to_lavis (`dict`): Options for a LAVIS file; `None` or `False` is the default of each.
        llava (`dict`): Options for a folder of LLaVA's own code; `None` is the default of each.
    """
    sources = [_found(source) for source in sources]
    if to_folder["processor"] is not None:
        to_folder = {**to_folder, "processor": _found(to_folder["processor"])}
    missing = [source for source in sources if not source.exists()]
    if missing:
        fail(*(f"there is no {source}" for source in missing))
    if report is not None and report.exists():
        fail(f"--report: {report} is there already")
    writes_lavis = output.suffix in LAVIS_SUFFIXES
    reads_folder = sources[0].is_dir()
    if writes_lavis and (not reads_folder or len(sources) != 1):
        fail(f"{output} is to be a file of LAVIS's: it is made of one folder; got {', '.join(map(str, sources))}")
    if not writes_lavis and len(sources) == 1 and _is_llavas(sources[0]):
        options = {**to_folder, **{name: value for name, value in to_lavis.items() if value}, **llava}
        _convert_llava(sources[0], output, report, options)
        return
    if any(value is not None for value in llava.values()):
        fail("--vision-tower and --chat-template are for a folder of LLaVA's own code")
    if not writes_lavis and any(source.is_dir() for source in sources):
        fail(
            f"{output} is to be a folder, made of LAVIS's files; got the folder "
            f"{next(str(source) for source in sources if source.is_dir())}. The language model's folder goes after --llm, "
            f"and a file of LAVIS's ends with {' or '.join(LAVIS_SUFFIXES)}"
        )
    foreign = [
        f"--{name.replace('_', '-')}"
        for name, value in (to_folder if writes_lavis else to_lavis).items()
        if value is not None and value is not False
    ]
    if foreign:
        kind = "a LAVIS file" if writes_lavis else "a folder"
        fail(f"{', '.join(foreign)} cannot be used where {kind} is written")
    with user_errors():
        given = {name: value for name, value in to_folder.items() if value is not None}
        if "dtype" in given:
            check_dtype(given["dtype"])

        import torch
        from transformers.utils import logging

        from ..conversion import Heads, ToFolder, ToLavis, convert_to_folder, convert_to_lavis

        logging.disable_progress_bar()
        # FlanT5's head has weights of its own, which transformers warns of whenever it is opened.
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            if writes_lavis:
                done = convert_to_lavis(sources[0], output, ToLavis(**to_lavis))
            else:
                if "dtype" in given:
                    given["dtype"] = getattr(torch, given["dtype"])
                done = convert_to_folder(sources, output, ToFolder(heads=Heads(*heads), **given))
        finally:
            logging.set_verbosity(verbosity)
        if report is not None:
            done.save(report)
    _tell(done, report)


def _is_llavas(source: Path) -> bool:
    if not (source / "config.json").is_file():
        return False
    with user_errors():
        from ..conversion.llava_original import is_original_llava

        return is_original_llava(source)


def _convert_llava(source: Path, output: Path, report: Path | None, options: dict[str, Any]) -> None:
    taken = ("llm", "tokenizer", "dtype", "vision_tower", "chat_template")
    given = {name: value for name, value in options.items() if value is not None}
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in taken]
    if foreign:
        fail(f"{', '.join(foreign)} cannot be used with {source}, a folder of LLaVA's own code")
    with user_errors():
        if "dtype" in given:
            check_dtype(given["dtype"])

        import torch
        from transformers.utils import logging

        from ..conversion import FromLlava, convert_llava

        logging.disable_progress_bar()
        if "dtype" in given:
            given["dtype"] = getattr(torch, given["dtype"])
        done = convert_llava(source, output, FromLlava(**given))
        if report is not None:
            done.save(report)
    _tell(done, report)


def _tell(done: Any, report: Path | None) -> None:
    print("\n".join(done.lines()))
    if report is not None:
        print(f"every tensor is in {report}")


def _found(path: Path) -> Path:
    """The path itself, or the folder of a bundled checkpoint of that name."""
    is_bundled = str(path) in BUNDLED_CHECKPOINTS and not path.exists()
    return bundled_checkpoint(str(path)) if is_bundled else path


__all__ = ["LAVIS_SUFFIXES", "run_convert"]
