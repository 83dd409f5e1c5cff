"""Raw answers on disk: one line each, appended the moment it arrives, so that no answer is paid for twice.

A line goes to the file in one write, and a line that a full disk or a power cut left unfinished is cut off when the file is
opened. One process at a time writes it. Lines are never changed. What a request may have cost that never came back (a
stalled connection) is noted too, as the budget counts it.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .budget import Tokens
from .chat import ChatAnswer


FILE = "answers.jsonl"
_LOST = "lost"
_SYNC_EVERY = 64


class AnswerCache:
    """Answers by their requests' keys.

    Args:
        folder (`str` or `Path`): It is made if need be.

    Raises:
        ValueError: If a line of the file is none of this cache, or another process has it open.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / FILE
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._process_lock = FileLock(self.file.with_name(f".{FILE}.lock"))
        try:
            self._process_lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is writing {self.file}") from error
        self._places: dict[str, tuple[int, int]] = {}
        self._spent = Tokens()
        self._lost = Tokens()
        self._unsynced = 0
        self._stream = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._read()
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    @property
    def spent(self) -> Tokens:
        """Tokens of all answers, and of what may have been lost."""
        return self._spent

    @property
    def lost(self) -> Tokens:
        """Tokens of what may have been lost."""
        return self._lost

    def get(self, key: str) -> ChatAnswer | None:
        """The answer under a key, `None` if there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        start, size = place
        return _answer(json.loads(os.pread(self._stream, size, start)))

    def add(self, key: str, answer: ChatAnswer) -> None:
        """Stores an answer. It is in the file when this returns.

        Raises:
            OSError: If it cannot be written.
        """
        row = {
            "key": key,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "is_counted": answer.is_counted,
        }
        with self._lock:
            if key not in self._places:
                self._places[key] = self._append(row)
                self._spent += Tokens(answer.prompt_tokens, answer.completion_tokens)

    def lose(self, tokens: Tokens) -> None:
        """Notes what a request may have cost whose answer never came."""
        with self._lock:
            self._append({_LOST: [tokens.prompt, tokens.completion]})
            self._spent += tokens
            self._lost += tokens

    def close(self) -> None:
        """Brings everything to the disk and lets other processes have the file."""
        with self._lock:
            if self._stream >= 0:
                os.fsync(self._stream)
                os.close(self._stream)
                self._stream = -1
        self._process_lock.release()

    def _append(self, row: Mapping[str, Any]) -> tuple[int, int]:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        start = os.fstat(self._stream).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._stream, line[written:])
        except OSError:
            os.ftruncate(self._stream, start)
            raise
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            os.fsync(self._stream)
            self._unsynced = 0
        return start, len(line) - 1

    def _read(self) -> None:
        start = 0
        with self.file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._stream, start)
                    break
                try:
                    row = json.loads(line)
                    if _LOST in row:
                        self._lost += Tokens(*row[_LOST])
                        self._spent += Tokens(*row[_LOST])
                    else:
                        answer = _answer(row)
                        if row["key"] not in self._places:
                            self._spent += Tokens(answer.prompt_tokens, answer.completion_tokens)
                        self._places[row["key"]] = start, len(line) - 1
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{self.file}, line {number}, is not an answer") from error
                start += len(line)


def _answer(row: Mapping[str, Any]) -> ChatAnswer:
    return ChatAnswer(
        row["text"], row["finish_reason"], row["prompt_tokens"], row["completion_tokens"], row["is_counted"]
    )


__all__ = ["FILE", "AnswerCache"]
