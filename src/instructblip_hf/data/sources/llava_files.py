"""Files in LLaVA's format: a JSON list of conversations, with images in a folder.

LLaVA-Instruct (``conversation_58k``, ``detail_23k``, ``complex_reasoning_77k``, ``llava_instruct_150k`` and ``80k``), the
mix of LLaVA 1.5 (``llava_v1_5_mix665k``, with rows of text alone), and the captions of the first stages (CC3M-595K's
``chat.json``, LCS-558K's) are published in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..schema import Example
from .datasets import ReadExamples
from .fields import identifier, images_of
from .files import streamed_json_rows
from .llava_instruct import llava_messages


class LlavaFileDataset(ReadExamples):
    """Conversations of a file ``[{"id", "image", "conversations": [{"from", "value"}]}]``, as examples.

    Args:
        path (`str` or `Path`): The ``.json`` file.
        image_root (`str` or `Path`, *optional*): Folder that ``image`` is relative to and may not leave. Defaults to the
            file's folder.
        name (`str`, *optional*): Name of the dataset. Defaults to the file's.
        max_bad_rows (`int`, *optional*, defaults to 0): How many malformed rows may be left out, with a warning that
            counts them.

    Attributes:
        bad_rows (`int`): How many were left out.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        RowFileError: For more malformed rows than that, with one line for each of the first `SHOWN_PROBLEMS`.
        ValueError: If the file holds no list, is damaged, or has no rows.
    """

    def __init__(
        self, path: str | Path, image_root: str | Path | None = None, name: str | None = None, max_bad_rows: int = 0
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        self.image_root = Path(image_root) if image_root is not None else self.path.parent
        if not self.image_root.is_dir():
            raise FileNotFoundError(f"image_root: there is no folder {self.image_root}")
        self.name = name or self.path.stem
        self._keep(self._rows(), self.name, max_bad_rows, str(self.path))

    def _rows(self) -> Iterator[tuple[str, Example | str]]:
        for number, (where, row) in enumerate(streamed_json_rows(self.path)):
            try:
                yield where, row if isinstance(row, str) else _example(row, self.name, number)
            except ValueError as error:
                yield where, str(error)


def _example(row: Any, name: str, number: int) -> Example:
    images: list[Any] = images_of(row) if row.get("image") is not None else []
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and turns[0].get("from") == "gpt":
        # Some texts of the mix of LLaVA 1.5 open with an answer, which LLaVA leaves out.
        turns = turns[1:]
    return {
        # Published ids come twice, and rows of text alone have some of another kind.
        "id": f"{identifier(row, 'id')}-{number}",
        "dataset": name,
        "category": "llava_instruct",
        "images": images,
        "answers": [],
        "messages": llava_messages(turns, len(images)),
    }


__all__ = ["LlavaFileDataset"]
