"""Training rows: prompt and answer tokens with labels on the answers alone.

Answers are tokenised apart from what stands before them, as LAVIS does for InstructBLIP, so that the tokens of a
prompt are those that `generate` will be given. A row that cannot be aligned is an error that names it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..constants import IGNORE_INDEX
from .chat import fill_images, instruction_of, normalize_conversation
from .prompt_tokens import TokenRow, encode_texts, pad_rows, truncate_row


logger = logging.getLogger(__name__)

_ALLOWED_KEYS = '"prompt" and "completion", or "messages", with "images" (a list) or "image" where it has any'
# In place of the number of an answer, for tokens that belong to none or to one that is not learnt.
_NO_TURN = -1


@dataclass
class TrainingRows:
    """Encoded rows.

    Args:
        data (`dict`): ``input_ids``, ``attention_mask`` and ``labels`` as lists of equal length.
        images (`list[list]`): Image sources of each row.
        instructions (`list[str]`): What the Q-Former reads, one a row.
    """

    data: dict[str, Any]
    images: list[list[Any]]
    instructions: list[str]


@dataclass
class _Row:
    """A row as text: ``segments`` alternate between other text and answers, and end with the last answer."""

    name: str
    images: list[Any]
    instruction: str
    segments: list[str] = field(default_factory=list)
    trained_answers: int = 1


def encode_training_rows(
    processor: Any,
    examples: Sequence[Mapping[str, Any]],
    is_encoder_decoder: bool,
    max_prompt_length: int | None,
    max_completion_length: int | None,
    pad_to_multiple_of: int | None,
) -> TrainingRows:
    """Encode rows for `VisionLanguageProcessor.encode_examples`, which documents arguments and errors."""
    if isinstance(examples, Mapping) or not len(examples):
        raise ValueError("examples must be a non-empty list of rows")
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, which ends every answer: set tokenizer.eos_token")
    rows = [_read_row(processor, example, index, is_encoder_decoder) for index, example in enumerate(examples)]
    encode = _encode_seq2seq if is_encoder_decoder else _encode_causal
    encoded = [encode(processor, row, max_prompt_length, max_completion_length) for row in rows]
    cut = sum(was_cut for _, _, was_cut in encoded)
    if cut and not getattr(processor, "_warned_of_cut_completions", False):
        processor._warned_of_cut_completions = True
        logger.warning(
            "%d of %d completions are longer than max_completion_length=%d: they are cut and have no end token "
            "(said once)",
            cut,
            len(rows),
            max_completion_length,
        )

    def padded_length(lengths: list[int]) -> int:
        multiple = pad_to_multiple_of or 1
        return -(-max(lengths) // multiple) * multiple

    token_rows = [tokens for tokens, _, _ in encoded]
    ids, masks, _ = pad_rows(
        token_rows,
        processor.image_token_id,
        tokenizer.pad_token_id,
        padded_length([len(tokens) for tokens in token_rows]),
        "right",
    )
    all_labels = [labels for _, labels, _ in encoded]
    length = padded_length([len(labels) for labels in all_labels])
    padded_labels = [labels + [IGNORE_INDEX] * (length - len(labels)) for labels in all_labels]
    data = {"input_ids": ids, "attention_mask": masks, "labels": padded_labels}
    return TrainingRows(data, [row.images for row in rows], [row.instruction for row in rows])


# --- reading ------------------------------------------------------------------------------------------------------


def _read_row(processor: Any, example: Mapping[str, Any], index: int, is_encoder_decoder: bool) -> _Row:
    name = f"row {index}"
    images = images_of_row(example, name)
    form = form_of_row(example, name)
    if isinstance(form, TextRow):
        row = _read_strings(processor, form.prompt, form.completion, images, name)
    else:
        row = _read_messages(processor, form.messages, form.completion_length, images, name, is_encoder_decoder)
    for answer in row.segments[1::2]:
        if processor.image_token in answer:
            raise ValueError(f"{name}: an answer holds the image marker {processor.image_token}")
    instruction = example.get("qformer_text")
    if instruction is not None:
        if not isinstance(instruction, str):
            raise ValueError(f'{name}: "qformer_text" must be text, got {type(instruction).__name__}')
        row.instruction = instruction
    return row


@dataclass(frozen=True)
class TextRow:
    """A prompt and a completion as text."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class MessagesRow:
    """A conversation, and how many messages at its end are the completion; `None` where all answers are to be learnt."""

    messages: Any
    completion_length: int | None


def form_of_row(example: Mapping[str, Any], name: str) -> TextRow | MessagesRow:
    """Which of TRL's forms a row has, which errors call ``name``.

    Raises:
        ValueError: If it has none of them.
    """
    messages, prompt, completion = example.get("messages"), example.get("prompt"), example.get("completion")
    if messages is not None:
        return MessagesRow(messages, None)
    if prompt is None or completion is None:
        raise ValueError(f"{name} needs {_ALLOWED_KEYS}; it has {sorted(map(str, example))}")
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise ValueError(f'{name}: "completion" is empty')
        return TextRow(prompt, completion)
    if isinstance(prompt, (list, tuple)) and isinstance(completion, (list, tuple)):
        if not completion:
            raise ValueError(f'{name}: "completion" is empty')
        return MessagesRow([*prompt, *completion], len(completion))
    raise ValueError(
        f'{name}: "prompt" and "completion" must both be text or both be lists of messages, got '
        f"{type(prompt).__name__} and {type(completion).__name__}"
    )


