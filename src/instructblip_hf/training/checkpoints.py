"""Checkpoint folders that are either whole or not there, whatever happens while they are written or deleted.

A checkpoint is written into ``_saving-checkpoint-N``, forced to the disk, and renamed to ``checkpoint-N``, which is one
step for the file system. Deleting begins with renaming, too. So a kill at any moment leaves only whole folders under
the names that resuming looks for, here and in transformers; what else it leaves begins with ``_``, is never read, never
pushed to the Hub, and is removed by `recover` at the next start.

Inside each checkpoint `MANIFEST` has the sizes of all its files, so that one which was damaged later (copied half way,
truncated by a failing disk) is known before anything is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_files.json"
"""Names and sizes of the files of a checkpoint, written last."""

SAVING = "_saving-"
DELETING = "_deleting-"
REPLACED = "_replaced-"
PUSHING = "_pushing-"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
_WEIGHTS = re.compile(r"(adapter_)?(pytorch_)?model.*\.(safetensors|bin)")
_TORCH_FILES = (".pt", ".pth", ".bin")


# --- finding ----------------------------------------------------------------------------------------------------------


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, by their steps."""
    path = Path(folder)
    if not path.is_dir():
        return []
    found = [child for child in path.iterdir() if _CHECKPOINT.fullmatch(child.name) and child.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def problem_with(checkpoint: str | Path) -> str | None:
    """What keeps training from going on from a checkpoint, or `None` for a whole one.

    Sizes are compared with `MANIFEST`, which checkpoints of plain transformers do not have. The headers of safetensors
    files and the tables of contents of torch's files are read, their tensors are not.
    """
    folder = Path(checkpoint)
    try:
        json.loads((folder / _STATE).read_text(encoding="utf-8"))
        manifest = folder / MANIFEST
        sizes = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    except FileNotFoundError:
        return f"{_STATE} is missing"
    except (OSError, ValueError) as error:
        return f"{_STATE} or {MANIFEST} is not readable: {error}"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, it was written with {size:,}"
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                return f"{file.name} is not readable: {error}"
        elif file.suffix in _TORCH_FILES and not zipfile.is_zipfile(file):
            return f"{file.name} is damaged or cut off"
    return None


def newest_whole(folder: str | Path) -> Path | None:
    """The newest checkpoint that training can go on from; damaged ones after it are named in a warning and left alone.

    Returns:
        `Path`, *optional*: `None` where there are no checkpoints at all.

    Raises:
        ValueError: If there are checkpoints, but not a whole one among them.
    """
    damaged: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = problem_with(checkpoint)
        if problem is None:
            for line in damaged:
                logger.warning("%s, so training goes on from %s", line, checkpoint.name)
            return checkpoint
        damaged.append(f"{checkpoint} is damaged ({problem})")
    if damaged:
        raise ValueError(
            f"{'; '.join(damaged)}; there is no whole checkpoint to go on from. Restore one, or remove them to start "
            "from the beginning"
        )
    return None


def recover(folder: str | Path) -> None:
    """Tidies up after a run that was killed: half-written and half-deleted folders go. For one process of each disk."""
    path = Path(folder)
    if not path.is_dir():
        return
    for child in sorted(path.iterdir()):
        if child.name.startswith(REPLACED):
            original = path / child.name.removeprefix(REPLACED)
            if original.exists():
                shutil.rmtree(child, ignore_errors=True)
            else:
                # Killed between the two renames of `publish`.
                child.rename(original)
        elif child.name.startswith((SAVING, DELETING, PUSHING)):
            logger.info("removing %s, which a killed run left behind", child)
            shutil.rmtree(child, ignore_errors=True)


# --- writing ----------------------------------------------------------------------------------------------------------


def partial(final: str | Path) -> Path:
    """Where what is to be `final` is written."""
    final = Path(final)
    return final.with_name(SAVING + final.name)


def sync(folder: Path) -> None:
    """Forces the files in a folder, and their names, to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def write_manifest(folder: Path) -> None:
    """Writes down the sizes of all files there are."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    (folder / MANIFEST).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


def publish(final: Path) -> None:
    """Gives `partial(final)`, whose files are on the disk, its final name; a folder of that name is replaced."""
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    partial(final).rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def publish_files(source: Path, folder: Path) -> None:
    """Moves the files of a model into a folder with other things in it: weights last, the old ones' leftovers before.

    Until the last move, `from_pretrained` finds the old model or none at all, and never a half-written one.
    """
    files = [file for file in source.rglob("*") if file.is_file()]
    names = {file.relative_to(source).as_posix() for file in files}
    weights = {name for name in names if _WEIGHTS.fullmatch(name) or _is_index(name)}
    if weights:
        stale = [file for file in folder.iterdir() if _WEIGHTS.fullmatch(file.name) or _is_index(file.name)]
        # What names the weights goes first, so that no old index points to new files.
        for file in sorted(stale, key=lambda file: not _is_index(file.name)):
            file.unlink()
    for name in sorted(names, key=lambda name: (name in weights, _is_index(name), name)):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target)
    _sync(folder)
    shutil.rmtree(source, ignore_errors=True)


def _is_index(name: str) -> bool:
    return name.endswith(".index.json")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- deleting ---------------------------------------------------------------------------------------------------------


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, which has lost its name before the first of its files goes."""
    if checkpoint.is_dir():
        doomed = checkpoint.with_name(DELETING + checkpoint.name)
        shutil.rmtree(doomed, ignore_errors=True)
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def rotate(newest: Path, limit: int | None, best: str | Path | None = None) -> None:
    """Deletes old checkpoints until `limit` are left; never the one just written, nor the best one.

    Checkpoints of later steps are none of this run, which began before them; they go first.

    Args:
        newest (`Path`): The checkpoint just written.
        limit (`int`, *optional*): ``save_total_limit``; without it, or with 0, everything is kept.
        best (`str` or `Path`, *optional*): The best checkpoint so far.
    """
    if not limit or limit < 1:
        return
    kept = {newest.resolve()} | ({Path(best).resolve()} if best is not None else set())
    found = checkpoints(newest.parent)
    step = step_of(newest)
    doomed = sorted(
        (path for path in found if path.resolve() not in kept), key=lambda path: (step_of(path) <= step, step_of(path))
    )
    for path in doomed[: max(0, len(found) - max(limit, len(kept)))]:
        remove(path)


__all__ = [
    "MANIFEST",
    "checkpoints",
    "newest_whole",
    "partial",
    "problem_with",
    "publish",
    "publish_files",
    "recover",
    "remove",
    "rotate",
    "step_of",
    "sync",
    "write_manifest",
]
