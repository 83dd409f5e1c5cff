"""Our rows as TRL's trainers take them: always conversations, always with ``images``, in a `datasets.Dataset`.

TRL takes rows of images in the same two forms as our collators, but adds neither beginning nor end token, nor the space
between the two, to a prompt and a completion that are plain text. As a question and an answer in a conversation they get
all three from the processor's chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..constants import IMAGE_TOKEN


if TYPE_CHECKING:
    from datasets import Dataset


FORMS = ("messages", "prompt_completion")
"""The whole conversation, to be trained with ``assistant_only_loss=True``; or apart where the learning begins."""


class _OpenedRows:
    """Turns a batch of row numbers into a batch of rows, as `datasets.Dataset.with_transform` calls it."""

    def __init__(self, rows: Any, form: str, image_token: str) -> None:
        self.rows, self.form, self.image_token = rows, form, image_token

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        opened = [trl_row(self.rows[number], self.form, self.image_token) for number in batch["row"]]
        return {key: [row[key] for row in opened] for key in opened[0]} if opened else {}


def trl_dataset(rows: Any, form: str = "messages", image_token: str = IMAGE_TOKEN) -> Dataset:
    """Rows as a `datasets.Dataset` that opens each when it is asked for.

    The dataset has one column of row numbers, so nothing is copied to disk, and TRL needs
    ``remove_unused_columns=False`` in order not to drop it.

    Args:
        rows (`Sequence[Mapping]`):
            Anything with ``__len__`` and ``__getitem__``: a list, a `RowFileDataset`, a `MixtureDataset`.
        form (`str`, *optional*, defaults to `"messages"`): One of `FORMS`, see `trl_row`.
        image_token (`str`, *optional*, defaults to `"<image>"`): Marker of an image in text, see `trl_row`.

    Returns:
        `datasets.Dataset`: As long as ``rows``.

    Raises:
        ValueError: If ``form`` is not one of `FORMS`; and when a row is read, as `trl_row` does.
    """
    from datasets import Dataset

    _check_form(form)
    return Dataset.from_dict({"row": range(len(rows))}).with_transform(_OpenedRows(rows, form, image_token))


def trl_row(row: Mapping[str, Any], form: str = "messages", image_token: str = IMAGE_TOKEN) -> dict[str, Any]:
    """A row of ours for TRL. Every content is a list of parts, so that all rows fit into one Arrow schema.

    Args:
        row (`Mapping`):
            With ``"prompt"`` and ``"completion"`` (text or messages), or ``"messages"``; with ``"images"`` (a list),
            ``"image"`` or neither. Other keys are left out.
        form (`str`, *optional*, defaults to `"messages"`):
            `"messages"` gives the whole conversation, all of whose answers are learnt with
            ``assistant_only_loss=True`` in `SFTConfig`. `"prompt_completion"` sets the completion apart; of
            ``"messages"`` that is the last answer alone.
        image_token (`str`, *optional*, defaults to `"<image>"`):
            Marker of an image in text, the processor's ``image_token``. Where there is none, images come before the
            first words of a user.

    Returns:
        `dict`: ``"images"`` and ``"messages"``, or ``"images"``, ``"prompt"`` and ``"completion"``.

    Raises:
        ValueError: If ``form`` is not one of `FORMS`, the row has another shape, its images are not as many as its
            places for them, or its instruction cannot be had in TRL.
    """
    _check_form(form)
    if row.get("qformer_text") is not None:
        raise ValueError(
            'the row has "qformer_text", which TRL drops: give SFTTrainer data_collator=VisionLanguageCollator(processor)'
            " and remove_unused_columns=False, and the rows as they are"
        )
    images = row.get("images")
    if images is None:
        images = [] if row.get("image") is None else [row["image"]]
    prompt, completion = _turns(row)
    turns = [_with_parts(message, image_token) for message in [*prompt, *completion]]
    _place_images(turns, len(images))
    if form == "prompt_completion":
        return {
            "images": list(images),
            "prompt": turns[: len(prompt)],
            "completion": turns[len(prompt) :],
        }
    if "messages" not in row and any(message["role"] == "assistant" for message in prompt):
        raise ValueError(
            "the row's prompt has turns of the assistant, which are not to be learnt, and in one list of messages they "
            'would be: use form="prompt_completion"'
        )
    return {"images": list(images), "messages": turns}


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; allowed are {', '.join(FORMS)}")


def _turns(row: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """What comes before the part that is learnt, and that part."""
    messages, prompt, completion = row.get("messages"), row.get("prompt"), row.get("completion")
    if messages is not None:
        turns = list(messages)
        if not turns or turns[-1]["role"] != "assistant":
            raise ValueError('the row\'s "messages" must end with an answer, a message of the role "assistant"')
        return turns[:-1], turns[-1:]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]
    if prompt and completion and not isinstance(prompt, str) and not isinstance(completion, str):
        return list(prompt), list(completion)
    raise ValueError(
        'a row needs "messages", or "prompt" and "completion", both text or both lists of messages; it has '
        f"{', '.join(sorted(map(str, row)))}"
    )


def _with_parts(message: Mapping[str, Any], image_token: str) -> dict[str, Any]:
    content = message["content"]
    parts: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "image":
            if any(part.get(key) is not None for key in part if key not in ("type", "text")):
                raise ValueError('an image part holds an image of its own; put it into the row\'s "images"')
            parts.append({"type": "image", "text": None})
        elif part["type"] == "text":
            parts += _split_at_markers(part["text"], image_token)
        else:
            raise ValueError(f"a part of the content is of type {part['type']!r}; allowed are image, text")
    return {"role": message["role"], "content": parts}


def _split_at_markers(text: str, image_token: str) -> list[dict[str, Any]]:
    *before, last = text.split(image_token)
    parts: list[dict[str, Any]] = []
    for piece in before:
        # Blanks between the markers that open a text say nothing, as in the processor.
        if piece.strip() or any(part["type"] == "text" for part in parts):
            parts.append({"type": "text", "text": piece})
        parts.append({"type": "image", "text": None})
    return [part for part in [*parts, {"type": "text", "text": last}] if part["text"] != ""]


def _place_images(turns: list[dict[str, Any]], images: int) -> None:
    """Puts the images in front of the first words of a user, unless the turns say where they are."""
    places = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    user = next((turn for turn in turns if turn["role"] == "user"), None)
    if not places and images and user is not None:
        user["content"] = [{"type": "image", "text": None}] * images + user["content"]
    elif places != images:
        raise ValueError(f"the row has {images} images and {places} places for them in its turns")


__all__ = ["FORMS", "trl_dataset", "trl_row"]