def images_of_row(example: Any, name: str) -> list[Any]:
    """Image sources of a row, which errors call ``name``.

    Raises:
        ValueError: If the row is no dict, or ``images`` is no list.
    """
    if not isinstance(example, Mapping):
        raise ValueError(f"{name} must be a dict with {_ALLOWED_KEYS}, got {type(example).__name__}")
    images = example.get("images")
    if images is None:
        images = [] if example.get("image") is None else [example["image"]]
    if not isinstance(images, (list, tuple)):
        raise ValueError(f'{name}: "images" must be a list, got {type(images).__name__}; a single one goes in "image"')
    return list(images)


def _read_strings(processor: Any, prompt: str, completion: str, images: list[Any], name: str) -> _Row:
    answer = completion.strip()
    gap = " " if prompt and not prompt[-1].isspace() else ""
    instruction = processor._without_special_tokens(prompt)
    return _Row(name, images, instruction, [processor.mark_images(prompt, len(images)), gap + answer])


def _read_messages(
    processor: Any,
    messages: Any,
    completion_length: int | None,
    images: list[Any],
    name: str,
    is_encoder_decoder: bool,
) -> _Row:
    normalized, images, trained = read_conversation(messages, completion_length, images, processor.image_token, name)
    answers = sum(message["role"] == "assistant" for message in normalized)
    if is_encoder_decoder and completion_length is not None and trained > 1:
        raise ValueError(f'{name}: "completion" has {trained} assistant turns; a sequence-to-sequence row has one')
    # A sequence-to-sequence encoder has one end token, at its end; a causal row one after each answer.
    end_token = "" if is_encoder_decoder else processor.tokenizer.eos_token
    try:
        texts, spans = processor.render([normalized], return_spans=True, eos_token=end_token)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if len(spans[0]) != answers:
        raise ValueError(
            f"{name}: the chat template marks {len(spans[0])} of {answers} assistant turns with "
            "{% generation %}, which tells answers from the rest"
        )
    segments, position = [], 0
    for start, stop in spans[0]:
        segments += [texts[0][position:start], texts[0][start:stop]]
        position = stop
    return _Row(name, images, instruction_of(normalized), segments, trained)


def read_conversation(
    messages: Any, completion_length: int | None, images: list[Any], image_token: str, name: str
) -> tuple[list[dict[str, Any]], list[Any], int]:
    """A conversation to learn from in its plain form, its images in reading order, and how many answers are learnt.

    Args:
        messages (`Sequence[Mapping]`): As `normalize_conversation` takes them.
        completion_length (`int`, *optional*): How many of the last messages are learnt from; all of them if not given.
        images (`list`): Images given beside the conversation.
        image_token (`str`): The marker of an image in text.
        name (`str`): What errors call the row.

    Raises:
        ValueError: If the conversation has no answer, does not end with one, or holds an empty one or images in one.
    """
    normalized, sources = normalize_conversation(messages, image_token, num_frames=4, name=name)
    roles = [message["role"] for message in normalized]
    if "assistant" not in roles:
        raise ValueError(f'{name} has no "assistant" turn to learn; its roles are {roles}')
    if roles[-1] != "assistant":
        raise ValueError(f'{name} must end with an "assistant" turn; its roles are {roles}')
    for position, message in enumerate(normalized):
        if message["role"] == "assistant":
            if any(part["type"] != "text" for part in message["content"]):
                raise ValueError(f"{name}, message {position}: an assistant turn holds text only")
            if not "".join(part["text"] for part in message["content"]).strip():
                raise ValueError(f"{name}, message {position}: the assistant turn is empty")
    if completion_length is not None and roles[-completion_length] != "assistant":
        raise ValueError(
            f'{name}: "completion" must start with an "assistant" turn; it has {roles[-completion_length:]}'
        )
    in_completion = len(roles) if completion_length is None else completion_length
    trained = roles[-in_completion:].count("assistant")
    return normalized, fill_images(normalized, sources, images, name), trained


# --- encoding -----------------------------------------------------------------------------------------------------


def _encode_prompt(processor: Any, row: _Row, text: str) -> TokenRow:
    """Tokens up to the first answer, or up to the last one; all of the row's images may be here or some."""
    in_row = sum(segment.count(processor.image_token) for segment in row.segments)
    if in_row and in_row != len(row.images):
        raise ValueError(
            f"{row.name} holds {in_row} {processor.image_token} markers for {len(row.images)} images: write one marker "
            "for each image, or none to have all images in front"
        )
    here = text.count(processor.image_token) if in_row else len(row.images)
    return encode_texts(
        processor.tokenizer,
        [text],
        [here],
        processor.image_token,
        processor.tokens_per_image if row.images else 1,
        images_before_bos=processor.images_before_bos,
    )[0]


