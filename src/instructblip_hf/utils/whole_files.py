"""Files that are there whole or not at all, whatever a process is killed in."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(file: Path, content: bytes | str, incoming: Path | None = None) -> None:
    """Writes a file under another name first, so that there is the old one or the new one and never half of it.

    Args:
        file (`Path`): The file; its folder is made if need be.
        content (`bytes` or `str`): Text is written as UTF-8.
        incoming (`Path`, *optional*): The folder for the other name, on the same disk; the file's own by default.

    Raises:
        OSError: If it cannot be written, as on a full disk. Nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = (incoming or file.parent) / f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}"
    partial.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


__all__ = ["write_whole"]
