"""Conversations: their plain form, their images, the instruction in them, and the default chat template.

A conversation is a list of messages, ``{"role": ..., "content": ...}``, with content as text or as a list of parts
``{"type": "text", "text": ...}``, ``{"type": "image"}`` (with ``"image"``, ``"url"``, ``"path"`` or ``"base64"``,
or to be filled from images given beside the conversation) and ``{"type": "video", "video": frames}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.images import is_single_image, sample_frames


DEFAULT_CHAT_TEMPLATE = """\
{%- set marker = image_token if image_token is defined else '<image>' -%}
{%- set state = namespace(begun=false, gap=false) -%}
{%- for message in messages -%}
    {%- if message['content'] is string -%}
        {%- set parts = [{'type': 'text', 'text': message['content']}] -%}
    {%- else -%}
        {%- set parts = message['content'] -%}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}
        {%- if not state.begun -%}{{ bos_token }}{%- set state.begun = true -%}{%- endif -%}
        {%- generation -%}
            {%- if state.gap -%}{{ ' ' }}{%- endif -%}
            {%- for part in parts if part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endfor -%}
            {{- eos_token -}}
        {%- endgeneration -%}
        {%- set state.gap = not eos_token -%}
    {%- else -%}
        {%- set turn = namespace(gap=state.gap) -%}
        {%- for part in parts -%}
            {%- if part['type'] == 'image' -%}
                {{- marker -}}
            {%- elif part['text'] -%}
                {%- if not state.begun -%}{{ bos_token }}{%- set state.begun = true -%}{%- endif -%}
                {%- if turn.gap -%}{{ ' ' }}{%- set turn.gap = false -%}{%- endif -%}
                {{- part['text'] -}}
                {%- set state.gap = not part['text'][-1:].isspace() -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if not state.begun -%}{{ bos_token }}{%- endif -%}
"""
"""The turns one after the other, without role words: a single user turn is the plain instruction InstructBLIP was
trained with. An answer follows after a space and ends with the end token, where the language model has them."""

_SOURCE_KEYS = ("image", "url", "path", "base64", "bytes")


def normalize_conversation(
    messages: Any, image_token: str, num_frames: int, name: str
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Bring messages into the form with content parts, and take their images out.

    Args:
        messages (`Sequence[Mapping]`): A conversation.
        image_token (`str`): Marker of an image in text; each becomes an image part.
        num_frames (`int`): Most frames of a video part; each becomes an image part.
        name (`str`): What errors call the conversation.

    Returns:
        `tuple`: New messages whose content is a list of text and image parts; and for each image part its source,
        or `None` where it is to be filled.

    Raises:
        ValueError: If a message has no role or no content, or a part is of an unknown kind.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"{name} must be a list of messages, got {messages!r:.80}")
    normalized: list[dict[str, Any]] = []
    sources: list[Any] = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(
                f'{name}, message {index}: a message is a dict with "role" and "content", got {message!r:.80}'
            )
        content = message["content"]
        parts = []
        for part in [content] if isinstance(content, (str, Mapping)) else content or []:
            part_kind, payload = _read_part(part, f"{name}, message {index}")
            if part_kind == "text":
                found = _split_at_markers(payload, image_token)
                parts.extend(found)
                sources.extend(None for part in found if part["type"] == "image")
                continue
            images = sample_frames(payload, num_frames) if part_kind == "video" else [payload]
            parts.extend({"type": "image"} for _ in images)
            sources.extend(images)
        normalized.append({**message, "content": parts})
    return normalized, sources


def _split_at_markers(text: str, image_token: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(text.split(image_token)):
        if index:
            # Blanks between the markers that open a text say nothing.
            if parts and all(not part.get("text", "").strip() for part in parts):
                parts = [part for part in parts if part["type"] == "image"]
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _read_part(part: Any, name: str) -> tuple[str, Any]:
    if isinstance(part, str):
        return "text", part
    kind = part.get("type") if isinstance(part, Mapping) else None
    # Columns of `datasets` give every part every key, with None where it has no value.
    if kind == "text" and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind == "image":
        return "image", next((part[key] for key in _SOURCE_KEYS if part.get(key) is not None), None)
    if kind == "image_url":
        url = part.get("image_url")
        return "image", url.get("url") if isinstance(url, Mapping) else url
    if kind == "video":
        frames = part.get("video")
        if frames is not None and not is_single_image(frames) and len(frames):
            return "video", frames
        raise ValueError(f'{name}: a video part holds its frames, {{"type": "video", "video": [frame, ...]}}')
    raise ValueError(
        f'{name}: a part of the content is text or a dict of type "text" (with "text"), "image", "image_url" or '
        f'"video", got {part!r:.80}'
    )


def fill_images(messages: list[dict[str, Any]], sources: list[Any], images: Sequence[Any], name: str) -> list[Any]:
    """Put images that were given beside a conversation into it.

    They fill the image parts that have no source, in order. In a conversation without image parts they go before
    the text of the first user turn.

    Args:
        messages (`list[dict]`): As `normalize_conversation` returns them; changed in place.
        sources (`list`): As `normalize_conversation` returns them.
        images (`Sequence`): Given beside the conversation.
        name (`str`): What errors call the conversation.

    Returns:
        `list`: The images of the conversation, in reading order.

    Raises:
        ValueError: If the numbers differ.
    """
    open_parts = sum(source is None for source in sources)
    if open_parts == len(images):
        remaining = iter(images)
        return [next(remaining) if source is None else source for source in sources]
    user = next((message for message in messages if message["role"] == "user"), None)
    if sources or user is None:
        raise ValueError(
            f"{name} has {open_parts} image parts that hold no image, and {len(images)} images beside it to fill them: "
            "they must be as many"
        )
    user["content"] = [{"type": "image"} for _ in images] + user["content"]
    return list(images)


def instruction_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the Q-Former reads: the user's turns joined by spaces, never an answer.

    A later question leans on an earlier one ("And where is it?"), and the same rule holds in training and in use.

    Args:
        messages (`Sequence[Mapping]`): As `normalize_conversation` returns them.

    Returns:
        `str`: Empty where no user turn has text.
    """
    turns = []
    for message in messages:
        if message["role"] == "user":
            # An image between two words separates them.
            text = "".join(part.get("text", " ") for part in message["content"]).strip()
            turns.extend([text] if text else [])
    return " ".join(turns)


class RenderedInstructions:
    """The instructions of texts that were rendered from conversations, for when such a text is prepared for the model.

    In the text alone, turns of the user cannot be told from answers. Holds the last `MOST` that are not the text itself.
    """

    MOST = 4096

    def __init__(self) -> None:
        self._instructions: dict[str, str] = {}

    def note(self, text: str, instruction: str | None) -> None:
        """Keeps the instruction of a rendered text; `None` where the text is its own."""
        self._instructions.pop(text, None)
        if instruction is not None:
            self._instructions[text] = instruction
        if len(self._instructions) > self.MOST:
            del self._instructions[next(iter(self._instructions))]

    def get(self, text: str) -> str | None:
        """The instruction of a text, or `None` where it was not rendered here, or is its own instruction."""
        return self._instructions.get(text)


__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "RenderedInstructions",
    "fill_images",
    "instruction_of",
    "normalize_conversation",
]