def _encode_causal(
    processor: Any, row: _Row, max_prompt_length: int | None, max_completion_length: int | None
) -> tuple[TokenRow, list[int], bool]:
    tokenizer = processor.tokenizer
    end_id, end_token = tokenizer.eos_token_id, tokenizer.eos_token
    tokens = _encode_prompt(processor, row, row.segments[0])
    if tokens.ending:
        tokens.drop(range(len(tokens.ids) - tokens.ending, len(tokens.ids)))
    turns = [_NO_TURN] * len(tokens.ids)
    answers = len(row.segments) // 2
    if answers > 1 and processor.end_token_id != end_id:
        raise ValueError(
            f"{row.name} has {answers} answers, and the processor's end_token {processor.end_token!r} ends one alone: set "
            "processor.end_token to None for conversations"
        )
    for turn in range(answers - 1):
        answer = encode_answer(tokenizer, row.segments[2 * turn + 1])
        following = row.segments[2 * turn + 2]
        if not row.segments[2 * turn + 1].endswith(end_token) and following.startswith(end_token):
            # A template that writes the end token outside of its generation block.
            answer.append(end_id)
            following = following.removeprefix(end_token)
        between = _encode_between(processor, following, after_end=answer[-1] == end_id)
        is_trained = turn >= answers - row.trained_answers
        tokens.ids += answer + between.ids
        tokens.fixed += [False] * len(answer) + between.fixed
        turns += [turn if is_trained else _NO_TURN] * len(answer) + [_NO_TURN] * len(between.ids)

    labels = [token_id if turn != _NO_TURN else IGNORE_INDEX for token_id, turn in zip(tokens.ids, turns)]
    if max_prompt_length is not None:
        removed = set(_truncate_prompt(tokens, max_prompt_length, row.name))
        # What is left of an answer that lost its beginning is context, not something to learn.
        broken = {turns[position] for position in removed}
        labels = [
            label if turn not in broken else IGNORE_INDEX
            for position, (label, turn) in enumerate(zip(labels, turns))
            if position not in removed
        ]
    answer, was_cut = _close(
        encode_answer(tokenizer, row.segments[-1].removesuffix(end_token)),
        processor.end_token_id,
        max_completion_length,
    )
    tokens.ids += answer
    tokens.fixed += [False] * len(answer)
    return tokens, [IGNORE_INDEX] * tokens.opening + labels + answer, was_cut


def _encode_seq2seq(
    processor: Any, row: _Row, max_prompt_length: int | None, max_completion_length: int | None
) -> tuple[TokenRow, list[int], bool]:
    tokenizer = processor.tokenizer
    tokens = _encode_prompt(processor, row, "".join(row.segments[:-1]))
    if max_prompt_length is not None:
        _truncate_prompt(tokens, max_prompt_length, row.name)
    target = encode_target(tokenizer, row.segments[-1])
    labels, was_cut = _close(target, tokenizer.eos_token_id, max_completion_length)
    return tokens, labels, was_cut


def _truncate_prompt(tokens: TokenRow, max_prompt_length: int, name: str) -> list[int]:
    try:
        return truncate_row(tokens, max_prompt_length, "left", "max_prompt_length")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def encode_answer(tokenizer: Any, text: str) -> list[int]:
    """Tokens of an answer without special tokens added, as they come out of `generate` after the text before it."""
    # SentencePiece tokenizers mark the start of a word by themselves, and would mark a space a second time.
    if "".join(tokenizer.tokenize("a")).startswith("\u2581"):
        text = text.lstrip()
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode_target(tokenizer: Any, text: str) -> list[int]:
    """Tokens of an answer for the decoder of a sequence-to-sequence model, without its end token."""
    target = list(tokenizer(text_target=text.strip(), verbose=False)["input_ids"])
    return target[:-1] if target[-1:] == [tokenizer.eos_token_id] else target


def _encode_between(processor: Any, text: str, after_end: bool) -> TokenRow:
    """Tokens of what stands between two answers, split into words as they are inside of the whole conversation."""
    tokenizer = processor.tokenizer
    before = f"a{tokenizer.eos_token}" if after_end else ""
    row = encode_texts(
        tokenizer,
        [before + text],
        [text.count(processor.image_token)],
        processor.image_token,
        processor.tokens_per_image if processor.image_token in text else 1,
        add_special_tokens=False,
    )[0]
    if after_end:
        row.drop(range(len(tokenizer("a", add_special_tokens=False)["input_ids"]) + 1))
    # Nothing opens a row here: placeholders that do belong with the other tokens.
    row.ids = [processor.image_token_id] * row.opening + row.ids
    row.fixed = [True] * row.opening + row.fixed
    return row


def _close(answer: list[int], end_id: int, max_length: int | None) -> tuple[list[int], bool]:
    if max_length is not None and len(answer) + 1 > max_length:
        return answer[:max_length], True
    return [*answer, end_id], False


__all__ = [
    "MessagesRow",
    "TextRow",
    "TrainingRows",
    "encode_answer",
    "encode_target",
    "encode_training_rows",
    "form_of_row",
    "images_of_row",
    "read_conversation",
]
